"""A command as a process that can be killed at any moment, forked where all is imported already.

Torch and Beam take seconds to import; forked from a process that has them, a run is under way
within milliseconds, so that a kill meets its work and not its imports.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PRELOADED = ("pipelines.batch.run", "pipelines.stream.run", "transforms.bigquery.destination")
# The next look at a condition, and how long it may take to hold.
POLL_SECONDS = 0.002
PATIENCE_SECONDS = 300.0
# About as long as rows are put in place, in a folder of this machine.
COMMIT_SECONDS = 0.02

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(list(PRELOADED))


def _run(pipeline: str, argv: Sequence[str], log: str) -> None:
    """In the child: the pipeline's own command, its output in the log."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    from pipelines.command import run_and_exit

    run_and_exit(importlib.import_module(f"pipelines.{pipeline}").COMMAND, argv)


class Attempt:
    """A running command: pipeline's name, its arguments, and a file for what it prints."""

    def __init__(self, pipeline: str, argv: Sequence[str], log: Path) -> None:
        self.log = log
        self._process = _fork.Process(target=_run, args=(pipeline, list(argv), str(log)))
        self._process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it runs."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def kill(self) -> bool:
        """Ends it as `kill -9` does -> whether it was still running."""
        self.signal(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """-> its exit code, once it has ended. Raises TimeoutError with the end of its log."""
        self._process.join(PATIENCE_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"a run does not end: {self.log.read_text()[-2000:]}")
        return self._process.exitcode

    def finish(self) -> None:
        """Waits for a good end. Raises RuntimeError with its log if it ends otherwise."""
        if code := self.wait():
            raise RuntimeError(f"a run ended with {code}: {self.log.read_text()[-2000:]}")


def at_random(
    chance: random.Random, attempt: Attempt, seconds: float, begun: Callable[[], bool]
) -> None:
    """Waits until a moment to strike at a running attempt, or until it ends.

    Half of the moments are anywhere in `seconds`, the time of a whole run; the other half
    follow within COMMIT_SECONDS from when `begun` holds: the commit is short, and must be met.
    """
    deadline = time.monotonic() + seconds
    if chance.random() < 0.5:
        while attempt.running and not begun() and time.monotonic() < deadline + seconds:
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + chance.random() * COMMIT_SECONDS
    else:
        deadline = time.monotonic() + chance.random() * seconds
    while attempt.running and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def timed(act: Callable[[], object]) -> float:
    """A step -> the seconds that it took."""
    begin = time.monotonic()
    act()
    return time.monotonic() - begin
