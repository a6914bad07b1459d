"""Runs a command in a process that can be killed at any moment.

Torch and Beam take seconds to import. The process is therefore forked from one that has already
imported them: its run starts within milliseconds, and a kill hits its work, not its imports.
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
# How often to check a condition, and how long to wait for it.
POLL_SECONDS = 0.002
PATIENCE_SECONDS = 300.0

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(list(PRELOADED))


def _run(pipeline: str, argv: Sequence[str], log: str) -> None:
    """Run the pipeline's command in the child process, with its output in the log."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    from pipelines.command import run_and_exit

    run_and_exit(importlib.import_module(f"pipelines.{pipeline}").COMMAND, argv)


class Attempt:
    """A running command.

    Args:
        pipeline: The name of the pipeline.
        argv: The arguments of the command.
        log: The file for everything that the command prints.
    """

    def __init__(self, pipeline: str, argv: Sequence[str], log: Path) -> None:
        self.log = log
        self._process = _fork.Process(target=_run, args=(pipeline, list(argv), str(log)))
        self._process.start()

    @property
    def pid(self) -> int | None:
        """The id of the process of the command."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the command is still running."""
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command if it is running."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def kill(self) -> bool:
        """Kill the command like `kill -9`, and return whether it was still running."""
        self.signal(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Wait for the exit code. Raise TimeoutError with the end of the log after too long."""
        self._process.join(PATIENCE_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"a run did not end in time: {self.log.read_text()[-2000:]}")
        return self._process.exitcode

    def finish(self) -> None:
        """Wait for success. Raise RuntimeError with the end of the log if the command fails."""
        if code := self.wait():
            raise RuntimeError(f"a run ended with exit code {code}: {self.log.read_text()[-2000:]}")


def at_random(
    chance: random.Random,
    attempt: Attempt,
    seconds: float,
    committing: Callable[[], bool],
    commit_seconds: float,
) -> None:
    """Wait until a random moment for a kill, or until the attempt ends.

    Half of the moments are anywhere in a run. The other half are in the commit, which is short and
    which kills must hit, too.

    Args:
        chance: The source of random moments.
        attempt: The attempt.
        seconds: How long a complete run takes.
        committing: Returns whether the commit has begun.
        commit_seconds: How long the commit takes.
    """
    deadline = time.monotonic() + seconds
    if chance.random() < 0.5:
        while attempt.running and not committing() and time.monotonic() < deadline + seconds:
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + chance.random() * commit_seconds
    else:
        deadline = time.monotonic() + chance.random() * seconds
    while attempt.running and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def timed(act: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.monotonic()
    act()
    return time.monotonic() - start
