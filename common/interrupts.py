"""Signals that interrupt the main thread, and events and threads that stay usable then."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

_POLL_SECONDS = 0.5


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


@contextmanager
def repeating(function: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call a function in a thread every `seconds` seconds while the block runs.

    The last call has ended when the block is left. The first one is after `seconds` seconds.
    """
    over = InterruptibleEvent()

    def repeat() -> None:
        while not over.wait(seconds):
            function()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Background(Generic[T]):
    """A function that runs in a thread of its own, so that a signal cannot interrupt its code.

    Python raises KeyboardInterrupt in the main thread, at any instruction. In foreign code it can
    then leave a lock acquired or wait for threads that never end. Here, it only ends the wait.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        """Start the function."""
        self._function = function
        self._ended = InterruptibleEvent()
        self._result: T | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, for at most `seconds`, and return whether the function has ended."""
        return self._ended.wait(seconds)

    def result(self) -> T:
        """Wait until the function has ended, and return its result or raise its error."""
        # A signal that arrives just before a wait begins does not end it.
        while not self.wait(_POLL_SECONDS):
            pass
        if self._error is not None:
            raise self._error
        return cast(T, self._result)


@contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as Ctrl-C does.

    Only the first signal interrupts: a shell that closes sends SIGHUP twice, and the second one
    must not stop the cleanup. Under nohup, SIGHUP stays ignored.

    Yields:
        A list that holds the number of the signal once it has been received.
    """
    received: list[int] = []

    def interrupt(number: int, _: Any) -> None:
        if not received:
            received.append(number)
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
