"""Write the values of a source as text: the ids of rows, and columns that are passed through.

The same value has the same text, whatever type and whatever source it comes from. An integer is
written with all its digits, also if a float or a decimal holds it. Times are written as BigQuery's
CAST AS STRING writes them, for example `2026-11-20 12:00:00.125+00`.
"""

from __future__ import annotations

import base64
import datetime
import math
import unicodedata
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from common.arrow_values import to_values
from common.cells import decoded, is_text
from common.plain_json import to_json

# Floats from here on have no counterpart in INT64.
_INTEGERS_END = 2.0**63
# The zeros that BigQuery leaves out: it writes no, three or six digits of a second.
_ZEROS = r"\.?(000)+$"
_UUID_PARTS = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))


def is_one_line(text: str) -> bool:
    """Return whether a text has no line break and no other control character."""
    return not any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def is_binary(kind: pa.DataType) -> bool:
    """Return whether a type is one of the Arrow types of bytes."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def to_id(value: Any) -> str | None:
    """Return a value as the id of a row, or None for null and NaN.

    Bytes become hex digits, any other value what `to_text` returns.
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.hex() if isinstance(value, bytes) else to_text(value)


def to_text(value: Any) -> str | None:
    """Return a Python value as text.

    Objects, lists and booleans become JSON; bytes become base64; null stays null.

    Raises:
        TypeError: The value cannot be written as JSON.
        RecursionError: The value is nested too deeply.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, (bool, dict, list)):
        return to_json(value).decode()
    if isinstance(value, Decimal):
        return _decimal_text(value)
    if isinstance(value, (datetime.datetime, datetime.time)):
        return _time_text(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _float_text(value: Any) -> str:
    """Return a Python float or a NumPy float as text, with the fewest digits that identify it."""
    if not np.isfinite(value):
        return str(float(value))
    if value == np.trunc(value):
        return str(int(value))
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _decimal_text(value: Decimal) -> str:
    if not value:
        return "0"
    # Unlike str(), this format has no exponent.
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _time_text(value: datetime.datetime | datetime.time) -> str:
    if isinstance(value, datetime.time):
        return value.isoformat().removesuffix("000")
    if value.tzinfo is None:
        return value.isoformat(" ").removesuffix("000")
    in_utc = value.astimezone(datetime.UTC).replace(tzinfo=None)
    return f"{in_utc.isoformat(' ').removesuffix('000')}+00"


def id_column(column: pa.Array) -> pa.Array:
    """Return a column as ids, string [rows]; null and NaN, which pandas writes for null, are null.

    Bytes become hex digits, any other value what `text_column` returns.
    """
    if pa.types.is_dictionary(column.type):
        return id_column(decoded(column))
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return _hex(column) if is_binary(column.type) else text_column(column)


def text_column(column: pa.Array) -> pa.Array:
    """Return a column of any type as text, string [rows]; each value as `to_text` writes it.

    Raises:
        TypeError: A value cannot be written as JSON.
        RecursionError: A value is nested too deeply.
    """
    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        return text_column(decoded(column))
    if isinstance(kind, pa.UuidType):
        return _uuids(column.storage)
    if isinstance(kind, pa.BaseExtensionType):
        return text_column(column.storage)
    if types.is_floating(kind):
        return _floats(column)
    if types.is_decimal(kind):
        return _decimals(column)
    if types.is_timestamp(kind) or types.is_time(kind):
        return _times(column)
    if is_text(kind) or types.is_primitive(kind) or types.is_null(kind):
        return column.cast(pa.string())
    return pa.array(map(to_text, to_values(column)), pa.string())


def _floats(column: pa.Array) -> pa.Array:
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    is_integer = pc.and_(pc.equal(pc.trunc(column), column), pc.less(pc.abs(column), _INTEGERS_END))
    text = pc.if_else(is_integer, column, 0).cast(pa.int64(), safe=False).cast(pa.string())
    if pc.all(is_integer).as_py() is not False:
        return text
    others = pc.invert(is_integer)
    values = column.filter(others).to_numpy(zero_copy_only=False)
    return pc.replace_with_mask(text, others, pa.array(map(_float_text, values), pa.string()))


def _decimals(column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.decimal256(76, 0)).cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array(map(to_text, column.to_pylist()), pa.string())


def _times(column: pa.Array) -> pa.Array:
    kind, zone = column.type, ""
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column, zone = column.cast(pa.timestamp(kind.unit)), "+00"
    text = pc.replace_substring_regex(column.cast(pa.string()), _ZEROS, "")
    return pc.binary_join_element_wise(text, zone, "") if zone else text


def _hex(column: pa.Array) -> pa.Array:
    """Return bytes as hex digits, all rows at once."""
    column = column.cast(pa.binary())
    rows = len(column)
    _, ends, data = column.buffers()
    ends = np.frombuffer(ends, np.int32)[column.offset : column.offset + rows + 1]
    digits = b"" if data is None else data[int(ends[0]) : int(ends[-1])].to_pybytes().hex().encode()
    text = pa.StringArray.from_buffers(
        rows, pa.py_buffer((ends - ends[0]) * np.int32(2)), pa.py_buffer(digits)
    )
    return pc.if_else(column.is_valid(), text, None) if column.null_count else text


def _uuids(column: pa.Array) -> pa.Array:
    digits = _hex(column)
    parts = [pc.utf8_slice_codeunits(digits, start, stop) for start, stop in _UUID_PARTS]
    return pc.binary_join_element_wise(*parts, "-")
