"""AppendToTable: record batches appended to a BigQuery table as they arrive.

Rows are sent as Arrow over the Storage Write API, in pure Python. They are visible at once. Each
row is written at least once: an append is sent again if its response is lost, and the runner may
repeat a bundle, so readers should take one row per id.

To write each row exactly once, appends would need offsets, and a repeated bundle would have to
send the same rows at the same offsets. Beam's Python SDK does not promise such bundles. A batch
run writes each row exactly once (transforms/bigquery/destination.py).
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
from cloud.errors import current_call, is_passing, short_reason, translate_errors
from common.errors import OutputError
from common.memory import check_memory
from common.plain_json import to_json
from common.record_batch import concat_batches, sized, to_rows
from common.retry_notices import Retried
from model_handlers.isolate import isolate
from model_handlers.without_values import without_cells
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


def append(
    rows: pa.RecordBatch, send: Callable[[pa.RecordBatch], Mapping[int, str]]
) -> dict[int, str]:
    """Append rows, leaving out the refused ones until all others are written.

    Args:
        rows: The rows to write.
        send: Writes all rows of a batch or none. Returns a message for each refused row, by the
            row's index in that batch; nothing if all rows were written.

    Returns:
        The message of each refused row, by its index in `rows`.

    Raises:
        OutputError: `send` refused a row that it was not given.
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
                    f"BigQuery rejected row {index} of a request that has only {len(left)} rows "
                    f"({message}): please report this"
                )
            refused[int(left[index])] = message
        left = np.delete(left, list(faults))
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


class AppendConnection:
    """A call of AppendRows, which takes requests and responds to each in order.

    It uses the bare stub. The client's own method would retry with requests that have already
    been consumed, and its AppendRowsStream waits without a limit and does not report the cause of
    a failure.

    Args:
        client: A BigQueryWriteClient.
        stream: The full name of the stream to append to.
    """

    def __init__(self, client: Any, stream: str) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        header = routing_header.to_grpc_metadata({"write_stream": stream})
        self._call = client.transport.append_rows(
            iter(self._requests.get, None), metadata=(header,)
        )
        self._late = False

    def ask(self, request: types.AppendRowsRequest, seconds: float) -> types.AppendRowsResponse:
        """Send a request and return its response.

        Args:
            request: The rows to append.
            seconds: How long to wait for the response.

        Raises:
            GoogleAPICallError: The request failed, the connection was closed (Aborted), or no
                response arrived in time (DeadlineExceeded). The connection cannot be used again.
        """
        watch = threading.Timer(seconds, self._give_up)
        watch.start()
        self._requests.put(request)
        try:
            return next(self._call)
        except StopIteration:
            raise exceptions.Aborted("the connection was closed before the response") from None
        except grpc.RpcError as error:
            if self._late:
                raise exceptions.DeadlineExceeded(f"no response within {seconds:g} s") from error
            raise exceptions.from_grpc_error(error) from error
        finally:
            watch.cancel()

    def _give_up(self) -> None:
        self._late = True
        self._call.cancel()

    def close(self) -> None:
        """End the call, and the thread in which gRPC waits for requests."""
        self._requests.put(None)
        self._call.cancel()


class DefaultStream:
    """The default stream of a table, with a connection that is opened when needed.

    Args:
        cloud: Makes the client, and limits retries.
        table: The table to append to.
        schema: The Arrow schema of the rows that are sent.
    """

    def __init__(self, cloud: Cloud, table: TableName, schema: pa.Schema) -> None:
        self._cloud = cloud
        self._name = f"{table.path}/streams/_default"
        self._schema = schema.serialize().to_pybytes()
        self._connection: AppendConnection | None = None

    def send(self, rows: pa.RecordBatch) -> dict[int, str]:
        """Write all rows, or none of them if any is refused.

        Transient errors are retried for `retry_seconds`.

        Args:
            rows: Rows of the stream's schema.

        Returns:
            The message of each refused row, by its index; empty if all rows were written.

        Raises:
            GoogleAPIError: The append failed, or kept failing with transient errors.
        """
        data = rows.serialize().to_pybytes()
        deadline, delay = time.monotonic() + self._cloud.retry_seconds, 0.1
        with Retried(current_call()) as retried:
            while True:
                try:
                    return self._ask(data)
                except exceptions.GoogleAPICallError as error:
                    # The service ends a call early with Cancelled; another call may succeed.
                    if not (is_passing(error) or isinstance(error, exceptions.Cancelled)):
                        raise
                    wait = delay * random.uniform(0.5, 1.0)
                    if time.monotonic() + wait > deadline:
                        raise exceptions.RetryError("", error) from error
                    retried.failed(short_reason(error), deadline - time.monotonic())
                time.sleep(wait)
                delay = min(delay * 2, 10.0)

    def _ask(self, data: bytes) -> dict[int, str]:
        """Send serialized rows once, and return the messages of refused rows.

        The connection is closed if it fails.
        """
        request = types.AppendRowsRequest()
        # Set the bare protobuf message: proto-plus would copy the bytes once more.
        types.AppendRowsRequest.pb(request).arrow_rows.rows.serialized_record_batch = data
        if self._connection is None:
            self._connection = AppendConnection(self._cloud.bigquery_write(), self._name)
            request.write_stream = self._name
            request.arrow_rows.writer_schema.serialized_schema = self._schema
        try:
            # Half the time, to leave some for another connection if this one hangs.
            answer = self._connection.ask(request, self._cloud.retry_seconds / 2)
            if answer.row_errors:
                return {int(error.index): str(error.message) for error in answer.row_errors}
            if answer.error.code:
                raise exceptions.from_grpc_status(answer.error.code, answer.error.message)
        except BaseException:
            # A late response would be mistaken for the response to the next request.
            self.close()
            raise
        return {}

    def close(self) -> None:
        """Close the connection; the next rows open another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _AppendDoFn(beam.DoFn):
    """A DoFn that appends batches and yields ((`written`,), rows) for each append.

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
        """Append rows within the limit, or one row beyond it; return the faults by index."""
        if rows.nbytes > REQUEST_BYTES:
            message = f"expected a row of at most {REQUEST_BYTES:,} bytes, got {rows.nbytes:,}"
            return {0: Fault("too_large", message)}
        assert self._stream is not None
        with translate_errors(OutputError, f"table {self._table} cannot be written"):
            refused = append(rows, self._stream.send)
        # BigQuery may quote the value that it refuses, and messages must not contain values.
        bad = to_rows(rows.take(pa.array(list(refused), pa.int64())))
        return {
            index: Fault("refused", without_cells(message, row))
            for (index, message), row in zip(refused.items(), bad, strict=True)
        }

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
        """Apply one DoFn, which keeps its connection open between bundles."""
        dofn = _AppendDoFn(self.cloud, self.table, self.schema, self.provenance, self.batch_bytes)
        return split_outputs(batches, dofn, counts=True)
