"""Read a Parquet file as the sample of a package."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.memory import MORE_MEMORY, check_memory


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
            f"({type(error).__name__}); `millrace package` reads CSV and JSON files too"
        ) from error
