"""AppendToTable: record batches appended to a BigQuery table as they arrive.

Rows are sent as Arrow over the Storage Write API, in pure Python. They are visible at once. The
threads of a process share a connection (append_stream.py). A bundle sends its requests one after
the other, and waits for the answers at its end.

Each row is written at least once: an append is sent again if its response is lost, and the runner
may repeat a bundle, so readers should take one row per id.

To write each row exactly once, appends would need offsets, and a repeated bundle would have to
send the same rows at the same offsets. Beam's Python SDK does not promise such bundles. A batch
run writes each row exactly once (transforms/bigquery/destination.py).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.utils.windowed_value import WindowedValue

from cloud.clients import Cloud
from cloud.errors import translate_errors
from common.errors import OutputError
from common.measures import APPEND
from common.memory import check_memory
from common.plain_json import to_json
from common.record_batch import concat_batches, sized, to_rows
from model_handlers.isolate import isolate
from model_handlers.without_values import without_cells
from transforms.bigquery.append_stream import (
    Append,
    DefaultStream,
    release_stream,
    share_stream,
)
from transforms.bigquery.schema import TableName, arrow_schema, table_fields
from transforms.bigquery.unfit import null_elements
from transforms.dead_letters import Fault, failure_batch
from transforms.provenance import Provenance, utc_now
from transforms.split import Split, split_outputs

BATCH_BYTES = 5 << 20
BATCH_SECONDS = 1.0
# The service accepts less than 20 MB per request. The difference is for the schema and the framing.
REQUEST_BYTES = 19_000_000
# The largest payload that a dead-letter table or topic can hold. A longer payload is cut, because
# otherwise the dead letter itself would be refused, again and again.
PAYLOAD_BYTES = 9_000_000
WRITTEN = "written"


def leave_out(
    rows: pa.RecordBatch,
    faults: Mapping[int, str],
    send: Callable[[pa.RecordBatch], Mapping[int, str]],
) -> dict[int, str]:
    """Write the rows of a request that was refused because of some rows, without those rows.

    Args:
        rows: The rows of the request.
        faults: The answer to the request: a message for each refused row, by its index; nothing
            if all rows were written.
        send: Writes all rows of a batch or none, and answers in the same way.

    Returns:
        The message of each row that was not written, by its index in `rows`.

    Raises:
        OutputError: An answer refuses a row that was not sent.
    """
    refused: dict[int, str] = {}
    left = np.arange(rows.num_rows)
    while faults:
        for index, message in faults.items():
            if not 0 <= index < len(left):
                raise OutputError(
                    f"BigQuery rejected row {index} of a request that has only {len(left)} rows "
                    f"({message}): please report this"
                )
            refused[int(left[index])] = message
        left = np.delete(left, list(faults))
        faults = send(rows.take(pa.array(left))) if len(left) else {}
    return refused


def conform_to_table(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows with the columns and types of a schema, and empty lists instead of null lists.

    BigQuery has no null lists; the API expects empty ones.

    Args:
        rows: Rows with at least the schema's columns, in any order.
        schema: The columns and types to return.

    Raises:
        pa.ArrowInvalid: A value does not fit the type of its column, or a list has a null element.
    """
    if any(null_elements(rows.column(name)) is not None for name in schema.names):
        raise pa.ArrowInvalid("a list has a null element")
    cast = rows.select(schema.names).cast(schema)
    if not any(pa.types.is_list(c.type) and c.null_count for c in cast.columns):
        return cast
    filled = [pc.fill_null(c, []) if pa.types.is_list(c.type) else c for c in cast.columns]
    return pa.RecordBatch.from_arrays(filled, schema=schema)


def _unfit(row: pa.RecordBatch, schema: pa.Schema) -> Fault:
    """Return the Fault of a row that does not fit; it names the first column that does not fit."""
    for field in schema:
        column = row.column(field.name)
        if null_elements(column) is not None:
            message = (
                f"column {field.name}: expected lists without null elements, got a {column.type} "
                "with one"
            )
            return Fault("refused", message, field.name)
        try:
            column.cast(field.type)
        except pa.ArrowException as error:
            check_memory(error, "a row for BigQuery")
            message = (
                f"column {field.name}: expected {field.type}, got a {column.type} value that does "
                "not fit"
            )
            return Fault("refused", message, field.name)
    return Fault("refused", "the row does not match the table's schema")


class _Sent(NamedTuple):
    """The rows of a request, and the request; None if a single row is too large for one."""

    rows: pa.RecordBatch
    append: Append | None

    @property
    def is_answered(self) -> bool:
        return self.append is None or self.append.is_answered


class _AppendDoFn(beam.DoFn):
    """A DoFn that appends batches and yields ((`written`,), rows) for each request.

    It waits for the answers at the end of a bundle.

    Refused rows go to the output `failures`.
    """

    def __init__(
        self, cloud: Cloud, table: TableName, schema: pa.Schema, provenance: Provenance, limit: int
    ) -> None:
        self._cloud, self._table, self._provenance = cloud, table, provenance
        self._schema = arrow_schema(table_fields(schema))
        self._limit = min(limit, REQUEST_BYTES)
        self._stream: DefaultStream | None = None

    def setup(self) -> None:
        self._stream = share_stream(self._cloud, self._table, self._schema)

    def start_bundle(self) -> None:
        self._begin()
        # What was sent and has not been answered, with the window and the time of the rows.
        self._sent: deque[tuple[_Sent, Any, Any]] = deque()

    def _begin(self) -> None:
        """Start to gather rows for the next requests."""
        self._waiting: dict[Any, list[tuple[pa.RecordBatch, Any]]] = {}
        self._bytes, self._since = 0, time.monotonic()

    def process(
        self,
        batch: pa.RecordBatch,
        window: Any = beam.DoFn.WindowParam,
        timestamp: Any = beam.DoFn.TimestampParam,
    ) -> Iterator[Any]:
        def conformed(part: slice) -> pa.RecordBatch:
            return conform_to_table(batch.slice(part.start, part.stop - part.start), self._schema)

        faults = {}
        for part, rows in isolate(conformed, slice(0, batch.num_rows), (pa.ArrowInvalid,)):
            if isinstance(rows, Exception):
                faults[part.start] = _unfit(batch.slice(part.start, 1), self._schema)
            else:
                self._waiting.setdefault(window, []).append((rows, timestamp))
                self._bytes += rows.nbytes
        if faults:
            yield self._failures(batch, faults, window, timestamp)
        if self._bytes >= self._limit or time.monotonic() - self._since > BATCH_SECONDS:
            self._flush()
            yield from self._answers(wait=False)

    def finish_bundle(self) -> Iterator[Any]:
        if not (self._waiting or self._sent):
            return
        with APPEND.timed():
            self._flush()
            answers = list(self._answers(wait=True))
        yield from answers

    def teardown(self) -> None:
        if self._stream is not None:
            release_stream(self._stream)
            self._stream = None

    def _flush(self) -> None:
        """Send the rows that are waiting, without waiting for the answers."""
        assert self._stream is not None
        waiting = self._waiting
        self._begin()
        for window, batches in waiting.items():
            timestamp = max(time for _, time in batches)
            for rows in sized(concat_batches([rows for rows, _ in batches]), self._limit):
                with self._errors():
                    append = None if rows.nbytes > REQUEST_BYTES else self._stream.start(rows)
                self._sent.append((_Sent(rows, append), window, timestamp))

    def _answers(self, *, wait: bool) -> Iterator[Any]:
        """Yield the counts and the failures of what was sent; without `wait`, of what is answered.

        The memory of rows that are written becomes free.
        """
        while self._sent and (wait or self._sent[0][0].is_answered):
            sent, window, timestamp = self._sent.popleft()
            faults = self._faults(sent)
            written = ((WRITTEN,), sent.rows.num_rows - len(faults))
            yield WindowedValue(written, timestamp, (window,))
            if faults:
                yield self._failures(sent.rows, faults, window, timestamp)

    def _faults(self, sent: _Sent) -> dict[int, Fault]:
        """Wait until rows are written, and return the faults of the others by index."""
        if sent.append is None:
            size = sent.rows.nbytes
            message = f"expected a row of at most {REQUEST_BYTES:,} bytes, got {size:,}"
            return {0: Fault("too_large", message)}
        assert self._stream is not None
        with self._errors():
            refused = leave_out(sent.rows, sent.append.refused(), self._stream.send)
        # BigQuery may quote the value that it refuses, and messages must not contain values.
        bad = to_rows(sent.rows.take(pa.array(list(refused), pa.int64())))
        return {
            index: Fault("refused", without_cells(message, row))
            for (index, message), row in zip(refused.items(), bad, strict=True)
        }

    def _errors(self) -> AbstractContextManager[None]:
        return translate_errors(OutputError, f"table {self._table} cannot be written")

    def _failures(
        self, rows: pa.RecordBatch, faults: dict[int, Fault], window: Any, timestamp: Any
    ) -> beam.pvalue.TaggedOutput:
        """Return dead letters of the rows that have faults."""
        bad = to_rows(rows.take(pa.array(list(faults))))
        ids = [row[self._schema.names[0]] for row in bad]
        failures = failure_batch(
            [None if row_id is None else str(row_id) for row_id in ids],
            [to_json(row)[:PAYLOAD_BYTES] for row in bad],
            list(faults.values()),
            stage="write",
            provenance=self._provenance,
            failed_at=utc_now(),
        )
        return beam.pvalue.TaggedOutput("failures", WindowedValue(failures, timestamp, (window,)))


@dataclass(kw_only=True)
class AppendToTable(beam.PTransform):
    """A sink that appends batches of output rows to a table and counts the rows written.

    Rows that the table refuses become dead letters.

    Attributes:
        cloud: Makes the client, and limits retries.
        table: The table to append to; it must exist.
        schema: The schema of the rows. The first column is the row id.
        provenance: The run and the model, for dead letters.
        batch_bytes: The largest size of an append, in bytes. Rows are also appended at the end of
            a bundle, and with the first batch after BATCH_SECONDS.
    """

    cloud: Cloud
    table: TableName
    schema: pa.Schema
    provenance: Provenance
    batch_bytes: int = BATCH_BYTES

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Split:
        """Apply one DoFn, whose instances in a process share a connection."""
        dofn = _AppendDoFn(self.cloud, self.table, self.schema, self.provenance, self.batch_bytes)
        return split_outputs(batches, dofn, counts=True)
