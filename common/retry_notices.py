"""What this process is retrying, printed every ten seconds so that a long wait explains itself.

Commands print it while they run. A process without a command, such as a worker that Beam starts,
prints it on standard error while something is being retried.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from common.interrupts import repeating
from common.terminal import clear_line

EVERY_SECONDS = 10.0

_lock = threading.Lock()
_failing: list[Retried] = []
# Set while nothing is being retried.
_calm = threading.Event()
# How many threads print what is being retried.
_printers = 0


class Retried:
    """A call that may be repeated. As a context manager, it is over when the block ends.

    Args:
        what: What is called, for people.
    """

    def __init__(self, what: str) -> None:
        self.what, self.why = what, ""
        self.since, self.until = 0.0, 0.0

    def failed(self, why: str, left: float) -> None:
        """Note that the call has failed and will be repeated.

        Args:
            why: The reason, in one line.
            left: For how many seconds it will be repeated.
        """
        global _printers
        with _lock:
            self.why, self.until = why, time.monotonic() + left
            if self not in _failing:
                self.since = time.monotonic()
                _failing.append(self)
                _calm.clear()
            if not _printers:
                _printers += 1
                threading.Thread(target=_print_while_failing, name="retries", daemon=True).start()

    def over(self) -> None:
        """Note that the call has succeeded, or is not repeated any more."""
        # Most calls never fail.
        if self.since:
            with _lock, suppress(ValueError):
                _failing.remove(self)
                if not _failing:
                    _calm.set()
            self.since = 0.0

    def __enter__(self) -> Retried:
        return self

    def __exit__(self, *_: object) -> None:
        self.over()


def retry_lines(now: float) -> list[str]:
    """Return a line for each thing that is being retried, with the reason and the time left.

    What has failed only a moment ago is left out, because it usually succeeds at once.

    Args:
        now: The current time, in seconds of `time.monotonic()`.
    """
    with _lock:
        calls = [call for call in _failing if now - call.since >= EVERY_SECONDS / 2]
        # Many requests to one server fail together. The one that gives up first ends the run.
        first = {call.what: call for call in sorted(calls, key=lambda call: -call.until)}
        since = {call.what: call.since for call in sorted(calls, key=lambda call: -call.since)}
    return [
        f"{call.what}: {call.why}; retrying for {now - since[what]:,.0f} s, giving up in "
        f"{max(0.0, call.until - now):,.0f} s"
        for what, call in first.items()
    ]


def _print_lines(stream: TextIO) -> None:
    for line in retry_lines(time.monotonic()):
        with suppress(OSError, ValueError):
            clear_line(stream)
            print(line, file=stream, flush=True)


def _print_while_failing() -> None:
    """Print every ten seconds what is being retried, until nothing is."""
    global _printers
    while True:
        while not _calm.wait(EVERY_SECONDS):
            _print_lines(sys.stderr)
        with _lock:
            if not _failing:
                _printers -= 1
                return


@contextmanager
def print_retries(stream: TextIO) -> Iterator[None]:
    """Print every ten seconds what this process is retrying, while the block runs.

    Args:
        stream: Where to print, usually standard error.
    """
    global _printers
    with _lock:
        _printers += 1
    try:
        with repeating(lambda: _print_lines(stream), EVERY_SECONDS):
            yield
    finally:
        with _lock:
            _printers -= 1
