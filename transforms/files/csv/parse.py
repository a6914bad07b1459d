"""Parse blocks of CSV lines into columns at Arrow's speed, and separate the broken rows.

A row is one line or, if the dialect allows line breaks in quoted values, a record of several
lines. A row that violates the format becomes a fault: `wrong_width` (the row and the header have
different numbers of fields) or `invalid_csv` (a stray quote, a stray CR, or bytes of another
encoding). A row whose opening quote does not close is an error, because nothing shows whether the
next lines are rows or parts of the value.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from common.cells import is_text
from common.errors import InputError
from transforms.dead_letters import Fault
from transforms.files.csv.dialect import PLAIN, Dialect
from transforms.files.csv.row_bounds import CsvBlock, find_rows
from transforms.files.text_lines import Block

# The longest row of several lines, in bytes.
LONGEST_ROW = 64 << 20


class UnclosedQuote(InputError):
    """A quoted value does not end where it should, so the rest of the file cannot be read."""


@dataclass
class CsvRows:
    """Consecutive lines of a file as columns, and the rows that could not be read.

    Attributes:
        columns: The columns of the rows.
        offsets: The byte of the file at which each row starts, int64 [rows].
        failed: The offset in bytes, the text and the fault of each row that could not be read.
    """

    columns: pa.Table
    offsets: np.ndarray
    failed: list[tuple[int, bytes, Fault]]


def whole_rows(blocks: Iterable[Block], dialect: Dialect) -> Iterator[Block]:
    """Join blocks of lines, so that no block ends inside a quoted value.

    Args:
        blocks: Adjacent blocks, from the first row of a file to its end.
        dialect: How the file is written.

    Raises:
        UnclosedQuote: A quote does not close.
    """
    if not dialect.multiline:
        yield from blocks
        return
    rest = Block(0, b"", (0, 0))
    for block in blocks:
        lines, offset = rest.lines + block.lines, block.offset - len(rest.lines)
        size = find_rows(lines, dialect).complete
        yield Block(offset, lines[:size], block.span)
        rest = Block(offset + size, lines[size:], (block.span[1], block.span[1]))
        if len(rest.lines) > LONGEST_ROW:
            break
    if len(rest.lines) > LONGEST_ROW or find_rows(rest.lines, dialect).opened is not None:
        raise UnclosedQuote(
            f"a quoted value of the row at byte {rest.offset:,} does not end within "
            f"{len(rest.lines):,} bytes: close its quote in the file"
        )
    yield rest


def read_lines(
    block: bytes,
    offset: int,
    header: Sequence[str],
    types: Mapping[str, pa.DataType],
    dialect: Dialect = PLAIN,
) -> CsvRows:
    """Parse whole rows into columns.

    Args:
        block: The lines.
        offset: The byte of the file at which the block starts.
        header: The names of all columns of the file.
        types: The columns to read, and their types. A column with a value that is not of its type
            stays a string column.
        dialect: How the file is written.

    Raises:
        UnclosedQuote: A row opens a quote that it does not close.
    """
    rows = find_rows(block, dialect)
    if rows.opened is not None:
        start = offset + int(rows.stored_at(rows.starts[[rows.opened]])[0])
        raise UnclosedQuote(
            f"the line at byte {start:,} opens a quote that it does not close: if quoted values "
            "contain line breaks, pass --csv_multiline; if not, close the quote in the file"
        )
    faults = dict(rows.faults)
    good = np.delete(np.arange(len(rows.starts)), list(faults))
    columns = pa.table({})
    if len(good):
        columns, failed = _parse(rows, good, header, types, dialect)
        faults |= {int(good[i]): fault for i, fault in failed.items()}
        if columns.num_rows + len(failed) != len(good):
            raise UnclosedQuote(
                f"the {len(good):,} rows from byte {offset:,} on were read as "
                f"{columns.num_rows + len(failed):,} rows: check the quotes of their values"
            )
        good = np.delete(good, list(failed))
    starts = rows.stored_at(rows.starts)
    return CsvRows(columns, starts[good] + offset, _failed(rows, starts, offset, faults))


def _failed(
    rows: CsvBlock, starts: np.ndarray, offset: int, faults: Mapping[int, Fault]
) -> list[tuple[int, bytes, Fault]]:
    """Return where each broken row starts in the file, its bytes without line end, its fault."""
    broken = sorted(faults)
    stops = rows.stored_at(rows.ends[broken]).tolist()
    return [
        (offset + int(starts[row]), rows.stored[starts[row] : stop].rstrip(b"\r\n"), faults[row])
        for row, stop in zip(broken, stops, strict=True)
    ]


def _parse(
    rows: CsvBlock,
    good: np.ndarray,
    header: Sequence[str],
    types: Mapping[str, pa.DataType],
    dialect: Dialect,
) -> tuple[pa.Table, dict[int, Fault]]:
    """Parse rows into columns; return those of another width as faults, by position in `good`."""
    failed: dict[int, Fault] = {}

    def reject(row: Any) -> str:
        message = f"expected {row.expected_columns} columns, got {row.actual_columns}"
        failed[row.number - 1] = Fault("wrong_width", message)
        return "skip"

    text = rows.text_of(good)
    if text.startswith(BOM_UTF8):
        # Arrow would drop a byte order mark, but it is only special at the start of the file.
        text = b"\n" + text
    longest = int((rows.ends - rows.starts).max())
    parse = pa_csv.ParseOptions(
        delimiter=dialect.field_end,
        quote_char=dialect.quote or False,
        escape_char=dialect.escape or False,
        newlines_in_values=dialect.multiline,
        invalid_row_handler=reject,
    )
    return _to_table(text, header, types, longest, parse), failed


def _to_table(
    text: bytes,
    header: Sequence[str],
    types: Mapping[str, pa.DataType],
    longest: int,
    parse: pa_csv.ParseOptions,
) -> pa.Table:
    """Parse lines into the columns of `types`; columns that do not fit become strings."""
    read = pa_csv.ReadOptions(
        column_names=list(header),
        use_threads=False,
        # Arrow rejects a line that is longer than a block.
        block_size=max(1 << 20, 2 * longest),
    )
    strings = dict.fromkeys(types, pa.string())
    # Unlike the readers of other formats, Arrow accepts 0x10 as an integer.
    may_be_hex = pa.int64() in types.values() and (b"0x" in text or b"0X" in text)
    first = strings if may_be_hex else types
    try:
        table = pa_csv.read_csv(pa.BufferReader(text), read, parse, _conversion(first))
    except pa.ArrowInvalid:
        table = pa_csv.read_csv(pa.BufferReader(text), read, parse, _conversion(strings))
    columns = [_cast_if_all(table.column(name), kind) for name, kind in types.items()]
    return pa.table(columns, names=list(types))


def _conversion(types: Mapping[str, pa.DataType]) -> pa_csv.ConvertOptions:
    return pa_csv.ConvertOptions(
        column_types=types,
        include_columns=list(types),
        # The same rule for all columns: an empty field is null, and NA is a string.
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )


def _cast_if_all(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast a column to a type if all its values allow it; otherwise return it unchanged."""
    if kind == pa.int64() and is_text(column.type) and _has_hex(column):
        return column
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return column


def _has_hex(column: pa.ChunkedArray) -> bool:
    """Return whether a text may spell a hexadecimal number."""
    found = pc.match_substring(column, "0x", ignore_case=True)
    return bool(pc.any(found).as_py())
