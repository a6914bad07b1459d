"""Which rows of a table one job put there: how many, and when the first and the last were scored.

For tables without a column that tells a run. A job found by its id says that it ended well, not
that its rows are still there: they may be gone, and rows of another run have the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from pyarrow import parquet

from common.errors import OutputError, one_line
from common.memory import check_memory
from transforms.files.run_folder import StagedFile

_SPAN, _DIGEST = "millrace_span", "millrace_digest"
# A label's value has 63 characters, a digest one more.
_DIGEST_CHARACTERS = 40
_READERS = 16


@dataclass(frozen=True)
class Span:
    """The times of an attempt's first and last row, in microseconds since 1970.

    No other run has both the same.
    """

    first: int
    last: int

    @classmethod
    def of_files(cls, files: Sequence[StagedFile], column: str) -> Span | None:
        """Staged Parquet files and their column of times -> the span, from the footers.

        None without rows. Raises OutputError.
        """
        paths = [file.path for file in files if file.rows]
        if not paths:
            return None
        with ThreadPoolExecutor(_READERS) as readers:
            found = list(readers.map(lambda path: _span_of_file(path, column), paths))
        return cls(min(first for first, _ in found), max(last for _, last in found))


def span_labels(span: Span | None, digest: str) -> dict[str, str]:
    """An attempt's span and its model -> the labels of the job that puts its rows into a table."""
    labels = {_DIGEST: digest[:_DIGEST_CHARACTERS].lower()}
    return labels if span is None else labels | {_SPAN: f"{span.first}-{span.last}"}


def span_of(job: Any) -> Span | None:
    """A job -> the span that its labels tell, None where they tell none."""
    first, _, last = (job.labels or {}).get(_SPAN, "").partition("-")
    return Span(int(first), int(last)) if first and last else None


def is_of_model(job: Any, digest: str) -> bool:
    """Whether a job put in rows of that model; of a job that does not say, it is assumed."""
    wanted = span_labels(None, digest)[_DIGEST]
    return bool((job.labels or {}).get(_DIGEST, wanted) == wanted)


def rows_of(job: Any) -> int | None:
    """A copy or an INSERT that is done -> how many rows it put in, None for a transaction."""
    if getattr(job, "statement_type", None) == "SCRIPT":
        return None
    copied = job._properties.get("statistics", {}).get("copy", {}).get("copiedRows")
    affected = copied if copied is not None else getattr(job, "num_dml_affected_rows", None)
    return None if affected is None else int(affected)


def _span_of_file(path: str, column: str) -> tuple[int, int]:
    """Raises OutputError."""
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as handle:
            footer = parquet.read_metadata(handle)
    except (BeamIOError, OSError, pa.ArrowException) as error:
        check_memory(error, path)
        raise OutputError(f"{path} cannot be read: {one_line(error)}; run it again") from error
    names = [footer.schema.column(i).path for i in range(footer.num_columns)]
    column_number = names.index(column)
    groups = (footer.row_group(i) for i in range(footer.num_row_groups))
    found = [group.column(column_number).statistics for group in groups]
    return min(s.min_raw for s in found), max(s.max_raw for s in found)
