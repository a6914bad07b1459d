"""The rows and the results of a test as tables of BigQuery, named by the id of the test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from google.api_core import exceptions
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError, MillraceError, OutputError
from scale_tests.batches.place import FILE_ROWS, Found, Input, Ints, discard_run, empty
from scale_tests.load.arrow_rows import read_ids
from transforms.bigquery.session import ReadStream, create_session, read_stream

ROLES = "roles/bigquery.dataEditor"


@dataclass
class Tables:
    """The tables of a test, in an existing dataset.

    Attributes:
        cloud: The project that pays, and the addresses.
        dataset: The dataset, as project.dataset.
        test_id: The first part of the ids of rows.
        temp: The temp location of the runs, which gets their reports, or None.
    """

    cloud: Cloud
    dataset: str
    test_id: str
    temp: str | None = None
    _client: Any = field(init=False)

    def __post_init__(self) -> None:
        self._client = self.cloud.bigquery()

    def write(self, name: str, batches: Iterable[pa.RecordBatch]) -> Input:
        """Load rows into a new table.

        Raises:
            OutputError: The dataset does not exist, or the account may not write there.
        """
        table = self._name(name)
        config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_APPEND")
        with self._errors(OutputError, f"rows cannot be written to {table}"):
            for file in _files(batches):
                self._client.load_table_from_file(
                    file, table, rewind=True, job_config=config
                ).result(retry=self._retry)
            size = int(self._client.get_table(table, retry=self._retry).num_bytes or 0)
        return Input(flags=("--input_table", table), bytes=size)

    def flags(self, run_id: str) -> tuple[str, ...]:
        """Return the flags of the output of a run."""
        scored, dead = self._parts(run_id)
        return ("--output_table", scored, "--dead_letter_table", dead)

    def read(self, run_id: str) -> Found:
        """Return the rows of the tables of a run. A table that does not exist has none.

        Raises:
            InputError: A table cannot be read.
        """
        scored, dead = self._parts(run_id)
        with self._errors(InputError, f"the results in {scored} cannot be read"):
            rows, times, size = self._part(scored, "scored_at")
            letters, _, more = self._part(dead, "failed_at")
        return Found(scored=rows, dead=letters, times=times, bytes=size + more)

    def _part(self, table: str, time: str) -> tuple[Ints, tuple[float, float] | None, int]:
        try:
            found = self._client.get_table(table, retry=self._retry)
        except exceptions.NotFound:
            return empty(), None, 0
        options = types.ReadSession.TableReadOptions(selected_fields=["row_id", time])
        wanted = types.ReadSession(
            table=found.path.lstrip("/"),
            data_format=types.DataFormat.ARROW,
            read_options=options,
        )
        session = create_session(self.cloud, wanted)
        client, patience = self.cloud.bigquery_read(), self.cloud.retry_seconds
        numbers, times = [empty()], []
        for stream in ReadStream.all_of(session, "run the test again"):
            for batch in read_stream(stream, client, patience):
                numbers.append(read_ids(batch.column("row_id"), self.test_id))
                times += [*pc.min_max(batch.column(time)).as_py().values()]
        seconds = [one.timestamp() for one in times if one is not None]
        span = (min(seconds), max(seconds)) if seconds else None
        return np.concatenate(numbers), span, int(found.num_bytes or 0)

    def discard(self, run_id: str) -> None:
        """Remove the tables of a run, and what it left in the temp location."""
        for table in self._parts(run_id):
            self._delete(table)
        if self.temp:
            discard_run(f"{self.temp.rstrip('/')}/millrace", run_id)

    def drop(self, name: str) -> None:
        """Remove the table of these rows."""
        self._delete(self._name(name))

    def remove(self) -> None:
        """Remove all tables of the test."""
        with (
            self._errors(OutputError, f"the tables of the test in {self.dataset} are left"),
            suppress(exceptions.NotFound),
        ):
            for table in self._client.list_tables(self.dataset, retry=self._retry):
                if table.table_id.startswith(f"millrace_scale_{self.test_id}_"):
                    self._delete(f"{self.dataset}.{table.table_id}")

    def _delete(self, table: str) -> None:
        with self._errors(OutputError, f"table {table} cannot be removed"):
            self._client.delete_table(table, not_found_ok=True, retry=self._retry)

    def _parts(self, run_id: str) -> Sequence[str]:
        name = self._name(run_id.removeprefix(f"{self.test_id}-").replace("-", "_"))
        return (name, f"{name}_dead_letters")

    def _name(self, name: str) -> str:
        return f"{self.dataset}.millrace_scale_{self.test_id}_{name}"

    @property
    def _retry(self) -> Any:
        return retry(self.cloud.retry_seconds)

    @contextmanager
    def _errors(self, kind: type[MillraceError], what: str) -> Iterator[None]:
        with translate_errors(kind, what, ROLES):
            yield


def _files(batches: Iterable[pa.RecordBatch]) -> Iterator[IO[bytes]]:
    """Yield Parquet files of up to FILE_ROWS rows, each until the next one."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= FILE_ROWS:
            yield from _file(waiting)
            waiting = []
    if waiting:
        yield from _file(waiting)


def _file(batches: Sequence[pa.RecordBatch]) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        pq.write_table(pa.Table.from_batches(batches), file)
        yield file
