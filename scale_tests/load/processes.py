"""Processes that send parts of a load at the same time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import TypeVar

from common.errors import JobError

T = TypeVar("T")
R = TypeVar("R")


class Processes:
    """Running processes, which live as long as the block of `sender_processes`."""

    def __init__(self, pool: ProcessPoolExecutor, processes: Sequence[BaseProcess]) -> None:
        self._pool, self._processes = pool, processes

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self._processes)

    def run(self, function: Callable[[T], R], parts: Sequence[T]) -> list[R]:
        """Return the results of a function for one part in each process.

        Raises:
            JobError: A process was killed.
        """
        running = [self._pool.submit(function, part) for part in parts]
        try:
            return [one.result() for one in running]
        except BrokenExecutor as error:
            raise JobError("a sender process was killed: run the test again") from error

    def stop(self) -> None:
        """End the processes at once."""
        for process in self._processes:
            process.terminate()


@contextmanager
def sender_processes(count: int) -> Iterator[Processes]:
    """Start processes. They end with the block, at once if it is interrupted."""
    before = set(active_children())
    # Ctrl-C is for the process that waits for these.
    with ProcessPoolExecutor(
        count, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        # Processes start with the first calls; that takes a second, in which nothing is due.
        for ready in [pool.submit(time.sleep, 0.1) for _ in range(count)]:
            ready.result()
        started = Processes(pool, [*set(active_children()) - before])
        try:
            yield started
        except BaseException:
            started.stop()
            raise
