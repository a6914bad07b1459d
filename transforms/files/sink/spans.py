"""Write the rows of a stream to the files of stream_files.py, from memory.

groups.py keeps rows in the state of the runner, which suits Dataflow. Here they stay in the memory
of the process that scored them, and hold the bundle of their messages (transforms/bundles.py): a
message is acknowledged when the files with its rows, and their manifests, are complete. What a
killed process kept is delivered again, so its rows may be in a second file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import apache_beam as beam
import pyarrow as pa

from common.interrupts import InterruptibleEvent
from common.record_batch import BATCH_ROWS, rebatch
from transforms.bundles import Bundle, begin_bundle, current_bundle
from transforms.files.sink.stream_files import (
    PROCESS,
    Span,
    StreamFiles,
    write_manifest,
    write_span,
)

# How often to look for spans that have ended.
_POLL_SECONDS = 0.25
# How many batches to join.
_JOINED_BATCHES = 256


@dataclass
class _Rows:
    """The rows of a span that are not written yet, and the bundles that they hold.

    Attributes:
        due: When to write them, by the monotonic clock.
        joined: Most of the rows. A batch of one row takes 17 KB in memory, so small batches are
            joined.
        fresh: The other rows.
        count: How many rows there are.
        size: How many bytes the rows take.
    """

    due: float
    joined: list[pa.RecordBatch] = field(default_factory=list)
    fresh: list[pa.RecordBatch] = field(default_factory=list)
    count: int = 0
    size: int = 0
    bundles: dict[Bundle, None] = field(default_factory=dict)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add a batch."""
        self.count, self.size = self.count + batch.num_rows, self.size + batch.nbytes
        self.fresh.append(batch)
        if len(self.fresh) == _JOINED_BATCHES:
            self.joined += self.take_fresh()

    def take_fresh(self) -> Iterable[pa.RecordBatch]:
        """Return the batches that are not joined, in joined form."""
        fresh, self.fresh = self.fresh, []
        return rebatch(fresh, BATCH_ROWS)


class _Spans:
    """The rows of a process that wait for their file."""

    def __init__(self, files: StreamFiles) -> None:
        self._files = files
        self._waiting: dict[Span, _Rows] = {}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._over = InterruptibleEvent()
        threading.Thread(target=self._write_ended, daemon=True).start()

    def add(self, batch: pa.RecordBatch, bundle: Bundle) -> None:
        """Keep a batch for a file of the present span, and hold its bundle until then.

        If the rows of the span are enough for a file, the caller writes it, so that rows do not
        come faster than they are written.

        Raises:
            OutputError: A file cannot be written.
        """
        now = time.time()
        span = self._files.span(now)
        with self._lock:
            rows = self._waiting.get(span)
            if rows is None:
                rows = self._waiting[span] = _Rows(time.monotonic() + span.end - now)
            rows.add(batch)
            if bundle not in rows.bundles:
                rows.bundles[bundle] = None
                bundle.hold()
            is_full = self._is_full(rows)
        if is_full:
            self._write(self._is_full)

    def _is_full(self, rows: _Rows) -> bool:
        return rows.count >= self._files.rows or rows.size >= self._files.size

    def _write_ended(self) -> None:
        """Write spans that have ended, until the stream ends."""
        # The error has ended the run.
        with suppress(Exception):
            while not self._over.wait(_POLL_SECONDS):
                self._write(lambda rows: rows.due <= time.monotonic())

    def finish(self) -> None:
        """Write all rows, because the stream has ended.

        Raises:
            OutputError: A file cannot be written.
        """
        self._over.set()
        self._write(lambda rows: True)

    def finish_late(self) -> None:
        """Write rows that came after the end of the stream, in a bundle that was still running."""
        if self._over.is_set():
            self._write(lambda rows: True)

    def stop(self) -> None:
        """Write no more spans."""
        self._over.set()
        self._waiting.clear()

    def _write(self, is_ready: Callable[[_Rows], bool]) -> None:
        """Write the spans whose rows are ready."""
        with self._writing:
            with self._lock:
                spans = sorted(span for span, rows in self._waiting.items() if is_ready(rows))
                ready = {span: self._waiting.pop(span) for span in spans}
            for span, rows in ready.items():
                try:
                    batches = chain(rows.joined, rows.take_fresh())
                    for manifest in write_span(self._files, span, PROCESS, batches):
                        write_manifest(manifest)
                # Whatever it is, the run must not go on without these rows.
                except Exception as error:
                    for bundle in rows.bundles:
                        bundle.owner.fail(error)
                    raise
                for bundle in rows.bundles:
                    bundle.release()


class _KeepDoFn(beam.DoFn):
    """A DoFn that keeps batches for the file of the present span."""

    def __init__(self, files: StreamFiles) -> None:
        self._files = files

    def start_bundle(self) -> None:
        begin_bundle(None)
        self._spans: _Spans | None = None

    def process(self, batch: pa.RecordBatch) -> None:
        bundle = current_bundle()
        if bundle is None:
            raise RuntimeError("this step must be in the stage of PullMessages: please report this")
        if self._spans is None:
            self._spans = bundle.owner.sink(self._files, partial(_Spans, self._files))
        self._spans.add(batch, bundle)

    def finish_bundle(self) -> None:
        if self._spans is not None:
            self._spans.finish_late()


@dataclass
class WriteSpans(beam.PTransform):
    """A sink that writes the record batches of PullMessages to files at the end of each span."""

    files: StreamFiles

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Any:
        """Apply one DoFn."""
        return batches | "Keep" >> beam.ParDo(_KeepDoFn(self.files))
