"""Waits for servers, threads and processes."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Return once the condition holds. Raise AssertionError if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {seconds:.0f} seconds"
        # Polling is the only way: the condition depends on another process or a server.
        time.sleep(0.01)
