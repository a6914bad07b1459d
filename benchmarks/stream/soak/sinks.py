"""The sinks of a soak: the flags that choose them, and what they hold at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from google.cloud.bigquery_storage_v1 import types

from benchmarks.stream.run import Subscriber, topic
from benchmarks.stream.soak.accounts import Copies
from benchmarks.stream.soak.traffic import CODES, UNKNOWN
from cloud.clients import Cloud
from examples.local_cloud import LocalCloud
from transforms.bigquery.schema import TableName
from transforms.bigquery.session import ReadStream, read_stream

DATASET = "soak"
# The name of a run is this and the number of its life.
RUN = "life-"
# Messages whose rows wait for a file are not acknowledged, so a kill repeats them.
FILE_SECONDS = 2
# The pause of a subscriber that has received nothing.
PAUSE_SECONDS = 0.02
SCORED = CODES["scored"]


def _life(run: str) -> int:
    return int(run.removeprefix(RUN))


def read_row(message: Any) -> tuple[int, ...]:
    """Return the id, the life and the outcome of a row on a topic."""
    found = message.attributes
    return int(found["row_id"]), _life(found["run_id"]), SCORED


def read_letter(message: Any) -> tuple[int, ...]:
    """Return the id, the life and the outcome of a dead letter on a topic."""
    found = message.attributes
    code = CODES.get(found["millrace_reason"], UNKNOWN)
    return int(found["millrace_row_id"]), _life(found["millrace_run_id"]), code


def copies_of(rows: pa.Table) -> Copies:
    """Return the copies in rows with `row_id` and `run_id`, or in dead letters with a `reason`."""
    ids = pc.cast(rows["row_id"], pa.int64()).to_numpy()
    # Files have a dictionary of runs.
    runs = pc.cast(rows["run_id"], pa.string())
    lives = pc.utf8_replace_slice(runs, start=0, stop=len(RUN), replacement="")
    outcomes = np.full(len(ids), SCORED, np.int8)
    if "reason" in rows.column_names:
        known = pc.index_in(rows["reason"], pa.array(list(CODES)))
        outcomes = pc.fill_null(known, UNKNOWN).to_numpy().astype(np.int8)
    return Copies(ids, pc.cast(lives, pa.int32()).to_numpy(), outcomes)


def table_names(project: str) -> tuple[TableName, TableName]:
    """Return the names of the tables for rows and for dead letters."""
    rows = TableName(project, DATASET, "rows")
    return rows, rows.sibling("letters")


def sink_flags(project: str, folder: Path) -> dict[str, str]:
    """Return the flags that choose all sinks of a stream."""
    rows, letters = table_names(project)
    return {
        "output_topic": topic("out"),
        "dead_letter_topic": topic("dead"),
        "output_table": str(rows),
        "dead_letter_table": str(letters),
        "output_files": str(folder),
        "dead_letter_files": str(folder),
        "file_seconds": str(FILE_SECONDS),
    }


class Receivers:
    """The subscribers of the topics for rows and dead letters, which run from the start.

    So the arrival of each message is known.
    """

    def __init__(self, on: LocalCloud) -> None:
        self._subscribers = [
            Subscriber(on, kind, read, PAUSE_SECONDS)
            for kind, read in (("out", read_row), ("dead", read_letter))
        ]
        for subscriber in self._subscribers:
            subscriber.start()

    @property
    def are_running(self) -> bool:
        """Whether all of them are running."""
        return all(subscriber.is_alive() for subscriber in self._subscribers)

    def stop(self) -> tuple[np.ndarray, Copies]:
        """Receive what is left, and stop; return when each copy arrived, and the copies."""
        parts = [subscriber.received() for subscriber in self._subscribers]
        found = [Copies(*values.T) for _, values in parts if len(values)]
        return np.concatenate([times for times, _ in parts]), Copies.joined(found)


def copies_in_tables(cloud: Cloud) -> Copies:
    """Return the copies in the tables."""
    rows, letters = table_names(cloud.project)
    found = [
        copies_of(_read(cloud, rows, "row_id", "run_id")),
        copies_of(_read(cloud, letters, "row_id", "run_id", "reason")),
    ]
    return Copies.joined(found)


def copies_in_files(folder: Path) -> Copies:
    """Return the copies in the files of a stream."""
    found = []
    for path in (folder / "scores").glob("*/*.parquet"):
        found.append(copies_of(pq.read_table(path, columns=["row_id", "run_id"])))
    for path in (folder / "dead_letters").glob("*/*.jsonl"):
        letters = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        columns = {n: [one[n] for one in letters] for n in ("row_id", "run_id", "reason")}
        found.append(copies_of(pa.table(columns)))
    return Copies.joined(found)


def _read(cloud: Cloud, table: TableName, *columns: str) -> pa.Table:
    """Return columns of a table."""
    client = cloud.bigquery_read()
    # The stand-in reads the whole table for each stream.
    session = client.create_read_session(
        parent=f"projects/{cloud.project}",
        read_session=types.ReadSession(
            table=table.path,
            data_format=types.DataFormat.ARROW,
            read_options=types.ReadSession.TableReadOptions(selected_fields=list(columns)),
        ),
        max_stream_count=1,
        timeout=600.0,
    )
    streams = ReadStream.all_of(session)
    batches = [b for one in streams for b in read_stream(one, client, cloud.retry_seconds)]
    schema = pa.schema([(name, pa.string()) for name in columns])
    return pa.Table.from_batches(batches) if batches else schema.empty_table()
