"""A progress line for runs in this process: rows so far, and rows per second.

Beam's runners report nothing while a bundle runs, and an in-process batch run is one bundle per
worker. A DoFn therefore counts the rows in a variable of this module. It is added to the graph only
if standard error is a terminal.
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

from common.interrupts import repeating

_lock = threading.Lock()
_rows = 0


def _add(batch: pa.RecordBatch) -> None:
    global _rows
    with _lock:
        _rows += batch.num_rows


@dataclass
class ShowProgress(beam.PTransform):
    """A PTransform that adds the rows of record batches to the progress line."""

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[None]:
        """Count the rows of each batch."""
        return batches | beam.Map(_add)


@contextmanager
def progress_line(stream: TextIO, every: float = 0.5) -> Iterator[None]:
    """Keep a progress line on a terminal while the block runs, and remove it afterwards.

    Args:
        stream: The terminal.
        every: How often to rewrite the line, in seconds.
    """
    global _rows
    _rows = 0
    started = first = time.monotonic()

    def rewrite() -> None:
        nonlocal first
        now, rows = time.monotonic(), _rows
        if not rows:
            # The rate does not include the start-up.
            first = now
        rate = rows / (now - first) if rows else 0.0
        stream.write(f"\r\x1b[K{rows:,} rows  {rate:,.0f} rows/s  {now - started:.0f} s")
        stream.flush()

    try:
        with repeating(rewrite, every):
            yield
    finally:
        stream.write("\r\x1b[K")
        stream.flush()
