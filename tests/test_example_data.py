"""Generated card transactions depend on the seed, have realistic values and exact faults."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples

from examples.transactions import data
from examples.transactions.data import BLOCK_ROWS, FEATURES, SCHEMA, generate, write_parquet


def table(rows: int, *, seed: int = 7, fault_share: float = 0.0) -> pa.Table:
    batches = generate(rows, seed=seed, fault_share=fault_share)
    return pa.Table.from_batches(batches, SCHEMA)


@pytest.fixture(scope="module")
def many() -> pa.Table:
    return table(284_807)


def test_the_schema_has_the_columns_in_order() -> None:
    assert list(FEATURES) == ["Time", *(f"V{i}" for i in range(1, 29)), "Amount"]
    assert SCHEMA.names == ["transaction_id", *FEATURES, "Class", "splits"]
    assert {SCHEMA.field(name).type for name in FEATURES} == {pa.float32()}
    assert SCHEMA.field("Class").type == pa.int64()


def test_equal_seeds_generate_equal_rows_and_other_seeds_other_rows() -> None:
    assert table(1_000, seed=7).equals(table(1_000, seed=7))
    assert not table(1_000, seed=7)["V1"].equals(table(1_000, seed=8)["V1"])


@settings(max_examples=examples(15), deadline=None)
@given(rows=st.integers(0, 3 * BLOCK_ROWS), batch_rows=st.integers(500, 2 * BLOCK_ROWS))
def test_rows_depend_neither_on_their_number_nor_on_the_batch_size(
    rows: int, batch_rows: int
) -> None:
    batches = list(generate(rows, seed=3, batch_rows=batch_rows))
    assert pa.Table.from_batches(batches, SCHEMA).equals(table(3 * BLOCK_ROWS, seed=3)[:rows])
    assert all(batch.num_rows == batch_rows for batch in batches[:-1])
    assert sum(batch.num_rows for batch in batches) == rows


@pytest.mark.slow
def test_the_file_contains_the_generated_rows_in_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "transactions.parquet"
    assert write_parquet(path, 50_000, seed=7, row_group_rows=20_000) == 50_000
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [20_000, 20_000, 10_000]
    assert file.schema_arrow.equals(SCHEMA)
    for size in (777, 50_000):
        read = pa.Table.from_batches(file.iter_batches(batch_size=size))
        assert read.equals(table(50_000))


def test_a_file_without_rows_keeps_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "empty.parquet"
    assert write_parquet(path, 0, seed=7) == 0
    assert pq.read_table(path).schema.equals(SCHEMA)


def test_ids_are_unique_and_numbered(many: pa.Table) -> None:
    ids = many["transaction_id"]
    assert pc.count_distinct(ids).as_py() == many.num_rows
    assert [ids[0].as_py(), ids[-1].as_py()] == ["t000000000", "t000284806"]


def test_splits_and_frauds_have_the_expected_shares(many: pa.Table) -> None:
    counts = Counter(many["splits"].to_pylist())
    shares = {split: counts[split] / many.num_rows for split in counts}
    assert shares == pytest.approx({"TRAIN": 0.8, "VALIDATE": 0.1, "TEST": 0.1}, abs=0.003)
    assert set(many["Class"].to_pylist()) == {0, 1}
    assert pc.mean(many["Class"]).as_py() == pytest.approx(0.0017, rel=0.1)


def test_features_have_the_scales_of_card_payments(many: pa.Table) -> None:
    values = {name: many[name].to_numpy().astype(np.float64) for name in FEATURES}
    assert values["Time"].mean() == pytest.approx(94_896, rel=0.03)
    assert values["Time"].std() == pytest.approx(47_498, rel=0.03)
    assert values["Time"].min() >= 0
    assert values["Time"].max() <= 172_792
    assert values["Amount"].mean() == pytest.approx(88.4, rel=0.05)
    assert values["Amount"].std() == pytest.approx(254, rel=0.1)
    assert values["V1"].std() == pytest.approx(1.93, rel=0.03)
    assert values["V28"].std() == pytest.approx(0.34, rel=0.03)
    assert all(abs(values[name].mean()) < 0.05 for name in data.COMPONENTS)


def test_amounts_have_two_decimals_and_are_not_negative(many: pa.Table) -> None:
    amounts = many["Amount"].to_numpy()
    assert amounts.min() >= 0
    cents = np.round(amounts.astype(np.float64) * 100)
    np.testing.assert_array_equal((cents / 100).astype(np.float32), amounts)


def test_few_payments_are_at_night(many: pa.Table) -> None:
    hours = many["Time"].to_numpy() // 3_600 % 24
    night = np.count_nonzero((hours >= 1) & (hours < 5))
    afternoon = np.count_nonzero((hours >= 13) & (hours < 17))
    assert night < afternoon / 3


def test_a_few_factors_explain_much_of_the_normal_payments(many: pa.Table) -> None:
    normal = many.filter(pc.equal(many["Class"], 0))[:20_000]
    components = np.stack([normal[name].to_numpy() for name in data.COMPONENTS])
    spectrum = np.linalg.eigvalsh(np.corrcoef(components))[::-1]
    assert 0.45 < spectrum[:4].sum() / spectrum.sum() < 0.85


@pytest.mark.parametrize(
    ("share", "faulty"), [(0.0, 0), (0.001, 40), (0.29, 11_600), (1.0, 40_000)]
)
def test_the_number_of_faults_is_exact(share: float, faulty: int) -> None:
    spoiled = table(40_000, fault_share=share)
    columns = [spoiled[name] for name in FEATURES]
    nulls = sum(column.null_count for column in columns)
    nans = sum(pc.sum(pc.is_nan(column)).as_py() for column in columns)
    infinities = sum(pc.sum(pc.is_inf(column)).as_py() for column in columns)
    assert [nulls, nans, infinities] == [(faulty + 2 - kind) // 3 for kind in range(3)]


def test_a_faulty_row_has_one_faulty_feature() -> None:
    spoiled = table(20_000, fault_share=0.5)
    values = np.stack([spoiled[name].to_numpy() for name in FEATURES])
    faults = np.count_nonzero(~np.isfinite(values), axis=0)
    assert Counter(faults.tolist()) == {0: 10_000, 1: 10_000}
    assert np.count_nonzero(~np.isfinite(values), axis=1).min() > 0


def test_a_fault_changes_only_its_own_value() -> None:
    sound, spoiled = table(20_000), table(20_000, fault_share=0.1)
    for name in FEATURES:
        before, after = sound[name].to_numpy(), spoiled[name].to_numpy()
        kept = np.isfinite(after)
        np.testing.assert_array_equal(before[kept], after[kept])
    rest = ["transaction_id", "Class", "splits"]
    assert sound.select(rest).equals(spoiled.select(rest))


@pytest.mark.parametrize(
    ("rows", "seed", "fault_share", "batch_rows"),
    [(-1, 7, 0.0, 1), (1, -7, 0.0, 1), (1, 7, 1.5, 1), (1, 7, float("nan"), 1), (1, 7, 0.0, 0)],
)
def test_arguments_out_of_range_are_refused_at_once(
    rows: int, seed: int, fault_share: float, batch_rows: int
) -> None:
    with pytest.raises(ValueError, match="expected"):
        generate(rows, seed=seed, fault_share=fault_share, batch_rows=batch_rows)


def test_the_command_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.parquet"
    data.main(["--rows", "1200", "--seed", "5", "--fault_share", "0.01", "--output", str(path)])
    # The rows are compared as text, since a NaN does not equal itself.
    expected = table(1_200, seed=5, fault_share=0.01)
    assert repr(pq.read_table(path).to_pylist()) == repr(expected.to_pylist())
    assert capsys.readouterr().out == f"wrote 1,200 rows to {path}\n"
