"""A transport that closes so that what was written arrives.

A socket that is closed while bytes wait to be read is reset, and a reset takes the answer away
that the client has not read yet. So only the sending half is closed at first.
"""

from __future__ import annotations

import asyncio
from typing import Any

# After close(), how long a client may do nothing.
LINGER_SECONDS = 1.0


class Lingering:
    """A connection's transport, with another close().

    After close() nothing more is written and what still comes goes to discard(). The connection
    ends when the client closes it, when it neither sends nor reads for LINGER_SECONDS, and after
    `seconds` in any case.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._paused = False
        self._has_ended = False
        self._end: asyncio.TimerHandle | None = None
        self._ends_at = 0.0
        # What was left to send when it was last looked at, and whether anything came since.
        self._unsent = 0
        self._came = False

    def write(self, data: bytes) -> None:
        """Sends the bytes, unless it is closing."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Says that nothing more comes, once what was written is sent."""
        if self.is_closing():
            return
        if self._has_ended:
            # Nothing waits to be read.
            self._transport.close()
            return
        self.resume_reading()
        self._ends_at = self._loop.time() + self._seconds
        self._transport.write_eof()
        self._linger()

    def ended(self) -> None:
        """The client sends nothing more."""
        self._has_ended = True

    def discard(self) -> None:
        """Something came after close()."""
        self._came = True

    def lost(self) -> None:
        """The connection is gone."""
        if self._end is not None:
            self._end.cancel()

    def abort(self) -> None:
        """Ends the connection at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether close() was called, or the connection has ended."""
        return self._end is not None or self._transport.is_closing()

    def has_unsent(self) -> bool:
        """Whether the client has yet to take a part of what was written."""
        return not self._transport.is_closing() and self._transport.get_write_buffer_size() > 0

    def pause_reading(self) -> None:
        """Reads nothing until resume_reading()."""
        if not self.is_closing() and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Reads again."""
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _linger(self) -> None:
        self._unsent, self._came = self._transport.get_write_buffer_size(), False
        self._end = self._loop.call_later(LINGER_SECONDS, self._look)

    def _look(self) -> None:
        goes_on = self._came or self._transport.get_write_buffer_size() < self._unsent
        if goes_on and self._loop.time() < self._ends_at:
            self._linger()
        else:
            self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As of the transport: addresses, the socket."""
        return self._transport.get_extra_info(name, default)
