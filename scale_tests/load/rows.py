"""The rows that a scale test sends, as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import InputError, one_line
from scale_tests.load.plan import Rows

if TYPE_CHECKING:
    from model_handlers.manifests.parts import FeatureStatistics

# This many different rows are made. Longer tests send them in turn.
DIFFERENT = 2_000


@dataclass(frozen=True)
class Drawn:
    """Different rows as JSON, for any number of messages.

    Attributes:
        good: The rows.
        bad: The same rows with a fault in every field.
        faulty: The share of the messages that have a fault.
        seed: Determines which messages these are.
    """

    good: tuple[bytes, ...]
    bad: tuple[bytes, ...]
    faulty: float
    seed: int

    def faults(self, count: int) -> NDArray[np.bool_]:
        """Return which of the first `count` messages have a fault."""
        return draw_faults(self.faulty, self.seed, count)


def draw_faults(share: float, seed: int, count: int) -> NDArray[np.bool_]:
    """Return which of the first `count` rows have a fault, `[count]`."""
    return np.random.default_rng([seed, 1]).random(count) < share


class Bodies(Drawn):
    """Rows as the messages of a stream: JSON objects without their closing brace."""

    def message(self, test_id: str, sequence: int, faulty: bool) -> bytes:
        """Return the body of a message, with the fields by which its result is recognized."""
        rows = self.bad if faulty else self.good
        name = orjson.dumps(test_id)
        row = rows[sequence % len(rows)]
        return b'%b,"test_id":%b,"sequence":%d}' % (row, name, sequence)


class Instances(Drawn):
    """Rows as the instances of requests to an endpoint: JSON lists or objects."""

    def request(self, sequence: int, rows: int, faulty: bool) -> bytes:
        """Return the body of a request with this number of rows, the first of which may be bad."""
        start = sequence * rows
        some = [self.good[number % len(self.good)] for number in range(start, start + rows)]
        if faulty:
            some[0] = self.bad[start % len(self.bad)]
        return b'{"instances":[%b]}' % b",".join(some)


def make_bodies(rows: Rows, seed: int) -> Bodies:
    """Return the rows that a plan names, for messages.

    Raises:
        InputError: The package or the file cannot be read, or has no rows.
        ManifestError: The package is invalid.
    """
    good, bad = _good_and_bad(rows, seed)
    return Bodies(
        good=tuple(orjson.dumps(row)[:-1] for row in good),
        bad=tuple(orjson.dumps(row)[:-1] for row in bad),
        faulty=rows.faulty,
        seed=seed,
    )


def make_instances(rows: Rows, seed: int) -> Instances:
    """Return the rows that a plan names, for requests. Raises as `make_bodies`."""

    def instance(row: Mapping[str, Any]) -> bytes:
        return orjson.dumps(list(row.values()) if rows.instance_format == "list" else row)

    good, bad = _good_and_bad(rows, seed)
    return Instances(
        good=tuple(map(instance, good)),
        bad=tuple(map(instance, bad)),
        faulty=rows.faulty,
        seed=seed,
    )


def _good_and_bad(
    rows: Rows, seed: int
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return rows, and the same rows with a fault in every field."""
    if rows.source == "example":
        from examples.transactions.data import FEATURES, generate

        (batch, *_) = generate(DIFFERENT, seed=seed)
        found: Sequence[Mapping[str, Any]] = batch.select(FEATURES).to_pylist()
    elif rows.source == "file":
        found = read_rows(Path(rows.path), DIFFERENT).to_pylist()
    else:
        found = _drawn(rows.path, seed)
    # No feature of any type accepts an object with this key.
    bad = [{name: {"fault": True} for name in row} for row in found]
    return [_finite(row) for row in found], bad


def _finite(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row without NaN and infinities, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def read_rows(path: Path, most: int) -> pa.Table:
    """Return the first rows of a Parquet or JSON Lines file.

    Args:
        path: The file.
        most: How many rows are read at most.

    Raises:
        InputError: The file cannot be read, or has no rows.
    """
    from pyarrow import json, parquet

    try:
        if path.suffix == ".parquet":
            with parquet.ParquetFile(path) as file:
                batches = [*_first(file.iter_batches(), most)]
                table = pa.Table.from_batches(batches, file.schema_arrow).slice(0, most)
        else:
            table = json.read_json(path).slice(0, most)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"rows.path {path}: expected a Parquet or JSON Lines file: {one_line(error)}"
        ) from error
    if not table.num_rows or not table.num_columns:
        raise InputError(f"rows.path {path}: expected at least one row with a column")
    return table


def _first(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches until they have so many rows."""
    for batch in batches:
        yield batch
        rows -= batch.num_rows
        if rows <= 0:
            return


def read_statistics(package: str) -> Mapping[str, FeatureStatistics]:
    """Return the statistics of the training rows of a package, by feature.

    Raises:
        InputError: The package has no statistics.
        ManifestError: The package is invalid.
    """
    from model_handlers.package import read_manifest

    manifest = read_manifest(package)
    if not manifest.statistics:
        raise InputError(f"rows.path {package}: the package has no statistics; name a file of rows")
    return manifest.statistics


def draw(
    statistics: Mapping[str, FeatureStatistics], count: int, random: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Draw `[count]` values of each feature, each feature for itself."""
    return {
        name: np.clip(random.normal(of.mean, of.std, count), of.min, of.max)
        for name, of in statistics.items()
    }


def _drawn(package: str, seed: int) -> Sequence[Mapping[str, Any]]:
    """Draw rows from the statistics of the training rows."""
    columns = draw(read_statistics(package), DIFFERENT, np.random.default_rng([seed, 2]))
    return [
        dict(zip(columns, values, strict=True))
        for values in np.stack([*columns.values()], 1).tolist()
    ]
