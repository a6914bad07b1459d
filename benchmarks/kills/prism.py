"""Kills batch runs on Beam's runner Prism: the command, Prism, or the process of its workers.

If the command is killed, Prism and the workers may go on. The rerun starts at once, so it may find
that they have finished first. They score the same input, and the rows are counted when they have
ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.kills.batch import Files, Kills, all_ids
from benchmarks.kills.process import PATIENCE_SECONDS, Attempt

VICTIMS = ("launcher", "runner", "workers")
# Of a rerun that another attempt overtakes.
TRIES = 5


def on_prism(prism: Path) -> dict[str, Any]:
    """Return the flags for a run on Prism, with workers in a process of their own."""
    return {
        "runner": "PrismRunner",
        "prism_location": prism.absolute(),
        "experiments": "use_loopback_process_worker=True",
    }


@dataclass
class OnPrism(Files):
    """A run on Prism that writes files. Its workers are a process of their own."""

    prism: Path

    def sinks(self) -> dict[str, Any]:
        """Return the flags for the destination and the runner."""
        return {**super().sinks(), **on_prism(self.prism)}


@dataclass(kw_only=True)
class PrismKills(Kills):
    """A run on Prism of which one process is killed repeatedly.

    Attributes:
        victim: One of VICTIMS.
        others: Prism and the workers of the attempt that was killed last.
    """

    victim: str
    others: list[psutil.Process] = field(default_factory=list)

    def strike(self, attempt: Attempt) -> None:
        """Kill a process of a running attempt at a random moment, and count it."""
        self.wait(attempt)
        self.others = children(attempt)
        if self.victim == "launcher":
            was_running = attempt.kill()
        else:
            victims = [one for one in self.others if is_a(self.victim, one)]
            was_running = sum(map(kill, victims)) > 0
            attempt.wait()
        if was_running:
            self.tally.kills += 1
        else:
            self.tally.ended += 1

    def rerun(self, name: str) -> None:
        """Run an input to its end, and count its rows when no other attempt is running."""
        for _ in range(TRIES - 1):
            if self.start(name).wait() == 0:
                break
        else:
            self.start(name).finish()
        _, running = psutil.wait_procs(self.others, PATIENCE_SECONDS)
        if running:
            raise TimeoutError(f"processes of a killed run did not end in time: {running}")
        self.tally.count_rows(self.ids[name], all_ids(self.run.read()))


def children(attempt: Attempt) -> list[psutil.Process]:
    """Return the running processes that an attempt has started."""
    try:
        return list(psutil.Process(attempt.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def is_a(victim: str, process: psutil.Process) -> bool:
    """Return whether a child of an attempt is Prism (`runner`), or else a worker."""
    try:
        return (process.name() == "prism") == (victim == "runner")
    except psutil.NoSuchProcess:
        return False


def kill(process: psutil.Process) -> bool:
    """Kill a process like `kill -9`, and return whether it was still running."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
