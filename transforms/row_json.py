"""Output rows to objects of JSON, by the column: several times as fast as by the row."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc


def json_objects(rows: pa.RecordBatch) -> list[bytes]:
    """Rows -> an object each, without the columns that are null in it.

    Times are ISO 8601 in UTC; NaN and the infinities are null; float32 is as short as it is.
    """
    count = rows.num_rows
    if not count:
        return []
    # A piece of JSON a cell.
    varying, constant = [], []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if column.null_count == count:
            continue
        if _is_constant(column):
            constant += _members(name, json_cells(column.slice(0, 1)))
        else:
            varying.append(_members(name, json_cells(column)))
    tail = b",".join(filter(None, constant))
    return [b"{%b}" % b",".join(filter(None, (*row, tail))) for row in _rows(varying, count)]


def _rows(columns: list[list[bytes | None]], count: int) -> Iterator[tuple[bytes | None, ...]]:
    return zip(*columns, strict=True) if columns else iter([()] * count)


def _is_constant(column: pa.Array) -> bool:
    """Whether all cells are surely the same: one word, or one moment."""
    if column.null_count:
        return False
    if pa.types.is_dictionary(column.type):
        return len(column.dictionary) == 1
    if pa.types.is_timestamp(column.type):
        low, high = pc.min_max(column).values()
        return bool(low == high)
    return False


def _members(name: str, cells: list[bytes | None]) -> list[bytes | None]:
    """A column's name and its cells as JSON -> `"name":cell`, None for null."""
    key = orjson.dumps(name) + b":"
    return [None if cell is None else key + cell for cell in cells]


def json_cells(column: pa.Array) -> list[bytes | None]:
    """A column -> each cell as JSON, None for null."""
    kind = column.type
    if not len(column):
        return []
    if pa.types.is_dictionary(kind):
        words = json_cells(column.dictionary)
        return [None if i is None else words[i] for i in column.indices.to_pylist()]
    if pa.types.is_timestamp(kind):
        return _with_nulls(_moments, column)
    if _is_plain(kind):
        return _with_nulls(_numbers, column)
    if not column.null_count and (shape := _shape(column)) is not None:
        return _lists(column, shape)
    return [None if value is None else _json(value) for value in column.to_pylist()]


def _with_nulls(cells: Callable[[pa.Array], list[Any]], column: pa.Array) -> list[bytes | None]:
    """A function of columns without nulls, and a column -> its cells, None for null."""
    if not column.null_count:
        return cells(column)
    present = column.is_valid().to_pylist()
    found = iter(cells(column.drop_null()) if any(present) else [])
    return [next(found) if is_there else None for is_there in present]


def _moments(column: pa.Array) -> list[bytes]:
    suffix = b'Z"' if column.type.tz else b'"'
    microseconds = column.cast(pa.timestamp("us"), safe=False).to_numpy()
    texts = np.datetime_as_string(microseconds, unit="us")
    return [b'"' + text + suffix for text in texts.astype("S").tolist()]


def _numbers(column: pa.Array) -> list[bytes]:
    return _json(column.to_numpy())[1:-1].split(b",")


def _shape(column: pa.Array) -> tuple[int, ...] | None:
    """A column -> the shape of a cell, if it is a list of that many plain numbers in any row."""
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(column.type):
        shape += (column.type.list_size,)
        column = column.flatten()
        if column.null_count:
            return None
    return shape if shape and 0 not in shape and _is_plain(column.type) else None


def _lists(column: pa.Array, shape: tuple[int, ...]) -> list[bytes | None]:
    flat = column
    for _ in shape:
        flat = flat.flatten()
    values = flat.to_numpy().reshape(len(column), *shape)
    if len(shape) > 1:
        return [_json(value) for value in values]
    return [b"[%b]" % cell for cell in _json(values)[2:-2].split(b"],[")]


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=_other, option=_JSON_OPTIONS)


_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z


def _other(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
