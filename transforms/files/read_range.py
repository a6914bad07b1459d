"""Read a range of a Parquet, CSV or JSON file as source batches."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.arrow_values import without_views
from common.cells import is_list, is_text
from common.errors import InputError, one_line
from common.memory import check_memory
from common.record_batch import BATCH_BYTES, cut, rebatch, row_bytes
from transforms.files.columns import Columns, id_prefix
from transforms.files.csv.header import read_header
from transforms.files.csv.parse import CsvRows, UnclosedQuote, read_lines, whole_rows
from transforms.files.hive import add_keys, add_to_lines, with_keys
from transforms.files.json_documents import read_document
from transforms.files.parquet import open_parquet
from transforms.files.pins import unchanged
from transforms.files.ranges import FileRange
from transforms.files.text_lines import Block, line_blocks
from transforms.json_rows.decode import Decoded, decode_json
from transforms.json_rows.row_format import RowFormat
from transforms.json_rows.values import JSON_SPACE


def read_range(
    part: FileRange, columns: Columns, batch_rows: int, batch_bytes: int = BATCH_BYTES
) -> Iterator[Decoded]:
    """Read a range of a file as source batches, together with the rows that could not be read.

    Rows without an id get one that is derived from the path of the file and their position in
    it: the number of a Parquet row, or the byte at which a line starts. The derived id is the
    same in every run, however the file is split. The spans of the results cover the range, in
    rows for Parquet and in bytes for other formats.

    Args:
        part: The range.
        columns: The columns to read.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The maximum number of bytes of a batch that has several rows: of its columns,
            or of the text of JSON rows.

    Raises:
        InputError: The file as a whole cannot be read, or has changed since it was pinned.
    """
    readers = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}
    with unchanged(part.pin):
        yield from readers[part.format](part, columns, batch_rows, batch_bytes)


def _read_parquet(
    part: FileRange, columns: Columns, batch_rows: int, batch_bytes: int
) -> Iterator[Decoded]:
    rows, prefix = 0, id_prefix(part.path)
    with open_parquet(part.path, part.pin, columns.categories) as parquet:
        stored = parquet.schema_arrow
        names = columns.names(with_keys(stored, part.keys), part.path)
        own = [name for name in names if name in stored.names]
        groups = list(range(part.start, part.stop))
        # A slice keeps the whole batch in memory, so a batch that is too large is not read at all.
        at_once = min(batch_rows, max(batch_bytes // _row_bytes(parquet, groups, own), 1))
        try:
            batches = parquet.batches(at_once, groups, own)
            if part.skip is not None:
                batches = _between(batches, part.skip, part.skip + part.rows)
            for batch in rebatch(batches, batch_rows, batch_bytes):
                _check_text(batch)
                first = part.first_row + rows
                positions = np.arange(batch.num_rows) + first
                whole = add_keys(without_views(batch), names, part.keys, part.path)
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


def _between(batches: Iterable[pa.RecordBatch], start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows from `start` up to `stop`, without reading the batches after them."""
    at = 0
    for batch in batches:
        first, last = max(start - at, 0), min(stop - at, batch.num_rows)
        if first < last:
            yield batch.slice(first, last - first)
        at += batch.num_rows
        if at >= stop:
            return


def _row_bytes(parquet: pq.ParquetFile, groups: Sequence[int], names: Sequence[str]) -> int:
    """Return about how many bytes a row of some row groups takes in memory, at least 1.

    The footer counts encoded bytes, which are fewer if values repeat, and the types do not say how
    long texts and lists are. So the larger of both counts.
    """
    kinds = sum(row_bytes(parquet.schema_arrow.field(name).type) for name in names)
    chosen = {*names}
    places = [
        i
        for i in range(len(parquet.schema))
        if parquet.schema.column(i).path.partition(".")[0] in chosen
    ]
    largest = 0
    for group in map(parquet.metadata.row_group, groups):
        encoded = sum(group.column(i).total_uncompressed_size for i in places)
        largest = max(largest, encoded // max(group.num_rows, 1))
    return max(kinds, largest, 1)


def _check_text(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid if text is not UTF-8, which Arrow does not check on its own."""
    for column in batch.columns:
        values = column.dictionary if pa.types.is_dictionary(column.type) else column
        values = values.flatten() if is_list(values.type) else values
        if is_text(values.type):
            values.validate(full=True)


def _row_groups(part: FileRange) -> str:
    """Return the name of a range's row groups, such as `row group 3` or `row groups 0 to 2`."""
    first, last = part.start, part.stop - 1
    return f"row group {first}" if first == last else f"row groups {first} to {last}"


def _read_jsonl(
    part: FileRange, columns: Columns, batch_rows: int, batch_bytes: int
) -> Iterator[Decoded]:
    row_format = RowFormat(columns.manifest, columns.id_column, columns.keep)
    wanted = {*row_format.names, *row_format.keep, row_format.id_column}
    keys = {name: value for name, value in part.keys.items() if name in wanted}
    prefix = id_prefix(part.path)
    for texts, places, span in _json_rows(part):
        for piece in _text_slices(texts, batch_rows, batch_bytes):
            some = texts[piece]
            if keys:
                some = add_to_lines(some, keys, {*row_format.names}, part.path)
            yield decode_json(some, [f"{prefix}-{at}" for at in places[piece]], row_format)
        yield Decoded(batch=None, failed_ids=[], failed_payloads=[], faults=[], span=span)


def _text_slices(texts: Sequence[bytes], rows: int, size: int) -> Iterator[slice]:
    """Return consecutive slices that cover all texts, with at most `rows` texts and `size` bytes.

    A text that is larger is a slice alone.
    """
    start, total = 0, 0
    for at, text in enumerate(texts):
        if at - start == rows or (at > start and total + len(text) > size):
            yield slice(start, at)
            start, total = at, 0
        total += len(text)
    if start < len(texts):
        yield slice(start, len(texts))


def _json_rows(part: FileRange) -> Iterator[tuple[list[bytes], list[int], tuple[int, int]]]:
    """Yield the texts of rows, the bytes at which they start, and the span of the file."""
    if part.document:
        rows = read_document(part.path)
        yield [text for _, text in rows], [at for at, _ in rows], (part.start, part.stop)
        return
    for start, block, span in _blocks(part):
        texts, places, at = [], [], start
        for line in block.split(b"\n"):
            # Some editors on Windows write a UTF-8 byte order mark at the start of a file.
            text = (line.removeprefix(BOM_UTF8) if at == 0 else line).strip(JSON_SPACE)
            if text:
                texts.append(text)
                places.append(at)
            at += len(line) + 1
        yield texts, places, span


def _read_csv(
    part: FileRange, columns: Columns, batch_rows: int, batch_bytes: int
) -> Iterator[Decoded]:
    header = read_header(part.path, part.dialect)
    dialect = replace(part.dialect, delimiter=header.delimiter)
    stored = pa.schema([(name, pa.string()) for name in header.names])
    names = columns.names(with_keys(stored, part.keys), part.path)
    types = columns.csv_types([name for name in names if name in header.names])
    blocks, prefix = (_from(header.size, block) for block in _blocks(part)), id_prefix(part.path)
    try:
        for begin, block, span in whole_rows(blocks, dialect):
            rows = read_lines(block, begin, header.names, types, dialect)
            for batch, offsets in _csv_batches(rows, batch_rows, batch_bytes):
                whole = add_keys(batch, names, part.keys, part.path)
                source = columns.with_ids(whole, prefix, offsets)
                yield Decoded(batch=source, failed_ids=[], failed_payloads=[], faults=[])
            yield from _failed_csv(rows, prefix)
            yield Decoded(batch=None, failed_ids=[], failed_payloads=[], faults=[], span=span)
    except UnclosedQuote as error:
        raise InputError(f"{part.path}: {error}") from error


def _csv_batches(
    rows: CsvRows, batch_rows: int, batch_bytes: int
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Yield rows of a CSV file in batches, with the bytes at which they start."""
    start = 0
    for whole in rows.columns.combine_chunks().to_batches():
        for batch in cut(whole, batch_rows, batch_bytes):
            yield batch, rows.offsets[start : start + batch.num_rows]
            start += batch.num_rows


def _failed_csv(rows: CsvRows, prefix: str) -> Iterator[Decoded]:
    """Yield the rows of a CSV file that could not be read, if there are any."""
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
