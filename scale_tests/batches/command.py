"""Runs the command of a batch as a user does, and measures its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from common.interrupts import repeating
from scale_tests.load.batch_plan import Batch

# Runs a module as `python -m` does. There, modules of the working directory, such as the user's own
# `common`, would hide those of Millrace; here they come last, as for the command `millrace`.
RUN = (
    sys.executable,
    "-P",
    "-c",
    "import runpy, sys; sys.path.append(''); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)",
)
# How often the processes of a command are looked at.
LOOK_SECONDS = 0.2
# How long a command may take to end after an interrupt.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a command did.

    Attributes:
        started: When it was started, in seconds since 1970.
        seconds: How long it took.
        code: Its exit code, or minus the number of the signal that ended it.
        error: Its error in one line; empty if it succeeded.
        page: The code of the page that explains the error; empty if it names none.
        report: The report that it printed; None if it printed none.
        cpu_seconds: The CPU time of its processes on this machine.
        peak_bytes: The largest sum of their resident memory that was seen.
        interrupted: Whether the test was interrupted meanwhile.
    """

    started: float
    seconds: float
    code: int
    error: str
    page: str
    report: Mapping[str, Any] | None
    cpu_seconds: float
    peak_bytes: int
    interrupted: bool


def command_of(batch: Batch, flags: Sequence[str]) -> list[str]:
    """Return the command line of a run.

    A job is started with `pipelines.launch`, which waits for its end.

    Args:
        batch: The pipeline and its flags.
        flags: Further flags: those of the input and of the output.
    """
    if not batch.on_dataflow:
        return [*RUN, f"pipelines.{batch.pipeline}", *batch.flags, *flags]
    own = list(batch.flags)
    place = next(i for i, word in enumerate(own) if word.partition("=")[0] == "--runner")
    del own[place : place + (1 if "=" in own[place] else 2)]
    waiting = [] if "--dry_run" in flags else ["--wait"]
    return [*RUN, "pipelines.launch", batch.pipeline, *own, *flags, *waiting]


def run_command(command: Sequence[str], log: Path) -> Ended:
    """Run a command to its end. Ctrl-C is passed on to it.

    Args:
        command: The words of the command line.
        log: The file that gets what the command prints on standard error.
    """
    started, clock = time.time(), time.monotonic()
    with log.open("wb") as errors, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            # Ctrl-C is for this process, which passes it on once.
            process_group=0,
        )
        watched = Watched(process.pid)
        interrupted = False
        try:
            with repeating(watched.look, LOOK_SECONDS):
                code, used = _wait(process)
        except KeyboardInterrupt:
            interrupted = True
            with repeating(watched.look, LOOK_SECONDS):
                code, used = _interrupt(process)
        finally:
            # Workers that outlive a killed command.
            _kill(process.pid)
        seconds = time.monotonic() - clock
        output.seek(0)
        printed = output.read()
    error, page = _error(code, log)
    return Ended(
        started=started,
        seconds=seconds,
        code=code,
        error=error,
        page=page,
        report=_report(printed),
        # Processes that nobody waited for are only in the second sum.
        cpu_seconds=max(used, watched.cpu_seconds),
        peak_bytes=watched.peak_bytes,
        interrupted=interrupted,
    )


@dataclass
class Watched:
    """The processes of a command: the one that was started, and all below it.

    Attributes:
        pid: The first process.
        peak_bytes: The largest sum of their resident memory so far.
    """

    pid: int
    peak_bytes: int = 0
    _cpu: dict[psutil.Process, float] = field(default_factory=dict)

    def look(self) -> None:
        """Add what the processes use now."""
        memory = 0
        for process in self._processes():
            with suppress(psutil.Error), process.oneshot():
                memory += process.memory_info().rss
                times = process.cpu_times()
                self._cpu[process] = times.user + times.system
        self.peak_bytes = max(self.peak_bytes, memory)

    def _processes(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        return []

    @property
    def cpu_seconds(self) -> float:
        """The CPU time of all processes that were seen."""
        return sum(self._cpu.values())


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Return the exit code of a process and the CPU time of its tree, once it has ended."""
    _, status, usage = os.wait4(process.pid, 0)
    # Popen would wait for the process once more.
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def _interrupt(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Interrupt a process, unless it has ended, and wait for its end.

    It is killed if that takes too long, or after another interrupt.
    """
    if process.returncode is not None:
        return process.returncode, 0.0
    deadline = time.monotonic() + PATIENCE_SECONDS
    # A shell lets the commands that it starts in the background ignore Ctrl-C, and so does what
    # they start.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    try:
        process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
        while time.monotonic() < deadline:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, usage.ru_utime + usage.ru_stime
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        pass
    _kill(process.pid)
    return _wait(process)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _report(printed: bytes) -> Mapping[str, Any] | None:
    """Return the report on standard output: the last line, which is JSON."""
    for line in reversed(printed.splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            return found if isinstance(found, dict) else None
    return None


def _error(code: int, log: Path) -> tuple[str, str]:
    """Return why a command failed, in one line, and the code of the page that explains it.

    Both are empty if it did not fail.
    """
    if code == 0:
        return "", ""
    if code < 0:
        return f"the command was killed by {signal.Signals(-code).name}", ""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    known = [line for line in lines if line]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    said = [*known[-1:], *errors[-1:]] or [f"the command ended with exit code {code}"]
    text, _, page = said[-1].partition(" [see ")
    return text, page.rpartition(" ")[2].rstrip("]")
