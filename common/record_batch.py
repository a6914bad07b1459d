"""The element type of the pipelines: an Arrow record batch, its layout and its coder.

Between source and sink every element is a `pyarrow.RecordBatch` of a few thousand rows. The steps
of a pipeline add these columns from top to bottom:

    row_id   string     the id from the source, or a deterministic id
    source   struct     the columns of the source, unchanged
    payload  binary     the unchanged message (only if the source has messages)
    message  struct     its id, times and attributes (only in a stream)
    inputs   struct     one column per input tensor, validated
    outputs  struct     one column per output tensor
    error    struct     reason and message if the row failed, else null

The structs keep the columns of the user, of the model and of Millrace apart. They cost nothing,
because a struct only refers to its children.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Build the batch that a source emits.

    Args:
        row_ids: The id of each row, string [rows].
        columns: The columns of the source, as read.
        payload: The unchanged message of each row, binary [rows]; None for sources without
            messages.
    """
    arrays = {ROW_ID: row_ids, SOURCE: columns.to_struct_array()}
    return pa.record_batch(arrays if payload is None else arrays | {PAYLOAD: payload})


def struct_columns(batch: pa.RecordBatch, name: str) -> dict[str, pa.Array]:
    """Return the children of a struct column, by name."""
    column = batch.column(name)
    return {f.name: column.field(i) for i, f in enumerate(column.type)}


def flat_values(lists: pa.FixedSizeListArray) -> pa.Array:
    """Return the values of fixed size lists, without a copy.

    For small batches this takes a fraction of the time of `flatten()`. None of the lists may be
    null.
    """
    size = lists.type.list_size
    return lists.values.slice(lists.offset * size, len(lists) * size)


def to_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return one dict per row, with the values of `to_values`."""
    names, columns = batch.schema.names, map(to_values, batch.columns)
    rows = zip(*columns, strict=True) if names else [()] * batch.num_rows
    return [dict(zip(names, row, strict=True)) for row in rows]


def to_values(column: pa.Array) -> list[Any]:
    """Return the Python values of a column.

    Python's times hold no more than microseconds, so finer times are cut. If a column has a time
    that Python cannot hold at all, its times are returned as text.
    """
    kind = map_type(column.type, in_microseconds)
    if kind != column.type:
        column = column.cast(kind, safe=False)
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        return list(column.cast(map_type(kind, _as_text)).to_pylist())


def map_type(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type in which every type that is not nested has been changed.

    A dictionary whose values would change becomes a plain column of the new type.
    """
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([f.with_type(map_type(f.type, change)) for f in kind])
    if types.is_map(kind):
        return pa.map_(map_type(kind.key_type, change), map_type(kind.item_type, change))
    if types.is_dictionary(kind):
        value = change(kind.value_type)
        return kind if value == kind.value_type else value
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return change(kind)
    item = kind.value_field.with_type(map_type(kind.value_type, change))
    if types.is_fixed_size_list(kind):
        return pa.list_(item, kind.list_size)
    return pa.large_list(item) if types.is_large_list(kind) else pa.list_(item)


def in_microseconds(kind: pa.DataType) -> pa.DataType:
    """Return the type with microseconds in place of nanoseconds; other types are unchanged."""
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if kind == pa.time64("ns") else kind


def without_view(kind: pa.DataType) -> pa.DataType:
    """Return the plain type of texts or bytes in place of a view; other types are unchanged."""
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return columns with plain texts and bytes, because Arrow cannot select rows of views."""
    plain = pa.schema([f.with_type(map_type(f.type, without_view)) for f in batch.schema])
    return batch if plain == batch.schema else batch.cast(plain)


def _as_text(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_temporal(kind) else kind


def derived_ids(prefix: str, positions: np.ndarray) -> pa.Array:
    """Return the ids `prefix-position`, string [rows], of rows at these positions, int [rows]."""
    return pc.binary_join_element_wise(prefix, pc.cast(pa.array(positions), pa.string()), "-")


def slices(rows: int, size: int) -> Iterator[slice]:
    """Return consecutive slices of at most `size` rows that together cover `rows` rows."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def concat_batches(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Join one or more batches of the same schema, and copy only if there are several."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def rebatch(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows, in the same order, in batches of at most `rows` rows.

    Small adjacent batches of the same schema are joined. A batch is only split if it is too large.

    Args:
        batches: Batches of any size.
        rows: The most rows that a batch may have.
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
    """A coder that writes a record batch as an Arrow IPC stream.

    It writes a slice without the rows around it. Pickle would write all of them.
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Return the bytes of a record batch."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """Return the record batch, whose buffers refer to `encoded`."""
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Return about how many bytes a batch takes.

        Runners sample sizes, and encoding a batch to measure it is expensive.
        """
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        """Return False, because Arrow may lay out equal batches differently."""
        return False

    def to_type_hint(self) -> type[pa.RecordBatch]:
        """Return the type for which this coder is registered."""
        return pa.RecordBatch


def typed(batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
    """Set the element type of a tagged output, so that Beam uses RecordBatchCoder for it.

    Beam assigns the type Any to every tagged output of a DoFn, and would pickle its elements.
    """
    batches.element_type = pa.RecordBatch
    return batches


coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
