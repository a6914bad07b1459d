"""Types and values of Arrow columns. This module does not import Beam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa


def to_values(column: pa.Array) -> list[Any]:
    """Return the Python values of a column.

    Python's times hold no more than microseconds, so finer times are cut. If a column has a time
    that Python cannot hold at all, its times are returned as text.
    """
    kind = map_type(column.type, in_microseconds)
    if kind != column.type:
        column = column.cast(kind, safe=False)
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        return list(column.cast(map_type(kind, _as_text)).to_pylist())


def map_type(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type in which every type that is not nested has been changed.

    A dictionary whose values would change becomes a plain column of the new type.
    """
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([f.with_type(map_type(f.type, change)) for f in kind])
    if types.is_map(kind):
        return pa.map_(map_type(kind.key_type, change), map_type(kind.item_type, change))
    if types.is_dictionary(kind):
        value = change(kind.value_type)
        return kind if value == kind.value_type else value
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return change(kind)
    item = kind.value_field.with_type(map_type(kind.value_type, change))
    if types.is_fixed_size_list(kind):
        return pa.list_(item, kind.list_size)
    return pa.large_list(item) if types.is_large_list(kind) else pa.list_(item)


def in_microseconds(kind: pa.DataType) -> pa.DataType:
    """Return the type with microseconds in place of nanoseconds; other types are unchanged."""
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if kind == pa.time64("ns") else kind


def without_view(kind: pa.DataType) -> pa.DataType:
    """Return the plain type of texts or bytes in place of a view; other types are unchanged."""
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return columns with plain texts and bytes, because Arrow cannot select rows of views."""
    plain = pa.schema([f.with_type(map_type(f.type, without_view)) for f in batch.schema])
    return batch if plain == batch.schema else batch.cast(plain)


def _as_text(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_temporal(kind) else kind
