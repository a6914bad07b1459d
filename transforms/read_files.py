"""ReadFiles: Parquet, CSV and JSON lines as source batches, in parallel ranges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from model_handlers.contract import Manifest
from model_handlers.errors import InputError, nearest
from transforms.decode import Decoded, RowFormat, decode_json
from transforms.failures import Fault, Provenance, failure_batch, utc_now
from transforms.file_ranges import (
    FileFormat,
    FileRange,
    match_files,
    open_file,
    open_parquet,
    split_file,
)
from transforms.record_batch import (
    derived_ids,
    rebatch,
    source_batch,
    typed,
)
from transforms.validate import source_columns

BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Columns:
    """What is read of each row: the model's columns, the id's, and further ones."""

    manifest: Manifest
    id_column: str | None = None
    keep: tuple[str, ...] = ()

    def names(self, available: pa.Schema, path: str) -> list[str]:
        """A file's columns -> those to read, in the file's order. Raises InputError."""
        wanted = {c for group in source_columns(self.manifest, available).values() for c in group}
        wanted |= {*self.keep, *filter(None, [self.id_column])}
        for name in sorted(wanted - set(available.names)):
            raise InputError(
                f"{path} lacks column {name!r}{nearest(name, available.names)}; it has "
                f"{', '.join(available.names[:40])}"
            )
        return [name for name in available.names if name in wanted]


def file_schema(path: str, file_format: FileFormat) -> pa.Schema | None:
    """A file -> its columns and types; None where each row names its own (JSON lines)."""
    if file_format == "parquet":
        with open_parquet(path) as parquet:
            return parquet.schema_arrow
    if file_format == "csv":
        return pa.schema([(name, pa.string()) for name in _csv_header(path)])
    return None


def read_range(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    """A range of a file -> its rows as source batches, with what could not be read.

    Rows without an id column get one from the file's path and their position: the
    same in every run. Raises InputError where the file as a whole is at fault.
    """
    if part.format == "parquet":
        batches = _read_parquet(part, columns, batch_rows)
        return (Decoded(batch, [], [], []) for batch in batches)
    if part.format == "csv":
        return _read_csv(part, columns, batch_rows)
    return _read_jsonl(part, columns, batch_rows)


def id_prefix(path: str) -> str:
    """A file's path -> the part of a derived id that stands for the file, 12 hex digits."""
    return hashlib.blake2b(path.encode(), digest_size=6).hexdigest()


def _read_parquet(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[pa.RecordBatch]:
    rows, prefix = 0, id_prefix(part.path)
    with open_parquet(part.path) as parquet:
        names = columns.names(parquet.schema_arrow, part.path)
        groups = list(range(part.start, part.stop))
        try:
            # One thread: Beam's workers are the parallelism, and memory stays bounded.
            for batch in rebatch(
                parquet.iter_batches(batch_rows, groups, columns=names, use_threads=False),
                batch_rows,
            ):
                yield _with_ids(batch, columns.id_column, prefix, part.first_row + rows)
                rows += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{part.path} is damaged in row groups {part.start} to {part.stop - 1}: "
                f"{str(error).splitlines()[0]}"
            ) from error
    if rows != part.rows:
        raise InputError(f"{part.path}: its footer promises {part.rows} rows, it holds {rows}")


def _with_ids(
    batch: pa.RecordBatch, id_column: str | None, prefix: str, position: int
) -> pa.RecordBatch:
    """Columns as read, and the position of the first row -> a source batch.

    A row whose id is null is still a row: it gets the derived one.
    """
    ids = None if id_column is None else batch.column(id_column).cast(pa.string())
    if ids is None or ids.null_count:
        derived = derived_ids(prefix, position, batch.num_rows)
        ids = derived if ids is None else pc.coalesce(ids, derived)
    return source_batch(ids, batch)


def line_blocks(path: str, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """A byte range of a text file -> (offset, whole lines) in blocks of some megabytes.

    A line belongs to the range in which it begins, so ranges side by side give each
    line once.
    """
    with open_file(path) as handle:
        offset = start
        if start > 0:
            # The line that the byte before belongs to is the neighbour's.
            handle.seek(start - 1)
            offset = start - 1 + len(handle.readline())
        while offset < stop:
            block = handle.read(min(BLOCK_BYTES, stop - offset))
            if not block:
                return
            if not block.endswith(b"\n"):
                block += handle.readline()
            yield offset, block
            offset += len(block)


def _read_jsonl(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    row_format = RowFormat.of(columns.manifest, columns.id_column, columns.keep)
    prefix = id_prefix(part.path)
    for start_of_block, block in line_blocks(part.path, part.start, part.stop):
        lines, positions, offset = [], [], start_of_block
        for line in block.splitlines(keepends=True):
            stripped = line.strip()
            if stripped:
                lines.append(stripped)
                positions.append(f"{prefix}-{offset}")
            offset += len(line)
        for start in range(0, len(lines), batch_rows):
            stop = start + batch_rows
            yield decode_json(lines[start:stop], positions[start:stop], row_format)


def _csv_header(path: str) -> list[str]:
    """A CSV file -> the names in its first line. Raises InputError."""
    with open_file(path) as handle:
        line = handle.readline()
    if not line.strip():
        raise InputError(f"{path} is empty: expected a CSV file with a header line")
    try:
        return list(pa_csv.read_csv(pa.BufferReader(line)).column_names)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: its first line is not a CSV header: {error}") from error


def _read_csv(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    header = _csv_header(part.path)
    names = columns.names(pa.schema([(name, pa.string()) for name in header]), part.path)
    for offset, block in line_blocks(part.path, part.start, part.stop):
        skip = 1 if offset == 0 else 0
        table, faults, payloads = _parse_csv(block, header, names, columns, skip, part.path)
        prefix = f"{id_prefix(part.path)}-{offset}"
        position = 0
        for batch in table.combine_chunks().to_batches(batch_rows):
            yield Decoded(_with_ids(batch, columns.id_column, prefix, position), [], [], [])
            position += batch.num_rows
        failed_ids = [f"{prefix}-unreadable-{i}" for i in range(len(faults))]
        yield Decoded(None, list(failed_ids), payloads, faults)


def _parse_csv(
    block: bytes,
    header: Sequence[str],
    names: Sequence[str],
    columns: Columns,
    skip: int,
    path: str,
) -> tuple[pa.Table, list[Fault], list[bytes]]:
    """Whole lines of a CSV file -> the named columns; lines of another width apart.

    Features are read as numbers; where one is text they are all read as text, which
    validation then judges row by row.
    """
    faults: list[Fault] = []
    payloads: list[bytes] = []

    def reject(row: Any) -> str:
        message = f"expected {row.expected_columns} columns, got {row.actual_columns}"
        faults.append(Fault("wrong_width", message))
        payloads.append((row.text or "").encode())
        return "skip"

    features = set(columns.manifest.features)
    for number in (pa.float64(), pa.string()):
        faults.clear()
        payloads.clear()
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(block),
                pa_csv.ReadOptions(column_names=list(header), skip_rows=skip, use_threads=False),
                pa_csv.ParseOptions(invalid_row_handler=reject),
                pa_csv.ConvertOptions(
                    column_types={n: number if n in features else pa.string() for n in names},
                    include_columns=list(names),
                    strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid as error:
            if number == pa.float64() and "CSV conversion error" in str(error):
                continue
            if "Empty CSV file" in str(error):
                return pa.table({n: pa.array([], pa.string()) for n in names}), faults, payloads
            raise InputError(f"{path} is not readable as CSV: {error}") from error
        return table, faults, payloads
    raise InputError(f"{path} is not readable as CSV, not even as text")


class Read(NamedTuple):
    """What ReadFiles returns: source batches, and failure records of unreadable rows."""

    good: beam.PCollection[pa.RecordBatch]
    failures: beam.PCollection[pa.RecordBatch]


class _ReadRangeDoFn(beam.DoFn):
    """File ranges -> source batches; unreadable rows go to the output `failures`."""

    def __init__(self, columns: Columns, provenance: Provenance, batch_rows: int) -> None:
        self._columns = columns
        self._provenance = provenance
        self._batch_rows = batch_rows

    def process(self, part: FileRange) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        for decoded in read_range(part, self._columns, self._batch_rows):
            if decoded.batch is not None and decoded.batch.num_rows:
                yield decoded.batch
            if decoded.faults:
                failures = failure_batch(
                    decoded.failed_ids,
                    decoded.failed_payloads,
                    decoded.faults,
                    stage="decode",
                    provenance=self._provenance,
                    failed_at=utc_now(),
                )
                yield beam.pvalue.TaggedOutput("failures", failures)


@dataclass
class ReadFiles(beam.PTransform):
    """Nothing -> the rows of files as source batches, and failure records.

    patterns: paths, globs, folders. file_format: None tells it by each file's suffix.
    batch_rows: rows of a batch at most.
    """

    patterns: Sequence[str]
    columns: Columns
    provenance: Provenance
    file_format: FileFormat | None = None
    batch_rows: int = 8192

    def _split(self, patterns: Sequence[str]) -> Iterable[FileRange]:
        for file in match_files(patterns):
            yield from split_file(file, self.file_format)

    def expand(self, pipeline: beam.Pipeline) -> Read:
        """match -> split -> spread over workers -> read."""
        ranges = pipeline | "Patterns" >> beam.Create([list(self.patterns)])
        ranges |= "Split" >> beam.FlatMap(self._split)
        spread = ranges | "Spread" >> beam.Reshuffle()
        read = spread | "Read" >> beam.ParDo(
            _ReadRangeDoFn(self.columns, self.provenance, self.batch_rows)
        ).with_outputs("failures", main="good")
        return Read(typed(read.good), typed(read.failures))
