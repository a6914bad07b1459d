"""The rows of a batch test have ids, values of the right kind, and faults where the plan says."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from examples.transactions.data import FEATURES
from scale_tests.load.arrow_rows import BLOCK, ID, make_ids, make_rows, read_ids
from scale_tests.load.plan import Rows
from scale_tests.load.rows import draw_faults


def made(rows: Rows, count: int, first: int = 0) -> pa.Table:
    return pa.Table.from_batches([*make_rows(rows, 1, "test", first, count)])


def faulty(table: pa.Table) -> np.ndarray:
    return np.asarray([not (v is not None and abs(v) < np.inf) for v in table["V1"].to_pylist()])


def test_ids_are_read_back_and_those_of_others_are_not() -> None:
    assert make_ids("test", 7, 2).to_pylist() == ["test-000000000007", "test-000000000008"]
    assert read_ids(make_ids("test", 7, 2), "test").tolist() == [7, 8]
    others = ["r-1", None, "test-7", "other-000000000007", "test-00000000000x", "test-"]
    assert read_ids(pa.array(others), "test").tolist() == [-1] * len(others)
    assert read_ids(pa.array([], pa.null()), "test").tolist() == []


def test_rows_of_the_example_are_the_same_whatever_their_number() -> None:
    few, many = made(Rows(faulty=0.1), 1_000), made(Rows(faulty=0.1), BLOCK + 5_000)
    assert few.column_names == [ID, *FEATURES]
    assert many.num_rows == BLOCK + 5_000
    assert many.slice(0, 1_000).equals(few)
    faults = draw_faults(0.1, 1, BLOCK + 5_000)
    assert np.array_equal(faulty(many), faults)
    assert 0.09 < faults.mean() < 0.11
    assert read_ids(made(Rows(), 10, first=100)[ID], "test").tolist() == [*range(100, 110)]


def test_rows_are_drawn_from_the_statistics_of_a_package(example: Path) -> None:
    table = made(Rows(source="statistics", path=str(example / "model")), BLOCK + 10)
    statistics = json.loads((example / "model" / "model.json").read_text())["statistics"]
    amounts = table["Amount"].to_numpy()
    assert statistics["Amount"]["min"] <= amounts.min() <= amounts.max()
    assert amounts.max() <= statistics["Amount"]["max"]
    # A block does not repeat the block before.
    assert len(np.unique(table["V1"].to_numpy())) > BLOCK


def test_rows_of_a_file_are_sent_in_turn_with_their_own_types(tmp_path: Path) -> None:
    own = {"a": [1, 2, 3], "b": ["x", None, "z"], ID: [7, 8, 9], "c": [[1.0], [], [2.0]]}
    pq.write_table(pa.table(own), tmp_path / "rows.parquet")
    rows = Rows(source="file", path=str(tmp_path / "rows.parquet"), faulty=0.5)
    table = made(rows, 100)
    faults = draw_faults(0.5, 1, 100)
    assert table.column_names == [ID, "a", "b", "c"]
    assert table["a"].type == pa.int64()
    assert table["a"].to_pylist() == [
        None if bad else 1 + number % 3 for number, bad in enumerate(faults)
    ]
    assert read_ids(table[ID], "test").tolist() == [*range(100)]
    (tmp_path / "rows.jsonl").write_text('{"a": 1.5}\n{"a": 2.5}\n')
    lines = made(Rows(source="file", path=str(tmp_path / "rows.jsonl")), 3)
    assert lines["a"].to_pylist() == [1.5, 2.5, 1.5]


@pytest.mark.parametrize(
    "name",
    [
        *("none.parquet", "empty.parquet", "text.parquet", "text.jsonl"),
        *("lines.jsonl", "objects.jsonl", "ids.parquet"),
    ],
)
def test_a_file_without_rows_or_columns_is_refused(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "empty.parquet")
    pq.write_table(pa.table({ID: ["x"]}), tmp_path / "ids.parquet")
    (tmp_path / "lines.jsonl").write_text("\n\n")
    (tmp_path / "objects.jsonl").write_text("{}\n{}\n")
    for text in ("text.parquet", "text.jsonl"):
        (tmp_path / text).write_text("not rows")
    with pytest.raises(InputError, match=f"rows.path .*{name}: expected"):
        made(Rows(source="file", path=str(tmp_path / name)), 10)
