"""The raw types of columns that a manifest declares, and how values of any source become them.

One rule holds for all sources: text that spells a value counts as the value. So a CSV file, JSON
and Parquet give the same cells. NaN counts as null, because pandas writes null so. Empty bytes
count as null, because text does not distinguish them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import FINE, NAN, NULL, decoded, is_list, is_number, is_text, read_cells
from common.texts import is_binary, text_column
from model_handlers.steps.raw_times import (
    DATE,
    DATETIME,
    TIMESTAMP,
    change_unit,
    in_years,
    is_time,
    read_texts,
)
from model_handlers.steps.step import Cells, as_mask

RAW_TYPES: Mapping[str, pa.DataType] = {
    "float64": pa.float64(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "timestamp": TIMESTAMP,
    "datetime": DATETIME,
    "date": DATE,
    "binary": pa.binary(),
    "list<float64>": pa.list_(pa.float64()),
    "list<int64>": pa.list_(pa.int64()),
    "list<string>": pa.list_(pa.string()),
}
# The message for an infinity in a column of texts.
INFINITE_TEXT = "expected text or a finite number, got an infinity"
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
    if raw == "bool":
        return is_number(type_)
    if raw in ("float64", "int64"):
        # No source spells numbers as true and false.
        return is_number(type_) and not pa.types.is_boolean(type_)
    if raw == "timestamp":
        return pa.types.is_timestamp(type_) and type_.tz is not None
    if raw == "datetime":
        return not pa.types.is_time(type_) and is_time(type_) and getattr(type_, "tz", None) is None
    if raw == "date":
        return bool(pa.types.is_date(type_))
    if raw == "binary":
        return is_binary(type_)
    return is_number(type_) or is_time(type_)


def become(values: pa.Array, raw: str) -> Cells:
    """Return the cells of a column as values of a raw type.

    Args:
        values: The column, of a type that `can_become` accepts.
        raw: The name of the raw type.

    Returns:
        The values, of the type `RAW_TYPES[raw]`. Cells that are not such values are refused with
        `wrong_type` or `no_time_zone`, times before the year 1 or after the year 9999 with
        `out_of_range`, an infinity as text with `not_finite`. Texts of lists are left to
        `values.read_column`.
    """
    values = decoded(values)
    if pa.types.is_null(values.type):
        return Cells(pa.nulls(len(values), RAW_TYPES[raw]))
    if values.type == RAW_TYPES[raw] and raw in ("list<int64>", "list<string>"):
        return Cells(values)
    if raw.startswith("list<"):
        # A list of the same length in each row counts as any other list.
        lists = values.cast(pa.list_(values.type.value_type))
        return each_item(Cells(lists), lambda cells: become(cells.values, raw[5:-1]))
    if raw == "string":
        return _to_text(values)
    if is_time(values.type):
        return change_unit(values, RAW_TYPES[raw])
    if values.type == RAW_TYPES[raw]:
        if raw == "binary":
            return _empty_as_null(values)
        return _nan_as_null(values) if raw == "float64" else Cells(values)
    if raw in ("float64", "int64", "bool"):
        return _to_numbers(values, raw)
    if is_text(values.type):
        texts = _trimmed(values)
        return _from_base64(texts) if raw == "binary" else _to_times(texts, raw)
    return _empty_as_null(values.cast(pa.binary()))


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
    return Cells(pc.if_else(is_nan, pa.scalar(None, values.type), values))


def _to_text(values: pa.Array) -> Cells:
    """Return values as text. Numbers and times that no text of a source spells are refused."""
    cells = Cells(values)
    if is_time(values.type):
        cells = in_years(cells)
    elif pa.types.is_floating(values.type):
        cells = _nan_as_null(values)
        cells = cells.refuse(pc.is_inf(cells.values), "not_finite", INFINITE_TEXT)
    return cells.become(text_column(cells.values))


def _empty_as_null(values: pa.BinaryArray) -> Cells:
    empty = pc.equal(pc.binary_length(values), 0)
    return Cells(pc.if_else(empty, pa.scalar(None, pa.binary()), values))


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


def _to_times(texts: pa.Array, raw: str) -> Cells:
    """Return texts as times, if they spell times that exist."""
    times, bare, zoned = read_texts(texts, RAW_TYPES[raw])
    lost = as_mask(pc.and_(texts.is_valid(), times.is_null()))
    cells = in_years(Cells(times))
    if raw == "timestamp":
        message = f"expected {expected(raw)}, got a time without a zone"
        cells = cells.refuse(bare & lost, "no_time_zone", message)
        lost = lost & ~bare
    else:
        message = f"expected {expected(raw)}, got a time with a zone"
        cells = cells.refuse(zoned & lost, "wrong_type", message)
        lost = lost & ~zoned
    return cells.refuse(lost, "wrong_type", _got(raw, texts.type))


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
