"""An event that stays usable if a signal interrupts the thread that sets it."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue


class InterruptibleEvent:
    """A replacement for threading.Event in main threads where signals raise KeyboardInterrupt.

    A KeyboardInterrupt inside `threading.Event.set` can leave the lock of the event acquired.
    Every thread that then uses the event waits forever. Here, one reentrant C function sets the
    event (see the documentation of `queue.SimpleQueue.put`).
    """

    def __init__(self) -> None:
        self._is_set = False
        # An item wakes one waiting thread.
        self._queue: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Make every current and later `wait` return."""
        self._is_set = True
        self._queue.put(None)

    def is_set(self) -> bool:
        """Return whether `set` has been called."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait until the event is set, for at most `seconds`, and return whether it is set."""
        with suppress(Empty):
            if not self._is_set:
                self._queue.get(timeout=seconds)
                # Wake the next waiting thread.
                self._queue.put(None)
        return self._is_set
