"""The header of a CSV file."""

from __future__ import annotations

import csv
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from common.errors import InputError
from transforms.files.csv.dialect import PLAIN, Dialect
from transforms.files.text_lines import open_text

# Excel writes such a line before the header.
_SEPARATOR_LINE = "sep="
_DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}


class Header(NamedTuple):
    """The start of a CSV file.

    Attributes:
        names: The names of the columns.
        size: The number of bytes before the first row.
        delimiter: The character between fields.
    """

    names: list[str]
    size: int
    delimiter: str


def read_header(path: str, dialect: Dialect = PLAIN) -> Header:
    """Return the header of a CSV file; raise InputError if the file does not start with one."""
    with open_text(path, dialect.encoding) as handle:
        lines = _Lines(handle)
        first = lines.next_line()
        delimiter = dialect.field_end
        text = _decoded(path, first, dialect).lstrip("\ufeff").rstrip("\r\n")
        if text.lower().startswith(_SEPARATOR_LINE) and len(text) == len(_SEPARATOR_LINE) + 1:
            delimiter = dialect.delimiter or text[-1]
            first = lines.next_line()
            text = _decoded(path, first, dialect).rstrip("\r\n")
        if not text.strip(" \r\n" if delimiter == "\t" else None):
            found = "starts with a blank line" if first else "is empty"
            raise InputError(f"{path} {found}: expected a CSV file with a header line")
        rest = (_decoded(path, line, dialect) for line in lines) if dialect.multiline else ()
        names = _split(f"{text}\n" if dialect.multiline else text, rest, delimiter, dialect)
        if (names is None or len(names) == 1) and (advice := _advice(text, delimiter)):
            raise InputError(f"{path}: {advice}")
        if names is None:
            raise InputError(
                f"{path}: its first line is not a CSV header: expected column names, got a quote "
                "that does not end; if names contain line breaks, pass --csv_multiline"
            )
    return Header(names, lines.size, delimiter)


class _Lines:
    """The lines of an open file, and the number of bytes read of it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.size = 0

    def next_line(self) -> bytes:
        line: bytes = self._handle.readline()
        self.size += len(line)
        return line

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.next_line, b"")


def _decoded(path: str, line: bytes, dialect: Dialect) -> str:
    if line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise InputError(f"{path} is encoded in UTF-16: pass --csv_encoding utf-16")
    encoding = "utf-8" if dialect.is_utf8 else dialect.encoding
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: its first line is not a CSV header in {encoding}: pass the encoding of the "
            "file, such as --csv_encoding cp1252"
        ) from error


def _split(text: str, rest: Any, delimiter: str, dialect: Dialect) -> list[str] | None:
    """Return the names in a header, which may go on in the lines of `rest`; None if it is bad."""
    try:
        return next(
            csv.reader(
                chain([text], rest),
                delimiter=delimiter,
                quotechar=dialect.quote,
                quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
                escapechar=dialect.escape,
                strict=True,
            )
        )
    except (csv.Error, ValueError, StopIteration):
        return None


def _advice(text: str, delimiter: str) -> str | None:
    """Say what to change if a header seems to have other line ends or another delimiter."""
    if "\r" in text.rstrip("\r"):
        return (
            "its lines end in CR alone: expected LF or CR LF; convert the file, for example "
            "with tr '\\r' '\\n'"
        )
    counts = {text.count(other): name for other, name in _DELIMITERS.items() if other != delimiter}
    if max(counts) == 0 or max(counts) < text.count(delimiter):
        return None
    used = _DELIMITERS.get(delimiter, repr(delimiter))
    found = counts[max(counts)]
    return f"its header is separated by {found}, not by {used}: pass --csv_delimiter {found}"
