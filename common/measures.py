"""The sizes of bundles and batches, and the times of steps, as Beam metrics and for this process.

A measure is updated once for a bundle, a batch or a request, because an update takes a microsecond.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from apache_beam.metrics import Metrics


@dataclass(frozen=True)
class Seen:
    """How many values were seen, their sum, and the largest of them."""

    count: int = 0
    total: int = 0
    largest: int = 0

    @property
    def mean(self) -> float:
        """The mean of the values; 0 if there are none."""
        return self.total / self.count if self.count else 0.0

    def since(self, before: Seen) -> Seen:
        """Return the values added since `before`; their largest is that of all values."""
        return Seen(self.count - before.count, self.total - before.total, self.largest)


_lock = threading.Lock()
# None unless a run in this process has started it.
_seen: dict[str, Seen] | None = None


class Measure:
    """A distribution of Beam, whose values are also kept for a run in this process.

    Args:
        name: The name of the metric.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._metric = Metrics.distribution("millrace", name)

    def add(self, value: int) -> None:
        """Add a value."""
        self._metric.update(value)
        if _seen is None:
            return
        with _lock:
            old = _seen.get(self.name, Seen())
            _seen[self.name] = Seen(old.count + 1, old.total + value, max(old.largest, value))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of a block in microseconds, unless it raises an error."""
        started = time.perf_counter_ns()
        yield
        self.add((time.perf_counter_ns() - started) // 1_000)


MESSAGES = Measure("messages_a_bundle")
ROWS = Measure("batch_rows")
DECODE = Measure("decode_us")
MODEL = Measure("model_us")
PUBLISH = Measure("publish_us")
APPEND = Measure("append_us")
FILES = Measure("files_us")
EVERY = (MESSAGES, ROWS, DECODE, MODEL, PUBLISH, APPEND, FILES)
# The steps whose times are measured.
TIMES = {
    "decode": DECODE,
    "model": MODEL,
    "publish": PUBLISH,
    "append": APPEND,
    "files": FILES,
}


def start_measures() -> None:
    """Keep the values of this process from now on, and forget earlier ones."""
    global _seen
    _seen = {}


def seen(measure: Measure) -> Seen:
    """Return the values of a measure since the start."""
    return (_seen or {}).get(measure.name, Seen())
