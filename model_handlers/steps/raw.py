"""The raw types of columns that a manifest declares, and how values of any source become them.

One rule holds for all sources: text that spells a value counts as the value. So a CSV file, JSON
and Parquet give the same cells. NaN counts as null, because pandas writes null so.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import FINE, NAN, NULL, is_list, is_number, is_text, read_cells
from common.texts import is_binary, text_column
from model_handlers.steps.step import Cells, as_mask

TIMESTAMP = pa.timestamp("us", tz="UTC")
DATETIME = pa.timestamp("us")
RAW_TYPES: Mapping[str, pa.DataType] = {
    "float64": pa.float64(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "timestamp": TIMESTAMP,
    "datetime": DATETIME,
    "date": pa.date32(),
    "binary": pa.binary(),
    "list<float64>": pa.list_(pa.float64()),
    "list<int64>": pa.list_(pa.int64()),
    "list<string>": pa.list_(pa.string()),
}
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = r"[0-9]{2}(:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?)?"
_ZONE = r" ?(Z|UTC|[+-][0-9]{2}(:?[0-9]{2})?)"
_WITH_ZONE = f"^{_DAY}[T ]{_CLOCK}{_ZONE}$"
_WITHOUT_ZONE = f"^{_DAY}([T ]{_CLOCK})?$"
_ONLY_DAY = f"^{_DAY}$"
# The days from 0001-01-01 to 10000-01-01, since 1970-01-01: the times that Python can hold.
_FIRST_DAY, _END_DAY = -719_162, 2_932_897
_A_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_EXPECTED = {
    "float64": "a number",
    "int64": "an integer of 64 bits",
    "bool": "true or false",
    "string": "text",
    "timestamp": "a time with its zone, such as 2026-11-20T12:00:00Z",
    "datetime": "a time without a zone, such as 2026-11-20 12:00:00",
    "date": "a date, such as 2026-11-20",
    "binary": "bytes, or their base64",
}


def expected(raw: str) -> str:
    """Return what a raw type expects, for messages."""
    return f"a list of {raw[5:-1]} values" if raw.startswith("list") else _EXPECTED[raw]


def can_become(type_: pa.DataType, raw: str) -> bool:
    """Return whether cells of an Arrow type can be values of a raw type."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_null(type_):
        return True
    if raw.startswith("list<") and not is_text(type_):
        return is_list(type_) and can_become(type_.value_type, raw[5:-1])
    if is_text(type_):
        return True
    is_time = pa.types.is_timestamp(type_) or pa.types.is_date(type_)
    if raw == "bool":
        return is_number(type_)
    if raw in ("float64", "int64"):
        # No source spells numbers as true and false.
        return is_number(type_) and not pa.types.is_boolean(type_)
    if raw == "timestamp":
        return pa.types.is_timestamp(type_) and type_.tz is not None
    if raw == "datetime":
        return is_time and getattr(type_, "tz", None) is None
    if raw == "date":
        return bool(pa.types.is_date(type_))
    if raw == "binary":
        return is_binary(type_)
    return is_number(type_) or is_time or bool(pa.types.is_time(type_))


def become(values: pa.Array, raw: str) -> Cells:
    """Return the cells of a column as values of a raw type.

    Args:
        values: The column, of a type that `can_become` accepts.
        raw: The name of the raw type.

    Returns:
        The values, of the type `RAW_TYPES[raw]`. Cells that are not such values are refused with
        `wrong_type` or `no_time_zone`, times before the year 1 or after the year 9999 with
        `out_of_range`. Texts of lists are left to `values.read_column`.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_null(values.type):
        return Cells(pa.nulls(len(values), RAW_TYPES[raw]))
    if values.type == RAW_TYPES[raw] and raw in ("list<int64>", "list<string>"):
        return Cells(values)
    if raw.startswith("list<"):
        # A list of the same length in each row counts as any other list.
        lists = values.cast(pa.list_(values.type.value_type))
        return each_item(Cells(lists), lambda cells: become(cells.values, raw[5:-1]))
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        return Cells(text_column(values)) if raw == "string" else _from_times(values, raw)
    if values.type == RAW_TYPES[raw]:
        return _nan_as_null(values) if raw == "float64" else Cells(values)
    if raw in ("float64", "int64", "bool"):
        return _to_numbers(values, raw)
    if raw == "string":
        return Cells(text_column(values))
    if is_text(values.type):
        return _FROM_TEXT[raw](_trimmed(values))
    return Cells(values.cast(RAW_TYPES[raw]))


def each_item(cells: Cells, change: Callable[[Cells], Cells]) -> Cells:
    """Apply a function to the items of all lists; a list with a refused item is refused.

    Args:
        cells: Cells of lists, of the same length or not.
        change: A function from items to as many items.
    """
    lists = cells.values
    if pa.types.is_fixed_size_list(lists.type):
        size = lists.type.list_size
        items = lists.values.slice(lists.offset * size, len(lists) * size)
        found = change(Cells(items))
        mask = lists.is_null() if lists.null_count else None
        changed = pa.FixedSizeListArray.from_arrays(found.values, size, mask=mask)
        lengths: Any = size
    else:
        lists = lists.cast(pa.list_(lists.type.value_type))
        offsets = lists.offsets.to_numpy()
        found = change(Cells(lists.values.slice(offsets[0], offsets[-1] - offsets[0])))
        mask = lists.is_null() if lists.null_count else None
        starts = pa.array(offsets - offsets[0])
        changed = pa.ListArray.from_arrays(starts, found.values, mask=mask)
        lengths = np.diff(offsets)
    result = cells.become(changed)
    if not found.refused:
        return result
    owner = np.repeat(np.arange(len(lists)), lengths)
    # Null lists have no items, whatever their memory holds.
    unnamed = as_mask(lists.is_valid())
    for refused in found.refused:
        rows = np.zeros(len(lists), bool)
        rows[owner[refused.rows]] = True
        rows, unnamed = rows & unnamed, unnamed & ~rows
        result = result.refuse(rows, refused.reason, f"an item: {refused.message}")
    return result


def each_distinct(cells: Cells, change: Callable[[Cells], Cells]) -> Cells:
    """Apply a function to the distinct values of a dictionary; the result is no dictionary.

    Args:
        cells: Cells of a dictionary.
        change: A function from values to as many values.
    """
    encoded = cells.values
    # Null is one more value, because the function may change it.
    distinct = pa.concat_arrays([encoded.dictionary, pa.nulls(1, encoded.dictionary.type)])
    places = encoded.indices.cast(pa.int64()).fill_null(len(distinct) - 1)
    found = change(Cells(distinct))
    result = cells.become(found.values.take(places))
    for refused in found.refused:
        of_value = np.zeros(len(distinct), bool)
        of_value[refused.rows] = True
        # A value that no row has is in no row's way.
        rows = np.flatnonzero(of_value[places.to_numpy()])
        if len(rows):
            result = Cells(result.values, (*result.refused, replace(refused, rows=rows)))
    return result


def _nan_as_null(values: pa.Array) -> Cells:
    is_nan = pc.is_nan(values)
    if not pc.any(is_nan).as_py():
        return Cells(values)
    return Cells(pc.if_else(is_nan, pa.scalar(None, pa.float64()), values))


def _from_times(values: pa.Array, raw: str) -> Cells:
    """Return times in microseconds, or dates in days; a finer time is cut."""
    unit = "day"
    if values.type == pa.date64():
        values = values.cast(pa.date32(), safe=False)
    if pa.types.is_timestamp(values.type):
        unit = values.type.unit
    counts = values.view(pa.int32() if unit == "day" else pa.int64())
    a_day = _A_DAY.get(unit, 1)
    cells, lowest, highest = Cells(values), _FIRST_DAY * a_day, _END_DAY * a_day - 1
    # All nanoseconds of 64 bits are in these years.
    if unit != "ns":
        bounds = pc.min_max(counts).as_py()
        if len(values) > values.null_count and not (
            lowest <= bounds["min"] and bounds["max"] <= highest
        ):
            numbers = counts.fill_null(0).to_numpy()
            outside = (numbers < lowest) | (numbers > highest)
            message = "expected a time in the years 1 to 9999, got another"
            cells = cells.refuse(outside, "out_of_range", message)
    elif values.type != RAW_TYPES[raw]:
        # Arrow's cast would round times before 1970 up.
        missing = as_mask(values.is_null()) if values.null_count else None
        floored = pa.array(counts.fill_null(0).to_numpy() // 1000, pa.int64(), mask=missing)
        return Cells(floored.view(RAW_TYPES[raw]))
    return cells.become(cells.values.cast(RAW_TYPES[raw]))


def _to_numbers(values: pa.Array, raw: str) -> Cells:
    """Return numbers, or text that spells them, as float64, int64 or bool."""
    found = values.type
    if raw == "float64" and pa.types.is_decimal(found):
        # Arrow's cast of decimals to floats may differ from the nearest float.
        values = values.cast(pa.string())
    numbers, state = read_cells(values, raw)
    if state is None:
        return Cells(pa.array(numbers))
    fits = state == FINE
    if raw == "float64":
        # Steps may limit an infinity.
        fits |= np.isinf(numbers)
    cells = Cells(pa.array(numbers, mask=~fits))
    wrong = ~fits & (state != NULL) & (state != NAN)
    return cells.refuse(wrong, "wrong_type", _got(raw, found))


def _got(raw: str, type_: pa.DataType) -> str:
    """Return the message for cells that do not fit; it never contains a value."""
    found = "other text" if is_text(type_) else f"{type_} that does not fit"
    return f"expected {expected(raw)}, got {found}"


def _trimmed(values: pa.Array) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(values.cast(pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def _times(values: pa.Array, raw: str, pattern: str) -> Cells:
    """Return text as times, if it has the form of a pattern and names a time that exists."""
    kind = RAW_TYPES[raw]
    # Arrow reads no other form than those of the pattern, but not all of them.
    with suppress(pa.ArrowInvalid):
        return _from_times(values.cast(kind), raw)
    fits = pc.match_substring_regex(values, pattern)
    known = pc.if_else(fits, values, pa.scalar(None, pa.string()))
    if raw != "date":
        for wrong, right in _SPELLINGS:
            known = pc.replace_substring_regex(known, wrong, right)
    parsed = _cast_each(known, kind)
    lost = as_mask(pc.and_(values.is_valid(), parsed.is_null()))
    cells = _from_times(parsed, raw)
    if raw == "timestamp":
        bare = as_mask(pc.match_substring_regex(values, _WITHOUT_ZONE)) & lost
        message = f"expected {expected(raw)}, got a time without a zone"
        cells = cells.refuse(bare, "no_time_zone", message)
        lost &= ~bare
    return cells.refuse(lost, "wrong_type", _got(raw, values.type))


def _cast_each(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return texts as times, with null for those that cannot be cast, such as a 30th of February.

    Parts that have one are halved until it is alone.
    """
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, kind)
    middle = len(texts) // 2
    halves = texts.slice(0, middle), texts.slice(middle)
    return pa.concat_arrays([_cast_each(half, kind) for half in halves])


def _from_base64(values: pa.Array) -> Cells:
    decoded, wrong = [], np.zeros(len(values), bool)
    for row, text in enumerate(values.to_pylist()):
        try:
            decoded.append(None if text is None else base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            decoded.append(None)
            wrong[row] = True
    cells = Cells(pa.array(decoded, pa.binary()))
    return cells.refuse(wrong, "wrong_type", "expected base64, got other text")


# What Arrow does not read, and how it is written instead.
_SPELLINGS = (
    (r" ?(Z|UTC)$", "Z"),
    (r" ([+-][0-9:]+)$", r"\1"),
    (r"([.][0-9]{6})[0-9]+", r"\1"),
)
_FROM_TEXT: Mapping[str, Callable[[pa.Array], Cells]] = {
    "timestamp": lambda values: _times(values, "timestamp", _WITH_ZONE),
    "datetime": lambda values: _times(values, "datetime", _WITHOUT_ZONE),
    "date": lambda values: _times(values, "date", _ONLY_DAY),
    "binary": _from_base64,
}
