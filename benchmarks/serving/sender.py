"""Measures how many requests one sender process of a scale test sends to an endpoint on time.

python -m benchmarks.serving.sender

Requests with a row of the example arrive by a Poisson process, as in a plan. A server in another
process answers at once, so the sender is what is measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.senders import LIMITS, SEED, Measure, figures, offsets, run
from benchmarks.serving.servers import server
from benchmarks.summary import Record
from cloud.vertex import EndpointAddress
from examples.local_cloud import free_port
from scale_tests.endpoints.sender import Load, send
from scale_tests.load.plan import Rows
from scale_tests.load.rows import make_instances

RATES = (500, 1_000, 2_000, 4_000)


@contextmanager
def receiving() -> Iterator[Measure]:
    """Run the server, and yield what sends requests to it."""
    instances = make_instances(Rows(), SEED)
    url = f"http://127.0.0.1:{(port := free_port())}"
    with (
        tempfile.TemporaryDirectory() as folder,
        server(f"benchmarks.serving.instant_server --port {port}", url, Path(folder)),
    ):

        def measure(rate: int, seconds: int) -> Record:
            due = time.time() + 0.5 + offsets(rate, seconds)
            load = Load(
                address=EndpointAddress(url=f"{url}/predict"),
                instances=instances,
                rows=1,
                sequence=np.arange(len(due)),
                due=due,
                faulty=np.zeros(len(due), bool),
                timeout_seconds=10.0,
                in_flight=LIMITS.in_flight,
            )
            done = send(load)
            if done.errors or done.over_limit:
                raise SystemExit(f"error: {dict(done.errors)}, {done.over_limit} not sent")
            return figures(rate, due, done.at, done.cpu)

        yield measure


def main(argv: Sequence[str] | None = None) -> None:
    """Write endpoint_sender.json."""
    run(argv, "endpoint_sender.json", RATES, receiving)


if __name__ == "__main__":
    main()
