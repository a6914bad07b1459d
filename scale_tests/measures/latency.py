"""Percentiles of latencies, with the bounds that their count allows.

HdrHistogram keeps three significant digits of each value and merges without loss, so processes
record for themselves. The bounds come from order statistics: the number of values below a
percentile is binomially distributed, whatever the distribution of the latencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
DIGITS = 3
# Microseconds. A larger value is recorded as this one.
LARGEST = 86_400_000_000
INSUFFICIENT: Final = "insufficient data"


@dataclass(frozen=True)
class Quantile:
    """A percentile of a latency.

    Attributes:
        percentile: 0 to 100.
        ms: The latency in milliseconds; None if `reason` says why it is not known.
        low_ms: The lower bound of the confidence interval.
        high_ms: The upper bound.
        count: The number of messages behind it.
        reason: Empty, or why there is no latency.
    """

    percentile: float
    ms: float | None
    low_ms: float | None
    high_ms: float | None
    count: int
    reason: str = ""


class Latencies:
    """Latencies of messages, and the number of messages without a result.

    Attributes:
        histogram: The HdrHistogram of the latencies in microseconds.
        missing: How many messages have no result. They count as slower than all others, because
            leaving them out would make a system that loses slow messages look fast.
    """

    def __init__(self) -> None:
        self.histogram = _empty()
        self.missing = 0

    def record(self, seconds: NDArray[np.float64]) -> None:
        """Add latencies. NaN counts as missing.

        Raises:
            ValueError: A latency is negative.
        """
        here = seconds[~np.isnan(seconds)]
        if len(here) and here.min() < 0:
            raise ValueError(f"expected latencies of at least 0 s, got {here.min():g}")
        self.missing += len(seconds) - len(here)
        rounded = np.minimum(np.rint(here * 1e6), LARGEST).astype(np.int64)
        for value, count in zip(*np.unique(rounded, return_counts=True), strict=True):
            self.histogram.record_value(int(value), int(count))

    def merge(self, others: Iterable[Latencies]) -> None:
        """Add the latencies of others, for example of other processes."""
        for other in others:
            self.histogram.add(other.histogram)
            self.missing += other.missing

    def encode(self) -> tuple[bytes, int]:
        """Return the histogram in HdrHistogram's own form, and the number of missing results."""
        return self.histogram.encode(), self.missing

    @classmethod
    def decode(cls, encoded: bytes, missing: int) -> Latencies:
        """Return the latencies that `encode` encoded."""
        found = cls()
        found.histogram.decode_and_add(encoded)
        found.missing = missing
        return found

    @property
    def answered(self) -> int:
        """How many latencies were recorded."""
        return int(self.histogram.get_total_count())

    @property
    def count(self) -> int:
        """How many messages there are, with those without a result."""
        return self.answered + self.missing

    def max_ms(self) -> float | None:
        """Return the largest latency in milliseconds; None without latencies."""
        return float(self.histogram.get_max_value()) / 1e3 if self.answered else None

    def quantile(self, percentile: float, confidence: float = 0.95) -> Quantile:
        """Return a percentile and its bounds.

        It is unknown if the messages are too few for an upper bound, or if the result of the
        message at this rank is missing.

        Args:
            percentile: 0 to 100, exclusive.
            confidence: The probability with which the bounds contain the true percentile.
        """
        low, high = ranks(self.count, percentile / 100, confidence)
        if low < 1 or high > self.count:
            return Quantile(percentile, None, None, None, self.count, INSUFFICIENT)
        rank = math.ceil(self.count * percentile / 100)
        if rank > self.answered:
            reason = f"{self.missing:,} of {self.count:,} have no result"
            return Quantile(percentile, None, self._at(low), None, self.count, reason)
        return Quantile(percentile, self._at(rank), self._at(low), self._at(high), self.count)

    def quantiles(self) -> tuple[Quantile, ...]:
        """Return the percentiles of PERCENTILES."""
        return tuple(self.quantile(percentile) for percentile in PERCENTILES)

    def _at(self, rank: int) -> float | None:
        """Return the latency of the rank-th fastest message in ms; None if it has no result."""
        if rank > self.answered:
            return None
        passed = np.cumsum(np.ctypeslib.as_array(self.histogram.counts))
        value = self.histogram.get_value_from_index(int(np.searchsorted(passed, rank)))
        return float(self.histogram.get_highest_equivalent_value(value)) / 1e3


def ranks(count: int, quantile: float, confidence: float) -> tuple[int, int]:
    """Return the ranks, from 1, of the values that bound a quantile of the distribution.

    A rank below 1 or above the count means that the count does not carry this bound. Source:
    H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition, section 7.1.

    Args:
        count: The number of values.
        quantile: 0 to 1, exclusive.
        confidence: The probability with which the values at the ranks enclose the quantile.
    """
    from scipy.stats import binom

    outside = (1 - confidence) / 2
    low, high = binom.ppf([outside, 1 - outside], count, quantile)
    return int(low), int(high) + 1


def _empty() -> Any:
    from hdrh.histogram import HdrHistogram

    return HdrHistogram(1, LARGEST, DIGITS)
