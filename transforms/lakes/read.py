"""Read a table of Delta Lake or Apache Iceberg as source batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa

from common.record_batch import BATCH_BYTES, BATCH_ROWS, rebatch, typed
from transforms.accounts import Settle, expect_rows, promise, rows_read, taken, unknown_rows
from transforms.files.columns import Columns, id_prefix
from transforms.files.read import Read
from transforms.lakes.table import LakeTable, LakeVersion, lake_errors


class _ReadFileDoFn(beam.DoFn):
    """A DoFn that reads files of a table as source batches."""

    def __init__(
        self, named: LakeVersion, columns: Columns, batch_rows: int, batch_bytes: int
    ) -> None:
        self._named = named
        self._columns = columns
        self._batch_rows, self._batch_bytes = batch_rows, batch_bytes
        self._table: LakeTable | None = None

    def process(self, path: str) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        # The log of the table is read once for all files.
        self._table = self._table or self._named.open()
        place, rows, prefix = self._named.place, 0, id_prefix(path)
        with lake_errors(place):
            names = self._columns.names(self._table.schema, place)
            batches = self._table.batches(path, names, self._batch_rows)
            for batch in rebatch(batches, self._batch_rows, self._batch_bytes):
                yield self._columns.with_ids(batch, prefix, np.arange(batch.num_rows) + rows)
                rows += batch.num_rows
        yield beam.pvalue.TaggedOutput("entries", taken(path, "files", 0, 1))
        yield beam.pvalue.TaggedOutput("entries", rows_read(path, rows))


@dataclass(kw_only=True)
class ReadLake(beam.PTransform):
    """A source that reads the rows of a table at one version; no row can fail.

    Attributes:
        named: The table and its version.
        columns: The columns to read.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The maximum number of bytes of a batch that has several rows.
    """

    named: LakeVersion
    columns: Columns
    batch_rows: int = BATCH_ROWS
    batch_bytes: int = BATCH_BYTES

    def _files(self, named: LakeVersion) -> Iterator[str | beam.pvalue.TaggedOutput]:
        with lake_errors(named.place):
            files = named.open().files()
        for file in files:
            yield file.path
            yield beam.pvalue.TaggedOutput("entries", promise(file.path, "files", 1))
            if file.rows is None:
                why = "the log of the table does not count all rows"
                yield beam.pvalue.TaggedOutput("entries", unknown_rows(file.path, why))
            else:
                rows = expect_rows(file.path, file.rows, f"log of the {named.folder.kind} table")
                yield beam.pvalue.TaggedOutput("entries", rows)

    def expand(self, pipeline: beam.Pipeline) -> Read:
        """List the files, distribute and read them."""
        files = (
            pipeline
            | "Table" >> beam.Create([self.named])
            | "Files" >> beam.ParDo(self._files).with_outputs("entries", main="paths")
        )
        read = (
            files.paths
            | "SpreadFiles" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(
                _ReadFileDoFn(self.named, self.columns, self.batch_rows, self.batch_bytes)
            ).with_outputs("entries", main="good")
        )
        failures = pipeline | "NoFailures" >> beam.Create([], reshuffle=False)
        entries = (files.entries, read.entries) | "Entries" >> beam.Flatten()
        return Read(typed(read.good), typed(failures), entries | "Settle" >> Settle())
