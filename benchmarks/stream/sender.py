"""Measures how many messages one sender process of a scale test publishes on time.

python -m benchmarks.stream.sender

The messages of the example arrive by a Poisson process, as in a plan, and go to a topic of the
emulator. The emulator shares the machine with the sender.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.row_costs import write_results
from benchmarks.stream.latency import SEED
from benchmarks.stream.run import local_servers, topic
from benchmarks.summary import Record
from examples.local_cloud import LocalCloud
from scale_tests.load.plan import Constant, Rows, Sender
from scale_tests.load.rows import Bodies, make_bodies
from scale_tests.load.schedule import due_times
from scale_tests.streams.sender import Load, publish

RATES = (500, 1_000, 2_000, 4_000)
LIMITS = Sender()
METHOD = {
    "cpu": "share of a core that the sender used",
    "late_ms": "p50, p99 and maximum of the time between the moment a message was due and the "
    "start of its request",
    "valid": f"whether p99 is at most {LIMITS.late_ms:g} ms and cpu at most {LIMITS.cpu:g}, the "
    "default limits of a plan",
}


def measure(on: LocalCloud, bodies: Bodies, rate: int, seconds: int) -> Record:
    """Publish messages at a rate, and return how late they were."""
    offsets = due_times(Constant(rate=rate, seconds=seconds), "poisson", (SEED, rate))
    count = len(offsets)
    load = Load(
        cloud=on.cloud,
        topic=topic("in"),
        test_id="bench",
        bodies=bodies,
        sequence=np.arange(count),
        due=time.time() + 0.5 + offsets,
        faulty=np.zeros(count, bool),
    )
    done = publish(load)
    if done.error:
        raise SystemExit(f"error: {done.error}")
    late = np.percentile((done.at - load.due) * 1e3, [50, 99, 100]).round(1).tolist()
    valid = bool(late[1] <= LIMITS.late_ms and done.cpu <= LIMITS.cpu)
    return {
        "rate": rate,
        "messages": count,
        "cpu": round(done.cpu, 3),
        "late_ms": late,
        "valid": valid,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Write stream_sender.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rates", type=int, nargs="+", default=RATES)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    bodies, found = make_bodies(Rows(), SEED), []
    with local_servers() as on:
        for rate in [*args.rates] * args.rounds:
            found.append(measure(on, bodies, rate, args.seconds))
            print(found[-1], flush=True)
    write_results(
        args.output / "stream_sender.json",
        {"method": METHOD, "environment": {}},
        {"runs": found},
        args.rounds,
    )


if __name__ == "__main__":
    main()
