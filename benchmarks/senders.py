"""What the benchmarks of the senders of scale tests share: loads, and how late they were sent."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.row_costs import write_results
from benchmarks.summary import Record
from scale_tests.load.plan import Constant, Sender
from scale_tests.load.schedule import due_times

SEED = 20_261_121
LIMITS = Sender()
METHOD = {
    "cpu": "share of a core that the sender used",
    "late_ms": "p50, p99 and maximum of the time between the moment at which one was due and the "
    "start of its request",
    "valid": f"whether p99 is at most {LIMITS.late_ms:g} ms and cpu at most {LIMITS.cpu:g}, the "
    "default limits of a plan",
}
Floats = NDArray[np.float64]
# Sends at a rate, for a number of seconds, and returns the figures.
Measure = Callable[[int, int], Record]


def offsets(rate: int, seconds: int) -> Floats:
    """Return the times of a Poisson process, in seconds from its start."""
    return due_times(Constant(rate=rate, seconds=seconds), "poisson", (SEED, rate))


def figures(rate: int, due: Floats, sent: Floats, cpu: float) -> Record:
    """Return how late a sender was, and whether a scale test would accept it.

    Args:
        rate: The messages or requests per second.
        due: [n] When each was due, in seconds.
        sent: [n] When each was sent.
        cpu: The share of a core that the sender used.
    """
    late = np.percentile((sent - due) * 1e3, [50, 99, 100]).round(1).tolist()
    valid = bool(late[1] <= LIMITS.late_ms and cpu <= LIMITS.cpu)
    return {
        "rate": rate,
        "sent": len(due),
        "cpu": round(float(cpu), 3),
        "late_ms": late,
        "valid": valid,
    }


def run(
    argv: Sequence[str] | None,
    name: str,
    rates: Sequence[int],
    receiving: Callable[[], AbstractContextManager[Measure]],
) -> None:
    """Measure rates in turn, and write the figures.

    Args:
        argv: The command line.
        name: The name of the file of results.
        rates: The rates by default.
        receiving: Starts the receiver, and yields what sends to it.
    """
    parser = argparse.ArgumentParser(description="Measure what a sender process sends on time.")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rates", type=int, nargs="+", default=rates)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    found = []
    with receiving() as measure:
        for rate in [*args.rates] * args.rounds:
            found.append(measure(rate, args.seconds))
            print(found[-1], flush=True)
    settings = {"method": METHOD, "environment": {}}
    write_results(args.output / name, settings, {"runs": found}, args.rounds)
