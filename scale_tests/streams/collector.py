"""Collects the results of a test from the topics of a stream.

It reads its own subscriptions, which it creates and deletes, and counts only messages that carry
the id of its test. So it takes nothing from any other reader.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import numpy as np
import orjson
from google.api_core import exceptions
from numpy.typing import NDArray

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError
from scale_tests.measures.accounts import Results

# Pub/Sub deletes a subscription that a killed test left behind after this time.
EXPIRES_SECONDS = 86_400
PULL_SECONDS = 2.0
STAMPS = ("event_time", "received_at", "scored_at")


class Collector(threading.Thread):
    """Receives the messages of a subscription until it is stopped.

    Args:
        cloud: The project and the addresses.
        subscription: The full name of the subscription.
        test_id: The id of the test. Other messages are acknowledged and ignored.
        dead: Whether the messages are dead letters.
    """

    def __init__(self, cloud: Cloud, subscription: str, test_id: str, *, dead: bool) -> None:
        super().__init__(daemon=True)
        self._client: Any = cloud.subscriber()
        self._subscription, self._test_id, self._dead = subscription, test_id, dead
        self._over = threading.Event()
        self._found: list[tuple[float, float, float, float, float]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Pull, record and acknowledge messages."""
        try:
            while not self._over.is_set():
                self._receive()
        except BaseException as error:
            self.error = error

    def _receive(self) -> None:
        # The emulator and Pub/Sub may end a pull without a message.
        with suppress(exceptions.DeadlineExceeded, exceptions.Cancelled):
            pulled = self._client.pull(
                subscription=self._subscription,
                max_messages=1_000,
                timeout=PULL_SECONDS,
                retry=None,
            ).received_messages
            if not pulled:
                return
            now = time.time()
            for one in pulled:
                self._record(one.message.data, now)
            self._client.acknowledge(
                subscription=self._subscription, ack_ids=[one.ack_id for one in pulled]
            )

    def _record(self, data: bytes, now: float) -> None:
        try:
            row = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if not isinstance(row, dict) or row.get("test_id") != self._test_id:
            return
        if isinstance(number := row.get("sequence"), int):
            times = [np.nan] * 3 if self._dead else [_seconds(row.get(name)) for name in STAMPS]
            self._found.append((number, now, times[0], times[1], times[2]))

    @property
    def count(self) -> int:
        """How many results have arrived."""
        return len(self._found)

    def found(self) -> NDArray[np.float64]:
        """Return [m, 5]: sequence number, time of arrival, and STAMPS; NaN for unknown times."""
        return np.array(self._found[:], np.float64).reshape(-1, 5)

    def stop(self) -> None:
        """Stop after the current pull."""
        self._over.set()
        self.join(PULL_SECONDS * 5)


class Collectors:
    """The collectors of scored rows and of dead letters."""

    def __init__(self, scored: Collector, dead: Collector) -> None:
        self._scored, self._dead = scored, dead

    @property
    def count(self) -> int:
        """How many results have arrived."""
        return self._scored.count + self._dead.count

    def results(self) -> Results:
        """Return the results so far.

        Raises:
            InputError: A subscription can no longer be read.
        """
        self.check()
        scored, dead = self._scored.found(), self._dead.found()
        both = np.concatenate([scored, dead])
        return Results(
            sequence=both[:, 0].astype(np.int64),
            at=both[:, 1],
            dead=np.arange(len(both)) >= len(scored),
        )

    def stamps(self, first: int, count: int) -> dict[str, NDArray[np.float64]]:
        """Return the moments of the scored rows of a level, by STAMPS; NaN without a row."""
        found = self._scored.found()[::-1]
        own = found[(found[:, 0] >= first) & (found[:, 0] < first + count)]
        moments = np.full((count, len(STAMPS)), np.nan)
        # Of several results the first one is written last.
        moments[own[:, 0].astype(np.int64) - first] = own[:, 2:]
        return dict(zip(STAMPS, moments.T, strict=True))

    def check(self) -> None:
        """Raise InputError if a subscription can no longer be read."""
        for one in (self._scored, self._dead):
            if one.error is not None:
                with translate_errors(InputError, "the results cannot be read"):
                    raise one.error


@contextmanager
def collecting(cloud: Cloud, test_id: str, output: str, dead_letters: str) -> Iterator[Collectors]:
    """Collect results in the block, from subscriptions that exist as long as it runs.

    Args:
        cloud: The project and the addresses.
        test_id: The id of the test.
        output: The full name of the topic of the results.
        dead_letters: The full name of the topic of the dead letters.

    Raises:
        InputError: A topic does not exist, or a subscription cannot be created.
    """
    names: list[str] = []
    running: list[Collector] = []
    try:
        for kind, topic in (("scored", output), ("dead", dead_letters)):
            names.append(_subscribe(cloud, topic, f"millrace-scale-{test_id}-{kind}"))
            running.append(Collector(cloud, names[-1], test_id, dead=kind == "dead"))
            running[-1].start()
        yield Collectors(*running)
    finally:
        for one in running:
            one.stop()
        for name in names:
            with suppress(exceptions.GoogleAPIError):
                cloud.subscriber().delete_subscription(subscription=name)


def _subscribe(cloud: Cloud, topic: str, name: str) -> str:
    full = f"projects/{cloud.project}/subscriptions/{name}"
    with translate_errors(
        InputError, f"a subscription of {topic} cannot be created", "roles/pubsub.editor"
    ):
        cloud.subscriber().create_subscription(
            request={
                "name": full,
                "topic": topic,
                "ack_deadline_seconds": 60,
                "message_retention_duration": {"seconds": EXPIRES_SECONDS},
                "expiration_policy": {"ttl": {"seconds": EXPIRES_SECONDS}},
            },
            retry=retry(cloud.retry_seconds),
        )
    return full


def _seconds(text: Any) -> float:
    """Return the seconds since 1970 of a time in a row; NaN for anything else."""
    with suppress(TypeError, ValueError):
        return datetime.fromisoformat(text).timestamp()
    return np.nan
