"""Generate card transactions with realistic values, as Arrow record batches or a Parquet file.

The rows are two days of payments. Each has 30 float32 features (`Time` in seconds, the components
`V1` to `V28`, and `Amount`), an id, the label `Class` (1 is fraud) and a split. The population does
not depend on the seed, so a model trained on the rows of one seed can score the rows of another.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COMPONENTS: tuple[str, ...] = tuple(f"V{i}" for i in range(1, 29))
FEATURES: tuple[str, ...] = ("Time", *COMPONENTS, "Amount")
SPLITS: dict[str, float] = {"TRAIN": 0.8, "VALIDATE": 0.1, "TEST": 0.1}
SCHEMA = pa.schema(
    [
        ("transaction_id", pa.string()),
        *((name, pa.float32()) for name in FEATURES),
        ("Class", pa.int64()),
        ("splits", pa.string()),
    ]
)

FRAUD_SHARE = 0.0017
BLOCK_ROWS = 16_384
ROW_GROUP_ROWS = 131_072

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_LAST_SECOND = 172_792
_HOUR_WEIGHTS = (
    8,
    5,
    4,
    4,
    3,
    4,
    5,
    8,
    11,
    16,
    17,
    17,
    16,
    16,
    17,
    17,
    17,
    17,
    17,
    16,
    17,
    17,
    15,
    11,
)
_AMOUNT_LOG_MEAN = 3.37
_AMOUNT_LOG_STD = 1.492
_AMOUNT_MAX = 25_000.0
_COMPONENT_STD = np.geomspace(1.93, 0.34, len(COMPONENTS)).astype(np.float32)
_FACTORS = 4
_TAIL = 0.25

# How far a fraud shifts components, in units of the component's standard deviation. The third
# pattern shifts none: its frauds look like other payments, so no reconstruction error finds them.
_FRAUD_PATTERNS: tuple[dict[str, float], ...] = (
    {"V3": -5, "V4": 4, "V7": -5, "V10": -6, "V11": 5, "V12": -8, "V14": -9, "V16": -6, "V17": -8},
    {"V2": 2, "V4": 3, "V9": -2, "V10": -3, "V11": 3, "V14": -4, "V21": 2, "V27": 2},
    {},
)
_FRAUD_PATTERN_SHARES = (0.5, 0.3, 0.2)
_FRAUD_SEVERITY_LOG_STD = 0.5


def generate(
    rows: int, *, seed: int, fault_share: float = 0.0, batch_rows: int = BLOCK_ROWS
) -> Iterator[pa.RecordBatch]:
    """Generate record batches of card transactions.

    A row depends only on the seed and its position. The rows of a smaller count are therefore a
    prefix of the rows of a larger one, `batch_rows` does not change any row, and a fault changes
    only the value that it replaces.

    Args:
        rows: The number of rows, 0 or more.
        seed: The seed, 0 or more.
        fault_share: The share of faulty rows, 0 to 1, in steps of a millionth. Among the first n
            rows, `floor(n * fault_share)` are faulty. They have in turn a null, a NaN and an
            infinity, in one feature drawn at random.
        batch_rows: The number of rows of a batch, 1 or more. The last batch may be shorter.

    Returns:
        An iterator of batches with the schema `SCHEMA`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if rows < 0 or seed < 0 or batch_rows < 1:
        raise ValueError(
            "expected rows >= 0, seed >= 0 and batch_rows >= 1, "
            f"got rows={rows}, seed={seed}, batch_rows={batch_rows}"
        )
    if not 0.0 <= fault_share <= 1.0:
        raise ValueError(f"expected a fault_share from 0 to 1, got {fault_share}")
    share = Fraction(round(fault_share * 1_000_000), 1_000_000)
    return _rebatch(_blocks(rows, seed, share), batch_rows)


def write_parquet(
    path: str | Path,
    rows: int,
    *,
    seed: int,
    fault_share: float = 0.0,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> int:
    """Generate card transactions and write them to a Parquet file.

    Args:
        path: The path of the file.
        rows: The number of rows, 0 or more.
        seed: The seed, 0 or more.
        fault_share: The share of faulty rows, 0 to 1; see `generate`.
        row_group_rows: The number of rows of a row group, 1 or more.

    Returns:
        The number of rows written.

    Raises:
        ValueError: If an argument is out of its range.
    """
    batches = generate(rows, seed=seed, fault_share=fault_share, batch_rows=row_group_rows)
    written = 0
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=row_group_rows)
            written += batch.num_rows
    return written


@dataclass(frozen=True)
class _Faults:
    """The faulty values of one block: row, feature and kind (0 null, 1 NaN, 2 infinity)."""

    rows: Ints
    features: Ints
    kinds: Ints


def _blocks(rows: int, seed: int, share: Fraction) -> Iterator[pa.RecordBatch]:
    """Generate blocks of `BLOCK_ROWS` rows, the last one cut to the number of rows."""
    for block in range(-(-rows // BLOCK_ROWS)):
        yield _block(seed, block, share).slice(0, rows - block * BLOCK_ROWS)


def _rebatch(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Cut batches of any size into batches of `size` rows; the last one may be shorter."""
    held: list[pa.RecordBatch] = []
    missing = size
    for batch in batches:
        rest = batch
        while rest.num_rows >= missing:
            yield pa.concat_batches([*held, rest.slice(0, missing)])
            rest = rest.slice(missing)
            held, missing = [], size
        if rest.num_rows:
            held.append(rest)
            missing -= rest.num_rows
    if held:
        yield pa.concat_batches(held)


def _block(seed: int, block: int, share: Fraction) -> pa.RecordBatch:
    """Return the `BLOCK_ROWS` rows of a block."""
    rng = _rng(seed, block, stream=0)
    labels = (rng.random(BLOCK_ROWS) < FRAUD_SHARE).astype(np.int64)
    splits = np.searchsorted(np.cumsum(list(SPLITS.values()))[:-1], rng.random(BLOCK_ROWS), "right")
    factors = rng.standard_normal((_FACTORS, BLOCK_ROWS), dtype=np.float32)
    features = np.vstack(
        [_times(rng, BLOCK_ROWS), _components(rng, factors, labels), _amounts(factors[0])]
    )
    columns = _feature_columns(features, _faults(seed, block, share))
    names = pa.array(list(SPLITS)).take(pa.array(splits))
    return pa.record_batch([_ids(block), *columns, pa.array(labels), names], schema=SCHEMA)


def _rng(seed: int, block: int, *, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block, stream)))


def _ids(block: int) -> pa.Array:
    """Return the ids of the rows of a block: `t000000000`, `t000000001` and so on."""
    first = block * BLOCK_ROWS
    numbers = pa.array(np.arange(first, first + BLOCK_ROWS)).cast(pa.string())
    return pc.binary_join_element_wise("t", pc.utf8_lpad(numbers, 9, "0"), "")


def _times(rng: np.random.Generator, rows: int) -> Floats:
    """Draw `[rows]` whole seconds since the first payment, few of them at night."""
    weights = np.tile(_HOUR_WEIGHTS, 2)
    knots = np.arange(weights.size + 1) * 3_600.0
    cumulated = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
    seconds = np.minimum(np.interp(rng.random(rows), cumulated, knots), _LAST_SECOND)
    times: Floats = np.floor(seconds).astype(np.float32)
    return times


def _amounts(factor: Floats) -> Floats:
    """Turn `[rows]` normal draws into `[rows]` log-normal amounts with two decimals."""
    amounts = np.exp(_AMOUNT_LOG_MEAN + _AMOUNT_LOG_STD * factor.astype(np.float64))
    return np.round(np.minimum(amounts, _AMOUNT_MAX), 2).astype(np.float32)


def _components(rng: np.random.Generator, factors: Floats, labels: Ints) -> Floats:
    """Draw the `[28, rows]` values of `V1` to `V28`.

    The `[factors, rows]` draws create the correlation among the components and with the amount. A
    factor per row, log-normal with a mean square of 1, creates the heavy tails of normal payments.
    The `[rows]` labels say which rows are frauds.
    """
    loadings, own = _population()
    rows = labels.size
    values = rng.standard_normal((len(COMPONENTS), rows), dtype=np.float32) * own[:, None]
    for loading, factor in zip(loadings, factors, strict=True):
        values += loading[:, None] * factor
    values *= np.exp(_TAIL * rng.standard_normal(rows, dtype=np.float32) - np.float32(_TAIL**2))
    (frauds,) = np.nonzero(labels)
    values[:, frauds] += _fraud_shifts(rng, frauds.size)
    shaped: Floats = values * _COMPONENT_STD[:, None]
    return shaped


def _population() -> tuple[Floats, Floats]:
    """Return `[factors, 28]` loadings and `[28]` residual deviations, for unit variance."""
    rng = np.random.default_rng(28)
    shared = rng.uniform(0.4, 0.8, len(COMPONENTS))
    directions = rng.standard_normal((_FACTORS, len(COMPONENTS)))
    directions /= np.linalg.norm(directions, axis=0)
    return (directions * np.sqrt(shared)).astype(np.float32), np.sqrt(1 - shared).astype(np.float32)


def _fraud_shifts(rng: np.random.Generator, frauds: int) -> Floats:
    """Draw `[28, frauds]` shifts, in units of each component's standard deviation."""
    patterns = np.array([[p.get(name, 0.0) for name in COMPONENTS] for p in _FRAUD_PATTERNS])
    chosen = rng.choice(len(patterns), size=frauds, p=_FRAUD_PATTERN_SHARES)
    severity = np.exp(_FRAUD_SEVERITY_LOG_STD * rng.standard_normal((len(COMPONENTS), frauds)))
    return (patterns[chosen].T * severity).astype(np.float32)


def _faults(seed: int, block: int, share: Fraction) -> _Faults:
    """Return the faulty values of a block, spread evenly over its rows."""
    rows = np.arange(BLOCK_ROWS, dtype=np.int64)
    ends = (block * BLOCK_ROWS + rows + 1) * share.numerator // share.denominator
    starts = (block * BLOCK_ROWS + rows) * share.numerator // share.denominator
    hit = ends > starts
    # A feature is drawn for every row, since the faulty feature must not depend on the share.
    features = _rng(seed, block, stream=1).integers(len(FEATURES), size=BLOCK_ROWS)
    return _Faults(rows[hit], features[hit], starts[hit] % 3)


def _feature_columns(features: Floats, faults: _Faults) -> list[pa.Array]:
    """Return an Arrow array for each of the `[30, rows]` features, with their faults."""
    null = faults.kinds == 0
    features[faults.features[faults.kinds == 1], faults.rows[faults.kinds == 1]] = np.nan
    features[faults.features[faults.kinds == 2], faults.rows[faults.kinds == 2]] = np.inf
    if not null.any():
        return [pa.array(column) for column in features]
    mask = np.zeros(features.shape, dtype=bool)
    mask[faults.features[null], faults.rows[null]] = True
    return [
        pa.array(column, mask=hidden, from_pandas=False)
        for column, hidden in zip(features, mask, strict=True)
    ]


def main(argv: list[str] | None = None) -> None:
    """Write the Parquet file that the command line describes."""
    parser = argparse.ArgumentParser(description="Write generated card transactions to Parquet.")
    parser.add_argument("--rows", type=int, default=284_807, help="rows (default: 284807)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the rows (default: 7)")
    parser.add_argument(
        "--fault_share", type=float, default=0.0, help="share of faulty rows, 0 to 1 (default: 0)"
    )
    parser.add_argument("--output", required=True, help="path of the Parquet file")
    args = parser.parse_args(argv)
    rows = write_parquet(args.output, args.rows, seed=args.seed, fault_share=args.fault_share)
    print(f"wrote {rows:,} rows to {args.output}")


if __name__ == "__main__":
    main()
