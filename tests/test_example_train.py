"""Training lowers the loss and learns only from the intended rows; the report is correct."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.transactions import train as training
from examples.transactions.data import FEATURES, SCHEMA, generate
from examples.transactions.model import TransactionAutoencoder
from examples.transactions.train import average_precision, detection_report, precision_at, train


def transactions(rows: int, *, seed: int = 7, fault_share: float = 0.0) -> pa.Table:
    return pa.Table.from_batches(generate(rows, seed=seed, fault_share=fault_share), SCHEMA)


def assert_same_weights(one: TransactionAutoencoder, other: TransactionAutoencoder) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()
    )


def first_weight(model: TransactionAutoencoder) -> torch.Tensor:
    weight: torch.Tensor = model.state_dict()["encoder.0.weight"]
    return weight


def train_with_losses(
    monkeypatch: pytest.MonkeyPatch, losses: list[float], table: pa.Table, *, epochs: int
) -> TransactionAutoencoder:
    """Train with these validation losses, one per epoch; another epoch would raise."""
    given_losses = iter(losses)
    monkeypatch.setattr(training, "_validation_loss", lambda model, rows: next(given_losses))
    return train(table, seed=3, epochs=epochs, patience=2)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return transactions(150_000)


@pytest.fixture(scope="module")
def model(table: pa.Table) -> TransactionAutoencoder:
    return train(table, seed=7, epochs=6, max_train_rows=25_000)


@pytest.mark.slow
def test_training_lowers_the_loss(model: TransactionAutoencoder, table: pa.Table) -> None:
    torch.manual_seed(7)
    untrained = TransactionAutoencoder(model.mean, model.variance)
    before, after = detection_report(untrained, table), detection_report(model, table)
    features, labels = training.sound_rows(table, "TEST")
    of_the_mean = model.normalize(torch.from_numpy(features[labels == 0])).abs().mean().item()
    assert after["test_MAE"] < before["test_MAE"]
    assert after["test_MAE"] < 0.97 * of_the_mean


@pytest.mark.slow
def test_the_normalized_error_finds_frauds_that_the_denormalized_error_hides(
    model: TransactionAutoencoder,
) -> None:
    report = detection_report(model, transactions(150_000, seed=8))
    assert report["rows"] == pytest.approx(15_000, rel=0.05)
    assert report["frauds"] > 10
    assert report["normalized_MAE_average_precision"] > 0.15
    assert report["denormalized_MAE_average_precision"] < 0.05
    assert (
        report["normalized_MAE_precision_at_100"]
        > report["denormalized_MAE_precision_at_100"] + 0.05
    )
    assert report["normalized_MAE_average_precision"] < 0.8


def test_equal_seeds_train_equal_weights_and_torchs_state_is_restored() -> None:
    table = transactions(3_000)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    one = train(table, seed=5, epochs=2, max_train_rows=1_000)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(99)
    assert_same_weights(one, train(table, seed=5, epochs=2, max_train_rows=1_000))
    other = train(table, seed=6, epochs=2, max_train_rows=1_000)
    assert not torch.equal(first_weight(one), first_weight(other))


def test_only_valid_normal_training_rows_count() -> None:
    spoiled = transactions(4_000, fault_share=0.2)
    values = np.stack([spoiled[name].to_numpy() for name in FEATURES], axis=1)
    valid = spoiled.filter(pa.array(np.isfinite(values).all(axis=1)))
    normal = valid.filter(pc.equal(valid["Class"], 0))
    normal = normal.filter(pc.not_equal(normal["splits"], "TEST"))
    model = train(spoiled, seed=1, epochs=1, max_train_rows=None)
    assert_same_weights(model, train(normal, seed=1, epochs=1, max_train_rows=None))
    kept = normal.filter(pc.equal(normal["splits"], "TRAIN"))
    amounts = kept["Amount"].to_numpy().astype(np.float64)
    assert model.mean[-1].item() == pytest.approx(amounts.mean())
    assert model.variance[-1].item() == pytest.approx(amounts.var())


def test_a_file_trains_like_its_table_in_any_column_order(tmp_path: Path) -> None:
    table = transactions(2_000)
    path = tmp_path / "shuffled.parquet"
    pq.write_table(table.select(table.column_names[::-1]), path)
    assert_same_weights(train(path, seed=2, epochs=1), train(table, seed=2, epochs=1))


def test_the_best_epoch_is_kept_and_patience_stops_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = transactions(2_000)
    one_short = train_with_losses(monkeypatch, [3.0, 1.0], table, epochs=2)
    stopped = train_with_losses(monkeypatch, [3.0, 1.0, 2.0, 1.0], table, epochs=30)
    assert_same_weights(stopped, one_short)
    later = train_with_losses(monkeypatch, [3.0, 1.0, 2.0, 0.5], table, epochs=4)
    assert not torch.equal(first_weight(later), first_weight(stopped))


@pytest.mark.parametrize("split", ["TRAIN", "VALIDATE"])
def test_missing_rows_of_a_split_are_reported(split: str) -> None:
    table = transactions(500)
    without = table.filter(pc.not_equal(table["splits"], split))
    with pytest.raises(ValueError, match=f"expected valid rows with splits {split} and Class 0"):
        train(without, seed=1)


def test_a_report_without_test_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="splits TEST and Class 0, found none among 0 rows"):
        detection_report(TransactionAutoencoder(), transactions(0))


@pytest.mark.parametrize("name", ["epochs", "batch", "patience", "max_train_rows"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected epochs"):
        train(transactions(100), seed=1, **{name: 0})


def test_a_report_on_a_split_without_fraud_has_no_average_precision() -> None:
    table = transactions(2_000)
    report = detection_report(TransactionAutoencoder(), table.filter(pc.equal(table["Class"], 0)))
    assert report["frauds"] == 0
    assert np.isnan(report["normalized_MAE_average_precision"])


def test_average_precision_equals_values_computed_by_hand() -> None:
    labels = np.array([0, 1, 0, 1, 0])
    assert average_precision(labels, np.array([1, 9, 8, 7, 2], np.float32)) == pytest.approx(5 / 6)
    assert average_precision(labels, np.ones(5, np.float32)) == pytest.approx(2 / 5)


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 1), min_size=1, max_size=60).filter(any),
    seed=st.integers(0, 1_000),
    levels=st.integers(1, 60),
)
def test_average_precision_equals_scikit_learn(labels: list[int], seed: int, levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores = np.random.default_rng(seed).integers(levels, size=len(labels)).astype(np.float32)
    expected = metrics.average_precision_score(labels, scores)
    assert average_precision(np.array(labels), scores) == pytest.approx(expected)


def test_precision_at_counts_the_highest_scores() -> None:
    labels = np.array([1, 0, 1, 0])
    scores = np.array([4, 3, 2, 1], np.float32)
    assert [precision_at(k, labels, scores) for k in (1, 2, 100)] == [1.0, 0.5, 0.5]


def test_the_command_prints_the_report_and_saves_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "model.pt"
    pq.write_table(transactions(3_000), source)
    flags = {"input": source, "output": target, "seed": 4, "epochs": 1, "max_train_rows": 500}
    training.main([f"--{name}={value}" for name, value in flags.items()])
    lines = capsys.readouterr().out.splitlines()
    restored = TransactionAutoencoder()
    restored.load_state_dict(torch.load(target))
    report = detection_report(restored, transactions(3_000))
    assert [line.split()[0] for line in lines] == list(report)
    assert float(lines[2].split()[1]) == pytest.approx(report["test_MAE"], abs=1e-4)
