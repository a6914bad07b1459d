"""The raw types of columns that a manifest declares, and how values of any source become them.

One rule holds for all sources: text that spells a value counts as the value. So a CSV file, JSON
and Parquet give the same cells. NaN counts as null, because pandas writes null so.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping

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
_CLOCK = r"[0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?"
_ZONE = r" ?(Z|UTC|[+-][0-9]{2}(:?[0-9]{2})?)"
_WITH_ZONE = f"^{_DAY}[T ]{_CLOCK}{_ZONE}$"
_WITHOUT_ZONE = f"^{_DAY}([T ]{_CLOCK})?$"
_ONLY_DAY = f"^{_DAY}$"
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
    if raw.startswith("list<") and not is_text(type_) and not pa.types.is_null(type_):
        return is_list(type_) and can_become(type_.value_type, raw[5:-1])
    if pa.types.is_null(type_) or is_text(type_):
        return True
    if raw in ("float64", "int64", "bool"):
        return is_number(type_)
    if raw == "timestamp":
        return pa.types.is_timestamp(type_) and type_.tz is not None
    if raw == "datetime":
        return pa.types.is_timestamp(type_) and type_.tz is None
    if raw == "date":
        return bool(pa.types.is_date(type_))
    if raw == "binary":
        return is_binary(type_)
    return is_number(type_) or pa.types.is_temporal(type_)


def become(values: pa.Array, raw: str) -> Cells:
    """Return the cells of a column as values of a raw type.

    Args:
        values: The column, of a type that `can_become` accepts.
        raw: The name of the raw type.

    Returns:
        The values, of the type `RAW_TYPES[raw]`. Cells that are not such values are refused with
        `wrong_type` or `no_time_zone`. Texts of lists are left to `values.read_column`.
    """
    if values.type == RAW_TYPES[raw]:
        return _nan_as_null(values) if raw == "float64" else Cells(values)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if is_list(values.type):
        return each_item(Cells(values), lambda cells: become(cells.values, raw[5:-1]))
    if pa.types.is_null(values.type):
        return Cells(pa.nulls(len(values), RAW_TYPES[raw]))
    if raw in ("float64", "int64", "bool"):
        return _to_numbers(values, raw)
    if raw == "string":
        return Cells(text_column(values))
    if is_text(values.type):
        return _FROM_TEXT[raw](_trimmed(values))
    # A finer time is cut to microseconds.
    return Cells(values.cast(RAW_TYPES[raw], safe=False))


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
        owner = np.repeat(np.arange(len(lists)), size)
    else:
        lists = lists.cast(pa.list_(lists.type.value_type))
        offsets = lists.offsets.to_numpy()
        found = change(Cells(lists.values.slice(offsets[0], offsets[-1] - offsets[0])))
        mask = lists.is_null() if lists.null_count else None
        starts = pa.array(offsets - offsets[0])
        changed = pa.ListArray.from_arrays(starts, found.values, mask=mask)
        owner = np.repeat(np.arange(len(lists)), np.diff(offsets))
    result = cells.become(changed)
    for refused in found.refused:
        rows = np.zeros(len(lists), bool)
        rows[owner[refused.rows]] = True
        # Null lists have no items, whatever their memory holds.
        rows &= as_mask(lists.is_valid())
        result = result.refuse(rows, refused.reason, f"an item: {refused.message}")
    return result


def _nan_as_null(values: pa.Array) -> Cells:
    # An array without NaN and null has a sum that is not NaN, which is the fastest check.
    if not pc.any(pc.is_nan(values)).as_py():
        return Cells(values)
    return Cells(pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values))


def _to_numbers(values: pa.Array, raw: str) -> Cells:
    """Return numbers, or text that spells them, as float64, int64 or bool."""
    numbers, state = read_cells(values, raw)
    if state is None:
        return Cells(pa.array(numbers))
    fits = state == FINE
    if raw == "float64":
        # Steps may limit an infinity.
        fits |= np.isinf(numbers)
    cells = Cells(pa.array(numbers, mask=~fits))
    wrong = ~fits & (state != NULL) & (state != NAN)
    return cells.refuse(wrong, "wrong_type", _got(raw, values.type))


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
    fits = pc.match_substring_regex(values, pattern)
    known = pc.if_else(fits, values, pa.scalar(None, pa.string()))
    known = pc.replace_substring_regex(known, r" ?(Z|UTC)$", "Z")
    known = pc.replace_substring_regex(known, r" ([+-])", r"\1")
    try:
        parsed = known.cast(kind)
    except pa.ArrowInvalid:
        # The 30th of February has the right form too.
        parsed = pa.array([_one(text, kind) for text in known], kind)
    lost = as_mask(pc.and_(values.is_valid(), parsed.is_null()))
    cells = Cells(parsed)
    if raw == "timestamp":
        bare = as_mask(pc.match_substring_regex(values, _WITHOUT_ZONE)) & lost
        message = f"expected {expected(raw)}, got a time without a zone"
        cells = cells.refuse(bare, "no_time_zone", message)
        lost &= ~bare
    return cells.refuse(lost, "wrong_type", _got(raw, values.type))


def _one(text: pa.StringScalar, kind: pa.DataType) -> pa.Scalar:
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        return pa.scalar(None, kind)


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


_FROM_TEXT: Mapping[str, Callable[[pa.Array], Cells]] = {
    "timestamp": lambda values: _times(values, "timestamp", _WITH_ZONE),
    "datetime": lambda values: _times(values, "datetime", _WITHOUT_ZONE),
    "date": lambda values: _times(values, "date", _ONLY_DAY),
    "binary": _from_base64,
}
