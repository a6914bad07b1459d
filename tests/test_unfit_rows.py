"""Rows with values that a table cannot hold become dead letters before anything is written."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from common.record_batch import to_rows
from transforms.bigquery.unfit import RefuseUnfit, null_elements, unfit_rows, unfit_values
from transforms.provenance import Provenance


def found(column: pa.Array) -> np.ndarray:
    unfit = unfit_values(column)
    assert unfit is not None
    return unfit


# The moments just outside and just inside of the years 1 to 9999, at both ends.
EDGES = np.array(
    ["0000-12-31T23:59:59", "0001-01-01", "9999-12-31T23:59:59", "10000-01-01"], "M8[s]"
)


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        (pa.date32(), "D"),
        (pa.date64(), "ms"),
        (pa.timestamp("s"), "s"),
        (pa.timestamp("ms", tz="UTC"), "ms"),
        (pa.timestamp("us", tz="Europe/Zurich"), "us"),
    ],
)
def test_times_outside_the_years_1_to_9999_are_found_at_every_level(
    kind: pa.DataType, unit: str
) -> None:
    numbers = EDGES.astype(f"M8[{unit}]").astype("i8")
    times = pa.array(numbers).cast(f"int{kind.bit_width}").view(kind)
    far = [True, False, False, True]
    flat = pa.concat_arrays([times, pa.nulls(1, kind)])
    assert list(found(flat)) == [*far, False]
    assert list(found(flat.slice(1))) == [*far[1:], False]
    assert list(found(flat.dictionary_encode())) == [*far, False]
    lists = pa.ListArray.from_arrays(pa.array([0, 0, 2, 3, 4, 4]), times)
    assert list(found(lists)) == [False, True, False, True, False]
    assert list(found(lists.slice(2))) == [False, True, False]
    pairs = pa.FixedSizeListArray.from_arrays(times[1:3], 2)
    assert list(found(pairs)) == [False]
    within = pa.StructArray.from_arrays([pa.array(range(5)), lists], names=["n", "l"])
    assert list(found(within)) == [False, True, False, True, False]


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.time64("ns")])
def test_times_finer_than_a_microsecond_are_found(kind: pa.DataType) -> None:
    column = pa.array([1_000, None, 1_001, 0], pa.int64()).cast(kind)
    assert list(found(column)) == [False, False, True, False]


def test_integers_beyond_int64_are_found_at_every_level() -> None:
    column = pa.array([2**63 - 1, 2**63, None, 2**64 - 1, 0], pa.uint64())
    assert list(found(column)) == [False, True, False, True, False]
    assert list(found(column.slice(1).dictionary_encode())) == [True, False, True, False]
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 1, 3]), column)
    nested = pa.StructArray.from_arrays([lists], names=["l"])
    assert list(found(lists)) == list(found(nested)) == [False, False, True]


def test_columns_without_times_are_skipped() -> None:
    for column_ in ([1], ["a"], [[1.5]], [{"a": 1}], [None]):
        assert unfit_values(pa.array(column_)) is None


LISTS: list[Any] = [[1], None, [], [None], [1, None], [2, 3]]


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.float32())])
def test_null_elements_of_lists_are_found_at_every_level_and_null_lists_are_fine(
    kind: pa.DataType,
) -> None:
    def same(found: np.ndarray | None, expected: Sequence[bool] | np.ndarray) -> bool:
        return found is not None and np.array_equal(found, expected)

    lists = pa.array(LISTS, kind)
    bad = np.array([False, False, False, True, True, False])
    assert same(null_elements(lists), bad)
    assert same(null_elements(lists.slice(2)), bad[2:])
    assert same(null_elements(pa.StructArray.from_arrays([lists], names=["l"])), bad)
    of_structs = pa.array([[{"l": x}] for x in LISTS], pa.list_(pa.struct([("l", kind)])))
    assert same(null_elements(of_structs), bad)
    pairs = pa.array([[1, 2], None, [1, None]], pa.list_(pa.int64(), 2))
    assert same(null_elements(pairs), [False, False, True])
    fine = pa.array([x for x, is_bad in zip(LISTS, bad, strict=True) if not is_bad], kind)
    assert null_elements(fine) is None
    assert null_elements(pa.array([{"a": None}, None])) is None
    assert null_elements(pa.array([1, None])) is None


@given(st.lists(st.none() | st.lists(st.none() | st.integers(0, 3), max_size=4), max_size=6))
def test_exactly_the_rows_with_a_null_element_are_unfit(rows: list[Any]) -> None:
    faults = unfit_rows({"x": pa.array(rows, pa.list_(pa.int64()))}, "p.d.t")
    assert list(faults) == [i for i, row in enumerate(rows) if None in (row or [])]
    for fault in faults.values():
        assert (fault.reason, fault.column) == ("refused", "x")
        assert fault.message == (
            "column x: table p.d.t holds lists without null elements, got a list<item: int64> with "
            "one"
        )


def test_the_fault_names_the_column_the_table_and_the_type_but_no_value() -> None:
    times = pa.array([0, 1, 0], pa.timestamp("ns"))
    columns = {"t": times, "n": pa.array([1, 2**63, 2**63], pa.uint64())}
    faults = unfit_rows(columns | {"x": pa.array(["a", "b", "c"])}, "p.d.t")
    assert {row: (fault.reason, fault.column) for row, fault in faults.items()} == {
        1: ("refused", "t"),
        2: ("refused", "n"),
    }
    for fault in faults.values():
        assert f"column {fault.column}: table p.d.t holds integers up to" in fault.message
        assert str(2**63) not in fault.message
    assert "got another uint64" in faults[2].message
    assert "years 1 to 9999" in faults[1].message


@pytest.mark.slow
def test_rows_that_the_table_cannot_hold_are_dead_letters_that_can_be_replayed(
    make_source: Callable[[Mapping[str, Any]], pa.RecordBatch], provenance: Provenance
) -> None:
    values = [1, 2**64 - 1, 3, 2**63]
    batches = [
        make_source({"n": pa.array(values, pa.uint64())}),
        make_source({"n": pa.array(values[:1], pa.uint64())}),
        make_source({"n": pa.array(values[1:2], pa.uint64())}),
    ]
    with beam.Pipeline("FnApiRunner") as pipeline:
        split = (
            pipeline
            | beam.Create(batches, reshuffle=False)
            | RefuseUnfit("p.d.t", ("n",), provenance)
        )

        def check_good(found: list[pa.RecordBatch]) -> None:
            rows = [row["source"]["n"] for batch in found for row in to_rows(batch)]
            assert sorted(rows) == [1, 1, 3]

        def check_bad(found: list[pa.RecordBatch]) -> None:
            letters = [row for batch in found for row in to_rows(batch)]
            assert {(x["stage"], x["reason"]) for x in letters} == {("encode", "refused")}
            payloads = Counter(orjson.loads(x["payload"])["n"] for x in letters)
            assert payloads == Counter([2**64 - 1, 2**64 - 1, 2**63])
            assert {x["row_id"] for x in letters} == {"r-0", "r-1", "r-3"}

        assert_that(split.good, check_good, label="good")
        assert_that(split.failures, check_bad, label="bad")
