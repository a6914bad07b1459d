"""Tests that ids from a row's values do not depend on the batch or the process."""

import os
import struct
import subprocess
import sys
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.record_batch import RecordBatchCoder
from transforms.row_ids import content_ids

INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 1.0])
# Only a few different texts, to make equal rows frequent.
TEXTS = st.sampled_from(["", "a", "b", "NaN", "null", "ä" * 40])
DECIMALS = st.decimals(-(10**20), 10**20, places=9)
CELLS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)),
    (pa.int32(), st.integers(-3, 3)),
    (pa.int64(), INTEGERS),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), FLOATS),
    (pa.bool_(), st.booleans()),
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
    (pa.binary(), st.binary(max_size=2)),
    (pa.decimal128(38, 9), DECIMALS),
    (pa.decimal256(76, 38), DECIMALS),
    (pa.date32(), st.dates()),
    (pa.timestamp("us", tz="UTC"), st.datetimes().map(lambda t: t.isoformat() + "Z")),
    (pa.time64("us"), st.times()),
    (pa.dictionary(pa.int8(), pa.string()), TEXTS),
]


def array_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)


@st.composite
def types_and_cells(draw: st.DrawFn) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    """Draw a BigQuery type, perhaps as a list or in a struct, and its cells with nulls."""
    kind, cells = draw(st.sampled_from(CELLS))
    shape = draw(st.sampled_from(["plain", "list", "large_list", "fixed", "struct"]))
    if shape == "plain" or pa.types.is_timestamp(kind) or pa.types.is_dictionary(kind):
        return kind, st.none() | cells
    cells = st.none() | cells
    if shape == "struct":
        return pa.struct([("x", kind), ("y", kind)]), st.none() | st.fixed_dictionaries(
            {"x": cells, "y": cells}
        )
    if shape == "fixed":
        return pa.list_(kind, 2), st.none() | st.lists(cells, min_size=2, max_size=2)
    make = pa.list_ if shape == "list" else pa.large_list
    return make(kind), st.none() | st.lists(cells, max_size=3)


@st.composite
def columns(draw: st.DrawFn) -> list[pa.Array]:
    """Draw one to four columns of up to 12 rows."""
    rows = draw(st.integers(0, 12))
    kinds = draw(st.lists(types_and_cells(), min_size=1, max_size=4))
    return [
        array_of(draw(st.lists(cells, min_size=rows, max_size=rows)), kind) for kind, cells in kinds
    ]


def key(value: Any) -> Any:
    """Return a key that is equal only for equal values; for floats, their bits."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, dict):
        return tuple((name, key(item)) for name, item in value.items())
    return tuple(key(item) for item in value) if isinstance(value, list) else value


@given(columns(), st.lists(st.integers(0, 12), max_size=3))
def test_the_id_of_a_row_does_not_depend_on_its_batch(
    found: list[pa.Array], cuts: list[int]
) -> None:
    rows = len(found[0])
    bounds = sorted({0, rows, *(min(cut, rows) for cut in cuts)})
    parts = [
        content_ids([column.slice(start, stop - start) for column in found]).to_pylist()
        for start, stop in pairwise(bounds)
    ]
    assert content_ids(found).to_pylist() == [row_id for part in parts for row_id in part]


@given(columns())
def test_rows_have_equal_ids_if_and_only_if_all_their_values_are_equal(
    found: list[pa.Array],
) -> None:
    ids = content_ids(found).to_pylist()
    rows = [key(list(row)) for row in zip(*(c.to_pylist() for c in found), strict=True)]
    assert len(set(zip(ids, rows, strict=True))) == len(set(ids)) == len(set(rows))
    assert all(len(row_id) == 32 and int(row_id, 16) >= 0 for row_id in ids)


@given(columns())
def test_the_id_of_a_row_does_not_depend_on_the_memory_layout_of_its_batch(
    found: list[pa.Array],
) -> None:
    batch = pa.record_batch(found, names=[str(i) for i in range(len(found))])
    coder = RecordBatchCoder()
    again = coder.decode(coder.encode(batch))
    shuffled = batch.take(pa.array(np.arange(batch.num_rows)[::-1]))
    assert content_ids(again.columns).equals(content_ids(found))
    assert content_ids(shuffled.columns).to_pylist()[::-1] == content_ids(found).to_pylist()


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.decimal128(38, 9)])
def test_memory_under_a_null_makes_no_difference(kind: pa.DataType) -> None:
    values = pa.array([1, 2, 3]).cast(kind)
    validity = pa.array([True, False, True])
    mask = validity.buffers()[1]
    dirty = pa.Array.from_buffers(kind, 3, [mask, values.buffers()[1]])
    clean = pa.array([values[0].as_py(), None, values[2].as_py()], kind)
    assert dirty.equals(clean)
    assert content_ids([dirty]).equals(content_ids([clean]))


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (0, None, pa.int64()),
        (0.0, None, pa.float64()),
        (0.0, -0.0, pa.float64()),
        (Decimal(0), None, pa.decimal128(38, 9)),
        # These numbers differ only in the upper half of the 128 bits.
        (Decimal(1), Decimal(1 + 2**70), pa.decimal128(38, 9)),
        (False, None, pa.bool_()),
        ("", None, pa.string()),
        ("1", "1 ", pa.string()),
        ([], None, pa.list_(pa.int64())),
        ([], [None], pa.list_(pa.int64())),
        ([0], [0, 0], pa.list_(pa.int64())),
        ([1, 2], [2, 1], pa.list_(pa.int64())),
        (None, {"x": None}, pa.struct([("x", pa.int64())])),
    ],
)
def test_similar_values_have_different_ids(one: Any, other: Any, kind: pa.DataType) -> None:
    first, second = content_ids([pa.array([one, other], kind)]).to_pylist()
    assert first != second


def test_the_order_of_columns_and_the_borders_between_them_matter() -> None:
    a, b = pa.array(["a", "ab"]), pa.array(["bc", "c"])
    ids = content_ids([a, b]).to_pylist()
    assert len({*ids, *content_ids([b, a]).to_pylist()}) == 4


def test_a_dictionary_column_has_the_ids_of_its_values() -> None:
    texts = pa.array(["x", None, "y", "x"])
    assert content_ids([texts.dictionary_encode()]).equals(content_ids([texts]))


def test_ids_are_the_same_in_another_process() -> None:
    program = (
        "import pyarrow as pa; from transforms.row_ids import content_ids; "
        "print(content_ids([pa.array([1.5, None]), pa.array(['a', 'b']), "
        "pa.array([[1, 2], []])]).to_pylist())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        # Python's own hash of a text depends on this variable.
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    here = [pa.array([1.5, None]), pa.array(["a", "b"]), pa.array([[1, 2], []])]
    assert printed == str(content_ids(here).to_pylist())


def test_rows_that_differ_in_few_bits_have_ids_that_differ_in_both_halves() -> None:
    rows = 100_000
    ids = content_ids([pa.array(np.arange(rows)), pa.array(np.zeros(rows))]).to_pylist()
    # 64 well distributed bits have no collision, so each half of the ids is unique.
    assert len({row_id[:16] for row_id in ids}) == len({row_id[16:] for row_id in ids}) == rows
