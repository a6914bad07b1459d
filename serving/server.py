"""The server process, which listens, drains on SIGTERM and exits."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import cast

import uvicorn

from common.addresses import guard_output
from common.memory import settle
from serving.app import make_app
from serving.connection import Connection
from serving.listening import allow_connections, refuse_connections
from serving.service import Service, State
from serving.settings import Settings

# How long the server still answers open connections after a drain, with status 503.
_LAST_CALL_SECONDS = 1.0


class Server(uvicorn.Server):
    """A uvicorn server that keeps answering while it finishes the requests in flight.

    During this drain, the health route and new requests get status 503, so that a load balancer
    sees a server that is shutting down and not a broken one. Each answer closes its connection.
    Every request that was sent before the end gets an answer.

    Args:
        settings: The settings of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self.service = Service(settings)
        self._deadline: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(
            make_app(self.service),
            host=settings.host,
            port=settings.port,
            access_log=False,
            log_config=None,
            server_header=False,
            # Longer than load balancers keep idle connections, so that they close first.
            timeout_keep_alive=620,
            # Requests that are still in flight after the drain are cut off.
            timeout_graceful_shutdown=2,
            lifespan="on",
            http=cast(type[asyncio.Protocol], partial(Connection, self.service)),
            ws="none",
        )
        super().__init__(config)

    @property
    def url(self) -> str:
        """The address on which the started server listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and log the address."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            logging.getLogger("serving").info("listening on %s", self.url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, and exit at once on the second one."""
        self.should_exit = self._deadline is not None
        self.drain()

    def drain(self) -> None:
        """Refuse new requests from now on, and exit when no request is in flight."""
        self.service.drain()
        self._deadline = time.monotonic() + self.service.settings.drain_seconds
        if self._loop is not None:
            # A signal, or a call from another thread, can interrupt the event loop anywhere.
            self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        """Let each connection close after the answer that it waits for."""
        for connection in self._connections():
            connection.leave()

    def _connections(self) -> list[Connection]:
        return [c for c in self.server_state.connections if isinstance(c, Connection)]

    async def on_tick(self, counter: int) -> bool:
        """Return whether to exit; uvicorn calls this ten times a second."""
        if self._deadline is not None:
            is_busy = self.service.in_flight or any(c.is_busy for c in self._connections())
            if not is_busy or time.monotonic() > self._deadline:
                return True
        if self.service.state is State.FAILED and self.service.settings.ends_when_failed:
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down; after a drain, first answer the clients that have connected by then."""
        if self._deadline is not None and not self.should_exit:
            for server in self.servers:
                for listener in server.sockets:
                    refuse_connections(listener)
            await asyncio.sleep(_LAST_CALL_SECONDS)
        await super().shutdown(sockets)


def serve(settings: Settings, listener: socket.socket) -> int:
    """Run a server until it is stopped.

    Args:
        settings: The settings of the server.
        listener: The socket that it listens on.

    Returns:
        The exit code: 0, or 1 if the server did not start or the model failed.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    guard_output()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # By default, a thread that needs the interpreter waits up to 5 ms for a thread that computes.
    sys.setswitchinterval(0.0005)
    allowed = allow_connections(settings.max_connections)
    server = Server(replace(settings, max_connections=allowed))
    server.service.on_loaded = settle
    server.run(sockets=[listener])
    return 0 if server.started and server.service.state is not State.FAILED else 1
