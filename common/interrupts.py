"""An event that the main thread may set while a signal interrupts it."""

from __future__ import annotations

from queue import Empty, SimpleQueue


class InterruptibleEvent:
    """What threading.Event does, for a main thread in which signals raise KeyboardInterrupt.

    A KeyboardInterrupt inside `Event.set` can leave the lock of the event acquired, and whoever
    then uses the event waits without end. Here one reentrant C function sets the event: see the
    documentation of queue.SimpleQueue.put.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Let every `wait` return, now and later."""
        self._queue.put(None)

    def is_set(self) -> bool:
        """Return whether `set` has been called."""
        return not self._queue.empty()

    def wait(self, seconds: float) -> bool:
        """Wait until the event is set, but not longer than some seconds; return whether it is."""
        try:
            self._queue.get(timeout=seconds)
        except Empty:
            return False
        # For the others who wait.
        self._queue.put(None)
        return True
