"""One connection: how long and how much a client may take to send a request and take its answer.

uvicorn's protocol parses and answers; what it leaves without a limit has one here.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.lingering import Lingering
from serving.refusals import Refusal
from serving.service import Service, State

# Of one request: its line and headers, and in a chunked body what is neither data nor its size.
MAX_HEAD_BYTES = 65_536


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits: time to read and write, bytes of headers, neighbours.

    service: its settings hold the limits, its state says whether the server drains.
    """

    def __init__(self, service: Service, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._service = service
        self._seconds = service.settings.read_timeout_seconds
        self._link: Lingering = None  # type: ignore[assignment]
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        # Whether a request has begun that has not arrived whole.
        self._is_partial = False
        # What `cycle`, of the last request with a whole head, was before that one came.
        self._before: Any = None
        # Bytes of the head so far, and bytes that came since the parser last handed some on; what
        # the parser keeps of a read in which it handed some on is not counted.
        self._head = self._silent = 0
        self.waits_since = time.monotonic()

    @property
    def is_answering(self) -> bool:
        """Whether a request that arrived whole has no answer yet."""
        cycle = self.cycle
        return bool(self.pipeline) or (
            cycle is not None and not cycle.more_body and not cycle.response_complete
        )

    @property
    def is_busy(self) -> bool:
        """Whether the client is in the middle of a request or of its answer."""
        return (
            not self._link.is_closing() and (self._is_partial or self.is_answering)
        ) or self._link.has_unsent()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection; where there are too many, another one has to go."""
        self._link = Lingering(transport, self.loop, self._seconds)
        super().connection_made(cast(asyncio.Transport, self._link))
        self._await_request()
        if len(self.connections) > self._service.settings.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Its end, whoever ended it."""
        self._link.lost()
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a client -> its requests; the time begins to count with the first one."""
        if self._link.is_closing():
            self._link.discard()
            return
        self._silent += len(data)
        self._is_partial = True
        super().data_received(data)
        if not self._is_partial:
            self._stop_reading_timer()
            self.waits_since = time.monotonic()
        elif self._head + self._silent > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._reading is None:
            self._await_request()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more -> whether it still gets answers."""
        self._link.ended()
        if self.pipeline and self.pipeline[0][0].more_body:
            # It waits behind others and will never be whole; the one before it is the last.
            self.pipeline.popleft()
            self.cycle = self._before
        if self._link.is_closing() or not self.is_answering:
            return False
        self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._is_partial, self._head = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request's path."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after a chunked body."""
        self._count_head(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: the app begins."""
        self._before = self.cycle
        super().on_headers_complete()
        if self._service.state is State.DRAINING:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._silent = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived whole."""
        self._is_partial, self._silent = False, 0
        super().on_message_complete()
        # Also where the answer was sent before the body had come.
        self.cycle.more_body = False

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP, or too much of it."""
        if self._head > MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            self._refuse(Refusal(400, "the request is not valid HTTP/1.1"))

    def pause_writing(self) -> None:
        """The client takes its answer more slowly than it is written."""
        super().pause_writing()
        self._writing = self.loop.call_later(self._seconds, self._link.abort)

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def leave(self) -> None:
        """From now on an answer is the connection's last."""
        if self.cycle is not None:
            self.cycle.keep_alive = False
        for cycle, _ in self.pipeline:
            cycle.keep_alive = False

    def shutdown(self) -> None:
        """The server ends: what is being answered is, the rest is refused or closed."""
        if self.is_answering:
            self.leave()
        elif self._is_partial:
            self._refuse(Refusal(503, "this server ends", headers={"Retry-After": "1"}))
        else:
            self._link.close()

    def _count_head(self, size: int) -> None:
        self._silent = 0
        self._head += size
        if self._head > MAX_HEAD_BYTES:
            # The parser stops, and the caller asks for send_400_response.
            raise ValueError

    def _await_request(self) -> None:
        self._reading = self.loop.call_later(self._seconds, self._read_too_long)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _read_too_long(self) -> None:
        """The time for a whole request is over."""
        if self.is_answering:
            # Requests before this one hold it up.
            self._await_request()
        elif self._is_partial:
            self._refuse(
                Refusal(
                    408,
                    f"the request did not arrive whole within {self._seconds:g} s: send it faster, "
                    "or send fewer instances",
                )
            )
        else:
            self._link.close()

    def _refuse_head(self) -> None:
        self._refuse(Refusal(431, f"the headers have more than {MAX_HEAD_BYTES:,} bytes"))

    def _refuse(self, refused: Refusal) -> None:
        """Answers the request that has not arrived whole, and closes."""
        if self._link.is_closing():
            return
        if self.is_answering:
            # Its answer comes first, and is the last.
            self._link.pause_reading()
            self.leave()
            return
        cycle = self.cycle
        if cycle is None or not cycle.more_body:
            self._answer(refused)
        elif not cycle.response_started:
            # The app waits for the body.
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
        """Ends the connection that has waited longest for a request; this one if all are busy."""
        others = [c for c in self.connections if c is not self and isinstance(c, Connection)]
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
            longest._refuse(Refusal(408, "others need the connection: send the request faster"))
        else:
            longest._link.close()
