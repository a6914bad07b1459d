"""Collects the results of a test from the topics of a stream, or from its table.

It reads its own subscriptions, which it creates and deletes, and counts only what carries the id of
its test. So it takes nothing from any other reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from google.api_core import exceptions
from numpy.typing import NDArray

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError
from scale_tests.load.plan import Result
from scale_tests.measures.accounts import Results
from scale_tests.streams.collector import STAMPS, Collector, MessageCollector
from scale_tests.streams.table_collector import TableCollector

# Pub/Sub deletes a subscription that a killed test left behind after this time.
EXPIRES_SECONDS = 86_400


class UnreadableResults(InputError):
    """The results of a test can no longer be read."""


class Collectors:
    """The collectors of scored rows and of dead letters."""

    def __init__(self, scored: Collector, dead: Collector) -> None:
        self._scored, self._dead = scored, dead

    @property
    def count(self) -> int:
        """How many results have arrived."""
        return self._scored.count + self._dead.count

    def results(self) -> Results:
        """Return the results so far."""
        scored, dead = self._scored.found(), self._dead.found()
        both = np.concatenate([scored, dead])
        return Results(
            sequence=both[:, 0].astype(np.int64),
            at=both[:, 1],
            dead=np.arange(len(both)) >= len(scored),
        )

    def stamps(self, first: int, count: int) -> dict[str, NDArray[np.float64]]:
        """Return the moments of the scored rows of a level, by STAMPS; NaN without a row.

        Moments that most of the rows lack are left out, except `scored_at`.
        """
        found = self._scored.found()[::-1]
        own = found[(found[:, 0] >= first) & (found[:, 0] < first + count)]
        moments = np.full((count, len(STAMPS)), np.nan)
        # Of several results the first one is written last.
        moments[own[:, 0].astype(np.int64) - first] = own[:, 2:]
        lack = np.isnan(own[:, 2:]).sum(axis=0) * 2 >= len(own)
        named = zip(STAMPS, moments.T, lack.tolist(), strict=True)
        return {name: at for name, at, lacks in named if not lacks or name == "scored_at"}

    def check(self) -> None:
        """Raise UnreadableResults if a subscription or the table can no longer be read."""
        for one in (self._scored, self._dead):
            if one.error is not None:
                with translate_errors(UnreadableResults, f"{one.source} cannot be read", one.role):
                    raise one.error


@contextmanager
def collecting(cloud: Cloud, test_id: str, result: Result) -> Iterator[Collectors]:
    """Collect results in the block, from subscriptions that exist as long as it runs.

    Args:
        cloud: The project and the addresses.
        test_id: The id of the test.
        result: The topic or the table of the results, and the topic of the dead letters, all with
            their full names.

    Raises:
        InputError: A topic or the table does not exist, or a subscription cannot be created.
    """
    names: list[str] = []
    running: list[Collector] = []

    def messages(kind: str, topic: str) -> MessageCollector:
        names.append(_subscribe(cloud, topic, f"millrace-scale-{test_id}-{kind}"))
        return MessageCollector(cloud, names[-1], test_id, dead=kind == "dead")

    try:
        dead = messages("dead", result.dead_letters)
        scored: Collector
        if result.source == "table":
            scored = TableCollector(cloud, result.name, test_id)
        else:
            scored = messages("scored", result.name)
        for collector in (scored, dead):
            collector.start()
            running.append(collector)
        yield Collectors(scored, dead)
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
