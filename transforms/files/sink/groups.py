"""Write the rows of a stream on Dataflow to files (stream_files.py).

Rows wait in the state of the runner, one group for each span and each worker process. A group
becomes a file when it has enough rows or bytes, when its span is over by the clock, or when the
stream is drained. Nothing waits for the watermark, so a backlog is written as it is worked off.

If a bundle fails after it has written a file, its retry writes another file with the same rows and
perhaps more. Only the file of the attempt that succeeded gets a manifest: the shuffle before
`Manifest` passes on what an attempt returns only if it succeeds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam import coders
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from common.record_batch import RecordBatchCoder, rebatch, sized
from transforms.files.sink.stream_files import (
    PROCESS,
    Span,
    StreamFiles,
    write_manifest,
    write_span,
)

# The most bytes of an element in the shuffle. A single row may be larger.
_ELEMENT_BYTES = 8 << 20
# The rows of a file are joined to batches of this many rows: a batch of one row takes 17 KB in
# memory.
_JOINED_ROWS = 4_096
_CODEC = "lz4"

# The start and end of the span, and the token of the process that scored the rows.
Key = tuple[int, int, str]
# A number of rows, their size in bytes when they are not compressed, and the compressed rows.
Packed = tuple[int, int, bytes]


def pack(batch: pa.RecordBatch) -> Packed:
    """Return a batch in compressed form.

    It contains its schema, because the state of a stream outlives the program that wrote it. The
    names of columns and other repetition are most of a small batch, and compress well.
    """
    content = RecordBatchCoder().encode(batch)
    return batch.num_rows, len(content), pa.compress(content, codec=_CODEC, asbytes=True)


def unpack(packed: Packed) -> pa.RecordBatch:
    """Return the batch."""
    _, size, content = packed
    return RecordBatchCoder().decode(pa.decompress(content, decompressed_size=size, codec=_CODEC))


class _GroupDoFn(beam.DoFn):
    """A DoFn that keeps rows of a key in state until they fill a file or their span is over."""

    ROWS = BagStateSpec(
        "rows",
        coders.TupleCoder([coders.VarIntCoder(), coders.VarIntCoder(), coders.BytesCoder()]),
    )
    HELD = ReadModifyWriteStateSpec(
        "held", coders.TupleCoder([coders.VarIntCoder(), coders.VarIntCoder()])
    )
    DUE = TimerSpec("due", TimeDomain.REAL_TIME)
    DRAIN = TimerSpec("drain", TimeDomain.WATERMARK)

    def __init__(self, files: StreamFiles) -> None:
        self._files = files

    def process(  # noqa: PLR0917
        self,
        element: tuple[Key, Packed],
        window: Any = beam.DoFn.WindowParam,
        rows: Any = beam.DoFn.StateParam(ROWS),  # noqa: B008
        held: Any = beam.DoFn.StateParam(HELD),  # noqa: B008
        due: Any = beam.DoFn.TimerParam(DUE),  # noqa: B008
        drain: Any = beam.DoFn.TimerParam(DRAIN),  # noqa: B008
    ) -> Iterator[tuple[Key, list[Packed]]]:
        key, packed = element
        before = held.read()
        if before is None:
            due.set(Timestamp(_due(Span(*key[:2]), time.time())))
            # A drain moves the watermark to the end of time.
            drain.set(window.max_timestamp())
            before = (0, 0)
        count, size = before[0] + packed[0], before[1] + packed[1]
        rows.add(packed)
        held.write((count, size))
        if count >= self._files.rows or size >= self._files.size:
            yield from self.flush(key, rows, held, due, drain)

    @on_timer(DUE)
    @on_timer(DRAIN)
    def flush(
        self,
        key: Key = beam.DoFn.KeyParam,
        rows: Any = beam.DoFn.StateParam(ROWS),  # noqa: B008
        held: Any = beam.DoFn.StateParam(HELD),  # noqa: B008
        due: Any = beam.DoFn.TimerParam(DUE),  # noqa: B008
        drain: Any = beam.DoFn.TimerParam(DRAIN),  # noqa: B008
    ) -> Iterator[tuple[Key, list[Packed]]]:
        """Yield the rows of a key, and leave nothing in its state: a key is used for one span."""
        group = list(rows.read())
        for used in (rows, held, due, drain):
            used.clear()
        if group:
            yield key, group


def _due(span: Span, now: float) -> float:
    """Return when to write a group that gets its first rows now, in seconds since 1970.

    Rows that come after their span, because the stream lags, wait for each other as long as a span
    is. So do rows of a span that has not begun, because the clock of their worker is wrong.
    """
    return span.end if span.start <= now < span.end else now + span.end - span.start


@dataclass
class WriteGroups(beam.PTransform):
    """A sink that writes record batches to files, and returns their manifests as JSON."""

    files: StreamFiles

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[str]:
        """Write files, and list those that were written by an attempt that succeeded."""
        fixed = self.write(batches) | "Fix" >> beam.Reshuffle()
        return fixed | "Manifest" >> beam.Map(_list).with_output_types(str)

    def write(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[str]:
        """Group by span and process, and write files; return manifests that are not written yet."""
        packed = batches | "Pack" >> beam.FlatMap(self._pack).with_output_types(tuple[Key, Packed])
        grouped = packed | "Group" >> beam.ParDo(_GroupDoFn(self.files))
        return grouped | "Write" >> beam.FlatMap(self._write).with_output_types(str)

    def _pack(self, batch: pa.RecordBatch) -> Iterator[TimestampedValue]:
        now = time.time()
        key = (*self.files.span(now), PROCESS)
        for part in sized(batch, _ELEMENT_BYTES):
            # Steps before may give rows the end of time. These hold back the watermark until they
            # are written, so that Dataflow shows how old they are.
            yield TimestampedValue((key, pack(part)), Timestamp(now))

    def _write(self, group: tuple[Key, Iterable[Packed]]) -> Iterator[str]:
        (start, end, process), packed = group
        batches = rebatch(map(unpack, packed), _JOINED_ROWS)
        for manifest in write_span(self.files, Span(start, end), process, batches):
            yield orjson.dumps(manifest).decode()


def _list(manifest: str) -> str:
    write_manifest(orjson.loads(manifest))
    return manifest
