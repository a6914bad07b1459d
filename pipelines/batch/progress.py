"""A progress line for runs in this process: rows so far and rows a second.

Beam's runners say nothing while a bundle runs, and an in-process batch run is one
bundle a worker. The count is therefore kept here, in the module, by a DoFn that is
added to the graph only for a terminal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

import apache_beam as beam
import pyarrow as pa

from common.interrupts import InterruptibleEvent

_lock = threading.Lock()
_rows = 0


def _add(batch: pa.RecordBatch) -> None:
    global _rows
    with _lock:
        _rows += batch.num_rows


@dataclass
class ShowProgress(beam.PTransform):
    """Record batches -> nothing; their rows are added to the progress line."""

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[None]:
        """One Map."""
        return batches | beam.Map(_add)


@contextmanager
def progress_line(stream: TextIO, every: float = 0.5) -> Iterator[None]:
    """A terminal -> a line that is rewritten while the block runs, and removed after it."""
    global _rows
    _rows = 0
    done = InterruptibleEvent()
    thread = threading.Thread(target=_rewrite, args=(stream, every, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        stream.write("\r\x1b[K")
        stream.flush()


def _rewrite(stream: TextIO, every: float, done: InterruptibleEvent) -> None:
    begin = first = time.monotonic()
    while not done.wait(every):
        now, rows = time.monotonic(), _rows
        if not rows:
            # Start-up is not held against the rate.
            first = now
        rate = rows / (now - first) if rows else 0.0
        stream.write(f"\r\x1b[K{rows:,} rows  {rate:,.0f} rows/s  {now - begin:.0f} s")
        stream.flush()
