"""Kills streams and starts them again while messages continue to arrive.

A stream delivers at least once: after the last run, the sinks hold each message as a row or a dead
letter. Repeated deliveries have the same id. They count as `again`, not as doubled.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from google.api_core import exceptions

from benchmarks.kills.prism import children, is_a, kill, on_prism
from benchmarks.kills.process import PATIENCE_SECONDS, Attempt
from benchmarks.kills.tally import Tally
from cloud.clients import Cloud

# The time between two requests, and the messages of each: 500 a second. Every tenth message is not
# JSON.
EVERY_SECONDS = 0.01
REQUEST_MESSAGES = 5
# The shortest and longest time from the start of a run to its kill, in seconds. On Prism, workers
# need some seconds to start. Half of the kills come up to WORK_SECONDS after the first row.
LIVES = (0.2, 3.0)
LIVES_ON_PRISM = (2.0, 14.0)
WORK_SECONDS = 2.0
ACK_SECONDS = 10
# How long a stream may take to end when Prism or its workers are killed.
END_SECONDS = 30.0
# Longer than the leases of a killed run, which had extended the deadlines of its messages to 60 s.
QUIET_SECONDS = 75


@dataclass
class Sender:
    """Publishes rows until it is stopped.

    Attributes:
        cloud: The clients of the project.
        topic: The topic to publish to.
        bodies: The bodies of the messages, which are used in turn.
        sent: The ids of the published messages.
    """

    cloud: Cloud
    topic: str
    bodies: list[bytes]
    sent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        publisher = self.cloud.publisher()
        while not self._over.wait(EVERY_SECONDS):
            numbers = range(len(self.sent), len(self.sent) + REQUEST_MESSAGES)
            messages = [{"data": self._body(number)} for number in numbers]
            answer = publisher.publish(topic=self.topic, messages=messages)
            self.sent += answer.message_ids

    def _body(self, number: int) -> bytes:
        return b"not JSON" if number % 10 == 9 else self.bodies[number % len(self.bodies)]

    def stop(self) -> list[str]:
        """Stop, and return the ids of all published messages."""
        self._over.set()
        self._thread.join()
        return self.sent


@dataclass
class StreamRun:
    """A stream with one kind of sink: `topic`, `table` or `files`, before a hyphen.

    Attributes:
        prism: The program of Prism, on which the stream runs with its workers in another process;
            None to run in its own process.
    """

    cloud: Cloud
    folder: Path
    model: Path
    kind: str
    prism: Path | None = None
    _pulled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("in", "out", "dead"):
            self.cloud.publisher().create_topic(name=self.topic(name))
            self.cloud.subscriber().create_subscription(
                name=self.subscription(name),
                topic=self.topic(name),
                ack_deadline_seconds=ACK_SECONDS,
            )

    def topic(self, name: str) -> str:
        """Return the full name of a topic: `in`, `out` or `dead`."""
        return f"projects/{self.cloud.project}/topics/kill-{self.kind}-{name}"

    def subscription(self, name: str) -> str:
        """Return the full name of the subscription to a topic: `in`, `out` or `dead`."""
        return f"projects/{self.cloud.project}/subscriptions/kill-{self.kind}-{name}"

    @property
    def table(self) -> str:
        """The table for rows. The table for dead letters adds a suffix to its name."""
        return f"{self.cloud.project}.kills.stream"

    def start(self, number: int, **given: Any) -> Attempt:
        """Start a run of the stream. The number is the name of its log."""
        sinks: dict[str, dict[str, Any]] = {
            "topic": {
                "output_topic": self.topic("out"),
                "dead_letter_topic": self.topic("dead"),
            },
            "table": {"output_table": self.table, "dead_letter_table": f"{self.table}_dead"},
            "files": {
                "output_files": self.folder / "out",
                "dead_letter_files": self.folder / "out",
                "file_seconds": 1,
            },
        }
        values = {
            "input_subscription": self.subscription("in"),
            "model": self.model,
            "score_output": "normalized_MAE",
            "retry_seconds": 20,
            "run_id": "killed",
            **sinks[self.kind.partition("-")[0]],
            **({} if self.prism is None else on_prism(self.prism)),
            **given,
        }
        flags = [text for flag, value in values.items() for text in (f"--{flag}", str(value))]
        return Attempt("stream_local", flags, self.folder / f"{number}.log")

    def read(self, requests: float = math.inf) -> list[str]:
        """Return the ids of all rows and dead letters in the sinks.

        Args:
            requests: The most requests for messages of a topic. While a stream runs, there is no
                end of them.
        """
        if self.kind.startswith("topic"):
            self._pulled += self._pull("out", "row_id", requests)
            self._pulled += self._pull("dead", "millrace_row_id", requests)
            return self._pulled
        if self.kind == "table":
            client = self.cloud.bigquery()
            return [
                row["row_id"]
                for table in (self.table, f"{self.table}_dead")
                for row in client.query(f"SELECT row_id FROM `{table}`").result()
            ]
        found: list[str] = []
        for path in (self.folder / "out" / "scores").glob("*/*.parquet"):
            found += pq.read_table(path, columns=["row_id"])["row_id"].to_pylist()
        for path in (self.folder / "out" / "dead_letters").glob("*/*.jsonl"):
            found += [json.loads(line)["row_id"] for line in path.read_text().splitlines()]
        return found

    def _pull(self, name: str, attribute: str, requests: float) -> list[str]:
        client = self.cloud.subscriber()
        found: list[str] = []
        while requests > 0:
            requests -= 1
            try:
                pulled = client.pull(
                    subscription=self.subscription(name), max_messages=1_000, timeout=5, retry=None
                ).received_messages
            except exceptions.DeadlineExceeded:
                return found
            if not pulled:
                return found
            client.acknowledge(
                subscription=self.subscription(name), ack_ids=[one.ack_id for one in pulled]
            )
            found += [one.message.attributes[attribute] for one in pulled]
        return found


def wait_for_rows(run: StreamRun, attempt: Attempt, before: int) -> None:
    """Wait until a running attempt has written a row. `before` is the number of earlier rows."""
    until = time.monotonic() + PATIENCE_SECONDS
    while _count(run, 1) == before and attempt.running and time.monotonic() < until:
        time.sleep(0.1)


def _count(run: StreamRun, requests: float) -> int:
    """Return the number of rows and dead letters; 0 if the first run has created no table yet."""
    try:
        return len(run.read(requests))
    except exceptions.NotFound:
        return 0


def kill_stream(
    run: StreamRun, bodies: list[bytes], chance: random.Random, count: int, victim: str = "launcher"
) -> Tally:
    """Kill a stream repeatedly while messages arrive, then run it to its end and count the rows.

    Args:
        run: The stream.
        bodies: The bodies of the messages, which are used in turn.
        chance: Chooses the moments.
        count: The number of kills.
        victim: The process to kill: one of VICTIMS.
    """
    tally, number, others = Tally(), 0, []
    lives = LIVES if run.prism is None else LIVES_ON_PRISM
    sender = Sender(run.cloud, run.topic("in"), bodies)
    while tally.kills < count:
        number += 1
        before = _count(run, math.inf)
        attempt = run.start(number, stop_after_seconds=600)
        if chance.random() < 0.5:
            wait_for_rows(run, attempt, before)
            time.sleep(chance.uniform(0, WORK_SECONDS))
        else:
            time.sleep(chance.uniform(*lives))
        others = children(attempt)
        if not attempt.running:
            raise RuntimeError(f"a stream ended before its kill: {attempt.log.read_text()[-2000:]}")
        if victim == "launcher":
            tally.kills += attempt.kill()
        elif sum(kill(one) for one in others if is_a(victim, one)):
            tally.kills += 1
            # If Prism is killed while it starts, Beam starts it again, and the stream goes on.
            until = time.monotonic() + END_SECONDS
            while attempt.running and time.monotonic() < until:
                time.sleep(0.1)
            attempt.kill()
        else:
            # Its victim had not started yet.
            attempt.kill()
            tally.ended += 1
    sent = sender.stop()
    # Prism and the workers of a killed command end by themselves.
    _, left = psutil.wait_procs(others, PATIENCE_SECONDS)
    if left:
        raise TimeoutError(f"processes of a killed stream did not end in time: {left}")
    run.start(number + 1, stop_after_seconds=QUIET_SECONDS).finish()
    got = Counter(run.read())
    # Rows with the same id were delivered again, which at-least-once delivery allows.
    tally.again = got.total() - len(got)
    tally.count_rows(sent, set(got))
    return tally
