"""Columns from JSON values: which of them are features, ids and kept texts, and what is wrong.

Both message forms are read: named features (`{"Time": 0.0, "V1": ..}`) and, for a
model of one input, a list (`{"features": [..]}`); a row that names every feature is
read by name. Columns come out by name either way. Reasons: `not_an_object`,
`missing_feature`, `wrong_type`, `wrong_width`, `not_finite`; null features are left to
validation. What an integer tensor cannot take is told here: beside a fraction in its
column the integers of other rows would be rounded.
"""

from __future__ import annotations

import base64
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

from model_handlers.manifest import InputSpec, Manifest
from transforms.cells import FINE, INFINITE, NAN, exact_integer, limits
from transforms.dead_letters import Fault
from transforms.plain_json import to_json
from transforms.validate import VECTOR_COLUMN

_MISSING = object()
_PLAIN = {float, int}
_PLAIN_OR_NULL: set[type] = {float, int, type(None)}
# What Arrow raises of values that do not fit a type.
_REFUSED = (pa.ArrowException, ValueError, OverflowError)
# What of a kept column Arrow takes just as the slower reading does.
_PLAIN_OF: dict[pa.DataType, set[type]] = {
    pa.string(): {str, type(None)},
    pa.float64(): _PLAIN_OR_NULL,
    pa.int64(): {int, type(None)},
}


@dataclass(frozen=True)
class RowFormat:
    """What is read from a JSON row.

    id_column: the row's own id, None to derive one. keep: further columns, as text;
    typed: such columns with a type of their own, float64, int64 or string.
    """

    manifest: Manifest
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    typed: tuple[tuple[str, pa.DataType], ...] = ()

    @cached_property
    def features(self) -> dict[str, InputSpec]:
        """Columns of all inputs, in order, and the input that each is of."""
        return {column: spec for spec in self.manifest.inputs for column in spec.columns}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Columns of all inputs, in order."""
        return tuple(self.features)

    @cached_property
    def take(self) -> Callable[[Any], tuple[Any, ...]]:
        """A row that names all features -> their values, in order."""
        # Of one name, itemgetter gives no tuple.
        return itemgetter(*self.names) if len(self.names) > 1 else partial(_one, self.names[0])

    @cached_property
    def vector(self) -> bool:
        """Whether one list may hold all features."""
        return len(self.manifest.inputs) == 1

    @cached_property
    def scalars(self) -> bool:
        """Whether each feature is one number, of a float tensor."""
        inputs = self.manifest.inputs
        return all(s.dtype.startswith("float") and not s.is_list_column for s in inputs)

    @cached_property
    def plain(self) -> bool:
        """Whether rows can be read by read_plain."""
        spec = self.manifest.inputs[0]
        fits = self.vector and spec.shape and spec.dtype.startswith("float")
        # A column of that name would take the place of all features.
        return bool(
            fits
            and not spec.is_list_column
            and VECTOR_COLUMN not in (*self.features, *self.keep, *dict(self.typed))
        )

    @cached_property
    def columns(self) -> tuple[tuple[str, pa.DataType], ...]:
        """Columns beside the features, and their types: those to keep as text, and `typed`."""
        typed = dict(self.typed)
        kept = dict.fromkeys(self.keep, pa.string()).items()
        return (*(own for own in kept if own[0] not in {**self.features, **typed}), *self.typed)


def _one(name: str, row: Any) -> tuple[Any, ...]:
    return (row[name],)


def read_plain(rows: Sequence[Any], row_format: RowFormat) -> dict[str, pa.Array] | None:
    """Rows that all have their features, as plain numbers or nulls -> the source's columns.

    None if any row is otherwise, or the model wants anything but floats of one input. All
    features are one list column, VECTOR_COLUMN; those to keep are columns besides. Judges
    all rows at once, in a fraction of the time that read_row takes for each.
    """
    if not row_format.plain or (values := _plain_values(rows, row_format)) is None:
        return None
    kept = [[row.get(name) for row in rows] for name, _ in row_format.columns]
    for cells, (_, kind) in zip(kept, row_format.columns, strict=True):
        # Arrow would take bytes for a text, a truth for a number, and half of 1.5.
        if not {*map(type, cells)} <= _PLAIN_OF[kind]:
            return None
    try:
        # An integer that would be rounded is an error.
        return plain_columns(pa.array(values, pa.float64()), kept, row_format)
    except _REFUSED:
        return None


def plain_columns(
    values: pa.DoubleArray, kept: Sequence[Sequence[Any]], row_format: RowFormat
) -> dict[str, pa.Array] | None:
    """Features, of one row after the other, and cells of each further column -> the columns.

    None if a cell does not fit its type.
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
    """Rows that all name their features, or all list them -> the values of one after the other.

    None if any row does neither, or has a value that is neither number nor null.
    """
    try:
        values = list(chain.from_iterable(map(row_format.take, rows)))
    except (KeyError, TypeError):
        # A row that names its features is read by name, whatever it lists.
        if any(type(row) is not dict or row_format.names[0] in row for row in rows):
            return None
        lists = [row.get(VECTOR_COLUMN) for row in rows]
        if set(map(type, lists)) != {list} or set(map(len, lists)) != {len(row_format.names)}:
            return None
        values = list(chain.from_iterable(lists))
    return values if set(map(type, values)) <= _PLAIN_OR_NULL else None


def read_row(row: Any, row_format: RowFormat) -> Any:
    """One decoded row -> its features (numbers, nulls, lists of such), or the Fault that it has."""
    if isinstance(row, Fault):
        return row
    if not isinstance(row, Mapping):
        return Fault("not_an_object", f"expected a JSON object, got {type(row).__name__}")
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
    """A row's features as they came -> as they are read, or the first Fault."""
    read: list[Any] = []
    for value, (name, spec) in zip(values, row_format.features.items(), strict=True):
        if value is _MISSING and name not in spec.impute:
            return Fault("missing_feature", f"column {name}: missing", name)
        read_one = _read_list if spec.is_list_column else _read_number
        read.append(read_one(None if value is _MISSING else value, name, spec))
        if isinstance(read[-1], Fault):
            return read[-1]
    return read


def _read_vector(value: Any, spec: InputSpec) -> Any:
    """The list that holds all features of a row -> these, or the Fault that it has."""
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
    """A JSON value -> a number or null, or the Fault that it has."""
    if isinstance(value, bool) and spec.dtype == "bool":
        return int(value)
    number = type(value) is float or type(value) is int or isinstance(value, Decimal)
    if number and not spec.dtype.startswith("float"):
        return _read_integer(value, name, spec)
    if value is None or type(value) is float or type(value) is int:
        return value
    if isinstance(value, Decimal):
        if value.is_nan():
            return math.nan
        whole = abs(value) < 1 << 64 and value == value.to_integral_value()
        return int(value) if whole else float(value)
    message = f"column {name}: expected a number, got {type(value).__name__}"
    return Fault("wrong_type", message, name)


def _read_integer(value: float | Decimal, name: str, spec: InputSpec) -> int | Fault | None:
    """A number for an integer tensor -> it, exact, or the Fault that it has; NaN may be null."""
    low, high = limits(spec.dtype)
    if type(value) is int and low <= value <= high:
        return value
    whole, state = exact_integer(value, low, high)
    if state == FINE:
        return whole
    if state == NAN:
        # Where nulls are imputed, NaNs are.
        return None if spec.impute else Fault("not_finite", f"column {name}: NaN", name)
    if state == INFINITE:
        message = f"column {name}: infinite, or beyond {spec.dtype}"
        return Fault("not_finite", message, name)
    expected = f"expected {spec.dtype}, an integer from {low} to {high}"
    return Fault("wrong_type", f"column {name}: {expected}, got {found_type(value)}", name)


def _read_list(value: Any, name: str, spec: InputSpec) -> Any:
    """A JSON value -> a list of numbers and nulls, or null, or the Fault that it has."""
    if value is None:
        return None
    if not isinstance(value, list):
        message = f"column {name}: expected a list, got {type(value).__name__}"
        return Fault("wrong_type", message, name)
    kinds, floats = set(map(type, value)), spec.dtype.startswith("float")
    if kinds <= _PLAIN and (floats or (kinds == {int} and _all_fit(value, spec))):
        return value
    values = [_read_number(item, f"{name}[{i}]", spec) for i, item in enumerate(value)]
    return next((item for item in values if isinstance(item, Fault)), values)


def _all_fit(values: Sequence[int], spec: InputSpec) -> bool:
    low, high = limits(spec.dtype)
    return low <= min(values) and max(values) <= high


def build_columns(
    values: Sequence[Any], rows: Sequence[Mapping[str, Any]], row_format: RowFormat
) -> dict[str, pa.Array]:
    """Readable rows and their features -> the source's columns."""
    columns: dict[str, pa.Array] = {}
    by_feature = zip(*values, strict=True)
    for (name, spec), column in zip(row_format.features.items(), by_feature, strict=True):
        build = _list_column if spec.is_list_column else _number_column
        columns[name] = build(column, spec)
    for name, kind in row_format.columns:
        read = _READERS[kind]
        columns[name] = pa.array([read(row.get(name)) for row in rows], kind)
    return columns


def _column_fault(value: Any, kind: pa.DataType, name: str) -> Fault | None:
    """What a row has in a column beside the features -> its Fault, None if it is fine."""
    if value is None or (type(value) is str and kind == pa.string()):
        return None
    if kind != pa.string():
        number = type(value) is float or type(value) is int
        whole = number and kind == pa.int64() and value == value // 1
        if number and (kind == pa.float64() or (whole and -(1 << 63) <= value < 1 << 63)):
            return None
        return Fault("wrong_type", f"column {name}: expected {kind}, got {found_type(value)}", name)
    try:
        to_text(value)
    except (TypeError, RecursionError):
        return Fault("wrong_type", f"column {name}: nested too deeply for a text", name)
    return None


def found_type(value: Any) -> str:
    """A JSON value that does not fit -> what a message says of it: its type, never the value."""
    kind = type(value).__name__
    return f"{kind} out of range" if kind == "int" else kind


def own_id(row: Any, id_column: str) -> str | None:
    """A decoded row, readable or not -> its own id, None if it has none."""
    try:
        return to_text(row.get(id_column)) if isinstance(row, Mapping) else None
    except (TypeError, RecursionError):
        return None


def _list_column(values: Sequence[Sequence[Any] | None], spec: InputSpec) -> pa.Array:
    """Numbers and nulls of each row, or null -> a list column."""
    try:
        return pa.array(values, pa.list_(_number_type(spec)))
    except (pa.ArrowInvalid, OverflowError):
        floats = [None if value is None else [_as_float(x) for x in value] for value in values]
        return pa.array(floats, pa.list_(pa.float64()))


def _number_column(values: Sequence[Any], spec: InputSpec) -> pa.Array:
    """Numbers and nulls -> a column."""
    try:
        return pa.array(values, _number_type(spec))
    except (pa.ArrowInvalid, OverflowError):
        # Of a float tensor: integers beyond 2**53, which Arrow does not round by itself.
        return pa.array([_as_float(value) for value in values], pa.float64())


def _number_type(spec: InputSpec) -> pa.DataType:
    """float64; int64 for an integer tensor, so that nothing is rounded."""
    return pa.float64() if spec.dtype.startswith("float") else pa.int64()


def _as_float(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def to_text(value: Any) -> str | None:
    """A value -> text as it is, an object, a list or a truth value as JSON, null as null.

    Bytes, which Avro has, become base64.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return to_json(value).decode() if isinstance(value, (bool, dict, list)) else str(value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


_READERS = {pa.string(): to_text, pa.float64(): _as_float, pa.int64(): _whole}
