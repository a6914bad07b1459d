"""Read Parquet, CSV and JSON Lines files as source batches, in parallel ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import FileMetadata

from common.record_batch import BATCH_BYTES, BATCH_ROWS, typed
from transforms.accounts import (
    Count,
    Entry,
    Settle,
    expect_rows,
    joined,
    promise,
    rows_read,
    taken,
    unknown_rows,
)
from transforms.files.columns import Columns
from transforms.files.csv.dialect import PLAIN, Dialect
from transforms.files.hive import Condition
from transforms.files.ranges import (
    FileFormat,
    FileRange,
    PlannedFile,
    match_inputs,
    plan_file,
    split_file,
)
from transforms.files.read_range import read_range
from transforms.json_rows.decode import emit
from transforms.provenance import Provenance


class Read(NamedTuple):
    """The outputs of a source.

    Attributes:
        good: Source batches.
        failures: Dead letters of rows that could not be read.
        counts: What was expected and what was read (transforms/accounts.py).
    """

    good: beam.PCollection[pa.RecordBatch]
    failures: beam.PCollection[pa.RecordBatch]
    counts: beam.PCollection[Count]


class _ReadRangeDoFn(beam.DoFn):
    """A DoFn that reads file ranges as source batches.

    Rows that cannot be read go to the output `failures`. Entries that record what was read from
    each file go to the output `entries`.
    """

    def __init__(
        self, columns: Columns, provenance: Provenance, batch_rows: int, batch_bytes: int
    ) -> None:
        self._columns = columns
        self._provenance = provenance
        self._batch_rows, self._batch_bytes = batch_rows, batch_bytes

    def process(self, part: FileRange) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        spans, rows = [], 0
        for decoded in read_range(part, self._columns, self._batch_rows, self._batch_bytes):
            yield from emit(decoded, self._provenance)
            spans += [] if decoded.span is None else [decoded.span]
            rows += decoded.rows
        for start, stop in joined(spans):
            yield beam.pvalue.TaggedOutput("entries", taken(part.path, part.unit, start, stop))
        yield beam.pvalue.TaggedOutput("entries", rows_read(part.path, rows))


def promise_file(file: PlannedFile) -> Iterator[Entry]:
    """Yield the entries that record that a file was opened, and promise what it holds."""
    yield taken(file.pin.path, "files", 0, 1)
    yield promise(file.pin.path, file.unit, file.size)
    if file.format == "parquet":
        yield expect_rows(file.pin.path, file.size, "Parquet footers")
    else:
        yield unknown_rows(
            file.pin.path,
            "rows of text files are counted only by reading them, so bytes are compared",
        )


def read_matched(
    files: beam.PCollection[FileMetadata],
    columns: Columns,
    provenance: Provenance,
    file_format: FileFormat | None,
    *,
    batch_rows: int,
    batch_bytes: int = BATCH_BYTES,
    dialect: Dialect = PLAIN,
    hive: bool = True,
    range_rows: int | None = None,
) -> Read:
    """Read matched files: plan and split each one, distribute the ranges, and read them.

    The steps that match and plan files record what is expected. The step that reads them records
    what was read.

    Args:
        files: The matched files.
        columns: The columns to read.
        provenance: The run and the model that dead letters name.
        file_format: The format of all files, or None to detect it from each file's suffix.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The maximum number of bytes of a batch that has several rows.
        dialect: How CSV files are written.
        hive: Whether folders of the form NAME=VALUE are columns.
        range_rows: The number of rows of a range of a Parquet file (see `split_file`).
    """
    matched = files | "Matched" >> beam.Map(lambda file: promise(file.path, "files", 1))
    spread = files | "SpreadFiles" >> beam.Reshuffle()
    planned = spread | "Plan" >> beam.Map(plan_file, file_format, dialect, hive=hive)
    read = (
        planned
        | "Split" >> beam.FlatMap(split_file, range_rows)
        | "SpreadRanges" >> beam.Reshuffle()
        | "Read"
        >> beam.ParDo(_ReadRangeDoFn(columns, provenance, batch_rows, batch_bytes)).with_outputs(
            "failures", "entries", main="good"
        )
    )
    promised = planned | "Promise" >> beam.FlatMap(promise_file)
    entries = (matched, promised, read.entries) | "Entries" >> beam.Flatten()
    return Read(typed(read.good), typed(read.failures), entries | "Settle" >> Settle())


@dataclass(kw_only=True)
class ReadFiles(beam.PTransform):
    """A transform that reads files: it returns source batches, and dead letters of other rows.

    Attributes:
        patterns: Paths, globs and folders.
        columns: The columns to read.
        provenance: The run and the model that dead letters name.
        file_format: The format of all files, or None to detect it from each file's suffix.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The maximum number of bytes of a batch that has several rows.
        dialect: How CSV files are written.
        conditions: The conditions on folders of the form NAME=VALUE that a file must fulfil.
        range_rows: The number of rows of a range of a Parquet file; larger row groups are cut. None
            keeps row groups whole.
    """

    patterns: Sequence[str]
    columns: Columns
    provenance: Provenance
    file_format: FileFormat | None = None
    batch_rows: int = BATCH_ROWS
    batch_bytes: int = BATCH_BYTES
    dialect: Dialect = PLAIN
    conditions: tuple[Condition, ...] = ()
    range_rows: int | None = None

    def expand(self, pipeline: beam.Pipeline) -> Read:
        """Match the patterns, then read the files."""
        patterns = pipeline | "Patterns" >> beam.Create([list(self.patterns)])
        files = patterns | "Match" >> beam.FlatMap(match_inputs, self.conditions)
        return read_matched(
            files,
            self.columns,
            self.provenance,
            self.file_format,
            batch_rows=self.batch_rows,
            batch_bytes=self.batch_bytes,
            dialect=self.dialect,
            range_rows=self.range_rows,
        )
