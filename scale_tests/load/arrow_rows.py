"""The rows of a batch: Arrow columns, an id for each row, and faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import InputError
from scale_tests.load.plan import Rows
from scale_tests.load.rows import draw, draw_faults, read_rows, read_statistics

# The column that identifies a row of a test.
ID = "scale_test_row"
# How many rows are made at a time.
BLOCK = 131_072
# So many rows of a file are sent in turn.
MOST_OF_FILE = 1_000_000
# An id ends with so many digits.
DIGITS = 12


def make_rows(
    rows: Rows, seed: int, test_id: str, first: int, count: int
) -> Iterator[pa.RecordBatch]:
    """Return an iterator over rows with ids and faults, in batches of up to BLOCK rows.

    A faulty row has an infinity in each column of floats, and a null in the others.

    Args:
        rows: Where the rows come from.
        seed: What random rows and faults follow from.
        test_id: The id of the test, the first part of the id of a row.
        first: The number of the first row, the second part of its id.
        count: How many rows.

    Raises:
        InputError: The package or the file cannot be read, or has no rows.
        ManifestError: The package is invalid.
    """
    faults = draw_faults(rows.faulty, seed, count)
    done = 0
    for batch in _features(rows, seed, count):
        stop = done + batch.num_rows
        features = _with_faults(batch, faults[done:stop]) if rows.faulty else batch
        ids = make_ids(test_id, first + done, batch.num_rows)
        yield pa.record_batch({ID: ids, **dict(zip(features.schema.names, features, strict=True))})
        done = stop


def make_ids(test_id: str, first: int, count: int) -> pa.Array:
    """Return the ids of `count` rows, such as `5f0c2a71-000000000017`."""
    numbers = pa.array(np.arange(first, first + count)).cast(pa.string())
    return pc.binary_join_element_wise(test_id, pc.utf8_lpad(numbers, DIGITS, "0"), "-")


def read_ids(ids: pa.ChunkedArray | pa.Array, test_id: str) -> NDArray[np.int64]:
    """Return the numbers of rows from their ids, `[rows]`; -1 for ids of no row of the test."""
    texts = pc.fill_null(ids.cast(pa.string()), "")
    own = pc.match_substring_regex(texts, f"^{test_id}-[0-9]{{{DIGITS}}}$")
    numbers = pc.utf8_slice_codeunits(texts, len(test_id) + 1)
    found: NDArray[np.int64] = pc.if_else(own, numbers, "-1").cast(pa.int64()).to_numpy()
    return found


def _features(rows: Rows, seed: int, count: int) -> Iterator[pa.RecordBatch]:
    if rows.source == "example":
        from examples.transactions.data import FEATURES, generate

        for batch in generate(count, seed=seed, batch_rows=BLOCK):
            yield batch.select(FEATURES)
        return
    starts = range(0, count, BLOCK)
    if rows.source == "statistics":
        statistics = read_statistics(rows.path)
        for block, start in enumerate(starts):
            random = np.random.default_rng([seed, 2, block])
            yield pa.record_batch(draw(statistics, min(BLOCK, count - start), random))
        return
    table = read_rows(Path(rows.path), MOST_OF_FILE)
    if ID in table.column_names:
        table = table.drop_columns([ID])
    if not table.num_columns:
        raise InputError(f"rows.path {rows.path}: expected a column besides {ID}")
    table = table.combine_chunks()
    for start in starts:
        places = np.arange(start, min(start + BLOCK, count)) % table.num_rows
        yield table.take(places).combine_chunks().to_batches()[0]


def _with_faults(batch: pa.RecordBatch, faulty: NDArray[np.bool_]) -> pa.RecordBatch:
    mask = pa.array(faulty)
    columns = {
        name: pc.if_else(mask, pa.scalar(_fault(column.type), column.type), column)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    return pa.record_batch(columns)


def _fault(kind: pa.DataType) -> float | None:
    return np.inf if pa.types.is_floating(kind) else None
