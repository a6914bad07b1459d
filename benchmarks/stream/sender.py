"""Measures how many messages one sender process of a scale test publishes on time.

python -m benchmarks.stream.sender

The messages of the example arrive by a Poisson process, as in a plan, and go to a topic of the
emulator. The emulator shares the machine with the sender.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from benchmarks.senders import SEED, Measure, figures, offsets, run
from benchmarks.stream.run import local_servers, topic
from benchmarks.summary import Record
from scale_tests.load.plan import Rows
from scale_tests.load.rows import make_bodies
from scale_tests.streams.sender import Load, publish

RATES = (50, 1_000, 2_000, 4_000)


@contextmanager
def receiving() -> Iterator[Measure]:
    """Run the emulator, and yield what publishes messages to it."""
    bodies = make_bodies(Rows(), SEED)
    with local_servers() as on:

        def measure(rate: int, seconds: int) -> Record:
            due = time.time() + 0.5 + offsets(rate, seconds)
            load = Load(
                cloud=on.cloud,
                topic=topic("in"),
                test_id="bench",
                bodies=bodies,
                sequence=np.arange(len(due)),
                due=due,
                faulty=np.zeros(len(due), bool),
            )
            done = publish(load)
            if done.error:
                raise SystemExit(f"error: {done.error}")
            return figures(rate, due, done.at, done.cpu)

        yield measure


def main(argv: Sequence[str] | None = None) -> None:
    """Write stream_sender.json."""
    run(argv, "stream_sender.json", RATES, receiving)


if __name__ == "__main__":
    main()
