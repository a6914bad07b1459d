"""The rows that a job put into a table: how many, and when the first and the last were scored.

This serves tables without a column that identifies the run. A job that is found by its id proves
that it succeeded, but not that its rows are still in the table: they may have been deleted, and
another run may have written rows with the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transforms.files.sink.run_folder import StagedFile

_SPAN, _DIGEST = "millrace_span", "millrace_digest"
# The value of a label has at most 63 characters; a digest has 64.
_DIGEST_CHARACTERS = 40


@dataclass(frozen=True)
class Span:
    """The times of an attempt's first and last row, in microseconds since 1970.

    No two runs have both times in common.
    """

    first: int
    last: int

    @classmethod
    def of_files(cls, files: Sequence[StagedFile]) -> Span | None:
        """Return the span of the rows of staged files; None if they have no rows."""
        found = [file.times for file in files if file.times is not None]
        if not found:
            return None
        return cls(min(first for first, _ in found), max(last for _, last in found))


def span_labels(span: Span | None, digest: str) -> dict[str, str]:
    """Return the labels of the job that puts an attempt's rows into a table.

    Args:
        span: The span of the rows, if they have times.
        digest: The digest of the model.
    """
    labels = {_DIGEST: digest[:_DIGEST_CHARACTERS].lower()}
    return labels if span is None else labels | {_SPAN: f"{span.first}-{span.last}"}


def span_of(job: Any) -> Span | None:
    """Return the span in a job's labels, or None if they have none."""
    first, _, last = (job.labels or {}).get(_SPAN, "").partition("-")
    return Span(int(first), int(last)) if first and last else None


def is_of_model(job: Any, digest: str) -> bool:
    """Return whether a job wrote rows of the model with this digest.

    A job whose labels do not name a model is assumed to have done so.
    """
    wanted = span_labels(None, digest)[_DIGEST]
    return bool((job.labels or {}).get(_DIGEST, wanted) == wanted)


def rows_of(job: Any) -> int | None:
    """Return how many rows a finished copy or INSERT wrote; None if it was a transaction."""
    if getattr(job, "statement_type", None) == "SCRIPT":
        return None
    copied = job._properties.get("statistics", {}).get("copy", {}).get("copiedRows")
    affected = copied if copied is not None else getattr(job, "num_dml_affected_rows", None)
    return None if affected is None else int(affected)
