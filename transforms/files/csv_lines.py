"""Parse blocks of CSV lines into columns at Arrow's speed, and separate the broken lines.

Every row is one line: a quoted field must end on the line on which it starts. Lines that violate
this become faults, so a value that spans several lines costs only these lines, and is never
mistaken for other rows. The reasons are `wrong_width` (the line and the header have different
numbers of fields) and `invalid_csv` (an unbalanced quote, a stray CR, or bytes that are not
UTF-8).
"""

from __future__ import annotations

import csv
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from common.errors import InputError
from model_handlers.isolate import isolate
from transforms.dead_letters import Fault
from transforms.files.text_lines import open_text

_NEWLINE, _RETURN, _QUOTE = b'\n\r"'


class _BrokenLine(Exception):
    """At least one of several lines is not a row."""


@dataclass
class CsvRows:
    """Consecutive lines of a file as columns, and the lines that are not rows.

    Attributes:
        columns: The columns of the rows.
        offsets: The byte of the file at which the line of each row starts, int64 [rows].
        failed: The offset in bytes, the line and the fault of each line that is not a row.
    """

    columns: pa.Table
    offsets: np.ndarray
    failed: list[tuple[int, bytes, Fault]]


def read_header(path: str) -> list[str]:
    """Return the names in the first line of a CSV file; raise InputError if it is not a header."""
    with open_text(path) as handle:
        line = handle.readline()
    if not line.strip():
        raise InputError(f"{path} is empty: expected a CSV file with a header line")
    try:
        (names,) = csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], strict=True)
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"{path}: its first line is not a CSV header ({type(error).__name__}): expected column "
            "names in UTF-8, separated by commas"
        ) from error
    return names


def read_lines(
    block: bytes, offset: int, header: Sequence[str], types: Mapping[str, pa.DataType]
) -> Iterator[CsvRows]:
    """Parse whole lines into columns; the result comes in several parts if a line is broken.

    Args:
        block: The lines.
        offset: The byte of the file at which the block starts.
        header: The names of all columns of the file.
        types: The columns to read, and their types. A column with a value that is not of its type
            stays a string column.
    """
    if not block.strip(b"\r\n"):
        return
    lines = _Lines.of(block)

    def parse(rows: slice) -> CsvRows:
        return _parse(lines, rows, offset, header, types)

    for rows, parsed in isolate(parse, slice(0, len(lines.starts)), (_BrokenLine,)):
        if isinstance(parsed, CsvRows):
            yield parsed
        else:
            fault = Fault("invalid_csv", _what_is_wrong(lines.text(rows)))
            failed = _failed(lines, rows.start, offset, fault)
            yield CsvRows(pa.table({}), np.array([], np.int64), [failed])


def _what_is_wrong(line: bytes) -> str:
    if not _is_utf8(line):
        return "expected UTF-8, got other bytes"
    if b"\r" in line.rstrip(b"\r\n"):
        return "expected CR only before LF, got one inside the line"
    return "expected quoted fields to end on their line, got one that does not"


@dataclass(kw_only=True)
class _Lines:
    """A block and its non-blank lines: where they start and end, and which ones are broken."""

    block: bytes
    starts: np.ndarray
    ends: np.ndarray
    broken: np.ndarray
    quoted: bool

    @classmethod
    def of(cls, block: bytes) -> _Lines:
        """Find the lines of a block.

        A line is broken if it has an odd number of quotes, a CR that does not end it, or bytes
        that are not UTF-8.
        """
        data = np.frombuffer(block, dtype=np.uint8)
        ends = np.flatnonzero(data == _NEWLINE) + 1
        if not block.endswith(b"\n"):
            ends = np.append(ends, len(block))
        starts = np.concatenate([[0], ends])[:-1]
        broken = np.zeros(len(starts), dtype=bool)
        quoted = b'"' in block
        if quoted:
            quotes = np.searchsorted(ends, np.flatnonzero(data == _QUOTE), side="right")
            broken |= np.bincount(quotes, minlength=len(starts)) % 2 == 1
        lengths = ends - starts - (data[ends - 1] == _NEWLINE)
        if b"\r" in block:
            # Strip CR twice, because Windows programs often write CR CR LF.
            for _ in range(2):
                lengths -= (lengths > 0) & (data[starts + lengths - 1] == _RETURN)
            returns = np.flatnonzero(data == _RETURN)
            line = np.searchsorted(ends, returns, side="right")
            broken[line[returns < (starts + lengths)[line]]] = True
        if not _is_utf8(block):
            parts = zip(starts.tolist(), ends.tolist(), strict=True)
            broken |= [not _is_utf8(block[start:end]) for start, end in parts]
        full = lengths > 0
        return cls(
            block=block,
            starts=starts[full],
            ends=ends[full],
            broken=broken[full],
            quoted=quoted,
        )

    def text(self, rows: slice) -> bytes:
        """Return the bytes of one or more lines, including the blank lines between them."""
        return self.block[self.starts[rows.start] : self.ends[rows.stop - 1]]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parse(
    lines: _Lines, rows: slice, offset: int, header: Sequence[str], types: Mapping[str, pa.DataType]
) -> CsvRows:
    """Parse some of the lines into columns. Raise _BrokenLine if one of them is not a row."""
    if lines.broken[rows].any():
        raise _BrokenLine
    failed: dict[int, Fault] = {}

    def reject(row: Any) -> str:
        message = f"expected {row.expected_columns} columns, got {row.actual_columns}"
        failed[row.number - 1] = Fault("wrong_width", message)
        return "skip"

    text, guards = lines.text(rows), 0
    if text.startswith(BOM_UTF8):
        # Arrow would drop a byte order mark, but it is only special at the start of the file.
        text = b"\n" + text
    if lines.quoted:
        # A quote that is still open at the end swallows this extra line, which is noticed below.
        guard = b",".join([b"0"] * len(header)) + b"\n"
        text, guards = text + (guard if text.endswith(b"\n") else b"\n" + guard), 1
    starts = lines.starts[rows]
    longest = int((lines.ends[rows] - starts).max())
    table = _to_table(text, header, types, longest, reject)
    if table.num_rows + len(failed) != len(starts) + guards:
        raise _BrokenLine
    good = np.delete(starts, list(failed))
    faults = [_failed(lines, rows.start + i, offset, fault) for i, fault in failed.items()]
    return CsvRows(table.slice(0, len(good)), good + offset, faults)


def _to_table(
    text: bytes,
    header: Sequence[str],
    types: Mapping[str, pa.DataType],
    longest: int,
    reject: Any,
) -> pa.Table:
    """Parse lines into the columns of `types`; columns that do not fit become strings.

    Raises:
        _BrokenLine: Arrow cannot parse the lines.
    """
    read = pa_csv.ReadOptions(
        column_names=list(header),
        use_threads=False,
        # Arrow rejects a line that is longer than a block.
        block_size=max(1 << 20, 2 * longest),
    )
    parse = pa_csv.ParseOptions(invalid_row_handler=reject)
    for wanted in (types, dict.fromkeys(types, pa.string())):
        convert = pa_csv.ConvertOptions(
            column_types=wanted,
            include_columns=list(types),
            # The same rule for all columns: an empty field is null, and NA is a string.
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        try:
            table = pa_csv.read_csv(pa.BufferReader(text), read, parse, convert)
        except pa.ArrowInvalid:
            continue
        columns = [_cast_if_all(table.column(name), kind) for name, kind in types.items()]
        return pa.table(columns, names=list(types))
    raise _BrokenLine


def _cast_if_all(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast a column to a type if all its values allow it; otherwise return it unchanged."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return column


def _failed(lines: _Lines, line: int, offset: int, fault: Fault) -> tuple[int, bytes, Fault]:
    """Return where a line of a block starts in the file, its bytes without the end, its fault."""
    text = lines.text(slice(line, line + 1)).rstrip(b"\r\n")
    return offset + int(lines.starts[line]), text, fault
