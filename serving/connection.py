"""The limits of one connection: how long and how much a client may send and read.

uvicorn's protocol parses requests and writes answers. This module adds the limits that it lacks.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.lingering import Lingering
from serving.refusals import Refusal
from serving.service import Service, State

# The limit for the request line and headers of one request together. In a chunked body, extensions
# and trailers count too.
MAX_HEAD_BYTES = 65_536


class Connection(HttpToolsProtocol):
    """A connection of uvicorn with limits on time, header bytes and the number of connections.

    Args:
        service: The service, whose settings hold the limits and whose state says whether the server
            is draining.
        args: Positional arguments of HttpToolsProtocol.
        kwargs: Keyword arguments of HttpToolsProtocol.
    """

    def __init__(self, service: Service, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._service = service
        self._seconds = service.settings.read_timeout_seconds
        self._link: Lingering = None  # type: ignore[assignment]
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        # Whether a request has started to arrive and is not complete yet.
        self._is_partial = False
        # `cycle` belongs to the last request with complete headers. This is the cycle before it.
        self._before: Any = None
        # The bytes of the head so far, and the bytes received since the parser last passed any on.
        # Bytes that the parser holds back after it has passed some on are not counted.
        self._head = self._silent = 0
        # The bytes that the parser is reading, and those that follow the head of a request that
        # offers to upgrade. Such a head is repeated to another parser without its callbacks.
        self._data = self._rest = b""
        self._is_repeating = False
        self.waits_since = time.monotonic()

    @property
    def is_answering(self) -> bool:
        """Whether a complete request has no answer yet."""
        cycle = self.cycle
        return bool(self.pipeline) or (
            cycle is not None and not cycle.more_body and not cycle.response_complete
        )

    @property
    def is_busy(self) -> bool:
        """Whether the client is still sending a request or reading an answer."""
        return (
            not self._link.is_closing() and (self._is_partial or self.is_answering)
        ) or self._link.has_unsent()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit, and close another connection if there are too many."""
        self._link = Lingering(transport, self.loop, self._seconds)
        super().connection_made(cast(asyncio.Transport, self._link))
        self._await_request()
        if len(self.connections) > self._service.settings.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers when the connection has ended."""
        self._link.lost()
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; the time limit of the next request starts with its first byte."""
        if self._link.is_closing():
            self._link.discard()
            return
        self._silent += len(data)
        self._is_partial = True
        self._rest = data
        while self._rest:
            self._data, self._rest = self._rest, b""
            super().data_received(self._data)
        if not self._is_partial:
            self._stop_reading_timer()
            self.waits_since = time.monotonic()
        elif self._head + self._silent > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._reading is None:
            self._await_request()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether a client that has finished sending still gets answers."""
        self._link.ended()
        if self.pipeline and self.pipeline[0][0].more_body:
            # This request waits behind others and will never be complete, so the request before it
            # is the last one to answer.
            self.pipeline.popleft()
            self.cycle = self._before
        if self._link.is_closing() or not self.is_answering:
            return False
        self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """Note that a request has started."""
        if not self._is_repeating:
            self._is_partial, self._head = True, 0
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count a part of the request's path."""
        if not self._is_repeating:
            self._count_head(len(url))
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer after a chunked body."""
        if not self._is_repeating:
            self._count_head(len(name) + len(value) + 4)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the app on the request, whose headers are complete."""
        if self._is_repeating:
            return
        self._before = self.cycle
        super().on_headers_complete()
        if self._service.state is State.DRAINING:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self._silent = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        if self.parser.should_upgrade():
            # The parser takes everything after the head for another protocol.
            return
        self._is_partial, self._silent = False, 0
        super().on_message_complete()
        # uvicorn does not do this if the answer was sent before the whole body had arrived.
        self.cycle.more_body = False

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore the offer of another protocol, and read the body of the request as usual.

        uvicorn calls this method while it handles the parser's exception, which says where the head
        ends. Clients of HTTP/2 offer an upgrade with every first request.
        """
        stopped = cast(httptools.HttpParserUpgrade, sys.exception())
        self._rest = self._data[stopped.args[0] :]
        sizes = (b"content-length", b"transfer-encoding")
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] in sizes]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_repeating = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(lines))
        self._is_repeating = False

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, or a head that is too large."""
        if self._head > MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            self._refuse(Refusal(400, "the request is not valid HTTP/1.1"))

    def pause_writing(self) -> None:
        """Start a timer for a client that reads its answer too slowly."""
        super().pause_writing()
        self._writing = self.loop.call_later(self._seconds, self._link.abort)

    def resume_writing(self) -> None:
        """Stop the timer, since the client has read most of the answer."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def leave(self) -> None:
        """Let the connection close after an answer, instead of waiting for more requests."""
        if self.cycle is not None:
            self.cycle.keep_alive = False
        for cycle, _ in self.pipeline:
            cycle.keep_alive = False

    def shutdown(self) -> None:
        """End the connection as the server shuts down, after the answers that are under way.

        A request that is still arriving is refused, and an idle connection is closed.
        """
        if self.is_answering:
            self.leave()
        elif self._is_partial:
            message = "this server is shutting down"
            self._refuse(Refusal(503, message, headers={"Retry-After": "1"}))
        else:
            self._link.close()

    def _count_head(self, size: int) -> None:
        self._silent = 0
        self._head += size
        if self._head > MAX_HEAD_BYTES:
            # The parser stops, and its caller calls send_400_response.
            raise ValueError

    def _await_request(self) -> None:
        self._reading = self.loop.call_later(self._seconds, self._read_too_long)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _read_too_long(self) -> None:
        """Refuse a request that did not arrive in time, or close an idle connection."""
        if self.is_answering:
            # This request waits for the answers to earlier ones, so its time starts again.
            self._await_request()
        elif self._is_partial:
            self._refuse(
                Refusal(
                    408,
                    f"the request did not arrive completely within {self._seconds:g} s: send it "
                    "faster, or send fewer instances",
                )
            )
        else:
            self._link.close()

    def _refuse_head(self) -> None:
        message = f"the request line and headers have more than {MAX_HEAD_BYTES:,} bytes"
        self._refuse(Refusal(431, message))

    def _refuse(self, refused: Refusal) -> None:
        """Answer the request that is not complete, and close the connection."""
        if self._link.is_closing():
            return
        if self.is_answering:
            # An earlier request gets its answer first, and that answer is the last one.
            self._link.pause_reading()
            self.leave()
            return
        cycle = self.cycle
        if cycle is None or not cycle.more_body:
            self._answer(refused)
        elif not cycle.response_started:
            # The app still waits for the body. Answer, and wake it as for a client that left.
            self._answer(refused)
            cycle.disconnected = True
            cycle.message_event.set()
        self._link.close()

    def _answer(self, refused: Refusal) -> None:
        response = refused.response()
        headers = [
            *self.server_state.default_headers,
            *response.raw_headers,
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self._link.write(STATUS_LINE[refused.status] + lines + b"\r\n" + bytes(response.body))
        self._service.metrics.requests.labels(str(refused.status)).inc()

    def _make_room(self) -> None:
        """Close the connection that has waited longest for a request; this one if all are busy."""
        others = [c for c in self.connections if c is not self and isinstance(c, Connection)]
        # Connections that linger after close() still count, so one of them is ended at once.
        for closing in (c for c in others if c._link.is_closing()):
            closing._link.abort()
            break
        waiting = [c for c in others if not c._link.is_closing() and not c.is_answering]
        if not waiting:
            self._refuse(
                Refusal(503, "too many connections: try again later", headers={"Retry-After": "1"})
            )
            return
        longest = min(waiting, key=lambda c: c.waits_since)
        if longest._is_partial:
            message = "the server needs the connection for other clients: send the request faster"
            longest._refuse(Refusal(408, message))
        else:
            longest._link.close()
