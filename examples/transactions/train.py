"""Train a `TransactionAutoencoder` on a table of transactions, and measure how it detects fraud."""

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
    "expected valid rows with splits {split} and Class 0, found none among {rows} rows; "
    "use a larger table, or one with a {split} split"
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
    """Train an autoencoder on transactions.

    It learns only from valid rows with `splits` TRAIN and `Class` 0. A row with a null, a NaN or an
    infinity in a feature is not valid. The loss is the mean absolute error on normalized values,
    and the same error on the valid VALIDATE rows with `Class` 0 decides which epoch is kept.

    Args:
        path_or_table: A Parquet file or a table with the columns `FEATURES`, `Class` and `splits`,
            in any order.
        seed: The seed of the weights, the dropout, and the choice and order of the rows.
        epochs: The most passes over the rows.
        batch: The rows of a step; the last step of an epoch may have fewer.
        lr: The learning rate of Adam.
        patience: The epochs without a better validation error after which training stops.
        max_train_rows: The most rows to learn from, drawn at random; None for all.

    Returns:
        The model of the best epoch, in eval mode.

    Raises:
        ValueError: If TRAIN or VALIDATE has no valid row with `Class` 0, or a count is below 1.
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
    """Measure how well a model detects fraud in the valid rows of the TEST split.

    Args:
        model: The trained model.
        table: A table with the columns `FEATURES`, `Class` and `splits`.

    Returns:
        Figures by name. `rows` and `frauds` are counts. `test_MAE` is the mean `normalized_MAE` of
        `Class` 0, the error that training lowers. For each of `SCORES`,
        `{score}_precision_at_100` is the share of frauds among the 100 highest scores, and
        `{score}_average_precision` the average precision, NaN without a fraud. Both are 0 to 1.

    Raises:
        ValueError: If TEST has no valid row with `Class` 0.
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
    """Compute the scores of rows, and leave the model in eval mode.

    Args:
        model: The trained model.
        features: The features, float32 `[rows, 30]`.

    Returns:
        The values of each of `SCORES`, float32 `[rows]`.
    """
    model.eval()
    parts: dict[str, list[Floats]] = {name: [] for name in SCORES}
    with torch.inference_mode():
        for start in range(0, max(len(features), 1), _SCORED_ROWS):
            outputs = model(torch.from_numpy(features[start : start + _SCORED_ROWS]))
            for name in SCORES:
                parts[name].append(outputs[name].numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def precision_at(count: int, labels: Ints, scores: Floats) -> float:
    """Return the share of frauds among the rows with the highest scores.

    Args:
        count: How many rows to take.
        labels: The labels 0 or 1, `[rows]`.
        scores: The scores, `[rows]`.
    """
    highest = np.argsort(-scores, kind="stable")[:count]
    return float(labels[highest].mean())


def average_precision(labels: Ints, scores: Floats) -> float:
    """Return the average precision: the sum of precision times the gain in recall.

    The sum runs over the distinct scores from the highest down, so rows with equal scores count
    together.

    Args:
        labels: The labels 0 or 1, `[rows]`.
        scores: The scores, `[rows]`.

    Returns:
        A number from 0 to 1, or NaN if no label is 1, since recall is not defined then.
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
    """Return the columns `FEATURES`, `Class` and `splits` of a Parquet file or a table."""
    columns = [*FEATURES, "Class", "splits"]
    if isinstance(path_or_table, pa.Table):
        return path_or_table.select(columns)
    return pq.read_table(path_or_table, columns=columns)


def sound_rows(table: pa.Table, split: str) -> tuple[Floats, Ints]:
    """Return the valid rows of a split: those whose features are all finite.

    Args:
        table: A table with the columns `FEATURES`, `Class` and `splits`.
        split: The name of the split.

    Returns:
        The features, float32 `[rows, 30]`, and the labels, int64 `[rows]`.
    """
    chosen = table.filter(pc.and_(pc.equal(table["splits"], split), pc.is_valid(table["Class"])))
    # Arrow turns a null in a float column into NaN here, so one check finds all faults.
    features = np.stack([chosen[name].to_numpy() for name in FEATURES], axis=1)
    sound = np.isfinite(features).all(axis=1)
    return features[sound].astype(np.float32), chosen["Class"].to_numpy()[sound]


def _normal_rows(table: pa.Table, split: str) -> Floats:
    """Return the `[rows, 30]` features of a split's valid rows with `Class` 0.

    Raises ValueError if there are none.
    """
    features, labels = sound_rows(table, split)
    normal: Floats = features[labels == 0]
    if not len(normal):
        raise ValueError(_NO_ROWS.format(split=split, rows=table.num_rows))
    return normal


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed torch and limit it to one thread in the block; restore the state afterwards."""
    threads = torch.get_num_threads()
    # For layers this narrow, distributing the work costs more than a second thread gains.
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
    """Train on `[rows, 30]` features, and return the model of the best epoch."""
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
    """Make one optimizer step per batch of normalized rows, in a new random order."""
    model.train()
    shuffled = rows[torch.randperm(len(rows))]
    for start in range(0, len(shuffled), batch):
        chunk = shuffled[start : start + batch]
        optimizer.zero_grad()
        loss = functional.l1_loss(model.decoder(model.encoder(chunk)), chunk)
        torch.autograd.backward(loss)
        optimizer.step()


def _validation_loss(model: TransactionAutoencoder, rows: Tensor) -> float:
    """Return the mean absolute error on `[rows, 30]` normalized values, without dropout."""
    model.eval()
    with torch.inference_mode():
        return functional.l1_loss(model.decoder(model.encoder(rows)), rows).item()


def main(argv: list[str] | None = None) -> None:
    """Train a model, and print its report on the TEST split."""
    parser = argparse.ArgumentParser(
        description="Train the autoencoder and report how well it detects fraud."
    )
    parser.add_argument("--input", required=True, help="Parquet file of transactions")
    parser.add_argument("--output", help="path for the model's state_dict (default: not saved)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the training (default: 7)")
    parser.add_argument(
        "--epochs", type=int, default=10, help="most passes over the rows (default: 10)"
    )
    parser.add_argument(
        "--max_train_rows", type=int, default=60_000, help="most rows to train on (default: 60000)"
    )
    args = parser.parse_args(argv)
    table = read_table(args.input)
    model = train(table, seed=args.seed, epochs=args.epochs, max_train_rows=args.max_train_rows)
    if args.output:
        torch.save(model.state_dict(), args.output)
    for name, value in detection_report(model, table).items():
        print(f"{name:<36}{value:>10,}" if isinstance(value, int) else f"{name:<36}{value:>10.4f}")


if __name__ == "__main__":
    main()
