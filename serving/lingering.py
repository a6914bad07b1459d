"""A transport that closes without losing the last answer.

If a socket is closed while received bytes are still unread, the system resets the connection, and
the client loses the part of the answer that it has not read yet. This transport therefore closes
only the sending half at first.
"""

from __future__ import annotations

import asyncio
from typing import Any

# How long a client may stay idle after close() before the connection is ended.
LINGER_SECONDS = 1.0


class Lingering:
    """A wrapper of a connection's transport whose close() waits for the client to read.

    After close(), nothing more is written, and the connection calls discard() for bytes that still
    arrive. The connection ends when the client closes it, when the client neither sends nor reads
    for LINGER_SECONDS, or after `seconds` at the latest.

    Args:
        transport: The transport of the connection.
        loop: The event loop of the transport.
        seconds: The longest time between close() and the end of the connection.
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
        # The unsent bytes at the last check, and whether any bytes arrived since then.
        self._unsent = 0
        self._received = False

    def write(self, data: bytes) -> None:
        """Send the bytes, unless the connection is closing."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close the sending half once all written bytes are sent, and wait for the client."""
        if self.is_closing():
            return
        if self._has_ended:
            # The client has finished sending, so no unread bytes can cause a reset.
            self._transport.close()
            return
        self.resume_reading()
        self._ends_at = self._loop.time() + self._seconds
        self._transport.write_eof()
        self._linger()

    def ended(self) -> None:
        """Note that the client has finished sending."""
        self._has_ended = True

    def discard(self) -> None:
        """Note that bytes arrived after close()."""
        self._received = True

    def lost(self) -> None:
        """Stop the timer, since the connection is lost."""
        if self._end is not None:
            self._end.cancel()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether close() was called or the connection has ended."""
        return self._end is not None or self._transport.is_closing()

    def has_unsent(self) -> bool:
        """Return whether written bytes are still waiting to be sent."""
        return not self._transport.is_closing() and self._transport.get_write_buffer_size() > 0

    def pause_reading(self) -> None:
        """Stop reading until resume_reading() is called."""
        if not self.is_closing() and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Start reading again."""
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _linger(self) -> None:
        self._unsent, self._received = self._transport.get_write_buffer_size(), False
        self._end = self._loop.call_later(LINGER_SECONDS, self._look)

    def _look(self) -> None:
        goes_on = self._received or self._transport.get_write_buffer_size() < self._unsent
        if goes_on and self._loop.time() < self._ends_at:
            self._linger()
        else:
            self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the transport, such as its addresses or its socket."""
        return self._transport.get_extra_info(name, default)
