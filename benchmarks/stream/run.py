"""`pipelines.stream_local` as a process between a sender and a subscriber of its output topic.

Pub/Sub is Google's emulator. Messages are numbered by their field `sequence`, which results carry.
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

# Of the emulator, which keeps what was acknowledged: 200,000 messages and as many results.
PUBSUB_MEMORY = "4g"
KINDS = ("in", "out", "dead")
# Sent before anything is measured; their numbers are below zero.
WARM_UP = 50
# No result for so long: there comes none any more.
PATIENCE_SECONDS = 30.0
LIMITS = (
    "In process the pipeline runs on Beam's BundleBasedDirectRunner: one thread for all steps, one "
    "bundle after the other, every step made anew for each. The emulator, the sender and the "
    "subscriber share the machine with it. The figures say nothing about Dataflow's."
)


def topic(kind: str) -> str:
    """One of KINDS -> the topic's name."""
    return f"projects/{PROJECT}/topics/bench-{kind}"


def subscription(kind: str) -> str:
    """One of KINDS -> the name of its subscription."""
    return f"projects/{PROJECT}/subscriptions/bench-{kind}-sub"


@contextmanager
def local_servers() -> Iterator[LocalCloud]:
    """Nothing -> the emulators, with empty topics. Raises SystemExit where one is not installed."""
    for there, how in ((pubsub_jar(), PUBSUB_COMMAND), (is_installed(), INSTALL_COMMAND)):
        if not there:
            raise SystemExit(f"error: an emulator is not there: {how}")
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
    """How many -> as many faultless transactions as JSON objects without their last brace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_parquet(path, count, seed=seed, fault_share=0.0)
        rows = pq.read_table(path, columns=list(FEATURES)).to_pylist()
    return [orjson.dumps(row)[:-1] for row in rows]


def numbered(bodies: Sequence[bytes], numbers: Sequence[int]) -> list[dict[str, bytes]]:
    """Bodies, taken in turn, and numbers -> messages to publish."""
    return [{"data": b'%b,"sequence":%d}' % (bodies[n % len(bodies)], n)} for n in numbers]


@dataclass(frozen=True)
class Arrivals:
    """The numbers of the results that came, and when in seconds since 1970, as they came."""

    numbers: np.ndarray
    times: np.ndarray


class Subscriber(threading.Thread):
    """Receives and acknowledges what comes on the output topic, until it is stopped."""

    def __init__(self, on: LocalCloud) -> None:
        super().__init__(daemon=True)
        self._client: Any = on.cloud.subscriber()
        self._found: list[tuple[float, list[int]]] = []
        self._over = threading.Event()
        self.count = 0

    def run(self) -> None:
        """Pull, note, acknowledge."""
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
        """How many results in all -> when they came, or none came for PATIENCE_SECONDS."""
        seen, since = self.count, time.monotonic()
        while self.count < count and time.monotonic() - since < PATIENCE_SECONDS:
            time.sleep(0.05)
            if self.count > seen:
                seen, since = self.count, time.monotonic()

    def stop(self) -> Arrivals:
        """Nothing -> all that came but the warm-up, once nothing more comes."""
        self._over.set()
        self.join()
        pairs = [(n, now) for now, numbers in self._found for n in numbers if n >= 0]
        found = np.array(pairs, np.float64).reshape(-1, 2)
        return Arrivals(found[:, 0].astype(np.int64), found[:, 1])


@dataclass(frozen=True)
class Running:
    """The pipeline while it runs, warm, and who reads its results."""

    process: psutil.Process
    subscriber: Subscriber
    on: LocalCloud

    @property
    def cpu_seconds(self) -> float:
        """What the pipeline has used since its start."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def publish(self, messages: Sequence[dict[str, bytes]]) -> None:
        """At most a thousand messages -> published in one request."""
        self.on.cloud.publisher().publish(topic=topic("in"), messages=list(messages))


@contextmanager
def streaming(on: LocalCloud, model: Path, bodies: Sequence[bytes]) -> Iterator[Running]:
    """Servers, a model package and bodies for the warm-up -> the pipeline, ended with the block.

    Raises ContestantError where it fails or dead-letters anything.
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
    with subprocess.Popen(command, env=on.environ(), stderr=subprocess.PIPE, text=True) as process:
        try:
            running = Running(psutil.Process(process.pid), subscriber, on)
            running.publish(numbered(bodies, range(-WARM_UP, 0)))
            subscriber.wait_for(WARM_UP)
            if subscriber.count < WARM_UP:
                raise ContestantError("stream_local did not score the first messages")
            yield running
        finally:
            process.terminate()
            told = process.communicate()[1]
    if process.returncode or "dead letters             0" not in told:
        raise ContestantError(f"stream_local ended with {process.returncode}: {told[-1000:]}")
