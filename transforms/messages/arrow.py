"""Messages of Arrow: an IPC stream of any number of rows each."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError, one_line
from common.memory import check_memory
from common.record_batch import derived_ids, source_batch
from transforms.dead_letters import Fault
from transforms.files.read import Columns
from transforms.json_rows.row_format import RowFormat, to_text

_FILE = b"ARROW1"
_PLACE = "a message of Arrow"
_CLAIMED = re.compile(r"alloc of size (\d+) failed")


def read_arrow(
    body: bytes, id_prefix: str, row_format: RowFormat, max_bytes: int
) -> pa.RecordBatch | Fault:
    """An Arrow IPC stream -> its rows as one source batch, or the Fault that it has.

    Rows without an id of their own are numbered: their ids are id_prefix-0, ...
    max_bytes: of the rows, whose buffers may be compressed.
    """
    if body.startswith(_FILE):
        return Fault("invalid_arrow", "not an Arrow IPC stream but an Arrow file")
    try:
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        # A stranger's offsets may point anywhere.
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        _check_memory(error, max_bytes)
        # Its message may quote bytes of the message, or values.
        return Fault(
            "invalid_arrow", f"not an Arrow IPC stream, or a damaged one ({type(error).__name__})"
        )
    if not table.num_rows:
        return Fault("empty_message", "the Arrow stream holds no rows")
    # Nulls take no room: a few bytes may say that they are a billion rows of them.
    if table.num_rows > len(body):
        return Fault("too_large", f"{table.num_rows:,} rows in {len(body):,} bytes")
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
    """What reading a message raised -> nothing. Raises OutOfMemory where this process lacks it.

    A stranger's message may claim any size of its own buffers: then it is the message's fault.
    """
    claimed = _CLAIMED.search(str(error))
    if claimed is None or int(claimed[1]) <= max_bytes:
        check_memory(error, _PLACE)


def _source(table: pa.Table, id_prefix: str, row_format: RowFormat) -> pa.RecordBatch:
    """Rows as they came -> a source batch, with the same types in every message."""
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
        ids = pc.coalesce(_cast(own, pa.string(), row_format.id_column), ids)
    return source_batch(ids, pa.record_batch(arrays))


def _of_type(column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    """A column beside the features -> the same as text, or as the type it must have."""
    if kind != pa.string():
        return _cast(column, kind, name)
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        check_memory(error, _PLACE)
    try:
        return pa.array([to_text(value) for value in column.to_pylist()], kind)
    except (pa.ArrowException, ValueError, TypeError, RecursionError) as error:
        check_memory(error, _PLACE)
        raise InputError(f"column {name}: expected {kind}, got {column.type}") from error


def _cast(column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    """A column -> the same of a type. Raises InputError without the values of the column."""
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        check_memory(error, _PLACE)
        raise InputError(f"column {name}: expected {kind}, got {column.type}") from error
