"""The element type: an Arrow record batch, its layout and its coder.

Between source and sink every element is a `pyarrow.RecordBatch` of some thousand
rows with these columns, added from left to right as it moves along:

    row_id   string     the source's id, or a deterministic one
    source   struct     the source's columns as they came
    payload  binary     the message as it came (only where the source has messages)
    message  struct     its id, times and attributes (only of a stream)
    inputs   struct     one column per input tensor, validated
    outputs  struct     one column per output tensor
    error    struct     reason and message where the row failed, else null

The nesting keeps the columns of the user, of the model and our own apart, and
costs nothing: a struct only refers to its children.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam import coders

ROW_ID = "row_id"
SOURCE = "source"
PAYLOAD = "payload"
MESSAGE = "message"
INPUTS = "inputs"
OUTPUTS = "outputs"
ERROR = "error"

UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")
MESSAGE_TYPE = pa.struct(
    [
        ("message_id", pa.string()),
        ("event_time", UTC_MICROSECONDS),
        ("received_at", UTC_MICROSECONDS),
        ("ordering_key", pa.string()),
        ("attributes", pa.string()),
        ("attempts", pa.int64()),
    ]
)
ERROR_TYPE = pa.struct([("reason", pa.string()), ("message", pa.string())])


def source_batch(
    row_ids: pa.Array, columns: pa.RecordBatch, payload: pa.Array | None = None
) -> pa.RecordBatch:
    """Ids and columns as read -> the batch a source emits."""
    arrays = {ROW_ID: row_ids, SOURCE: columns.to_struct_array()}
    return pa.record_batch(arrays if payload is None else arrays | {PAYLOAD: payload})


def struct_columns(batch: pa.RecordBatch, name: str) -> dict[str, pa.Array]:
    """A batch and one of its struct columns -> the struct's columns by name."""
    column = batch.column(name)
    return {f.name: column.field(i) for i, f in enumerate(column.type)}


def flat_values(lists: pa.FixedSizeListArray) -> pa.Array:
    """Fixed size lists, none of them null -> their values, without a copy.

    For small batches: flatten() takes several times as long.
    """
    size = lists.type.list_size
    return lists.values.slice(lists.offset * size, len(lists) * size)


def to_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A batch -> one dict a row. Times lose what is finer than a microsecond, as in Python."""
    schema = pa.schema([f.with_type(_in_microseconds(f.type)) for f in batch.schema])
    same = schema.equals(batch.schema)
    return list((batch if same else batch.cast(schema, safe=False)).to_pylist())


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_in_microseconds(f.type)) for f in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_in_microseconds(kind.value_type)))
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if kind == pa.time64("ns") else kind


def derived_ids(prefix: str, positions: np.ndarray) -> pa.Array:
    """A prefix and integers [rows] -> `prefix-position` of each, as strings."""
    return pc.binary_join_element_wise(prefix, pc.cast(pa.array(positions), pa.string()), "-")


def slices(rows: int, size: int) -> Iterator[slice]:
    """A number of rows -> consecutive slices of at most `size` that cover them."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def concat_batches(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Batches of one schema, at least one -> one batch, copied only if there are several."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def rebatch(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of any size -> the same rows in the same order, none of more than `rows`.

    Small neighbours of one schema are put together; a batch is never split unless
    it is too large.
    """
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        fits = sum(b.num_rows for b in waiting) + batch.num_rows <= rows
        if waiting and not (fits and waiting[0].schema.equals(batch.schema)):
            yield concat_batches(waiting)
            waiting = []
        for part in slices(batch.num_rows, rows):
            piece = batch.slice(part.start, part.stop - part.start)
            if piece.num_rows == rows:
                yield piece
            else:
                waiting.append(piece)
    if waiting:
        yield concat_batches(waiting)


class RecordBatchCoder(coders.Coder):  # type: ignore[misc]
    """Record batch <-> Arrow IPC stream bytes.

    A slice is written without the rows around it; pickle would write them all.
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Record batch -> bytes."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """Bytes -> record batch; its buffers lie in `encoded`."""
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Record batch -> about its bytes. Runners sample sizes; encoding to know one is dear."""
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        """Not promised: Arrow may lay out equal batches differently."""
        return False

    def to_type_hint(self) -> type[pa.RecordBatch]:
        """The type this coder is registered for."""
        return pa.RecordBatch


def typed(batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
    """One output of several -> the same, with the element type that chooses the coder above.

    Beam gives every output of a DoFn with tagged outputs the type Any, hence pickle.
    """
    batches.element_type = pa.RecordBatch
    return batches


coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
