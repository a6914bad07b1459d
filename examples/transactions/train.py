"""Table of transactions -> a trained `TransactionAutoencoder` and how well it finds the frauds."""

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from examples.transactions.data import FEATURES
from examples.transactions.model import TransactionAutoencoder

SCORES: tuple[str, ...] = ("normalized_MAE", "denormalized_MAE")
TOP = 100
_SCORED_ROWS = 65_536
_NO_ROWS = (
    "expected sound rows with splits {split} and Class 0, found none among {rows} rows; "
    "give a larger table or one with a {split} split"
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def train(
    path_or_table: str | Path | pa.Table,
    *,
    seed: int,
    epochs: int = 10,
    batch: int = 100,
    lr: float = 5e-4,
    patience: int = 5,
    max_train_rows: int | None = 60_000,
) -> TransactionAutoencoder:
    """Parquet file or table of transactions -> the autoencoder of its best epoch, in eval mode.

    Learns from the sound rows with `splits` TRAIN and `Class` 0 only: a row with a null, a NaN or
    an infinity among its features is left out. Adam lowers the mean absolute error on normalized
    values; the same error on the VALIDATE rows of `Class` 0 picks the epoch to keep.

    Args:
        path_or_table: Columns `FEATURES`, `Class` and `splits`, in any order.
        seed: Of the weights, the dropout, the order of the rows and the choice of rows.
        epochs: Most passes over the rows.
        batch: Rows of a step; the last step of an epoch takes what is left.
        lr: Learning rate of Adam.
        patience: Epochs without a better validation error before training stops.
        max_train_rows: Most rows to learn from, drawn at random; None takes them all.

    Raises:
        ValueError: TRAIN or VALIDATE has no sound row of `Class` 0, or a count is below 1.
    """
    for count in (epochs, batch, patience, 1 if max_train_rows is None else max_train_rows):
        if count < 1:
            raise ValueError(f"expected epochs, batch, patience, max_train_rows >= 1, got {count}")
    table = read_table(path_or_table)
    rows, validation = _normal_rows(table, "TRAIN"), _normal_rows(table, "VALIDATE")
    if max_train_rows is not None:
        rows = np.random.default_rng(seed).permutation(rows)[:max_train_rows]
    with _reproducible(seed):
        return _fit(rows, validation, epochs=epochs, batch=batch, lr=lr, patience=patience)


def detection_report(model: TransactionAutoencoder, table: pa.Table) -> dict[str, float]:
    """Model and table -> figures on the sound rows of the TEST split, by name.

    `rows` and `frauds` count them. `test_MAE` is the mean `normalized_MAE` of `Class` 0, the error
    that training lowers. For each of `SCORES` there are `{score}_precision_at_100`, the share of
    frauds among the 100 highest scores, and `{score}_average_precision`; both 0 to 1, and the
    latter is NaN without a fraud.

    Raises:
        ValueError: TEST has no sound row of `Class` 0.
    """
    features, labels = sound_rows(read_table(table), "TEST")
    if labels.all():
        raise ValueError(_NO_ROWS.format(split="TEST", rows=table.num_rows))
    scores = score(model, features)
    report: dict[str, float] = {
        "rows": len(labels),
        "frauds": int(labels.sum()),
        "test_MAE": float(scores["normalized_MAE"][labels == 0].mean()),
    }
    for name in SCORES:
        report[f"{name}_precision_at_{TOP}"] = precision_at(TOP, labels, scores[name])
        report[f"{name}_average_precision"] = average_precision(labels, scores[name])
    return report


def score(model: TransactionAutoencoder, features: Floats) -> dict[str, Floats]:
    """[rows, 30] features -> [rows] values of each of `SCORES`; leaves eval mode on."""
    model.eval()
    parts: dict[str, list[Floats]] = {name: [] for name in SCORES}
    with torch.inference_mode():
        for start in range(0, max(len(features), 1), _SCORED_ROWS):
            outputs = model(torch.from_numpy(features[start : start + _SCORED_ROWS]))
            for name in SCORES:
                parts[name].append(outputs[name].numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def precision_at(count: int, labels: Ints, scores: Floats) -> float:
    """[rows] labels 0 or 1 and scores -> share of ones among the `count` highest scores."""
    highest = np.argsort(-scores, kind="stable")[:count]
    return float(labels[highest].mean())


def average_precision(labels: Ints, scores: Floats) -> float:
    """[rows] labels 0 or 1 and scores -> sum of precision times the gain in recall, 0 to 1.

    The sum runs over the distinct scores from the highest down, so tied rows count together.
    NaN where no label is 1, since recall is not defined then.
    """
    if not labels.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_tie = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    hits = np.cumsum(labels[order])[last_of_tie]
    precision = hits / (last_of_tie + 1)
    recall_gain = np.diff(hits, prepend=0) / hits[-1]
    return float(np.sum(precision * recall_gain))


def read_table(path_or_table: str | Path | pa.Table) -> pa.Table:
    """Parquet file or table -> table of `FEATURES`, `Class` and `splits`."""
    columns = [*FEATURES, "Class", "splits"]
    if isinstance(path_or_table, pa.Table):
        return path_or_table.select(columns)
    return pq.read_table(path_or_table, columns=columns)


def sound_rows(table: pa.Table, split: str) -> tuple[Floats, Ints]:
    """Table -> [rows, 30] features and [rows] labels of the split's rows without a fault."""
    chosen = table.filter(pc.and_(pc.equal(table["splits"], split), pc.is_valid(table["Class"])))
    # Arrow turns a null of a float column into NaN here, so one check finds all the faults.
    features = np.stack([chosen[name].to_numpy() for name in FEATURES], axis=1)
    sound = np.isfinite(features).all(axis=1)
    return features[sound].astype(np.float32), chosen["Class"].to_numpy()[sound]


def _normal_rows(table: pa.Table, split: str) -> Floats:
    """Table -> [rows, 30] features of the split's sound rows of `Class` 0, at least one."""
    features, labels = sound_rows(table, split)
    normal: Floats = features[labels == 0]
    if not len(normal):
        raise ValueError(_NO_ROWS.format(split=split, rows=table.num_rows))
    return normal


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed -> torch seeded and on one thread inside; the caller's state is back afterwards."""
    threads = torch.get_num_threads()
    # Layers this narrow lose more to handing work over than a second thread gains.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _fit(
    rows: Floats, validation: Floats, *, epochs: int, batch: int, lr: float, patience: int
) -> TransactionAutoencoder:
    """[rows, 30] features to learn from and to validate on -> the model of its best epoch."""
    wide = rows.astype(np.float64)
    model = TransactionAutoencoder(
        torch.from_numpy(wide.mean(axis=0)), torch.from_numpy(wide.var(axis=0))
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    inputs = model.normalize(torch.from_numpy(rows))
    held_out = model.normalize(torch.from_numpy(validation))
    best, best_state, stale = float("inf"), copy.deepcopy(model.state_dict()), 0
    for _ in range(epochs):
        _train_epoch(model, inputs, optimizer, batch)
        loss = _validation_loss(model, held_out)
        stale += 1
        if loss < best:
            best, best_state, stale = loss, copy.deepcopy(model.state_dict()), 0
        if stale >= patience:
            break
    model.load_state_dict(best_state)
    return model.eval()


def _train_epoch(
    model: TransactionAutoencoder, rows: Tensor, optimizer: torch.optim.Optimizer, batch: int
) -> None:
    """Normalized rows -> one optimizer step a batch, the rows in a new random order."""
    model.train()
    shuffled = rows[torch.randperm(len(rows))]
    for start in range(0, len(shuffled), batch):
        chunk = shuffled[start : start + batch]
        optimizer.zero_grad()
        loss = functional.l1_loss(model.decoder(model.encoder(chunk)), chunk)
        torch.autograd.backward(loss)
        optimizer.step()


def _validation_loss(model: TransactionAutoencoder, rows: Tensor) -> float:
    """[rows, 30] normalized values -> their mean absolute error, dropout off."""
    model.eval()
    with torch.inference_mode():
        return functional.l1_loss(model.decoder(model.encoder(rows)), rows).item()


def main(argv: list[str] | None = None) -> None:
    """Command line -> a trained model and its report on the TEST split."""
    parser = argparse.ArgumentParser(description="Train the autoencoder, report its detection.")
    parser.add_argument("--input", required=True, help="Parquet file of transactions")
    parser.add_argument("--output", help="path for the model's state_dict")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--max_train_rows", type=int, default=60_000)
    args = parser.parse_args(argv)
    table = read_table(args.input)
    model = train(table, seed=args.seed, epochs=args.epochs, max_train_rows=args.max_train_rows)
    if args.output:
        torch.save(model.state_dict(), args.output)
    for name, value in detection_report(model, table).items():
        print(f"{name:<36}{value:>10,}" if isinstance(value, int) else f"{name:<36}{value:>10.4f}")


if __name__ == "__main__":
    main()
