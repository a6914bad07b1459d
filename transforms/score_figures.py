"""Summary statistics of the scores of a run, merged as batches are scored."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa

# The number of rows, the mean, the sum of squared deviations from it, the minimum, the maximum.
Figures = tuple[int, float, float, float, float]
_NONE: Figures = (0, 0.0, 0.0, math.inf, -math.inf)


def describe_scores(values: np.ndarray) -> Figures:
    """Return the figures of finite numbers [rows]."""
    if not len(values):
        return _NONE
    values = values.astype(np.float64)
    mean = float(values.mean())
    squares = float(np.square(values - mean).sum())
    return len(values), mean, squares, float(values.min()), float(values.max())


def merge(parts: Iterable[Figures]) -> Figures:
    """Merge the figures of several sets of rows into the figures of all rows.

    Source: Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance (1983).
    """
    parts = [part for part in parts if part[0]]
    if not parts:
        return _NONE
    rows = sum(part[0] for part in parts)
    mean = math.fsum(n * own for n, own, *_ in parts) / rows
    squares = math.fsum(own + n * (middle - mean) ** 2 for n, middle, own, *_ in parts)
    return rows, mean, squares, min(part[3] for part in parts), max(part[4] for part in parts)


def as_report(figures: Figures) -> dict[str, float] | None:
    """Return the figures as the report shows them.

    Returns:
        `mean`, `std` (the sample standard deviation, 0 for one row), `min` and `max`; None if
        there are no rows.
    """
    rows, mean, squares, least, most = figures
    if not rows:
        return None
    std = math.sqrt(squares / (rows - 1)) if rows > 1 else 0.0
    return {"mean": mean, "std": std, "min": least, "max": most}


@dataclass
class DescribeScores(beam.PTransform):
    """A transform from batches of output rows to the figures of all their scores, in one element.

    The figures are merged where they are computed, so a run of many batches takes no more memory
    than one of few. No batch, no element.

    Attributes:
        column: The column of the score, which holds finite numbers.
    """

    column: str

    def _describe(self, rows: pa.RecordBatch) -> Figures:
        return describe_scores(rows.column(self.column).to_numpy(zero_copy_only=False))

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Figures]:
        """Describe each batch, and merge the figures of all."""
        described = rows | "Describe" >> beam.Map(self._describe).with_output_types(Figures)
        return described | "Merge" >> beam.CombineGlobally(merge).without_defaults()
