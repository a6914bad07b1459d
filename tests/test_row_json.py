"""JSON that is written column by column equals JSON that is written row by row."""

import base64
import datetime
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.json_objects import json_cells, json_objects
from common.record_batch import to_rows

TIMES = st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31))
FLOATS = {
    pa.float16(): st.floats(width=16),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
}
CELLS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    **FLOATS,
    pa.int8(): st.integers(-128, 127),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(),
    pa.large_string(): st.text(),
    pa.binary(): st.binary(max_size=5),
    pa.timestamp("us", "UTC"): TIMES.map(lambda t: t.replace(tzinfo=datetime.UTC)),
    pa.timestamp("us"): TIMES,
    pa.timestamp("s", "Asia/Tokyo"): st.integers(0, 4 * 10**9),
    pa.timestamp("ns", "UTC"): st.integers(0, 4 * 10**18),
    pa.date32(): st.dates(),
    pa.decimal128(9, 2): st.integers(-(10**6), 10**6).map(lambda n: Decimal(n) / 100),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["", "a", 'é"\\\n']),
    pa.list_(pa.float32()): st.lists(st.none() | st.floats(width=32), max_size=3),
    pa.struct([("x", pa.int8()), ("y", pa.string())]): st.fixed_dictionaries(
        {"x": st.none() | st.integers(-5, 5), "y": st.text(max_size=3)}
    ),
}
for _kind, _cells in FLOATS.items():
    CELLS[pa.list_(_kind, 2)] = st.lists(_cells, min_size=2, max_size=2)
    CELLS[pa.list_(pa.list_(_kind, 1), 2)] = st.lists(
        st.lists(_cells, min_size=1, max_size=1), min_size=2, max_size=2
    )
CELLS[pa.list_(pa.float32(), 0)] = st.just([])
CELLS[pa.list_(pa.int64(), 2)] = st.lists(st.none() | st.integers(-9, 9), min_size=2, max_size=2)


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    """Draw batches of any columns, some sliced, with nulls, equal cells and odd names."""
    rows, skipped = draw(st.integers(0, 4)), draw(st.integers(0, 2))
    kinds = draw(st.lists(st.sampled_from(list(CELLS)), min_size=1, max_size=5))
    names = draw(st.lists(st.text(), min_size=len(kinds), max_size=len(kinds), unique=True))
    columns = {}
    for name, kind in zip(names, kinds, strict=True):
        cells = st.none() | CELLS[kind] if draw(st.booleans()) else CELLS[kind]
        if draw(st.booleans()):
            values = [draw(cells)] * (rows + skipped)
        else:
            values = draw(st.lists(cells, min_size=rows + skipped, max_size=rows + skipped))
        columns[name] = pa.array(values, kind)
    return pa.record_batch(columns).slice(skipped)


def same(got: Any, wanted: Any, kind: pa.DataType) -> bool:
    """Return whether a JSON value is the value of a cell."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if wanted is None:
        return got is None
    if pa.types.is_floating(kind):
        if not math.isfinite(wanted):
            return got is None
        exact = np.dtype(f"f{kind.bit_width // 8}").type
        return type(got) is float and exact(got) == exact(wanted)
    if pa.types.is_timestamp(kind):
        moment = datetime.datetime.fromisoformat(got)
        return (moment.tzinfo is None) == (kind.tz is None) and moment == wanted
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return len(got) == len(wanted) and all(
            same(*pair, kind.value_type) for pair in zip(got, wanted, strict=True)
        )
    if pa.types.is_struct(kind):
        return got.keys() == wanted.keys() and all(
            same(got[f.name], wanted[f.name], f.type) for f in kind
        )
    if pa.types.is_binary(kind):
        return base64.b64decode(got) == wanted
    if pa.types.is_date(kind) or pa.types.is_decimal(kind):
        return str(got) == str(wanted)
    return type(got) is type(wanted) and got == wanted


@given(batches())
@example(pa.record_batch({"x": pa.array([0.1, None], pa.float32())}))
@example(pa.record_batch({"x": pa.array([math.nan, math.inf])}))
@example(pa.record_batch({"x": pa.array([1, None], pa.timestamp("ns", "UTC"))}))
@example(pa.record_batch({"x": pa.array([[[0.1], [1.0]]], pa.list_(pa.list_(pa.float32(), 1), 2))}))
def test_an_object_holds_the_columns_that_are_not_null(rows: pa.RecordBatch) -> None:
    found = [json.loads(text) for text in json_objects(rows)]
    for got, wanted in zip(found, to_rows(rows), strict=True):
        present = [name for name, value in wanted.items() if value is not None]
        assert sorted(got) == sorted(present)
        for field in rows.schema:
            if field.name in got:
                assert same(got[field.name], wanted[field.name], field.type), field


def shortest(kind: Callable[[float], Any], value: float) -> str:
    """Return the text with the fewest digits that identify a number of a width."""
    return next(text for n in range(1, 18) if kind(float(text := f"{value:.{n}g}")) == value)


@given(st.lists(st.floats(0.0009765625, 10**6, width=32), min_size=1, max_size=3))
def test_float32_is_written_with_no_more_digits_than_needed(values: list[float]) -> None:
    plain = pa.array(values, pa.float32())
    columns = [
        plain,
        pa.array([None, *values], pa.float32()),
        pa.FixedSizeListArray.from_arrays(plain, 1),
        pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(plain, 1), 1),
    ]
    for column in columns:
        cells = [cell.strip(b"[]").decode() for cell in json_cells(column) if cell]
        for cell, value in zip(cells, values, strict=True):
            assert np.float32(cell) == np.float32(value)
            digits = shortest(np.float32, value).replace(".", "").strip("0")
            assert len(cell.split("e")[0].replace(".", "").strip("0")) <= len(digits) + 1


@pytest.mark.parametrize("kind", list(CELLS), ids=str)
def test_a_column_without_rows_has_no_cells(kind: pa.DataType) -> None:
    assert json_cells(pa.array([], kind)) == []


def test_no_rows_give_no_objects_and_rows_of_nulls_give_empty_ones() -> None:
    assert json_objects(pa.record_batch({"x": pa.array([], pa.int8())})) == []
    assert json_objects(pa.record_batch({"x": pa.nulls(2, pa.int8())})) == [b"{}", b"{}"]
