"""Waits for what servers, threads and processes do in their own time."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Returns once the condition holds. Raises AssertionError if it does not in so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {seconds:.0f} seconds"
        # There is nothing to wait on: the condition is of another process, or of a server.
        time.sleep(0.01)
