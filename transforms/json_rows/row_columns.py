"""Build Arrow columns from the values of JSON rows without faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from common.cells import exact_integer, limits
from common.texts import to_text
from model_handlers.manifest import InputSpec
from transforms.json_rows.row_format import RowFormat


def build_columns(
    values: Sequence[Any], rows: Sequence[Mapping[str, Any]], row_format: RowFormat
) -> dict[str, pa.Array]:
    """Build columns from rows without faults.

    Args:
        values: The features of each row, as `read_row` returned them.
        rows: The rows.
        row_format: The columns to read.
    """
    columns: dict[str, pa.Array] = {}
    by_feature = zip(*values, strict=True)
    for (name, spec), column in zip(row_format.features.items(), by_feature, strict=True):
        build = _list_column if spec.is_list_column else _number_column
        columns[name] = build(column, spec)
    for name, kind in row_format.columns:
        read = _READERS[kind]
        columns[name] = pa.array([read(row.get(name)) for row in rows], kind)
    return columns


def _list_column(values: Sequence[Sequence[Any] | None], spec: InputSpec) -> pa.Array:
    """Build a list column from the numbers and nulls of each row, or null."""
    try:
        return pa.array(values, pa.list_(_number_type(spec)))
    except (pa.ArrowInvalid, OverflowError):
        floats = [None if value is None else [_as_float(x) for x in value] for value in values]
        return pa.array(floats, pa.list_(pa.float64()))


def _number_column(values: Sequence[Any], spec: InputSpec) -> pa.Array:
    """Build a column from numbers and nulls."""
    try:
        return pa.array(values, _number_type(spec))
    except (pa.ArrowInvalid, OverflowError):
        # This happens in float tensors: Arrow does not round integers beyond 2**53.
        return pa.array([_as_float(value) for value in values], pa.float64())


def _number_type(spec: InputSpec) -> pa.DataType:
    """Return float64 for a float tensor; int64 for an integer tensor, to avoid rounding."""
    return pa.float64() if spec.dtype.startswith("float") else pa.int64()


def _as_float(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _whole(value: Any) -> int | None:
    return None if value is None else exact_integer(value, *limits("int64"))[0]


_READERS = {pa.string(): to_text, pa.float64(): _as_float, pa.int64(): _whole}
