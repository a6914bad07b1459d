"""The latencies of a stream, in memory that does not grow with the number of its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# In milliseconds. The clocks of a publisher and of a worker differ more than the least latency.
LEAST, MOST = 0.1, 1e9
# The width of a bin, as a share of the latencies in it.
WIDTH = 0.01
_STEP = math.log1p(WIDTH)
_BINS = math.ceil(math.log(MOST / LEAST) / _STEP) + 1


class Latencies:
    """Counts latencies in bins that are 1 % wide.

    Latencies below 0.1 ms count as 0.1 ms, also negative ones, and those above 11 days as 11 days.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, latencies: np.ndarray) -> None:
        """Add latencies in milliseconds [rows]."""
        inside = np.clip(latencies, LEAST, MOST)
        bins = np.rint(np.log(inside / LEAST) / _STEP).astype(np.int64)
        self._counts += np.bincount(bins, minlength=_BINS)

    def __len__(self) -> int:
        """Return how many latencies were added."""
        return int(self._counts.sum())

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """Return percentiles in milliseconds, which are at most 0.5 % off.

        Args:
            percents: From 0 to 100. The 50th percentile is the least latency that is not below
                half of all latencies.

        Raises:
            ValueError: No latencies were added.
        """
        if not (count := len(self)):
            raise ValueError("no latencies were added")
        reached = np.cumsum(self._counts)
        ranks = np.maximum(np.ceil(np.asarray(percents) / 100 * count), 1)
        bins = np.searchsorted(reached, ranks)
        return [LEAST * math.exp(int(one) * _STEP) for one in bins]
