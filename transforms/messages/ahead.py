"""Messages that threads have pulled ahead of the pipeline; together they form a bundle."""

from __future__ import annotations

import threading
import time
from collections import deque

# The limits of a bundle, and of the messages pulled ahead for the next one. A single message may
# be larger.
BUNDLE_MESSAGES = 2_000
BUNDLE_BYTES = 32 << 20


class Ahead:
    """Messages that threads have pulled ahead for the next bundle."""

    def __init__(self) -> None:
        self._messages: deque[tuple[str, bytes]] = deque()
        self._bytes, self._since, self._closed = 0, 0.0, False
        self._changed = threading.Condition()

    def put(self, message_id: str, raw: bytes) -> bool:
        """Add a message when there is room; return False if `close` was called."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room())
            if self._closed:
                return False
            if not self._messages:
                self._since = time.monotonic()
            self._messages.append((message_id, raw))
            self._bytes += len(raw)
            self._changed.notify_all()
            return True

    def _has_room(self) -> bool:
        return len(self._messages) < BUNDLE_MESSAGES and self._bytes < BUNDLE_BYTES

    def take(self, seconds: float, more_seconds: float, enough: int) -> list[tuple[str, bytes]]:
        """Return and remove all messages.

        Args:
            seconds: How long to wait for the first message.
            more_seconds: How long the first message may wait for others.
            enough: How many messages end the wait.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._messages, seconds)
            if self._messages and more_seconds:
                self._changed.wait_for(
                    lambda: self._closed or len(self._messages) >= enough or not self._has_room(),
                    self._since + more_seconds - time.monotonic(),
                )
            if self._closed:
                return []
            messages = list(self._messages)
            self._messages.clear()
            self._bytes = 0
            self._changed.notify_all()
            return messages

    def close(self) -> None:
        """Take no more messages, and return none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
