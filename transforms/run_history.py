"""What a page shows of a run beside its counts: its scores, and when rows were scored.

All of it merges as batches are scored, so a run of many batches takes no more memory than one of
few.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.bins import Bins, count_one, count_values, merge_bins

# Rows are counted in spans of at least a quarter of a second: two to this power.
_LEAST_SECONDS = -2


@dataclass(frozen=True)
class History:
    """Histograms of the rows of a run.

    Attributes:
        times: When rows were scored, in seconds since 1970.
        scores: The scores, or None without a score.
        logs: The binary logarithms of the scores, or None unless all scores are positive.
    """

    times: Bins | None
    scores: Bins | None = None
    logs: Bins | None = None


def history_of(scores: np.ndarray | None, rows: int, now: float) -> History:
    """Return the history of a batch.

    Args:
        scores: The scores [rows], finite numbers, or None without a score.
        rows: The number of rows.
        now: When the rows were scored, in seconds since 1970.
    """
    if not rows:
        return History(None)
    times = count_one(now, rows, _LEAST_SECONDS)
    if scores is None:
        return History(times)
    logs = count_values(np.log2(scores.astype(np.float64))) if (scores > 0).all() else None
    return History(times, count_values(scores), logs)


def merge_histories(parts: Iterable[History]) -> History:
    """Merge the histories of several sets of rows into that of all rows."""
    found = [part for part in parts if part.times is not None]
    positive = all(part.logs is not None for part in found)
    return History(
        merge_bins(part.times for part in found),
        merge_bins(part.scores for part in found),
        merge_bins(part.logs for part in found) if positive else None,
    )


def report_history(history: History) -> dict[str, Any]:
    """Return a history as the report shows it.

    Returns:
        `score_histogram` with `scale` (`linear` or `log`), `edges` and `rows`, and `rows_over_time`
        with `start`, `span_seconds` and `rows`. Without rows both are None; without a score there
        is no histogram.
    """
    return {"score_histogram": _histogram(history), "rows_over_time": _over_time(history.times)}


def _histogram(history: History) -> dict[str, Any] | None:
    """Return the histogram of the scores, on a logarithmic scale if that shows more of them."""
    found, logs = history.scores, history.logs
    if found is None:
        return None
    fullest = max(found.counts)
    if logs is not None and 2 * fullest > sum(found.counts) and max(logs.counts) < fullest:
        most = np.finfo(np.float64).max
        with np.errstate(over="ignore"):
            edges = np.minimum(np.exp2(logs.edges), most)
        return {"scale": "log", "edges": edges.tolist(), "rows": [*logs.counts]}
    return {"scale": "linear", "edges": found.edges.tolist(), "rows": [*found.counts]}


def _over_time(times: Bins | None) -> dict[str, Any] | None:
    if times is None:
        return None
    start = datetime.fromtimestamp(float(times.edges[0]), UTC)
    return {"start": start, "span_seconds": 2.0**times.exponent, "rows": [*times.counts]}


@dataclass
class RecordHistory(beam.PTransform):
    """A transform from batches of output rows to the history of all rows, in one element.

    No batch, no element.

    Attributes:
        score: The column of the score, which holds finite numbers, or None.
    """

    score: str | None

    def _describe(self, rows: pa.RecordBatch) -> History:
        scores = (
            None if self.score is None else rows.column(self.score).to_numpy(zero_copy_only=False)
        )
        return history_of(scores, rows.num_rows, time.time())

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[History]:
        """Describe each batch, and merge the histories of all."""
        described = rows | "Describe" >> beam.Map(self._describe).with_output_types(History)
        return described | "Merge" >> beam.CombineGlobally(merge_histories).without_defaults()
