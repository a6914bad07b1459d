"""Read Parquet, CSV and JSON Lines files as source batches, in parallel ranges."""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystem import FileMetadata

from common.errors import InputError, one_line, suggest
from common.memory import check_memory
from common.record_batch import derived_ids, rebatch, slices, source_batch, typed
from model_handlers.manifest import Manifest
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
from transforms.cells import is_number, is_text
from transforms.files.csv_dialect import PLAIN, Dialect
from transforms.files.csv_header import read_header
from transforms.files.csv_lines import CsvRows, UnclosedQuote, read_lines, whole_rows
from transforms.files.hive import Condition, add_keys, add_to_lines, with_keys
from transforms.files.json_documents import read_document
from transforms.files.pins import unchanged
from transforms.files.ranges import (
    FileFormat,
    FileRange,
    PlannedFile,
    match_inputs,
    open_parquet,
    plan_file,
    split_file,
)
from transforms.files.text_lines import Block, line_blocks
from transforms.json_rows.decode import Decoded, decode_json, emit
from transforms.json_rows.row_format import RowFormat
from transforms.provenance import Provenance
from transforms.row_ids import content_ids
from transforms.texts import id_column, is_binary
from transforms.validate import VECTOR_COLUMN, source_columns

# The whitespace that JSON allows around a value. Python would strip more.
_JSON_SPACE = b" \t\r\n"


@dataclass(frozen=True)
class Columns:
    """The columns to read: the model's features, the id, and additional columns.

    Attributes:
        manifest: The manifest of the model.
        id_column: The column that holds the row id, or None to derive the ids.
        keep: Additional columns to pass through.
        ids_by_content: Whether ids are derived from the values of the features. It is needed for
            sources in which a row has no fixed position.
        any_case: Whether the case of names does not matter, as in BigQuery.
    """

    manifest: Manifest
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    ids_by_content: bool = False
    any_case: bool = False

    def spelled(self, available: pa.Schema) -> pa.Schema:
        """Return the columns of a source, each under the name by which it is looked up.

        With `any_case`, a column whose name only differs in case from one to read gets its name.
        """
        if not self.any_case:
            return available
        inputs = (spec.name for spec in self.manifest.inputs)
        looked_up = (VECTOR_COLUMN, *inputs, *self.manifest.features, *self.keep, self.id_column)
        names = {name.lower(): name for name in looked_up if name is not None}
        return pa.schema([f.with_name(names.get(f.name.lower(), f.name)) for f in available])

    def names(self, available: pa.Schema, path: str) -> list[str]:
        """Return the columns to read from a file as the file names them, and in its order.

        Args:
            available: The columns of the file.
            path: The path of the file, for messages.

        Raises:
            InputError: A column is missing, occurs twice, or has a type that cannot be used.
        """
        own = {*self.keep, *filter(None, [self.id_column])}
        spelled = self.spelled(available)
        counts = Counter(spelled.names)
        single = pa.schema([field for field in spelled if counts[field.name] == 1])
        for name in sorted(own.union(self.manifest.features)):
            if counts[name] > 1:
                raise InputError(
                    f"{path} has {counts[name]} columns named {name!r}: expected one; rename or "
                    "remove the others"
                )
        try:
            wanted = own.union(*source_columns(self.manifest, single).values())
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        for name in sorted(wanted - set(single.names)):
            raise InputError(
                f"{path} lacks column {name!r}{suggest(name, single.names)}; it has "
                f"{', '.join(single.names[:40])}"
            )
        if self.id_column is not None:
            _check_id(path, single.field(self.id_column))
        named = zip(available.names, spelled.names, strict=True)
        return [name for name, looked_up in named if looked_up in wanted]

    def csv_types(self, names: Sequence[str]) -> dict[str, pa.DataType]:
        """Return the types with which columns of a CSV file are read.

        Features are read as numbers. Columns that are passed through, and the id, are strings.
        """
        types = dict.fromkeys(names, pa.string())
        for spec in self.manifest.inputs:
            number = pa.float64() if spec.dtype.startswith("float") else pa.int64()
            types |= {n: number for n in spec.columns if n in types}
        return types | {n: pa.string() for n in (*self.keep, self.id_column) if n in types}

    def with_ids(self, batch: pa.RecordBatch, prefix: str, positions: np.ndarray) -> pa.RecordBatch:
        """Return a source batch of columns as they were read.

        A row whose id is null gets the derived id.

        Args:
            batch: The columns.
            prefix: The part of derived ids that stands for the file.
            positions: The position of each row in the file [rows].
        """
        if self.any_case:
            batch = batch.rename_columns(self.spelled(batch.schema).names)
        ids = None if self.id_column is None else id_column(batch.column(self.id_column))
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
    """Raise InputError for a type that cannot be a row id, such as a list."""
    kind = column.type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if isinstance(value, pa.BaseExtensionType):
        value = value.storage_type
    is_simple = is_text(value) or is_number(value) or is_binary(value)
    if not (is_simple or pa.types.is_temporal(value)):
        raise InputError(
            f"{path}: id column {column.name!r}: expected text, numbers, times, UUIDs or bytes, "
            f"got {kind}: choose another --id_column"
        )


def read_range(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    """Read a range of a file as source batches, together with the rows that could not be read.

    Rows without an id get one that is derived from the path of the file and their position in
    it: the number of a Parquet row, or the byte at which a line starts. The derived id is the
    same in every run, however the file is split. The spans of the results cover the range, in
    rows for Parquet and in bytes for other formats.

    Args:
        part: The range.
        columns: The columns to read.
        batch_rows: The maximum number of rows in a batch.

    Raises:
        InputError: The file as a whole cannot be read, or has changed since it was pinned.
    """
    readers = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}
    with unchanged(part.pin):
        yield from readers[part.format](part, columns, batch_rows)


def id_prefix(path: str) -> str:
    """Return the part of derived ids that stands for a file: 12 hex digits from its path."""
    return hashlib.blake2b(path.encode(), digest_size=6).hexdigest()


def _read_parquet(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    rows, prefix = 0, id_prefix(part.path)
    with open_parquet(part.path) as parquet:
        stored = parquet.schema_arrow
        names = columns.names(with_keys(stored, part.keys), part.path)
        own = [name for name in names if name in stored.names]
        groups = list(range(part.start, part.stop))
        try:
            # Use one thread: Beam's workers provide the parallelism, and memory stays bounded.
            for batch in rebatch(
                parquet.iter_batches(batch_rows, groups, columns=own, use_threads=False),
                batch_rows,
            ):
                _check_text(batch)
                first = part.first_row + rows
                positions = np.arange(batch.num_rows) + first
                whole = add_keys(batch, names, part.keys, part.path)
                yield Decoded(
                    batch=columns.with_ids(whole, prefix, positions),
                    failed_ids=[],
                    failed_payloads=[],
                    faults=[],
                    span=(first, first + batch.num_rows),
                )
                rows += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            check_memory(error, part.path)
            raise InputError(
                f"{part.path} is damaged in {_row_groups(part)}: {one_line(error)}"
            ) from error
    if rows != part.rows:
        raise InputError(
            f"{part.path} is damaged in {_row_groups(part)}: the footer says {part.rows} rows, but "
            f"{rows} were read; write the file again"
        )


def _check_text(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid if text is not UTF-8, which Arrow does not check on its own."""
    for column in batch.columns:
        if is_text(column.type):
            column.validate(full=True)


def _row_groups(part: FileRange) -> str:
    """Return the name of a range's row groups, such as `row group 3` or `row groups 0 to 2`."""
    first, last = part.start, part.stop - 1
    return f"row group {first}" if first == last else f"row groups {first} to {last}"


def _read_jsonl(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    row_format = RowFormat(columns.manifest, columns.id_column, columns.keep)
    wanted = {*row_format.names, *row_format.keep, row_format.id_column}
    keys = {name: value for name, value in part.keys.items() if name in wanted}
    prefix = id_prefix(part.path)
    for rows, span in _json_rows(part):
        for piece in slices(len(rows), batch_rows):
            texts = [text for _, text in rows[piece]]
            if keys:
                texts = add_to_lines(texts, keys, {*row_format.names}, part.path)
            yield decode_json(texts, [f"{prefix}-{at}" for at, _ in rows[piece]], row_format)
        yield Decoded(batch=None, failed_ids=[], failed_payloads=[], faults=[], span=span)


def _json_rows(part: FileRange) -> Iterator[tuple[list[tuple[int, bytes]], tuple[int, int]]]:
    """Yield the texts of rows, each with the byte at which it starts, and the span of the file."""
    if part.document:
        yield read_document(part.path), (part.start, part.stop)
        return
    for start, block, span in _blocks(part):
        rows, at = [], start
        for line in block.split(b"\n"):
            # Some editors on Windows write a UTF-8 byte order mark at the start of a file.
            text = (line.removeprefix(BOM_UTF8) if at == 0 else line).strip(_JSON_SPACE)
            if text:
                rows.append((at, text))
            at += len(line) + 1
        yield rows, span


def _read_csv(part: FileRange, columns: Columns, batch_rows: int) -> Iterator[Decoded]:
    header = read_header(part.path, part.dialect)
    dialect = replace(part.dialect, delimiter=header.delimiter)
    stored = pa.schema([(name, pa.string()) for name in header.names])
    names = columns.names(with_keys(stored, part.keys), part.path)
    types = columns.csv_types([name for name in names if name in header.names])
    blocks = (_from(header.size, block) for block in _blocks(part))
    try:
        for begin, block, span in whole_rows(blocks, dialect):
            rows = read_lines(block, begin, header.names, types, dialect)
            yield from _decoded_csv(rows, part, columns, names, batch_rows)
            yield Decoded(batch=None, failed_ids=[], failed_payloads=[], faults=[], span=span)
    except UnclosedQuote as error:
        raise InputError(f"{part.path}: {error}") from error


def _decoded_csv(
    rows: CsvRows, part: FileRange, columns: Columns, names: Sequence[str], batch_rows: int
) -> Iterator[Decoded]:
    """Yield rows of a CSV file in batches, then the rows that could not be read."""
    start, prefix = 0, id_prefix(part.path)
    for batch in rows.columns.combine_chunks().to_batches(batch_rows):
        offsets = rows.offsets[start : start + batch.num_rows]
        whole = add_keys(batch, names, part.keys, part.path)
        source = columns.with_ids(whole, prefix, offsets)
        yield Decoded(batch=source, failed_ids=[], failed_payloads=[], faults=[])
        start += batch.num_rows
    if rows.failed:
        yield Decoded(
            batch=None,
            failed_ids=[f"{prefix}-{offset}" for offset, _, _ in rows.failed],
            failed_payloads=[line for _, line, _ in rows.failed],
            faults=[fault for _, _, fault in rows.failed],
        )


def _blocks(part: FileRange) -> Iterator[Block]:
    """Yield the lines of a range of a text file."""
    encoding = part.dialect.encoding if part.format == "csv" else "utf-8"
    return line_blocks(part.path, part.start, part.stop, part.compression, encoding)


def _from(start: int, block: Block) -> Block:
    """Return a block without what is before a byte of the file."""
    cut = min(max(start - block.offset, 0), len(block.lines))
    return Block(block.offset + cut, block.lines[cut:], block.span)


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

    def __init__(self, columns: Columns, provenance: Provenance, batch_rows: int) -> None:
        self._columns = columns
        self._provenance = provenance
        self._batch_rows = batch_rows

    def process(self, part: FileRange) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        spans, rows = [], 0
        for decoded in read_range(part, self._columns, self._batch_rows):
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
    dialect: Dialect = PLAIN,
    hive: bool = True,
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
        dialect: How CSV files are written.
        hive: Whether folders of the form NAME=VALUE are columns.
    """
    matched = files | "Matched" >> beam.Map(lambda file: promise(file.path, "files", 1))
    spread = files | "SpreadFiles" >> beam.Reshuffle()
    planned = spread | "Plan" >> beam.Map(plan_file, file_format, dialect, hive=hive)
    read = (
        planned
        | "Split" >> beam.FlatMap(split_file)
        | "SpreadRanges" >> beam.Reshuffle()
        | "Read"
        >> beam.ParDo(_ReadRangeDoFn(columns, provenance, batch_rows)).with_outputs(
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
        dialect: How CSV files are written.
        conditions: The conditions on folders of the form NAME=VALUE that a file must fulfil.
    """

    patterns: Sequence[str]
    columns: Columns
    provenance: Provenance
    file_format: FileFormat | None = None
    batch_rows: int = 32_768
    dialect: Dialect = PLAIN
    conditions: tuple[Condition, ...] = ()

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
            dialect=self.dialect,
        )
