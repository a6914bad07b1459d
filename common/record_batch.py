"""The element type of the pipelines: an Arrow record batch, its layout and its coder.

Between source and sink every element is a `pyarrow.RecordBatch` of a few thousand rows. The steps
of a pipeline add these columns from top to bottom:

    row_id   string     the id from the source, or a deterministic id
    source   struct     the columns of the source, unchanged
    payload  binary     the unchanged message (only if the source has messages)
    message  struct     its id, times and attributes (only in a stream)
    times    timestamp  a column for each time that --row_timings adds (only in a stream)
    inputs   struct     one column per input tensor, validated
    outputs  struct     one column per output tensor
    error    struct     reason and message if the row failed, else null

The structs keep the columns of the user, of the model and of Millrace apart. They cost nothing,
because a struct only refers to its children.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam import coders

from common.arrow_values import to_values

ROW_ID = "row_id"
SOURCE = "source"
PAYLOAD = "payload"
MESSAGE = "message"
INPUTS = "inputs"
OUTPUTS = "outputs"
ERROR = "error"

UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")
# The default limits of a batch. Measured with the example on 2 cores: the cost of a row in the
# forward pass is about the same for 4,096 to 32,768 rows, and everything around it costs less the
# larger the batch is. Larger batches use more memory and gain little. The bytes bound a batch of
# wide rows, such as embeddings or long texts, of which VARIABLE_BYTES is a guess.
BATCH_ROWS, BATCH_BYTES = 32_768, 256 << 20
VARIABLE_BYTES = 32
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


def stamped(batch: pa.RecordBatch, name: str, time: datetime.datetime) -> pa.RecordBatch:
    """Return a batch with one more column, which has the same time in each row."""
    return batch.append_column(name, pa.repeat(pa.scalar(time, UTC_MICROSECONDS), batch.num_rows))


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


def derived_ids(prefix: str, positions: np.ndarray) -> pa.Array:
    """Return the ids `prefix-position`, string [rows], of rows at these positions, int [rows]."""
    return pc.binary_join_element_wise(prefix, pc.cast(pa.array(positions), pa.string()), "-")


def slices(rows: int, size: int) -> Iterator[slice]:
    """Return consecutive slices of at most `size` rows that together cover `rows` rows."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def concat_batches(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Join one or more batches of the same schema, and copy only if there are several."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def sized(rows: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch]:
    """Yield slices that cover a batch in order, each of at most `limit` bytes or of one row."""
    if rows.nbytes > limit and rows.num_rows > 1:
        half = rows.num_rows // 2
        yield from sized(rows.slice(0, half), limit)
        yield from sized(rows.slice(half), limit)
    elif rows.num_rows:
        yield rows


def cut(batch: pa.RecordBatch, rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """Yield slices that cover a batch in order, within two limits.

    Args:
        batch: The batch.
        rows: The most rows that a slice may have.
        size: The most bytes that a slice may have. A larger row is a slice of its own.
    """
    for part in slices(batch.num_rows, rows):
        yield from sized(batch.slice(part.start, part.stop - part.start), size)


def rebatch(
    batches: Iterable[pa.RecordBatch], rows: int, size: int = BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield the same rows, in the same order, in batches within two limits.

    Small adjacent batches of the same schema are joined. A batch is only split if it is too large.

    Args:
        batches: Batches of any size.
        rows: The most rows that a batch may have.
        size: The most bytes that a batch of several rows may have.
    """
    waiting: list[pa.RecordBatch] = []
    # What waits is counted as it comes: small batches are many.
    count = total = 0
    for piece in chain.from_iterable(cut(batch, rows, size) for batch in batches):
        count, total = count + piece.num_rows, total + piece.nbytes
        fits = count <= rows and total <= size
        if waiting and not (fits and waiting[0].schema.equals(piece.schema)):
            yield concat_batches(waiting)
            waiting, count, total = [], piece.num_rows, piece.nbytes
        if piece.num_rows == rows:
            yield piece
            count = total = 0
        else:
            waiting.append(piece)
    if waiting:
        yield concat_batches(waiting)


def row_bytes(kind: pa.DataType) -> int:
    """Return about how many bytes a value of a type takes in Arrow's memory.

    The size of numbers and of lists with a fixed length is exact. A text, or a list of any length,
    counts as VARIABLE_BYTES.
    """
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * row_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return sum(row_bytes(field.type) for field in kind)
    if pa.types.is_dictionary(kind):
        return row_bytes(kind.index_type)
    try:
        return -(-int(kind.bit_width) // 8)
    except ValueError:
        return VARIABLE_BYTES


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
