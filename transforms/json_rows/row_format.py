"""Read columns from JSON values: features, ids and columns passed through; and find faults.

Rows can have two forms: named features (`{"Time": 0.0, "V1": ..}`) and, for a model with one
input, a list (`{"features": [..]}`). A row that names every feature is read by name. A number may
also be written as text, as BigQuery exports INT64. The reasons of faults are `not_an_object`,
`missing_feature`, `wrong_type`, `wrong_width` and `not_finite`. Null features are left to
validation. Values that do not fit an integer tensor are rejected here: a fraction in a column would
turn the column into floats, and round the integers of other rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, partial
from itertools import chain
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.cells import FINE, INFINITE, NAN, exact_integer, limits, parse_number
from common.texts import to_id, to_text
from model_handlers.manifests.manifest import InputSpec, Manifest
from transforms.dead_letters import Fault
from transforms.json_rows.values import json_type
from transforms.source_columns import VECTOR_COLUMN

_MISSING = object()
_PLAIN = {float, int}
_PLAIN_OR_NULL: set[type] = {float, int, type(None)}
# What Arrow raises for values that do not fit a type.
_REFUSED = (pa.ArrowException, ValueError, OverflowError)
# The Python types that Arrow reads into a column exactly as the slower reader below does.
_PLAIN_OF: dict[pa.DataType, set[type]] = {
    pa.string(): {str, type(None)},
    pa.float64(): _PLAIN_OR_NULL,
    pa.int64(): {int, type(None)},
}


@dataclass(frozen=True)
class RowFormat:
    """The columns to read from a JSON row.

    Attributes:
        manifest: The manifest of the model.
        id_column: The column that holds the row id, or None to derive the ids.
        keep: Additional columns to pass through, as strings.
        typed: Additional columns to pass through, with their types: float64, int64 or string.
    """

    manifest: Manifest
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    typed: tuple[tuple[str, pa.DataType], ...] = ()

    @cached_property
    def features(self) -> dict[str, InputSpec]:
        """The columns of inputs without chains, in order, and the input that each belongs to."""
        return {column: spec for spec in self.manifest.inputs for column in spec.columns}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns of all inputs, in order."""
        return tuple(self.features)

    @cached_property
    def take(self) -> Callable[[Any], tuple[Any, ...]]:
        """A function that returns the features of a row that names all of them, in order."""
        # With a single name, itemgetter does not return a tuple.
        return itemgetter(*self.names) if len(self.names) > 1 else partial(_one, self.names[0])

    @cached_property
    def vector(self) -> bool:
        """Whether one list may hold all features."""
        return len(self.manifest.inputs) == 1 and not self.manifest.has_steps

    @cached_property
    def scalars(self) -> bool:
        """Whether each feature is a single number of a float tensor."""
        inputs = self.manifest.inputs
        return all(s.dtype.startswith("float") and not s.is_list_column for s in inputs)

    @cached_property
    def plain(self) -> bool:
        """Whether rows can be read by read_plain."""
        spec = self.manifest.inputs[0]
        fits = self.vector and spec.columns and spec.shape and spec.dtype.startswith("float")
        # A column with the name VECTOR_COLUMN would be mistaken for all features.
        return bool(
            fits
            and not spec.is_list_column
            and VECTOR_COLUMN not in (*self.features, *self.keep, *dict(self.typed))
        )

    @cached_property
    def columns(self) -> tuple[tuple[str, pa.DataType], ...]:
        """The columns besides the features, with their types: `keep` (as strings) and `typed`."""
        typed = dict(self.typed)
        kept = dict.fromkeys(self.keep, pa.string()).items()
        read = {**self.features, **self.manifest.columns, **typed}
        return (*(own for own in kept if own[0] not in read), *self.typed)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The columns whose values become text: the id, and other columns of text."""
        own = () if self.id_column is None else (self.id_column,)
        declared = (name for name, raw in self.manifest.columns.items() if "string" in raw)
        return (*own, *declared, *(name for name, kind in self.columns if kind == pa.string()))


def _one(name: str, row: Any) -> tuple[Any, ...]:
    return (row[name],)


def read_plain(rows: Sequence[Any], row_format: RowFormat) -> dict[str, pa.Array] | None:
    """Read rows whose features are all plain numbers or nulls into columns.

    All rows are checked at once, in a fraction of the time that `read_row` needs for each row.

    Args:
        rows: Decoded JSON values.
        row_format: The columns to read.

    Returns:
        The features in one list column, VECTOR_COLUMN, and the other columns by name; None if a
        row has another form, or the model does not have exactly one float input.
    """
    if not row_format.plain or (values := _plain_values(rows, row_format)) is None:
        return None
    kept = [[row.get(name) for row in rows] for name, _ in row_format.columns]
    for cells, (_, kind) in zip(kept, row_format.columns, strict=True):
        # Arrow would accept bytes as a string and a boolean as a number, and truncate 1.5.
        if not {*map(type, cells)} <= _PLAIN_OF[kind]:
            return None
    try:
        # Arrow raises for an integer that it would have to round.
        return plain_columns(pa.array(values, pa.float64()), kept, row_format)
    except _REFUSED:
        return None


def plain_columns(
    values: pa.DoubleArray, kept: Sequence[Sequence[Any]], row_format: RowFormat
) -> dict[str, pa.Array] | None:
    """Build columns from the features of all rows and the cells of the other columns.

    Args:
        values: The features of one row after the other [rows * features].
        kept: The cells of each column of `row_format.columns` [columns][rows].
        row_format: The columns to read.

    Returns:
        The columns by name, or None if a cell does not fit its type.
    """
    rows = len(values) // len(row_format.names)
    try:
        matrix = pa.FixedSizeListArray.from_arrays(values, len(row_format.names))
        columns = {VECTOR_COLUMN: matrix}
        for name in row_format.keep:
            if name in row_format.features:
                columns[name] = pc.list_element(matrix, row_format.names.index(name))
        for (name, kind), column in zip(row_format.columns, kept, strict=True):
            absent = column.count(None) == rows
            columns[name] = pa.nulls(rows, kind) if absent else pa.array(column, kind)
    except _REFUSED:
        return None
    return columns


def _plain_values(rows: Sequence[Any], row_format: RowFormat) -> list[Any] | None:
    """Return the features of rows that all name them, or all list them, one row after the other.

    Returns:
        The values; None if a row does neither, or has a value that is not a number or null.
    """
    try:
        values = list(chain.from_iterable(map(row_format.take, rows)))
    except (KeyError, TypeError):
        # A row that names its features is read by name, even if it also has a list.
        if any(type(row) is not dict or row_format.names[0] in row for row in rows):
            return None
        lists = [row.get(VECTOR_COLUMN) for row in rows]
        if set(map(type, lists)) != {list} or set(map(len, lists)) != {len(row_format.names)}:
            return None
        values = list(chain.from_iterable(lists))
    return values if set(map(type, values)) <= _PLAIN_OR_NULL else None


def read_row(row: Any, row_format: RowFormat) -> Any:
    """Read the features of one row.

    Args:
        row: A decoded JSON value, or a Fault, which is returned as it is.
        row_format: The columns to read.

    Returns:
        The features (numbers, nulls, or lists of them) in order, or the first Fault.
    """
    if isinstance(row, Fault):
        return row
    if not isinstance(row, Mapping):
        return Fault("not_an_object", f"expected a JSON object, got {json_type(row)}")
    for name, kind in row_format.columns:
        if fault := _column_fault(row.get(name), kind, name):
            return fault
    features = row_format.features
    try:
        values = [row[name] for name in features]
    except KeyError:
        if row_format.vector and VECTOR_COLUMN in row:
            return _read_vector(row[VECTOR_COLUMN], row_format.manifest.inputs[0])
        values = [row.get(name, _MISSING) for name in features]
    if row_format.scalars and _PLAIN.issuperset(map(type, values)):
        return values
    return _read_values(values, row_format)


def _read_values(values: Sequence[Any], row_format: RowFormat) -> Any:
    """Read the features of a row, given as they arrived; return them or the first Fault."""
    read: list[Any] = []
    for value, (name, spec) in zip(values, row_format.features.items(), strict=True):
        if value is _MISSING and name not in spec.impute:
            return Fault("missing_feature", f"the row has no column {name}", name)
        cell: Any = None if value is _MISSING else value
        if spec.is_list_column:
            read.append(_read_list(cell, name, spec))
        else:
            # A list of one number is one number.
            alone = type(cell) is list and len(cell) == 1
            read.append(_read_number(cell[0] if alone else cell, name, spec))
        if isinstance(read[-1], Fault):
            return read[-1]
    return read


def _read_vector(value: Any, spec: InputSpec) -> Any:
    """Read the list that holds all features of a row; return the features or a Fault."""
    read = _read_list(value, VECTOR_COLUMN, spec)
    if isinstance(read, Fault):
        return read
    if read is None:
        return Fault("null", f"column {VECTOR_COLUMN}: expected a list, got null", VECTOR_COLUMN)
    if len(read) != spec.width:
        message = f"column {VECTOR_COLUMN}: expected {spec.width} values, got {len(read)}"
        return Fault("wrong_width", message, VECTOR_COLUMN)
    return [read] if spec.is_list_column else read


def _read_number(value: Any, name: str, spec: InputSpec) -> Any:
    """Read a JSON value, or the text of a number, as a number or null; return it or a Fault."""
    if isinstance(value, bool) and spec.dtype == "bool":
        return int(value)
    if isinstance(value, str):
        # The rules of columns of text apply (common/cells.py).
        value = value.strip() or None
    number = type(value) is float or type(value) is int or isinstance(value, (Decimal, str))
    if number and not spec.dtype.startswith("float"):
        return _read_integer(value, name, spec)
    if value is None or type(value) is float or type(value) is int:
        return value
    if isinstance(value, Decimal):
        if value.is_nan():
            return math.nan
        whole = abs(value) < 1 << 64 and value == value.to_integral_value()
        return int(value) if whole else float(value)
    if isinstance(value, str) and (spelled := parse_number(value)) is not None:
        return spelled
    message = f"column {name}: expected a number, got {json_type(value)}"
    return Fault("wrong_type", message, name)


def _read_integer(value: float | Decimal | str, name: str, spec: InputSpec) -> int | Fault | None:
    """Read a number for an integer tensor without rounding; return it, null or a Fault."""
    low, high = limits(spec.dtype)
    if type(value) is int and low <= value <= high:
        return value
    whole, state = exact_integer(value, low, high)
    if state == FINE:
        return whole
    if state == NAN:
        # If nulls are imputed, NaNs are imputed too.
        return None if spec.impute else Fault("not_finite", f"column {name}: NaN", name)
    if state == INFINITE:
        message = f"column {name}: infinite, or outside the range of {spec.dtype}"
        return Fault("not_finite", message, name)
    expected = f"expected {spec.dtype}, an integer from {low} to {high}"
    return Fault("wrong_type", f"column {name}: {expected}, got {found_type(value)}", name)


def _read_list(value: Any, name: str, spec: InputSpec) -> Any:
    """Read a JSON value as a list of numbers and nulls, or null; return it or a Fault."""
    if value is None:
        return None
    if not isinstance(value, list):
        message = f"column {name}: expected a list, got {json_type(value)}"
        return Fault("wrong_type", message, name)
    kinds, floats = set(map(type, value)), spec.dtype.startswith("float")
    if kinds <= _PLAIN and (floats or (kinds == {int} and _all_fit(value, spec))):
        return value
    values = [_read_number(item, f"{name}[{i}]", spec) for i, item in enumerate(value)]
    return next((item for item in values if isinstance(item, Fault)), values)


def _all_fit(values: Sequence[int], spec: InputSpec) -> bool:
    low, high = limits(spec.dtype)
    return low <= min(values) and max(values) <= high


def _column_fault(value: Any, kind: pa.DataType, name: str) -> Fault | None:
    """Return the Fault of a value in a column that is not a feature, or None."""
    if value is None or (type(value) is str and kind == pa.string()):
        return None
    if kind != pa.string():
        if type(value) in (float, int, str) and _fits(value, kind):
            return None
        return Fault("wrong_type", f"column {name}: expected {kind}, got {found_type(value)}", name)
    try:
        to_text(value)
    except (TypeError, RecursionError):
        return Fault("wrong_type", f"column {name}: nested too deeply", name)
    return None


def _fits(value: float | str, kind: pa.DataType) -> bool:
    """Return whether a number, or the text of one, fits float64 or int64."""
    if kind == pa.int64():
        return exact_integer(value, *limits("int64"))[1] == FINE
    return type(value) is not str or parse_number(value) is not None


def found_type(value: Any) -> str:
    """Describe a JSON value that does not fit, for a message: its type, but never the value."""
    kind = json_type(value)
    return f"{kind} out of range" if kind == "integer" else kind


def own_id(row: Any, id_column: str) -> str | None:
    """Return the id in a column of a decoded row, even if the row has faults.

    None if there is none, or if it cannot be written as text.
    """
    try:
        value = row.get(id_column) if isinstance(row, Mapping) else None
        return value if type(value) is str else to_id(value)
    except (TypeError, RecursionError):
        return None
