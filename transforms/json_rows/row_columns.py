"""Build Arrow columns from JSON rows, and separate rows with faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from common.cells import exact_integer, limits
from common.texts import to_text
from model_handlers.manifests.manifest import InputSpec, Manifest
from model_handlers.steps.values import from_values
from transforms.dead_letters import Fault
from transforms.json_rows.row_format import RowFormat, read_row


@dataclass(frozen=True)
class ReadRows:
    """What could be read from JSON rows.

    Attributes:
        columns: The columns of the good rows, by name.
        good: The numbers of the good rows, in order.
        faults: The Fault of each other row, by number, in order.
    """

    columns: dict[str, pa.Array]
    good: list[int]
    faults: dict[int, Fault]


def read_rows(rows: Sequence[Any], row_format: RowFormat) -> ReadRows:
    """Read JSON rows into columns.

    Args:
        rows: A JSON value or a Fault for each row.
        row_format: The columns to read.
    """
    read = [read_row(row, row_format) for row in rows]
    faults = {i: row for i, row in enumerate(read) if isinstance(row, Fault)}
    good = [i for i in range(len(rows)) if i not in faults]
    declared: dict[str, pa.Array] = {}
    if good and row_format.manifest.columns:
        declared, found = _declared_columns([rows[i] for i in good], row_format.manifest)
        faults |= {good[i]: fault for i, fault in found.items()}
        kept = [i for i in range(len(good)) if i not in found]
        if found:
            declared = {
                name: array.take(pa.array(kept, pa.int64())) for name, array in declared.items()
            }
        good = [good[i] for i in kept]
    if not good:
        return ReadRows({}, [], dict(sorted(faults.items())))
    columns = build_columns([read[i] for i in good], [rows[i] for i in good], row_format)
    return ReadRows(declared | columns, good, dict(sorted(faults.items())))


def _declared_columns(
    rows: Sequence[Mapping[str, Any]], manifest: Manifest
) -> tuple[dict[str, pa.Array], dict[int, Fault]]:
    """Return the columns that a manifest declares, and the Fault of each row that has one."""
    columns, faults = {}, dict[int, Fault]()
    for name, raw in manifest.columns.items():
        if name not in manifest.optional:
            missing = Fault("missing_feature", f"the row has no column {name}", name)
            for i in [i for i, row in enumerate(rows) if name not in row]:
                faults.setdefault(i, missing)
        cells = from_values([row.get(name) for row in rows], raw)
        columns[name] = cells.values
        for refused in cells.refused:
            fault = Fault(refused.reason, f"column {name}: {refused.message}", name)
            for i in refused.rows.tolist():
                faults.setdefault(i, fault)
    return columns, faults


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
