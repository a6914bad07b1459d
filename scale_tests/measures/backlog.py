"""Whether messages arrive faster than they are answered: the growth of the backlog.

The backlog is counted from the test's own messages, because some sources report none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# The test runs over this number of equal spans. The one before them, in which an empty system
# fills, does not count.
SPANS = 12


@dataclass(frozen=True)
class Growth:
    """How fast a backlog grows, in messages per second, with its confidence interval."""

    per_second: float
    low: float
    high: float


def backlog(due: Floats, arrived: Floats, times: Floats) -> NDArray[np.int64]:
    """Return how many messages were due but had no result at each time.

    Args:
        due: [n] When each message was due.
        arrived: [n] When its result arrived; NaN without a result.
        times: [k] The times.
    """
    # NaN is sorted to the end, so it is after every time.
    answered = np.searchsorted(np.sort(arrived), times, "right")
    return np.searchsorted(np.sort(due), times, "right") - answered


def growth(
    due: Floats, arrived: Floats, start: float, seconds: float, confidence: float = 0.95
) -> Growth:
    """Return how fast the backlog of a level grew while messages were sent.

    The growth is the mean of the differences between the ends of SPANS spans. Its confidence
    interval is that of Student's t. In an overloaded system the differences are independent. In
    one that keeps up they cancel each other, so the interval is wider than it need be.

    Args:
        due: [n] When each message was due.
        arrived: [n] When its result arrived; NaN without a result.
        start: When the level started.
        seconds: How long messages were sent.
        confidence: The probability with which the bounds contain the true growth.
    """
    from scipy.stats import t

    span = seconds / (SPANS + 1)
    times = np.linspace(start + span, start + seconds, SPANS + 1, dtype=np.float64)
    counts = backlog(due, arrived, times).astype(np.float64)
    rates = np.diff(counts) / span
    mean = float(rates.mean())
    margin = float(t.ppf((1 + confidence) / 2, SPANS - 1) * rates.std(ddof=1) / np.sqrt(SPANS))
    return Growth(mean, mean - margin, mean + margin)
