"""Runs `pipelines.stream_local` in a process between a sender and a subscriber of its output.

Pub/Sub is Google's emulator. The field `sequence` numbers the messages, and the results contain it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pyarrow.parquet as pq
from google.api_core import exceptions

from benchmarks.contestant import SCORE_OUTPUT
from benchmarks.measure import ContestantError
from examples.local_cloud import (
    INSTALL_COMMAND,
    PROJECT,
    PUBSUB_COMMAND,
    LocalCloud,
    is_installed,
    local_cloud,
    pubsub_jar,
)
from examples.transactions.data import FEATURES, write_parquet

# Memory of the emulator. It keeps acknowledged messages: 200,000, and as many results.
PUBSUB_MEMORY = "4g"
KINDS = ("in", "out", "dead")
# The number of messages before the measurement. They have negative numbers.
WARM_UP = 50
# After this time without a result, no more results are expected.
PATIENCE_SECONDS = 30.0
LIMITS = (
    "In its own process, the pipeline runs on Beam's FnApiRunner: one thread for all steps, one "
    "bundle after the other. The emulator, the sender and the subscriber share the machine with "
    "it. The figures say nothing about Dataflow."
)


def topic(kind: str) -> str:
    """Return the name of the topic of one of KINDS."""
    return f"projects/{PROJECT}/topics/bench-{kind}"


def subscription(kind: str) -> str:
    """Return the name of the subscription of one of KINDS."""
    return f"projects/{PROJECT}/subscriptions/bench-{kind}-sub"


@contextmanager
def local_servers() -> Iterator[LocalCloud]:
    """Run the emulators with empty topics. Raise SystemExit if an emulator is not installed."""
    for found, how in ((pubsub_jar(), PUBSUB_COMMAND), (is_installed(), INSTALL_COMMAND)):
        if not found:
            raise SystemExit(f"error: an emulator is not installed: {how}")
    with (
        tempfile.TemporaryDirectory() as folder,
        local_cloud(
            Path(folder), with_pubsub=True, pubsub_memory=PUBSUB_MEMORY, with_labels=False
        ) as on,
    ):
        for kind in KINDS:
            on.cloud.publisher().create_topic(name=topic(kind))
            on.cloud.subscriber().create_subscription(
                name=subscription(kind), topic=topic(kind), ack_deadline_seconds=60
            )
        yield on


def make_bodies(count: int, seed: int = 11) -> list[bytes]:
    """Return valid transactions as JSON objects without the closing brace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_parquet(path, count, seed=seed, fault_share=0.0)
        rows = pq.read_table(path, columns=list(FEATURES)).to_pylist()
    return [orjson.dumps(row)[:-1] for row in rows]


def numbered(bodies: Sequence[bytes], numbers: Sequence[int]) -> list[dict[str, bytes]]:
    """Return messages with the given numbers, which use the bodies in turn."""
    return [{"data": b'%b,"sequence":%d}' % (bodies[n % len(bodies)], n)} for n in numbers]


@dataclass(frozen=True)
class Arrivals:
    """The numbers of the results in order of arrival, and the times (seconds since 1970)."""

    numbers: np.ndarray
    times: np.ndarray


class Subscriber(threading.Thread):
    """Receives and acknowledges the messages of the output topic until it is stopped."""

    def __init__(self, on: LocalCloud) -> None:
        super().__init__(daemon=True)
        self._client: Any = on.cloud.subscriber()
        self._found: list[tuple[float, list[int]]] = []
        self._over = threading.Event()
        self.count = 0

    def run(self) -> None:
        """Pull, acknowledge and record messages."""
        while (pulled := self._pull()) or not self._over.is_set():
            if not pulled:
                continue
            now = time.time()
            self._client.acknowledge(
                subscription=subscription("out"), ack_ids=[one.ack_id for one in pulled]
            )
            numbers = [orjson.loads(one.message.data)["sequence"] for one in pulled]
            self._found.append((now, numbers))
            self.count += len(numbers)

    def _pull(self) -> list[Any]:
        try:
            answer = self._client.pull(
                subscription=subscription("out"), max_messages=1_000, timeout=2.0, retry=None
            )
        except exceptions.DeadlineExceeded:
            return []
        return list(answer.received_messages)

    def wait_for(self, count: int) -> None:
        """Wait until that many results have arrived, or none has arrived for PATIENCE_SECONDS."""
        seen, since = self.count, time.monotonic()
        while self.count < count and time.monotonic() - since < PATIENCE_SECONDS:
            time.sleep(0.05)
            if self.count > seen:
                seen, since = self.count, time.monotonic()

    def stop(self) -> Arrivals:
        """Receive the remaining results, stop, and return all except those of the warm-up."""
        self._over.set()
        self.join()
        pairs = [(n, now) for now, numbers in self._found for n in numbers if n >= 0]
        found = np.array(pairs, np.float64).reshape(-1, 2)
        return Arrivals(found[:, 0].astype(np.int64), found[:, 1])


@dataclass(frozen=True)
class Running:
    """The running pipeline after its warm-up, and the subscriber of its results."""

    process: psutil.Process
    subscriber: Subscriber
    on: LocalCloud

    @property
    def cpu_seconds(self) -> float:
        """The CPU seconds of the pipeline since its start."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def publish(self, messages: Sequence[dict[str, bytes]]) -> None:
        """Publish up to a thousand messages in one request."""
        self.on.cloud.publisher().publish(topic=topic("in"), messages=list(messages))


@contextmanager
def streaming(
    on: LocalCloud, model: Path, bodies: Sequence[bytes], checkout: Path | None = None
) -> Iterator[Running]:
    """Start the pipeline, warm it up, and stop it when the block ends.

    Args:
        on: The emulators.
        model: The package of the model.
        bodies: As for `numbered`.
        checkout: The checkout of this repository whose pipeline runs; None for this one.

    Raises:
        ContestantError: The pipeline failed or wrote a dead letter.
    """
    flags = {
        "input_subscription": subscription("in"),
        "model": str(model),
        "score_output": SCORE_OUTPUT,
        "output_topic": topic("out"),
        "dead_letter_topic": topic("dead"),
        "report_seconds": "3600",
    }
    pairs = [text for name, value in flags.items() for text in (f"--{name}", value)]
    command = [sys.executable, "-m", "pipelines.stream_local", *pairs]
    subscriber = Subscriber(on)
    subscriber.start()
    with subprocess.Popen(
        command, env=on.environ(), stderr=subprocess.PIPE, text=True, cwd=checkout
    ) as process:
        try:
            running = Running(psutil.Process(process.pid), subscriber, on)
            running.publish(numbered(bodies, range(-WARM_UP, 0)))
            subscriber.wait_for(WARM_UP)
            if subscriber.count < WARM_UP:
                raise ContestantError("stream_local did not score the first messages")
            yield running
        finally:
            process.terminate()
            printed = process.communicate()[1]
    if process.returncode or "dead letters             0" not in printed:
        raise ContestantError(
            f"stream_local ended with exit code {process.returncode}: {printed[-1000:]}"
        )
