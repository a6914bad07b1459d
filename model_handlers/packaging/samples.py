"""Read the rows of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError, UsageError
from common.memory import MORE_MEMORY, check_memory

Sample = Any


def as_table(sample: Sample) -> pa.Table:
    """Return the rows of a sample as a table.

    Args:
        sample: The path of a Parquet file; a table of Arrow, or a data frame that Arrow can read,
            such as one of pandas or Polars; or columns by name.

    Raises:
        InputError: The file cannot be read.
        UsageError: The sample is something else.
    """
    if isinstance(sample, str | Path):
        return read_parquet(str(sample))
    if isinstance(sample, pa.Table):
        return sample
    try:
        if isinstance(sample, pa.RecordBatch):
            return pa.Table.from_batches([sample])
        if isinstance(sample, Sequence) and all(isinstance(row, dict) for row in sample):
            return pa.Table.from_pylist(sample)
        return pa.table(sample)
    except (TypeError, ValueError, pa.ArrowException) as error:
        check_memory(error, "the sample", MORE_MEMORY)
        raise UsageError(
            "sample: expected a path, a table of Arrow, a data frame or columns by name, got "
            f"{type(sample).__name__} ({type(error).__name__})"
        ) from error


def read_parquet(path: str) -> pa.Table:
    """Return the rows of a Parquet file.

    Raises:
        InputError: The file cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"sample {path} does not exist: expected a Parquet file")
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        check_memory(error, f"sample {path}", MORE_MEMORY)
        raise InputError(
            f"sample {path}: expected a Parquet file, but it cannot be read as one "
            f"({type(error).__name__}); convert other files to Parquet first"
        ) from error
