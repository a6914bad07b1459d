"""Receives the results of a test from a subscription of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from google.api_core import exceptions
from google.pubsub_v1.types import PullResponse
from numpy.typing import NDArray

from cloud.clients import Cloud
from cloud.errors import retry

PULL_SECONDS = 2.0
# The times in a row. Those of --row_timings may be missing.
OF_ROWS = (
    "event_time",
    "received_at",
    "decoded_at",
    "predict_started_at",
    "requested_at",
    "scored_at",
)
# The times of a result: also those of its message, if it is one.
STAMPS = (*OF_ROWS, "encoded_at", "published_at")
UNKNOWN = (np.nan,) * len(STAMPS)


class Collector(threading.Thread):
    """Receives results until it is stopped.

    Args:
        source: The full name of what it reads.

    Attributes:
        role: The role that reading needs.
        error: What ended it early, or None.
    """

    role = ""

    def __init__(self, source: str) -> None:
        super().__init__(daemon=True)
        self.source = source
        self._over = threading.Event()
        # The rows of `found`.
        self._found: list[tuple[float, ...]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Receive results."""
        try:
            while not self._over.is_set():
                self.receive()
        except BaseException as error:
            self.error = error

    def receive(self) -> None:
        """Receive some results, or wait for them for a moment."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """How many results have arrived."""
        return len(self._found)

    def found(self) -> NDArray[np.float64]:
        """Return [m, 10]: sequence number, time of arrival, and STAMPS; NaN for unknown times."""
        return np.array(self._found[:], np.float64).reshape(-1, 2 + len(STAMPS))

    def stop(self) -> None:
        """Stop after the current request."""
        self._over.set()
        self.join(PULL_SECONDS * 5)


class MessageCollector(Collector):
    """Receives the messages of a subscription.

    Args:
        cloud: The project and the addresses.
        subscription: The full name of the subscription.
        test_id: The id of the test. Other messages are acknowledged and ignored.
        dead: Whether the messages are dead letters.
    """

    role = "roles/pubsub.subscriber"

    def __init__(self, cloud: Cloud, subscription: str, test_id: str, *, dead: bool) -> None:
        super().__init__(subscription)
        self._client: Any = cloud.subscriber()
        self._test_id, self._dead = test_id, dead
        self._retry = retry(cloud.retry_seconds)
        self._pull_again = self._retry(self._pull)

    def receive(self) -> None:
        """Pull, record and acknowledge messages."""
        pulled = self._pull_again()
        if not pulled:
            return
        now = time.time()
        for one in pulled:
            self._record(one.message, now)
        self._client.acknowledge(
            subscription=self.source,
            ack_ids=[one.ack_id for one in pulled],
            retry=self._retry,
        )

    def _pull(self) -> Sequence[Any]:
        # The emulator and Pub/Sub may end a pull without a message. That is no error to retry.
        with suppress(exceptions.DeadlineExceeded, exceptions.Cancelled):
            answer = self._client.pull(
                subscription=self.source, max_messages=1_000, timeout=PULL_SECONDS, retry=None
            )
            # The bare protobuf messages: proto-plus would wrap each of them.
            messages: Sequence[Any] = PullResponse.pb(answer).received_messages
            return messages
        return []

    def _record(self, message: Any, now: float) -> None:
        try:
            row = orjson.loads(message.data)
        except orjson.JSONDecodeError:
            return
        if not isinstance(row, dict) or row.get("test_id") != self._test_id:
            return
        if isinstance(number := row.get("sequence"), int):
            stamps = UNKNOWN if self._dead else _stamps(row, message)
            self._found.append((number, now, *stamps))


def _stamps(row: Mapping[str, Any], message: Any) -> tuple[float, ...]:
    """Return STAMPS of a result."""
    published = message.publish_time
    return (
        *(_seconds(str(row.get(name))) for name in OF_ROWS),
        _seconds(message.attributes.get("encoded_at", "")),
        published.seconds + published.nanos / 1e9,
    )


@lru_cache
def _seconds(text: str) -> float:
    """Return the seconds since 1970 of a time in a row; NaN for anything else."""
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return np.nan
