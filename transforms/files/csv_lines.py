"""Blocks of CSV lines to columns: all at Arrow's speed, broken lines apart.

A line is a row: a quoted field ends in the line in which it begins. Lines that break
this become faults, so a value that runs over several lines costs these lines and is
never taken for anything else. Reasons: `wrong_width` (another number of fields than
the header), `invalid_csv` (a quote without its other half, text that is not UTF-8).
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
    """Some line among several is no row of its own."""


@dataclass
class CsvRows:
    """Consecutive lines of a file as columns, and which of them are no rows.

    offsets: where each row's line begins in the file, in bytes. failed: offset, line
    and fault of the others.
    """

    columns: pa.Table
    offsets: np.ndarray
    failed: list[tuple[int, bytes, Fault]]


def read_header(path: str) -> list[str]:
    """A CSV file -> the names in its first line. Raises InputError."""
    with open_text(path) as handle:
        line = handle.readline()
    if not line.strip():
        raise InputError(f"{path} is empty: expected a CSV file with a header line")
    try:
        (names,) = csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], strict=True)
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"{path}: its first line is not a CSV header, names in UTF-8 "
            f"between commas ({type(error).__name__})"
        ) from error
    return names


def read_lines(
    block: bytes, offset: int, header: Sequence[str], types: Mapping[str, pa.DataType]
) -> Iterator[CsvRows]:
    """Whole lines and where they begin -> their columns, in parts if some line is broken.

    types: the columns to read. A column with a number that is none stays text.
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
    return "expected quoted fields to end in their line, got a quote without its other half"


@dataclass(kw_only=True)
class _Lines:
    """A block and its lines that are not blank: where they begin and end, which are broken."""

    block: bytes
    starts: np.ndarray
    ends: np.ndarray
    broken: np.ndarray
    quoted: bool

    @classmethod
    def of(cls, block: bytes) -> _Lines:
        """A block -> its lines.

        Broken: an odd number of quotes, a CR that ends no line, bytes that are no UTF-8.
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
            # Twice: Windows programs often write CR CR LF.
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
        """Lines, at least one -> their bytes, with the blank ones between them."""
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
    """Some of the lines -> their columns. Raises _BrokenLine if one of them is no row."""
    if lines.broken[rows].any():
        raise _BrokenLine
    failed: dict[int, Fault] = {}

    def reject(row: Any) -> str:
        message = f"expected {row.expected_columns} columns, got {row.actual_columns}"
        failed[row.number - 1] = Fault("wrong_width", message)
        return "skip"

    text, guards = lines.text(rows), 0
    if text.startswith(BOM_UTF8):
        # Arrow would drop what is the begin of a file only, but not of a line.
        text = b"\n" + text
    if lines.quoted:
        # A quote that is still open at the end takes this line in.
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
    """Lines -> the columns of `types`, as text where one is not that. Raises _BrokenLine."""
    read = pa_csv.ReadOptions(
        column_names=list(header),
        use_threads=False,
        # Arrow refuses a line that is longer than what it reads at once.
        block_size=max(1 << 20, 2 * longest),
    )
    parse = pa_csv.ParseOptions(invalid_row_handler=reject)
    for wanted in (types, dict.fromkeys(types, pa.string())):
        convert = pa_csv.ConvertOptions(
            column_types=wanted,
            include_columns=list(types),
            # One rule for all: an empty field is null, NA is a text.
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
    """A column of text or numbers -> one of a type if all of it is that, else itself."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return column


def _failed(lines: _Lines, line: int, offset: int, fault: Fault) -> tuple[int, bytes, Fault]:
    """A line's number among those of a block -> where it begins in the file, itself, its fault."""
    text = lines.text(slice(line, line + 1)).rstrip(b"\r\n")
    return offset + int(lines.starts[line]), text, fault
