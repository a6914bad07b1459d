"""Waits for servers, threads and processes."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Return once the condition holds. Raise AssertionError if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {seconds:.0f} seconds"
        # Polling is the only way: the condition depends on another process or a server.
        time.sleep(0.01)


def wait_for_staged(process: subprocess.Popen[str], output: Path) -> None:
    """Return once a run has begun to write scores.

    Args:
        process: The command.
        output: Its `--output_files`.
    """

    def is_staged() -> bool:
        assert process.poll() is None, process.communicate()
        return bool([*(output / ".staging").rglob("*.parquet")])

    wait_until(is_staged)
