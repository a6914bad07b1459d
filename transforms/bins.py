"""Histograms whose bins fit any numbers, and which merge exactly in any order.

The width of the bins is a power of two, and their edges are its multiples. So two bins of one
histogram are exactly one bin of a coarser one, and the width depends on all values alone: however
they are split into batches, the merged histogram is the same, and never has more than MOST_BINS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MOST_BINS = 120
# The exponent of the smallest number that is not zero.
_LEAST = -1074


@dataclass(frozen=True)
class Bins:
    """How many values lie in each of some adjacent bins of one width.

    Attributes:
        exponent: The width is two to this power.
        first: The lower edge of the first bin, in widths.
        counts: The number of values in each bin, whose upper edge is not part of it. The first and
            the last bin are not empty.
    """

    exponent: int
    first: int
    counts: tuple[int, ...]

    @property
    def edges(self) -> np.ndarray:
        """The edges of the bins [bins + 1], as finite numbers."""
        multiples = np.arange(len(self.counts) + 1, dtype=np.float64) + self.first
        with np.errstate(over="ignore"):
            edges = np.ldexp(multiples, self.exponent)
        most = np.finfo(np.float64).max
        return np.clip(edges, -most, most)


def count_values(values: np.ndarray, least: int = _LEAST) -> Bins | None:
    """Return the histogram of finite numbers [values], or None if there are none.

    Args:
        values: The numbers.
        least: The exponent of the smallest width.
    """
    if not len(values):
        return None
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    exponent = _exponent(low, high, least)
    index = np.floor(np.ldexp(values, -exponent))
    # A negative number can be so small that its scaled value is zero.
    index[(values < 0) & (index == 0)] = -1
    first = int(index.min())
    counts = np.bincount((index - first).astype(np.int64))
    return Bins(exponent, first, tuple(counts.tolist()))


def count_one(value: float, times: int, least: int) -> Bins:
    """Return the histogram of one finite number that occurs several times.

    Args:
        value: The number.
        times: How often it occurs, at least once.
        least: The exponent of the smallest width.
    """
    exponent = _exponent(value, value, least)
    return Bins(exponent, math.floor(math.ldexp(value, -exponent)), (times,))


def merge_bins(parts: Iterable[Bins | None]) -> Bins | None:
    """Return the histogram of all values of some histograms with one smallest width."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    exponent = max(part.exponent for part in found)
    low = min(part.first >> (exponent - part.exponent) for part in found)
    high = max((part.first + len(part.counts) - 1) >> (exponent - part.exponent) for part in found)
    while high - low >= MOST_BINS:
        exponent, low, high = exponent + 1, low >> 1, high >> 1
    counts = [0] * (high - low + 1)
    for part in found:
        for i, count in enumerate(part.counts, part.first):
            counts[(i >> (exponent - part.exponent)) - low] += count
    return Bins(exponent, low, tuple(counts))


def _exponent(low: float, high: float, least: int) -> int:
    """Return the exponent of the smallest width with which values need at most MOST_BINS bins.

    It never falls if the range grows, because histograms could not be merged otherwise.
    """
    size = max(abs(low), abs(high))
    # A multiple of the width must be an exact number, so it has at most 53 bits.
    exponent = max(least, math.frexp(size)[1] - 53 if size else _LEAST)
    share = (high / 2 - low / 2) / (MOST_BINS + 1)
    if share:
        exponent = max(exponent, math.frexp(share)[1] - 1)
    while _bin(high, exponent) - _bin(low, exponent) >= MOST_BINS:
        exponent += 1
    return exponent


def _bin(value: float, exponent: int) -> int:
    index = math.floor(math.ldexp(value, -exponent))
    return -1 if value < 0 and index == 0 else index
