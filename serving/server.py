"""The process: listens, drains on SIGTERM, ends."""

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
from serving.app import make_app
from serving.connection import Connection
from serving.listening import allow_connections, refuse_connections
from serving.service import Service, State
from serving.settings import Settings

# After a drain, how long connections that are open are still answered: 503.
_LAST_CALL_SECONDS = 1.0


class Server(uvicorn.Server):
    """uvicorn's server, which goes on answering while requests in flight are finished.

    Meanwhile health is 503 and new requests are refused, so that whoever balances load can
    tell that this server ends from its being broken. Each answer closes its connection, and
    what was sent before the end is answered.
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
            # Above what load balancers keep theirs, so that they close first.
            timeout_keep_alive=620,
            # What is still in flight after the drain is cut off.
            timeout_graceful_shutdown=2,
            lifespan="on",
            http=cast(type[asyncio.Protocol], partial(Connection, self.service)),
            ws="none",
        )
        super().__init__(config)

    @property
    def url(self) -> str:
        """Where it listens, once it is started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; tells where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            logging.getLogger("serving").info("listening on %s", self.url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to end: the first drains, the second ends at once."""
        self.should_exit = self._deadline is not None
        self.drain()

    def drain(self) -> None:
        """No new requests from now on; ends when none is in flight."""
        self.service.drain()
        self._deadline = time.monotonic() + self.service.settings.drain_seconds
        if self._loop is not None:
            # A signal comes in the middle of anything, and so do calls of other threads.
            self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        """The answer that each connection waits for is its last."""
        for connection in self._connections():
            connection.leave()

    def _connections(self) -> list[Connection]:
        return [c for c in self.server_state.connections if isinstance(c, Connection)]

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._deadline is not None:
            is_busy = self.service.in_flight or any(c.is_busy for c in self._connections())
            if not is_busy or time.monotonic() > self._deadline:
                return True
        if self.service.state is State.FAILED and self.service.settings.ends_when_failed:
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends; after a drain, when those who had connected by then are answered."""
        if self._deadline is not None and not self.should_exit:
            for server in self.servers:
                for listener in server.sockets:
                    refuse_connections(listener)
            await asyncio.sleep(_LAST_CALL_SECONDS)
        await super().shutdown(sockets)


def serve(settings: Settings, listener: socket.socket) -> int:
    """Settings, a socket -> the exit code, when the server has ended: 1 if it could not serve."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    guard_output()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Else a thread that wants the interpreter waits 5 ms for one that computes.
    sys.setswitchinterval(0.0005)
    allowed = allow_connections(settings.max_connections)
    server = Server(replace(settings, max_connections=allowed))
    server.run(sockets=[listener])
    return 0 if server.started and server.service.state is not State.FAILED else 1
