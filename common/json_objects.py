"""Write output rows as JSON objects column by column, several times as fast as row by row."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from common.arrow_values import to_values
from common.record_batch import UTC_MICROSECONDS, flat_values


def json_objects(rows: pa.RecordBatch, *, nulls: bool = False) -> list[bytes]:
    """Write each row as a JSON object.

    Times are ISO 8601, those with a time zone in UTC. NaN and the infinities become null, bytes
    base64. A float32 is written with the fewest digits that identify it.

    Args:
        rows: The rows.
        nulls: Whether a column that is null in a row is written as null; by default the object
            lacks it.
    """
    count = rows.num_rows
    if not count:
        return []
    # Build one pattern for all rows; the values that vary fill its placeholders.
    pattern: list[bytes] = []
    varying: list[list[bytes | None]] = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        key = _key(name)
        absent = key + b"null" if nulls else b""
        if column.null_count == count:
            pattern.append(_escaped(absent))
        elif not column.null_count and (same := _constant_cell(column)) is not None:
            pattern.append(_escaped(key + same))
        elif column.null_count:
            pattern.append(b"%b")
            varying.append([absent if c is None else key + c for c in json_cells(column)])
        else:
            pattern.append(_escaped(key) + b"%b")
            varying.append(json_cells(column))
    whole = b"{%b}" % b"".join(pattern)
    objects = (
        [whole % row for row in zip(*varying, strict=True)] if varying else [whole % ()] * count
    )
    return [one.replace(b"{,", b"{", 1) for one in objects]


@functools.lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    return b",%b:" % orjson.dumps(name)


def _escaped(text: bytes) -> bytes:
    """Escape a text so that it appears literally in a pattern."""
    return text.replace(b"%", b"%%")


def _constant_cell(column: pa.Array) -> bytes | None:
    """Return the JSON of all cells if a column without nulls is known to be constant, or None.

    Only dictionary columns with one entry, and times, are recognized.
    """
    if pa.types.is_dictionary(column.type):
        words = column.dictionary
        return (json_cells(words)[0] or b"null") if len(words) == 1 else None
    if column.type == UTC_MICROSECONDS:
        moments = column.view(pa.int64()).to_numpy()
        if len(moments) == 1 or (moments == moments[0]).all():
            return _moments(column[:1])[0]
    return None


def json_cells(column: pa.Array) -> list[bytes | None]:
    """Write each cell of a column as JSON; null becomes None."""
    kind = column.type
    if not len(column):
        return []
    if pa.types.is_dictionary(kind):
        words = json_cells(column.dictionary)
        return [None if i is None else words[i] for i in column.indices.to_pylist()]
    if pa.types.is_timestamp(kind):
        return _with_nulls(_moments, column)
    if pa.types.is_date(kind):
        return _with_nulls(_dates, column)
    if _is_plain(kind):
        return _with_nulls(_numbers, column)
    if pa.types.is_string(kind):
        return _with_nulls(_texts, column)
    if pa.types.is_fixed_size_list(kind) and not column.null_count:
        cells = _lists(column)
        if cells is not None:
            return cells
    return [None if value is None else _json(value) for value in to_values(column)]


def _with_nulls(cells: Callable[[pa.Array], list[Any]], column: pa.Array) -> list[bytes | None]:
    """Apply a function of columns without nulls to a column; null becomes None."""
    if not column.null_count:
        return cells(column)
    present = column.is_valid().to_pylist()
    found = iter(cells(column.drop_null()) if any(present) else [])
    return [next(found) if is_there else None for is_there in present]


def _moments(column: pa.Array) -> list[bytes]:
    moments = column.view(pa.int64()).to_numpy().view(f"M8[{column.type.unit}]")
    return _times(moments, in_utc=column.type.tz is not None)


def _times(moments: np.ndarray, *, in_utc: bool) -> list[bytes]:
    try:
        return _json(moments, orjson.OPT_NAIVE_UTC if in_utc else 0)[1:-1].split(b",")
    except orjson.JSONEncodeError:
        # The year is outside the range that Python supports.
        texts = np.datetime_as_string(moments).astype("S")
        return [b'"%bZ"' % text if in_utc else b'"%b"' % text for text in texts.tolist()]


def _dates(column: pa.Array) -> list[bytes]:
    days = column.cast(pa.date32()).view(pa.int32()).to_numpy().astype("M8[D]")
    return [b'"%b"' % text for text in np.datetime_as_string(days).astype("S").tolist()]


def _numbers(column: pa.Array) -> list[bytes]:
    return _json(column.to_numpy())[1:-1].split(b",")


def _texts(column: pa.Array) -> list[bytes]:
    # In a JSON string, quotes are escaped and line breaks cannot occur, so this splits the cells.
    return _json(column.to_pylist())[1:-1].replace(b'","', b'"\n"').split(b"\n")


def _lists(column: pa.Array) -> list[bytes | None] | None:
    """Return the cells of a column of fixed-size lists of numbers; None for other columns."""
    shape = [len(column)]
    while pa.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = flat_values(column)
        if column.null_count:
            return None
    if 0 in shape or not _is_plain(column.type):
        return None
    values = column.to_numpy().reshape(shape)
    if len(shape) > 2:
        return [_json(value) for value in values]
    return [*_json(values)[1:-1].replace(b"],[", b"]\n[").split(b"\n")]


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _json(value: Any, option: int = 0) -> bytes:
    return orjson.dumps(value, default=_other, option=_JSON_OPTIONS | option)


_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z


def _other(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
