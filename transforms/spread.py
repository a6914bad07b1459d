"""SpreadBatches: separate reading from predicting, by a shuffle of record batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from common.record_batch import concat_batches, rebatch, slices, typed

# The size of a shuffled element, in bytes. Below about 1 MB the cost of an element counts, and a
# runner keeps several elements in memory.
LEAST_BYTES, MOST_BYTES = 1 << 20, 8 << 20


def parcels(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in the same order, in batches of about LEAST_BYTES to MOST_BYTES.

    Only batches of the same schema are joined, and the last batch may be smaller. A batch of one
    row may be larger.

    Args:
        batches: Batches of any size.
    """
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if waiting and not waiting[0].schema.equals(batch.schema):
            yield concat_batches(waiting)
            waiting = []
        for part in _cut(batch):
            waiting.append(part)
            if sum(one.nbytes for one in waiting) >= LEAST_BYTES:
                yield concat_batches(waiting)
                waiting = []
    if waiting:
        yield concat_batches(waiting)


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield slices of a batch that are small enough to be joined with less than LEAST_BYTES."""
    parts = max(1, -(-batch.nbytes // (MOST_BYTES - LEAST_BYTES)))
    for part in slices(batch.num_rows, max(1, -(-batch.num_rows // parts))):
        yield batch.slice(part.start, part.stop - part.start)


class _ParcelDoFn(beam.DoFn):
    """A DoFn that cuts large batches and joins small ones of a bundle."""

    def __init__(self) -> None:
        self._waiting: list[pa.RecordBatch] = []

    def start_bundle(self) -> None:
        self._waiting = []

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        ready = list(parcels([*self._waiting, batch]))
        self._waiting = [ready.pop()] if ready and ready[-1].nbytes < LEAST_BYTES else []
        yield from ready

    def finish_bundle(self) -> Iterator[WindowedValue]:
        end = GlobalWindow().max_timestamp()
        yield from (WindowedValue(one, end, (GlobalWindow(),)) for one in self._waiting)
        self._waiting = []


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
        packed = typed(batches | "Pack" >> beam.ParDo(_ParcelDoFn()))
        shuffled = typed(packed | "Shuffle" >> beam.Reshuffle())
        return typed(shuffled | "Unpack" >> beam.FlatMap(self._unpack))

    def _unpack(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        return rebatch([batch], self.batch_rows)
