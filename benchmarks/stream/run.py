"""Runs the pipeline of a stream in a process between a sender and a subscriber of its output.

Pub/Sub is Google's emulator. The field `sequence` numbers the messages, and the results contain it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pyarrow.parquet as pq
from google.api_core import exceptions
from google.pubsub_v1.types import PullResponse

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
def local_servers(memory: str = PUBSUB_MEMORY) -> Iterator[LocalCloud]:
    """Run the emulators with empty topics. Raise SystemExit if an emulator is not installed.

    Args:
        memory: The memory of the Pub/Sub emulator, in Java's notation.
    """
    for found, how in ((pubsub_jar(), PUBSUB_COMMAND), (is_installed(), INSTALL_COMMAND)):
        if not found:
            raise SystemExit(f"error: an emulator is not installed: {how}")
    with (
        tempfile.TemporaryDirectory() as folder,
        local_cloud(Path(folder), with_pubsub=True, pubsub_memory=memory, with_labels=False) as on,
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


def read_sequence(message: Any) -> tuple[int, ...]:
    """Return the number of a result."""
    return (orjson.loads(message.data)["sequence"],)


class Subscriber(threading.Thread):
    """Receives and acknowledges the messages of a topic until it is stopped.

    Args:
        on: The emulators.
        kind: The topic: one of KINDS.
        read: Returns what to record of a message: always the same number of integers.
        pause: How long to wait for the next request after one that received nothing, in seconds.
            The emulator answers at once, and each request takes CPU time from the pipeline.
    """

    def __init__(
        self,
        on: LocalCloud,
        kind: str = "out",
        read: Callable[[Any], tuple[int, ...]] = read_sequence,
        pause: float = 0.0,
    ) -> None:
        super().__init__(daemon=True)
        self._client: Any = on.cloud.subscriber()
        self._subscription, self._read, self._pause = subscription(kind), read, pause
        self._found: list[tuple[float, np.ndarray]] = []
        self._over = threading.Event()
        self.count = 0

    def run(self) -> None:
        """Pull, acknowledge and record messages."""
        while (pulled := self._pull()) or not self._over.is_set():
            if not pulled:
                time.sleep(self._pause)
                continue
            now = time.time()
            self._client.acknowledge(
                subscription=self._subscription, ack_ids=[one.ack_id for one in pulled]
            )
            found = np.array([self._read(one.message) for one in pulled], np.int64)
            self._found.append((now, found))
            self.count += len(found)

    def _pull(self) -> list[Any]:
        try:
            answer = self._client.pull(
                subscription=self._subscription, max_messages=1_000, timeout=2.0, retry=None
            )
        # On a busy machine, the server may reset a request before the client gives it up.
        except (exceptions.DeadlineExceeded, exceptions.Cancelled, exceptions.ServiceUnavailable):
            return []
        # The bare protobuf messages: proto-plus would wrap each of them.
        return list(PullResponse.pb(answer).received_messages)

    def wait_for(self, count: int) -> None:
        """Wait until that many results have arrived, or none has arrived for PATIENCE_SECONDS."""
        seen, since = self.count, time.monotonic()
        while self.count < count and time.monotonic() - since < PATIENCE_SECONDS:
            time.sleep(0.05)
            if self.count > seen:
                seen, since = self.count, time.monotonic()

    def received(self) -> tuple[np.ndarray, np.ndarray]:
        """Receive the remaining messages, stop, and return all times and recorded integers.

        The integers of a message are a row.
        """
        self._over.set()
        self.join()
        times = [np.full(len(found), now) for now, found in self._found]
        width = self._found[0][1].shape[1] if self._found else 1
        empty = np.empty((0, width), np.int64)
        found = np.concatenate([empty, *(found for _, found in self._found)])
        return np.concatenate([np.empty(0), *times]), found

    def stop(self) -> Arrivals:
        """Stop, and return the numbers of all results except those of the warm-up."""
        times, found = self.received()
        kept = found[:, 0] >= 0
        return Arrivals(found[kept, 0], times[kept])


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
    on: LocalCloud,
    model: Path,
    bodies: Sequence[bytes],
    checkout: Path | None = None,
    endpoint: str = "",
    *,
    timings: bool = False,
) -> Iterator[Running]:
    """Start stream_local or stream_vertex, warm it up, and stop it when the block ends.

    Args:
        on: The emulators.
        model: The package of the model.
        bodies: As for `numbered`.
        checkout: The checkout of this repository whose pipeline runs; None for this one.
        endpoint: The URL of an endpoint with the model, for stream_vertex.
        timings: Whether rows have the times of the steps of the pipeline.

    Raises:
        ContestantError: The pipeline failed or wrote a dead letter.
    """
    name = "stream_vertex" if endpoint else "stream_local"
    flags = {
        "input_subscription": subscription("in"),
        "model": str(model),
        "score_output": SCORE_OUTPUT,
        "output_topic": topic("out"),
        "dead_letter_topic": topic("dead"),
        "report_seconds": "3600",
    }
    if endpoint:
        flags["endpoint_url"] = endpoint
    if timings:
        flags["row_timings"] = "true"
    pairs = [text for flag, value in flags.items() for text in (f"--{flag}", value)]
    command = [sys.executable, "-m", f"pipelines.{name}", *pairs]
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
                raise ContestantError(f"{name} did not score the first messages")
            yield running
        finally:
            process.terminate()
            printed = process.communicate()[1]
    if process.returncode or "dead letters             0" not in printed:
        raise ContestantError(
            f"{name} ended with exit code {process.returncode}: {printed[-1000:]}"
        )
