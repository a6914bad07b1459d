"""SpreadBatches: separate reading from predicting, by a shuffle of record batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from common.record_batch import concat_batches, rebatch, slices, typed

# The size of a shuffled element, in bytes. Below about 1 MB the cost of an element counts, and a
# runner keeps several elements in memory.
LEAST_BYTES, MOST_BYTES = 1 << 20, 8 << 20


class Packer:
    """Cuts large batches and joins small ones, so that each has LEAST_BYTES to MOST_BYTES.

    The rows stay in order. Only batches of the same schema are joined, and the last batch may be
    smaller. A single row may be larger.
    """

    def __init__(self) -> None:
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield the batches that are ready once this one is added."""
        if not batch.num_rows:
            return
        if self._waiting and not self._waiting[0].schema.equals(batch.schema):
            yield from self.flush()
        # What is joined with less than LEAST_BYTES must not exceed MOST_BYTES.
        parts = max(1, -(-batch.nbytes // (MOST_BYTES - LEAST_BYTES)))
        for part in slices(batch.num_rows, max(1, -(-batch.num_rows // parts))):
            self._waiting.append(batch.slice(part.start, part.stop - part.start))
            self._bytes += self._waiting[-1].nbytes
            if self._bytes >= LEAST_BYTES:
                yield from self.flush()

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Yield what is waiting, as one batch, if anything is."""
        if self._waiting:
            yield concat_batches(self._waiting)
        self._waiting, self._bytes = [], 0


class _PackDoFn(beam.DoFn):
    """A DoFn that packs the batches of a bundle."""

    def start_bundle(self) -> None:
        self._packer = Packer()

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield from self._packer.add(batch)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        for batch in self._packer.flush():
            yield WindowedValue(batch, window.max_timestamp(), (window,))


@dataclass
class SpreadBatches(beam.PTransform):
    """A transform that distributes the rows of a batch source among all workers.

    A runner reads to the end without waiting for what follows, and gives the batches of one stream
    or file to any worker. The rows are written to the runner's shuffle once. In this process that
    is its memory.

    Attributes:
        batch_rows: The maximum number of rows in a batch of the result.
    """

    batch_rows: int

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        """Cut and join, shuffle, and cut into batches again."""
        packed = typed(batches | "Pack" >> beam.ParDo(_PackDoFn()))
        shuffled = typed(packed | "Shuffle" >> beam.Reshuffle())
        return typed(shuffled | "Unpack" >> beam.FlatMap(self._unpack))

    def _unpack(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        return rebatch([batch], self.batch_rows)
