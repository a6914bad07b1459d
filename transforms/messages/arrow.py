"""Arrow messages: each is an IPC stream of any number of rows."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.arrow_values import without_views
from common.errors import InputError, one_line
from common.memory import check_memory
from common.record_batch import derived_ids, source_batch
from common.texts import id_column, text_column
from transforms.dead_letters import Fault
from transforms.files.columns import Columns
from transforms.json_rows.row_format import RowFormat

_FILE = b"ARROW1"
_PLACE = "an Arrow message"
_CLAIMED = re.compile(r"alloc of size (\d+) failed")


def read_arrow(
    body: bytes, id_prefix: str, row_format: RowFormat, max_bytes: int
) -> pa.RecordBatch | Fault:
    """Return the rows of an Arrow IPC stream as one source batch, or a Fault.

    Args:
        body: The stream.
        id_prefix: The prefix of derived ids. Rows without an id of their own are numbered:
            id_prefix-0, id_prefix-1, ...
        row_format: The columns to read.
        max_bytes: The largest size of the uncompressed rows, in bytes.
    """
    if body.startswith(_FILE):
        return Fault("invalid_arrow", "expected an Arrow IPC stream, got an Arrow file")
    try:
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        # The offsets of an untrusted message may point anywhere.
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        _check_memory(error, max_bytes)
        # The text of the error may quote bytes or values of the message.
        return Fault(
            "invalid_arrow",
            f"expected an Arrow IPC stream, got other or damaged data ({type(error).__name__})",
        )
    if not table.num_rows:
        return Fault("empty_message", "the Arrow stream has no rows")
    # Nulls take no space, so a message of a few bytes may claim to have a billion rows of them.
    if table.num_rows > len(body):
        return Fault(
            "too_large",
            f"expected at most one row per byte, got {table.num_rows:,} rows in {len(body):,} "
            "bytes",
        )
    if table.nbytes > max_bytes:
        return Fault("too_large", f"expected at most {max_bytes:,} bytes, got {table.nbytes:,}")
    try:
        return _source(table, id_prefix, row_format)
    except InputError as error:
        return Fault("wrong_schema", one_line(error))
    except (pa.ArrowException, ValueError, TypeError, RecursionError) as error:
        check_memory(error, _PLACE)
        return Fault("wrong_schema", f"the columns cannot be read ({type(error).__name__})")


def _check_memory(error: Exception, max_bytes: int) -> None:
    """Raise OutOfMemory if a message could not be read because this process lacks memory.

    If an untrusted message claims buffers of more than `max_bytes`, the message is at fault.
    """
    claimed = _CLAIMED.search(str(error))
    if claimed is None or int(claimed[1]) <= max_bytes:
        check_memory(error, _PLACE)


def _source(table: pa.Table, id_prefix: str, row_format: RowFormat) -> pa.RecordBatch:
    """Return the rows of a message as a source batch, whose types are equal in all messages."""
    columns = Columns(row_format.manifest, row_format.id_column, row_format.keep)
    names = columns.names(table.schema, "the message")
    for name in dict(row_format.typed):
        found = table.schema.names.count(name)
        if found > 1:
            raise InputError(f"the message has {found} columns {name!r}: expected one")
        names += [name] if found and name not in names else []
    beside = dict(row_format.columns)
    arrays = {}
    for name in names:
        array = table.column(name).combine_chunks()
        arrays[name] = _of_type(array, beside[name], name) if name in beside else array
    ids = derived_ids(id_prefix, np.arange(table.num_rows))
    if row_format.id_column is not None:
        own = table.column(row_format.id_column).combine_chunks()
        ids = pc.coalesce(id_column(own), ids)
    return source_batch(ids, without_views(pa.record_batch(arrays)))


def _of_type(column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    """Return a column that is not a feature as text, or as the type that it must have."""
    if kind != pa.string():
        return _cast(column, kind, name)
    try:
        return text_column(column)
    except (pa.ArrowException, ValueError, TypeError, RecursionError) as error:
        check_memory(error, _PLACE)
        raise InputError(f"column {name}: expected {kind}, got {column.type}") from error


def _cast(column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    """Cast a column, or raise an InputError that does not contain values of the column."""
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        check_memory(error, _PLACE)
        raise InputError(f"column {name}: expected {kind}, got {column.type}") from error
