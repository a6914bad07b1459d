"""AppendToTable: record batches into a table of BigQuery as they come, over the Storage Write API.

Rows go as Arrow, in pure Python. They are visible at once, and written at least once:
an append whose answer is lost is sent again, and so is a bundle that the runner
repeats, so that readers should take one row an id. Exactly once would need appends
at offsets that a repeated bundle meets again with the same rows; Beam's Python SDK
promises no such bundles. A batch run writes exactly once (transforms/bigquery/destination.py).
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import grpc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.utils.windowed_value import WindowedValue
from google.api_core import exceptions
from google.api_core.gapic_v1 import routing_header
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from cloud.errors import is_passing, translate_errors
from common.errors import OutputError
from common.memory import check_memory
from common.record_batch import concat_batches, to_rows
from model_handlers.isolate import isolate
from model_handlers.without_values import without_cells
from transforms.bigquery.schema import TableName, arrow_schema, table_fields
from transforms.dead_letters import Fault, failure_batch
from transforms.plain_json import to_json
from transforms.provenance import Provenance, utc_now
from transforms.split import Split, split_outputs

BATCH_BYTES = 5 << 20
BATCH_SECONDS = 1.0
# The service takes less than 20 MB a request; the rest is for the schema and the framing.
REQUEST_BYTES = 19_000_000
# What a table or a topic of dead letters has room for. A row that is larger than that is cut,
# or its failure record would be refused in its turn, again and again.
PAYLOAD_BYTES = 9_000_000
WRITTEN = "written"


def append(
    rows: pa.RecordBatch, send: Callable[[pa.RecordBatch], Mapping[int, str]]
) -> dict[int, str]:
    """Rows, and a function that writes all of a batch or none -> the refused rows' messages.

    send: answers with a message for each row that is refused, empty when all are written.
    Raises OutputError for an answer about rows that were not sent.
    """
    refused: dict[int, str] = {}
    left = np.arange(rows.num_rows)
    while len(left):
        faults = send(rows if len(left) == rows.num_rows else rows.take(pa.array(left)))
        if not faults:
            break
        for index, message in faults.items():
            if not 0 <= index < len(left):
                raise OutputError(
                    f"row {index} of an append of {len(left)} rows was refused ({message}): "
                    "expected the index of a row that was sent; please report this"
                )
            refused[int(left[index])] = message
        left = np.delete(left, list(faults))
    return refused


def sized(rows: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch]:
    """A batch -> slices that cover it in order, each of at most `limit` bytes or of one row."""
    if rows.nbytes > limit and rows.num_rows > 1:
        half = rows.num_rows // 2
        yield from sized(rows.slice(0, half), limit)
        yield from sized(rows.slice(half), limit)
    elif rows.num_rows:
        yield rows


def conform_to_table(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Rows that have a schema's columns -> rows of that schema. Raises pa.ArrowInvalid.

    BigQuery has no null lists, and the API wants an empty one in their place.
    """
    cast = rows.select(schema.names).cast(schema)
    if not any(pa.types.is_list(c.type) and c.null_count for c in cast.columns):
        return cast
    filled = [pc.fill_null(c, []) if pa.types.is_list(c.type) else c for c in cast.columns]
    return pa.RecordBatch.from_arrays(filled, schema=schema)


def _unfit(row: pa.RecordBatch, schema: pa.Schema) -> Fault:
    """A row that is not of a schema -> the Fault that names its first such column."""
    for field in schema:
        column = row.column(field.name)
        try:
            column.cast(field.type)
        except pa.ArrowException as error:
            check_memory(error, "a row for BigQuery")
            message = f"column {field.name}: expected {field.type}, got {column.type} out of range"
            return Fault("refused", message, field.name)
    return Fault("refused", "the row is not of the table's schema")


class AppendConnection:
    """One call of AppendRows, which takes requests and answers each in its turn.

    Made on the bare stub: the client's own method retries with requests that are gone by
    then, and its AppendRowsStream waits without a limit and tells no cause of a failure.
    """

    def __init__(self, client: Any, stream: str) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        header = routing_header.to_grpc_metadata({"write_stream": stream})
        self._call = client.transport.append_rows(
            iter(self._requests.get, None), metadata=(header,)
        )
        self._late = False

    def ask(self, request: types.AppendRowsRequest, seconds: float) -> types.AppendRowsResponse:
        """A request -> its answer. After a GoogleAPICallError the connection is of no use."""
        watch = threading.Timer(seconds, self._give_up)
        watch.start()
        self._requests.put(request)
        try:
            return next(self._call)
        except StopIteration:
            raise exceptions.Aborted("the connection was closed before the answer") from None
        except grpc.RpcError as error:
            if self._late:
                raise exceptions.DeadlineExceeded(f"no answer within {seconds:g} s") from error
            raise exceptions.from_grpc_error(error) from error
        finally:
            watch.cancel()

    def _give_up(self) -> None:
        self._late = True
        self._call.cancel()

    def close(self) -> None:
        """The call is over, and so is the thread in which gRPC waits for requests."""
        self._requests.put(None)
        self._call.cancel()


class DefaultStream:
    """The stream of a table to which anyone may append; a connection that is made when needed."""

    def __init__(self, cloud: Cloud, table: TableName, schema: pa.Schema) -> None:
        self._cloud = cloud
        self._name = f"{table.path}/streams/_default"
        self._schema = schema.serialize().to_pybytes()
        self._connection: AppendConnection | None = None

    def send(self, rows: pa.RecordBatch) -> dict[int, str]:
        """Rows -> written, or the messages of those that are refused, and then none is written.

        What passes by itself is waited out for retry_seconds. Raises GoogleAPIError.
        """
        data = rows.serialize().to_pybytes()
        deadline, delay = time.monotonic() + self._cloud.retry_seconds, 0.1
        while True:
            try:
                return self._ask(data)
            except exceptions.GoogleAPICallError as error:
                # The service's own word for a call that it ended early.
                if not (is_passing(error) or isinstance(error, exceptions.Cancelled)):
                    raise
                wait = delay * random.uniform(0.5, 1.0)
                if time.monotonic() + wait > deadline:
                    raise exceptions.RetryError("", error) from error
            time.sleep(wait)
            delay = min(delay * 2, 10.0)

    def _ask(self, data: bytes) -> dict[int, str]:
        """Serialized rows -> what became of them, over a connection that is closed if it fails."""
        request = types.AppendRowsRequest()
        # The bare message: by way of proto-plus the bytes would be copied once more.
        types.AppendRowsRequest.pb(request).arrow_rows.rows.serialized_record_batch = data
        if self._connection is None:
            self._connection = AppendConnection(self._cloud.bigquery_write(), self._name)
            request.write_stream = self._name
            request.arrow_rows.writer_schema.serialized_schema = self._schema
        try:
            # A connection that hangs leaves time for another one.
            answer = self._connection.ask(request, self._cloud.retry_seconds / 2)
            if answer.row_errors:
                return {int(error.index): str(error.message) for error in answer.row_errors}
            if answer.error.code:
                raise exceptions.from_grpc_status(answer.error.code, answer.error.message)
        except BaseException:
            # An answer that is still to come would be taken for that of the next request.
            self.close()
            raise
        return {}

    def close(self) -> None:
        """The connection is gone; the next rows make another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _AppendDoFn(beam.DoFn):
    """Batches -> ((`written`,), rows) of each append; refused rows go to the output `failures`."""

    def __init__(
        self, cloud: Cloud, table: TableName, schema: pa.Schema, provenance: Provenance, limit: int
    ) -> None:
        self._cloud, self._table, self._provenance = cloud, table, provenance
        self._schema = arrow_schema(table_fields(schema))
        self._limit = min(limit, REQUEST_BYTES)
        self._stream: DefaultStream | None = None

    def setup(self) -> None:
        self._stream = DefaultStream(self._cloud, self._table, self._schema)

    def start_bundle(self) -> None:
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
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._flush()

    def teardown(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _flush(self) -> Iterator[Any]:
        waiting = self._waiting
        self.start_bundle()
        for window, batches in waiting.items():
            timestamp = max(time for _, time in batches)
            for rows in sized(concat_batches([rows for rows, _ in batches]), self._limit):
                faults = self._append(rows)
                written = ((WRITTEN,), rows.num_rows - len(faults))
                yield WindowedValue(written, timestamp, (window,))
                if faults:
                    yield self._failures(rows, faults, window, timestamp)

    def _append(self, rows: pa.RecordBatch) -> dict[int, Fault]:
        """Rows within the limit, or one beyond it -> what is wrong with those not written."""
        if rows.nbytes > REQUEST_BYTES:
            return {0: Fault("too_large", f"{rows.nbytes:,} bytes: an append takes 20 MB at most")}
        assert self._stream is not None
        with translate_errors(OutputError, f"table {self._table} cannot be written"):
            refused = append(rows, self._stream.send)
        # BigQuery may quote the value that it refuses.
        bad = to_rows(rows.take(pa.array(list(refused), pa.int64())))
        return {
            index: Fault("refused", without_cells(message, row))
            for (index, message), row in zip(refused.items(), bad, strict=True)
        }

    def _failures(
        self, rows: pa.RecordBatch, faults: dict[int, Fault], window: Any, timestamp: Any
    ) -> beam.pvalue.TaggedOutput:
        """Rows, and what is wrong with some of them -> failure records of these."""
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
    """Batches of output rows -> rows in a table, counted; those it refuses as failure records.

    schema: of the rows, whose first column is the id. batch_bytes: of one append at
    most; what a bundle has is appended at its end, and after BATCH_SECONDS.
    """

    cloud: Cloud
    table: TableName
    schema: pa.Schema
    provenance: Provenance
    batch_bytes: int = BATCH_BYTES

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Split:
        """One DoFn, which keeps a connection for its life."""
        dofn = _AppendDoFn(self.cloud, self.table, self.schema, self.provenance, self.batch_bytes)
        return split_outputs(batches, dofn, counts=True)
