"""ReadFiles: Parquet, CSV and JSON lines as source batches, in parallel ranges."""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystem import FileMetadata

from model_handlers.contract import Manifest
from model_handlers.errors import InputError, nearest, one_line
from transforms.cells import is_number, is_text
from transforms.csv_lines import read_header, read_lines
from transforms.decode import Decoded, decode_json, emit
from transforms.failures import Provenance
from transforms.file_ranges import (
    FileFormat,
    FileRange,
    match_files,
    open_parquet,
    split_file,
)
from transforms.record_batch import derived_ids, rebatch, source_batch, typed
from transforms.row_format import RowFormat
from transforms.row_ids import content_ids
from transforms.text_lines import line_blocks, open_text
from transforms.validate import source_columns


@dataclass(frozen=True)
class Columns:
    """What is read of each row: the model's columns, the id's, and further ones.

    ids_by_content: a row without an id of its own gets one from its features' values,
        for sources in which a row has no fixed place.
    """

    manifest: Manifest
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    ids_by_content: bool = False

    def names(self, available: pa.Schema, path: str) -> list[str]:
        """A file's columns -> those to read, in the file's order. Raises InputError."""
        own = {*self.keep, *filter(None, [self.id_column])}
        counts = Counter(available.names)
        single = pa.schema([field for field in available if counts[field.name] == 1])
        for name in sorted(own.union(self.manifest.features)):
            if counts[name] > 1:
                raise InputError(f"{path} has {counts[name]} columns {name!r}: expected one")
        try:
            wanted = own.union(*source_columns(self.manifest, single).values())
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        for name in sorted(wanted - set(single.names)):
            raise InputError(
                f"{path} lacks column {name!r}{nearest(name, single.names)}; it has "
                f"{', '.join(single.names[:40])}"
            )
        if self.id_column is not None:
            _check_id(path, single.field(self.id_column))
        return [name for name in single.names if name in wanted]

    def csv_types(self, names: Sequence[str]) -> dict[str, pa.DataType]:
        """Names to read -> types to read them as: numbers, and text what is kept as it came."""
        types = dict.fromkeys(names, pa.string())
        for spec in self.manifest.inputs:
            number = pa.float64() if spec.dtype.startswith("float") else pa.int64()
            types |= {n: number for n in spec.columns if n in types}
        return types | {n: pa.string() for n in (*self.keep, self.id_column) if n in types}

    def with_ids(self, batch: pa.RecordBatch, prefix: str, positions: np.ndarray) -> pa.RecordBatch:
        """Columns as read, and each row's position in its file -> a source batch.

        A row whose id is null is still a row: it gets the derived one.
        """
        ids = None if self.id_column is None else batch.column(self.id_column).cast(pa.string())
        if ids is None or ids.null_count:
            derived = self._derived_ids(batch, prefix, positions)
            ids = derived if ids is None else pc.coalesce(ids, derived)
        return source_batch(ids, batch)

    def _derived_ids(self, batch: pa.RecordBatch, prefix: str, positions: np.ndarray) -> pa.Array:
        if not self.ids_by_content:
            return derived_ids(prefix, positions)
        names = source_columns(self.manifest, batch.schema).values()
        return content_ids([batch.column(name) for columns in names for name in columns])


def _check_id(path: str, column: pa.Field) -> None:
    """Raises InputError for a type that has no text of its own, such as bytes or a list."""
    kind = column.type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (is_text(value) or is_number(value) or pa.types.is_temporal(value)):
        raise InputError(
            f"{path}: id column {column.name!r}: expected text, integers or times, got {kind}"
        )


def file_schema(path: str, file_format: FileFormat) -> pa.Schema | None:
    """A file -> its columns and types; None where each row names its own (JSON lines)."""
    if file_format == "parquet":
        with open_parquet(path) as parquet:
            return parquet.schema_arrow
    if file_format == "csv":
        return pa.schema([(name, pa.string()) for name in read_header(path)])
    return None


def has_rows(path: str, file_format: FileFormat) -> bool:
    """A file -> whether it holds at least one row, told from its first bytes or its footer."""
    if file_format == "parquet":
        with open_parquet(path) as parquet:
            return bool(parquet.metadata.num_rows)
    with open_text(path) as handle:
        if file_format == "csv":
            handle.readline()
        return any(line.strip() for line in iter(handle.readline, b""))


def read_range(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    """A range of a file -> its rows as source batches, with what could not be read.

    Rows without an id of their own get one from the file's path and their place in it:
    a Parquet row's number, the byte at which a line begins. It is the same in every
    run, however the file is cut. Raises InputError where the file as a whole is at fault.
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
                positions = np.arange(batch.num_rows) + part.first_row + rows
                yield columns.with_ids(batch, prefix, positions)
                rows += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{part.path} is damaged in row groups {part.start} to {part.stop - 1}: "
                f"{one_line(error)}"
            ) from error
    if rows != part.rows:
        raise InputError(f"{part.path}: its footer promises {part.rows} rows, it holds {rows}")


def _read_jsonl(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    row_format = RowFormat(columns.manifest, columns.id_column, columns.keep)
    prefix = id_prefix(part.path)
    for offset, block in line_blocks(part.path, part.start, part.stop):
        lines, ids = [], []
        start = offset
        for line in block.split(b"\n"):
            # Some editors on Windows mark the begin of a file as UTF-8.
            text = line.removeprefix(BOM_UTF8).strip() if start == 0 else line.strip()
            if text:
                lines.append(text)
                ids.append(f"{prefix}-{start}")
            start += len(line) + 1
        for i in range(0, len(lines), batch_rows):
            yield decode_json(lines[i : i + batch_rows], ids[i : i + batch_rows], row_format)


def _read_csv(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    header = read_header(part.path)
    names = columns.names(pa.schema([(name, pa.string()) for name in header]), part.path)
    types, prefix = columns.csv_types(names), id_prefix(part.path)
    for begin, block in line_blocks(part.path, part.start, part.stop):
        head = block.find(b"\n") + 1 or len(block) if begin == 0 else 0
        for rows in read_lines(block[head:], begin + head, header, types):
            start = 0
            for batch in rows.columns.combine_chunks().to_batches(batch_rows):
                offsets = rows.offsets[start : start + batch.num_rows]
                yield Decoded(columns.with_ids(batch, prefix, offsets), [], [], [])
                start += batch.num_rows
            if rows.failed:
                ids = [f"{prefix}-{offset}" for offset, _, _ in rows.failed]
                yield Decoded(
                    None, ids, [line for _, line, _ in rows.failed], [f for _, _, f in rows.failed]
                )


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
            yield from emit(decoded, self._provenance)


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
    batch_rows: int = 32_768

    def _split(self, file: FileMetadata) -> Iterator[FileRange]:
        return split_file(file, self.file_format)

    def expand(self, pipeline: beam.Pipeline) -> Read:
        """match -> spread the files -> split -> spread the ranges -> read."""
        patterns = pipeline | "Patterns" >> beam.Create([list(self.patterns)])
        files = patterns | "Match" >> beam.FlatMap(match_files)
        ranges = (
            files
            | "SpreadFiles" >> beam.Reshuffle()
            | "Split" >> beam.FlatMap(self._split)
            | "SpreadRanges" >> beam.Reshuffle()
        )
        read = ranges | "Read" >> beam.ParDo(
            _ReadRangeDoFn(self.columns, self.provenance, self.batch_rows)
        ).with_outputs("failures", main="good")
        return Read(typed(read.good), typed(read.failures))
