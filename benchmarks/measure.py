"""Command line -> what its process tree cost: wall time, CPU time, peak memory."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks.contestant import Report, read_report

SAMPLE_SECONDS = 0.05
# Waiting threads of torch's pool sleep instead of spinning: a spinning pool of two threads on two
# cores slows the forward pass tenfold as soon as anything else wants a core.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class ContestantError(RuntimeError):
    """A contestant ended with an error; holds the end of what it wrote to standard error."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of a contestant.

    process_seconds: wall time of the process, start-up and imports included.
    cpu_seconds: user and system time of the process and of all its descendants.
    peak_bytes: peak memory of the process tree, as `PeakMemory` counts it.
    other_cpu_share: what the rest of the machine used meanwhile, 0 to 1 of all its cores.
    report: what the contestant says of itself.
    """

    process_seconds: float
    cpu_seconds: float
    peak_bytes: int
    other_cpu_share: float
    report: Report


class PeakMemory(threading.Thread):
    """Process id -> peak memory of its tree in bytes, sampled until the process has ended.

    A sample is the resident memory of the process itself, and of each descendant what it does
    not share: pages that a child shares with its parent count once, at the price of leaving out
    pages that only children share. Proportional shares would be exact, but reading them walks
    the page tables and slows the process that is measured.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._root = psutil.Process(pid)
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample every `SAMPLE_SECONDS`."""
        while not self._ended.wait(SAMPLE_SECONDS):
            try:
                self.peak_bytes = max(self.peak_bytes, self._sample())
            except psutil.NoSuchProcess:
                return

    def stop(self) -> int:
        """-> the peak in bytes."""
        self._ended.set()
        self.join()
        return self.peak_bytes

    def _sample(self) -> int:
        total = int(self._root.memory_info().rss)
        for child in self._root.children(recursive=True):
            try:
                memory = child.memory_info()
            except psutil.NoSuchProcess:
                continue
            total += memory.rss - getattr(memory, "shared", 0)
        return total


def measure(command: Sequence[str]) -> Measured:
    """Command line of a contestant -> its cost, run in a process of its own.

    Raises:
        ContestantError: It ended with an error, or without a report.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        busy, begin = _busy_seconds(), time.perf_counter()
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, env=os.environ | ENVIRONMENT
        )
        memory = PeakMemory(process.pid)
        memory.start()
        cpu_seconds = _wait(process)
        wall = time.perf_counter() - begin
        peak_bytes = memory.stop()
        others = max(0.0, _busy_seconds() - busy - cpu_seconds) / (wall * psutil.cpu_count())
        stdout.seek(0)
        stderr.seek(0)
        report = _report(process.returncode, stdout.read(), stderr.read(), command)
    return Measured(
        process_seconds=wall,
        cpu_seconds=cpu_seconds,
        peak_bytes=peak_bytes,
        other_cpu_share=min(1.0, others),
        report=report,
    )


def _wait(process: subprocess.Popen[bytes]) -> float:
    """Running process -> its CPU seconds once it ended, those of its descendants included."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _busy_seconds() -> float:
    """-> CPU seconds that all cores of the machine have worked so far."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guest time is part of user time already.
    return float(sum(times) - idle - getattr(times, "guest", 0.0))


def _report(exit_code: int, stdout: str, stderr: str, command: Sequence[str]) -> Report:
    """How a contestant ended and what it wrote -> its report."""
    if exit_code:
        tail = "\n".join(stderr.strip().splitlines()[-15:])
        raise ContestantError(f"{' '.join(command)} ended with {exit_code}:\n{tail}")
    try:
        return read_report(stdout)
    except ValueError as error:
        raise ContestantError(f"{' '.join(command)}: {error}") from error
