"""Write the rows of a stream to files from the memory of a worker, one or more for each span.

The files are those of transforms/files/windows.py. That module keeps rows in the state of the
runner, which suits Dataflow. Here rows stay in the memory of the process that scored them, and hold
the bundle of their messages (transforms/bundles.py): a message is acknowledged when the files with
its rows are complete. What a killed process kept is delivered again.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from common.interrupts import InterruptibleEvent
from transforms.bundles import Bundle, begin_bundle, current_bundle
from transforms.files.windows import file_name, write_file
from transforms.files.writers import OutputFormat

# How often to look for spans that have ended.
_POLL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class SpanFiles:
    """The files of one folder, by the span of time in which their rows were scored.

    Attributes:
        folder: The folder of the part.
        seconds: The length of a span in seconds.
        output_format: The format of the files.
    """

    folder: str
    seconds: int
    output_format: OutputFormat


@dataclass
class _Rows:
    """The rows of a span that are not written yet, and the bundles that they hold."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    bundles: dict[Bundle, None] = field(default_factory=dict)


class _Spans:
    """The rows of a process that wait for their file."""

    def __init__(self, files: SpanFiles) -> None:
        self._files = files
        # Other runs and other processes must not use the same names.
        self._run = uuid.uuid4().hex[:8]
        self._waiting: dict[float, _Rows] = {}
        self._panes: Counter[float] = Counter()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._over = InterruptibleEvent()
        threading.Thread(target=self._write_ended, daemon=True).start()

    def add(self, batch: pa.RecordBatch, bundle: Bundle) -> None:
        """Keep a batch for the file of the present span, and hold its bundle until then."""
        now = time.time()
        with self._lock:
            rows = self._waiting.setdefault(now - now % self._files.seconds, _Rows())
            rows.batches.append(batch)
            if bundle not in rows.bundles:
                rows.bundles[bundle] = None
                bundle.hold()

    def _write_ended(self) -> None:
        """Write spans that have ended, until the stream ends."""
        # The error has ended the run.
        with suppress(Exception):
            while not self._over.wait(_POLL_SECONDS):
                self._write(time.time() - self._files.seconds)

    def finish(self) -> None:
        """Write all rows, because the stream has ended.

        Raises:
            OutputError: A file cannot be written.
        """
        self._over.set()
        self._write(math.inf)

    def finish_late(self) -> None:
        """Write rows that came after the end of the stream, in a bundle that was still running."""
        if self._over.is_set():
            self._write(math.inf)

    def stop(self) -> None:
        """Write no more spans."""
        self._over.set()
        self._waiting.clear()

    def _write(self, until: float) -> None:
        """Write the spans that started by a time, in seconds since 1970."""
        with self._writing:
            with self._lock:
                starts = sorted(start for start in self._waiting if start <= until)
                ended = {start: self._waiting.pop(start) for start in starts}
            for start, rows in ended.items():
                try:
                    self._write_span(start, rows.batches)
                # Whatever it is, the run must not go on without these rows.
                except Exception as error:
                    for bundle in rows.bundles:
                        bundle.owner.fail(error)
                    raise
                for bundle in rows.bundles:
                    bundle.release()

    def _write_span(self, start: float, batches: list[pa.RecordBatch]) -> None:
        files = self._files
        name = file_name(
            start,
            start + files.seconds,
            0,
            shards=1,
            pane=self._panes[start],
            run=self._run,
            suffix=files.output_format,
        )
        self._panes[start] += 1
        write_file(FileSystems.join(files.folder, name), batches, files.output_format)


class _KeepDoFn(beam.DoFn):
    """A DoFn that keeps batches for the file of the present span."""

    def __init__(self, files: SpanFiles) -> None:
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

    files: SpanFiles

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Any:
        """Apply one DoFn."""
        return batches | "Keep" >> beam.ParDo(_KeepDoFn(self.files))
