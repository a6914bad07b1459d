"""Receives the results of a test from the table that a stream writes."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError
from scale_tests.streams.collector import OF_ROWS, STAMPS, Collector

# A result counts as readable when a query has returned it, so a latency is up to this time and that
# of a query too large.
PAUSE_SECONDS = 1.0
# Rows that were scored within this time before the newest one are read again. A worker retries an
# append, while others write newer rows.
AGAIN = timedelta(minutes=2)
NEEDED = ("test_id", "sequence", "scored_at")


class TableCollector(Collector):
    """Receives the rows of a table by queries, one after the other.

    Args:
        cloud: The project and the addresses.
        table: The full name of the table.
        test_id: The id of the test. Other rows are ignored.

    Raises:
        InputError: The table does not exist, cannot be read, or lacks a column of NEEDED.
    """

    role = "roles/bigquery.dataViewer"

    def __init__(self, cloud: Cloud, table: str, test_id: str) -> None:
        super().__init__(table)
        self._cloud, self._test_id = cloud, test_id
        self._client: Any = cloud.bigquery()
        with translate_errors(InputError, f"{table} cannot be read", self.role):
            found = self._client.get_table(table, retry=retry(cloud.retry_seconds))
        names = {field.name for field in found.schema}
        if lacking := [name for name in NEEDED if name not in names]:
            raise InputError(
                f"{table} lacks {', '.join(lacking)}: expected the table that the stream writes "
                "with --output_table and the default columns"
            )
        self._stamps = [name for name in OF_ROWS if name in names]
        columns = ", ".join(["sequence", *self._stamps])
        self._sql = (
            f"SELECT {columns}, COUNT(*) AS copies FROM `{table}` "
            f"WHERE test_id = @test_id AND scored_at >= @since GROUP BY {columns}"
        )
        # Its clock may differ from this machine's.
        self._newest = datetime.now(UTC)
        self._seen: Counter[tuple[Any, ...]] = Counter()

    def receive(self) -> None:
        """Query the newest rows, and record those that no query before has returned."""
        since = self._newest - AGAIN
        parameters = [
            bigquery.ScalarQueryParameter("test_id", "STRING", self._test_id),
            bigquery.ScalarQueryParameter("since", "TIMESTAMP", since),
        ]
        rows = self._client.query(
            self._sql,
            bigquery.QueryJobConfig(query_parameters=parameters, use_query_cache=False),
            retry=retry(self._cloud.retry_seconds),
        ).result()
        found = [tuple(row.values()) for row in rows]
        now = time.time()
        for *key, copies in found:
            self._record(tuple(key), copies, now)
        self._over.wait(PAUSE_SECONDS)

    def _record(self, key: tuple[Any, ...], copies: int, now: float) -> None:
        more = copies - self._seen[key]
        if more <= 0:
            return
        self._seen[key] = copies
        stamps = dict(zip(self._stamps, key[1:], strict=True))
        self._newest = max(self._newest, stamps["scored_at"])
        times = [stamps[name].timestamp() if stamps.get(name) else np.nan for name in STAMPS]
        self._found += [(key[0], now, *times)] * more
