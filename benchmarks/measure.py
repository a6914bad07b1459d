"""Measures the wall time, CPU time and peak memory of the process tree of a command."""

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
# Idle threads of torch's pool sleep instead of spinning. On two cores, a spinning pool of two
# threads makes the forward pass ten times slower as soon as anything else needs a core.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class ContestantError(RuntimeError):
    """A contestant failed. The message contains the end of its standard error."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of a contestant.

    Attributes:
        process_seconds: The wall time of the process, including start-up and imports.
        cpu_seconds: User and system time of the process and of all its descendants.
        peak_bytes: The peak memory of the process tree, as `PeakMemory` counts it.
        other_cpu_share: The share of all cores that other processes used during the run, 0 to 1.
        report: What the contestant reports about itself.
    """

    process_seconds: float
    cpu_seconds: float
    peak_bytes: int
    other_cpu_share: float
    report: Report


class PeakMemory(threading.Thread):
    """Samples the memory of a process tree until the process has ended, to find the peak in bytes.

    A sample is the resident memory of the process plus the unshared memory of each descendant. This
    counts pages that a child shares with its parent once, but leaves out pages that only children
    share. Proportional shares would be exact, but reading them walks the page tables and slows down
    the measured process.
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
        """Stop sampling and return the peak in bytes."""
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
    """Run the command of a contestant in its own process and measure it.

    Raises:
        ContestantError: The contestant failed or printed no report.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        busy, start = _busy_seconds(), time.perf_counter()
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, env=os.environ | ENVIRONMENT
        )
        memory = PeakMemory(process.pid)
        memory.start()
        cpu_seconds = _wait(process)
        wall = time.perf_counter() - start
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
    """Wait for a process and return its CPU seconds, including those of its descendants."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _busy_seconds() -> float:
    """Return the busy CPU seconds of all cores of the machine so far."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # User time already includes guest time.
    return float(sum(times) - idle - getattr(times, "guest", 0.0))


def _report(exit_code: int, stdout: str, stderr: str, command: Sequence[str]) -> Report:
    """Return the report of a contestant that has ended. Raise ContestantError if it failed."""
    if exit_code:
        tail = "\n".join(stderr.strip().splitlines()[-15:])
        raise ContestantError(f"{' '.join(command)} ended with {exit_code}:\n{tail}")
    try:
        return read_report(stdout)
    except ValueError as error:
        raise ContestantError(f"{' '.join(command)}: {error}") from error
