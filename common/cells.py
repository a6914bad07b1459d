"""Convert the cells of an Arrow column to numbers of a tensor's dtype, and find invalid cells.

A whole column is checked at once. Integers are exact or rejected: an integer tensor accepts no
fraction, no value outside its range, and no value that was rounded on the way.
"""

from __future__ import annotations

import functools
import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# The states of a cell. An empty string is NULL. WRONG means not a number, or not one that the
# tensor can hold.
FINE, NULL, NAN, INFINITE, WRONG = range(5)
# Arrow reads these, and reads whole columns first.
_NAN_TEXT = re.compile(r"[+-]?nan\([a-z0-9_]*\)", re.IGNORECASE)
# Texts that Arrow reads as integers of 64 bits as Python does.
_PLAIN_INTEGER = "^-?[0-9]{1,18}$"


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is a string type, whose cells may spell numbers."""
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def decoded(column: pa.Array) -> pa.Array:
    """Return a column with its values in place of a dictionary, if it has one."""
    if not pa.types.is_dictionary(column.type):
        return column
    known = column.dictionary
    # Arrow cannot select values of a view.
    if pa.types.is_string_view(known.type):
        known = known.cast(pa.large_string())
    elif pa.types.is_binary_view(known.type):
        known = known.cast(pa.large_binary())
    return known.take(column.indices)


def cast_column(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column as another type; text of a time without a zone is in UTC.

    Args:
        column: The column.
        kind: The other type.

    Raises:
        pa.ArrowException: A value would change, or cannot be converted.
    """
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        if not (is_text(column.type) and pa.types.is_timestamp(kind) and kind.tz):
            raise
    plain = column.cast(pa.timestamp(kind.unit))
    return pc.assume_timezone(plain, "UTC").cast(kind)


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is one of the Arrow list types that can be read here."""
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_number(kind: pa.DataType) -> bool:
    """Return whether a type other than a string type can hold numbers; the null type can."""
    return bool(
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )


@functools.cache
def limits(dtype: str) -> tuple[int, int]:
    """Return the lowest and the highest value of an integer dtype or of bool."""
    return (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)


def read_cells(array: pa.Array, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert a column of numbers or strings to a dtype.

    Args:
        array: The column, of a type that `is_number` or `is_text` accepts.
        dtype: The NumPy dtype of the tensor, such as `float32` or `int64`.

    Returns:
        The values [rows], and the state of each cell [rows], or None if all cells are FINE.
        The values of cells that are not FINE are undefined.
    """
    if is_text(array.type):
        trimmed = pc.utf8_trim_whitespace(array.cast(pa.large_string()))
        array = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    if not dtype.startswith("float"):
        return _read_integers(array, dtype)
    return _read_text(array, dtype) if is_text(array.type) else _read_floats(array, dtype)


def _read_floats(array: pa.Array, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    # A value outside the range of the dtype becomes an infinity, and is detected as one.
    with np.errstate(over="ignore"):
        values = _to_numpy(array).astype(dtype, copy=False)
    finite = np.isfinite(values)
    # For small arrays, counting takes a fraction of the time that all() takes.
    if np.count_nonzero(finite) == finite.size:
        return values, None
    state = np.where(np.isnan(values), NAN, INFINITE).astype(np.uint8)
    state[finite] = FINE
    state[_null_mask(array)] = NULL
    return values, state


def _read_text(array: pa.Array, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        return _read_floats(array.cast(pa.float64()), dtype)
    except pa.ArrowInvalid:
        numbers = [parse_number(text) for text in array.to_pylist()]
    values, state = _read_floats(pa.array(numbers, pa.float64()), dtype)
    # A cell that is not null but spells no number is WRONG.
    wrong = np.array([number is None for number in numbers]) & ~_null_mask(array)
    state = np.zeros(len(array), np.uint8) if state is None else state
    state[wrong] = WRONG
    return values, state


def parse_number(text: str | None) -> float | None:
    """Return the number that a string spells; None for null and for other strings.

    NaN may have a note, as in `nan(ind)`.
    """
    if text is not None and _NAN_TEXT.fullmatch(text):
        return math.nan
    try:
        # float() also accepts 1_000, which is not a number in any data format.
        return None if text is None or "_" in text else float(text)
    except ValueError:
        return None


def _read_integers(array: pa.Array, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    low, high = limits(dtype)
    if is_text(array.type):
        plain = pc.match_substring_regex(array, _PLAIN_INTEGER).fill_null(False)
        return _read_spelled(array, dtype, plain.to_numpy(zero_copy_only=False))
    if pa.types.is_decimal(array.type):
        try:
            array = array.cast(pa.int64())
        except pa.ArrowInvalid:
            return _read_spelled(array, dtype, np.zeros(len(array), bool))
    if pa.types.is_integer(array.type):
        if not array.null_count and _all_within(array, low, high):
            return array.to_numpy().astype(dtype, copy=False), None
        # NumPy would convert a column with nulls to float64, and round it.
        numbers = array.fill_null(0).to_numpy()
        fits = (numbers >= low) & (numbers <= high)
        state = np.where(fits, FINE, WRONG).astype(np.uint8)
    else:
        numbers = _to_numpy(array).astype(np.float64, copy=False)
        # As floats, 2**63 - 1 and 2**63 are equal, so the upper bound is exclusive.
        fits = (numbers >= low) & (numbers < float(high + 1)) & (numbers == np.trunc(numbers))
        state = np.where(fits, FINE, WRONG).astype(np.uint8)
        state[np.isinf(numbers)] = INFINITE
        state[np.isnan(numbers)] = NAN
    state[_null_mask(array)] = NULL
    return np.where(state == FINE, numbers, 0).astype(dtype), state if state.any() else None


def _all_within(integers: pa.Array, low: int, high: int) -> bool:
    """Return whether all of some integers are in a range, both bounds included."""
    bounds = pc.min_max(integers).as_py()
    return not len(integers) or (low <= bounds["min"] and bounds["max"] <= high)


def _read_spelled(
    array: pa.Array, dtype: str, plain: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read texts or decimals as integers: the plain ones at once, the others one by one."""
    low, high = limits(dtype)
    numbers, state = np.zeros(len(array), dtype), np.zeros(len(array), np.uint8)
    if plain.any():
        found = array.filter(pa.array(plain)).cast(pa.int64())
        read = _read_integers(found, dtype)
        numbers[plain], state[plain] = read[0], FINE if read[1] is None else read[1]
    if not plain.all():
        others = array.filter(pa.array(~plain)).to_pylist()
        numbers[~plain], state[~plain] = zip(
            *(exact_integer(cell, low, high) for cell in others), strict=True
        )
    return numbers, state if state.any() else None


def exact_integer(cell: Any, low: int, high: int) -> tuple[int, int]:
    """Convert one cell to an integer without rounding.

    Args:
        cell: A string, a number or None.
        low: The lowest value allowed.
        high: The highest value allowed; 1 also allows `true` and `false`.

    Returns:
        The integer, or 0 if the cell is not FINE, and the state of the cell.
    """
    if cell is None:
        return 0, NULL
    if high == 1 and str(cell).lower() in ("true", "false"):
        return int(str(cell).lower() == "true"), FINE
    if _NAN_TEXT.fullmatch(str(cell)):
        return 0, NAN
    try:
        number = Decimal(cell)
    except InvalidOperation:
        return 0, WRONG
    if not number.is_finite():
        return 0, NAN if number.is_nan() else INFINITE
    # Check the range first: 1e999999 is a short string but a very long integer.
    fits = low <= number <= high and number == number.to_integral_value()
    if not fits or "_" in str(cell):
        return 0, WRONG
    return int(number), FINE


def _to_numpy(array: pa.Array) -> np.ndarray:
    """Return the values of a column of any numeric type, with NaN for null."""
    if pa.types.is_decimal(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.float64())
    elif pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return array.to_numpy(zero_copy_only=False)


def _null_mask(array: pa.Array) -> np.ndarray:
    return array.is_null().to_numpy(zero_copy_only=False)
