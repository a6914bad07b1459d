"""A column that files pass on has one type in all files of the result, and keeps its values."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.arrow_values import to_values
from common.errors import InputError
from transforms.encode import conform
from transforms.files.one_schema import Origin, one_type, parquet_origins

DAY = datetime.datetime(9999, 12, 31)
VALUES: dict[pa.DataType, list[Any]] = {
    pa.null(): [None],
    pa.int8(): [-128, 127],
    pa.int64(): [2**63 - 1, 7],
    pa.uint64(): [2**64 - 1, 7],
    pa.float32(): [0.5, None],
    pa.float64(): [0.1, 2.0**60],
    pa.decimal128(38, 9): [Decimal("0.1"), Decimal(7)],
    pa.decimal128(10, 2): [Decimal("0.25")],
    pa.bool_(): [True],
    pa.string(): ["x", ""],
    pa.large_string(): ["x"],
    pa.string_view(): ["x"],
    pa.dictionary(pa.int8(), pa.string()): ["x"],
    pa.binary(): [b"\xff"],
    pa.binary(2): [b"\xff\x00"],
    pa.date32(): [datetime.date(2020, 1, 2)],
    pa.timestamp("s"): [0],
    pa.timestamp("us"): [DAY],
    pa.timestamp("us", "UTC"): [DAY],
    pa.timestamp("ns"): [1_000, 1_001],
    pa.time64("ns"): [1_000],
    pa.time32("s"): [1],
    pa.list_(pa.int64()): [[1], None],
    pa.list_(pa.float64()): [[0.1]],
    pa.list_(pa.null()): [[None]],
    pa.list_(pa.string()): [["x"]],
    pa.list_(pa.binary()): [[b"x"]],
    pa.struct([("a", pa.int64())]): [{"a": 1}],
    pa.struct([("a", pa.float64()), ("b", pa.string())]): [{"a": 0.5, "b": "x"}],
}
KINDS = list(VALUES)


def as_number(value: Any) -> Any:
    """Return a value in a form in which equal numbers and times are equal."""
    if isinstance(value, dict):
        return {k: as_number(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [as_number(v) for v in value]
    return Decimal(value) if isinstance(value, (int, float, Decimal)) else value


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
def test_a_value_is_unchanged_in_the_one_type_or_the_run_is_refused(kinds: list[Any]) -> None:
    origins = [Origin(kind, f"{i}.parquet") for i, kind in enumerate(kinds)]
    try:
        kind = one_type("c", origins)
    except InputError as error:
        text = str(error)
        assert sum(f" in {origin.path}" in text for origin in origins) == 2
        assert len(text.splitlines()) == 1
        return
    schema = pa.schema([("c", kind)])
    for each in kinds:
        for value in VALUES[each]:
            rows = pa.record_batch({"c": pa.array([value], each)})
            try:
                (cell,) = to_values(conform(rows, schema).column("c"))
            except InputError:
                # A time finer than a microsecond, or an integer beyond the other files' type.
                assert value in (1_001, 2**64 - 1, 2**63 - 1)
                continue
            (before,) = to_values(rows.column("c"))
            assert as_number(cell) == as_number(before)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([pa.null(), pa.string(), pa.null()], pa.string()),
        ([pa.int64(), pa.float64()], pa.float64()),
        ([pa.int8(), pa.uint8()], pa.int16()),
        ([pa.timestamp("ns"), pa.timestamp("us")], pa.timestamp("us")),
        ([pa.timestamp("ns"), pa.timestamp("ns")], pa.timestamp("ns")),
        ([pa.list_(pa.null()), pa.list_(pa.string())], pa.list_(pa.string())),
        ([pa.dictionary(pa.int8(), pa.string()), pa.string()], pa.string()),
        ([pa.dictionary(pa.int8(), pa.string())] * 2, pa.dictionary(pa.int8(), pa.string())),
    ],
    ids=str,
)
def test_types_are_promoted(kinds: list[Any], expected: pa.DataType) -> None:
    origins = [Origin(kind, "x") for kind in kinds]
    assert one_type("c", origins) == expected
    assert one_type("c", origins[::-1]) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.string(), pa.int64()),
        (pa.string(), pa.binary()),
        (pa.float64(), pa.decimal128(38, 9)),
        (pa.bool_(), pa.int64()),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.list_(pa.string()), pa.list_(pa.binary())),
    ],
    ids=str,
)
def test_types_of_which_neither_holds_the_other_are_refused(one: Any, other: Any) -> None:
    for pair in ((one, other), (other, one)):
        origins = [Origin(kind, f"{i}.parquet") for i, kind in enumerate((pa.null(), *pair))]
        with pytest.raises(InputError, match=r"'c' is .* in 1\.parquet and .* in 2\.parquet"):
            one_type("c", origins)


def test_each_type_is_found_once_with_its_first_file_and_files_without_rows_do_not_count(
    tmp_path: Path,
) -> None:
    columns = [pa.array([1]), pa.array([1.5]), pa.array([2]), pa.array([], pa.string())]
    paths = [str(tmp_path / f"{i}.parquet") for i in range(4)]
    for path, column in zip(paths, columns, strict=True):
        pq.write_table(pa.table({"c": column}), path)
    assert parquet_origins(paths, ["c", "d"], {}) == {
        "c": [Origin(pa.int64(), paths[0]), Origin(pa.float64(), paths[1])],
        "d": [],
    }


def test_keys_of_folders_are_text_columns_of_their_files(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{folder}/rows.parquet") for folder in ("c=1", "c=2", "plain")]
    for path, name in zip(paths, ("a", "c", "a"), strict=True):
        Path(path).parent.mkdir()
        pq.write_table(pa.table({name: [2]}), path)
    expected = [Origin(pa.string(), paths[0]), Origin(pa.int64(), paths[1])]
    assert parquet_origins(paths, ["c"], {}) == {"c": expected}


def test_an_integer_that_a_float_would_round_is_refused_and_names_both_files() -> None:
    rows = pa.record_batch({"n": pa.array([2**53 + 1])})
    origins = {"n": "int64 in a.parquet and double in b.parquet"}
    with pytest.raises(InputError, match=r"'n'.*double.*int64 in a\.parquet and double in b") as e:
        conform(rows, pa.schema([("n", pa.float64())]), origins)
    assert str(2**53 + 1) not in str(e.value)
