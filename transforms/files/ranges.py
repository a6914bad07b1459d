"""Find input files, and split them into ranges that can be read in parallel."""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import pyarrow as pa
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems

from common.errors import InputError, OutputError, UsageError, one_line
from transforms.files.csv.dialect import PLAIN, Dialect
from transforms.files.csv.header import read_header
from transforms.files.hive import Condition, Keys, accepted, keys_of, with_keys
from transforms.files.json_documents import ends_in_cr, holds_document
from transforms.files.lake_folders import refuse_lakes_around, refuse_lakes_within
from transforms.files.parquet import open_parquet
from transforms.files.pins import Pin, changed_file, pin
from transforms.files.sink.listing import superseded
from transforms.files.store import FAULTS, READER, file_errors
from transforms.files.text_lines import (
    look_into,
    open_text,
    without_compression,
)

FileFormat = Literal["parquet", "csv", "jsonl"]

_SUFFIXES: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}

# Ranges are small enough to keep every core busy until the end, and large enough that opening a
# file (about a millisecond) does not matter.
RANGE_ROWS = 131_072
RANGE_BYTES = 64 << 20
# A range inside a row group decodes the rows before it too: N ranges decode (N + 1) / 2 times the
# rows of the row group. This bounds what a small --range_rows costs.
MOST_CUTS = 64


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """A part of a file.

    Attributes:
        path: The path of the file.
        format: The format of the file.
        start: The first row group of a Parquet file, or the first byte of a text file. A line
            belongs to the range in which it starts.
        stop: The row group or byte after the last one of the range.
        first_row: The number of the first row in a Parquet file.
        skip: The rows of the row group before the range, if the range is a part of one row group;
            None if the range consists of whole row groups.
        rows: The number of rows of a Parquet range.
        compression: The compression of a text file, or None.
        dialect: How a CSV file is written.
        document: Whether a JSON file is an array, or pretty-printed, instead of lines.
        keys: The columns whose values are in the path of the file.
        pin: The state of the file when it was found, or None if it may change.
    """

    path: str
    format: FileFormat
    start: int
    stop: int
    first_row: int = 0
    skip: int | None = None
    rows: int = 0
    compression: str | None = None
    dialect: Dialect = PLAIN
    document: bool = False
    keys: Keys = field(default_factory=dict)
    pin: Pin | None = None

    @property
    def unit(self) -> str:
        """The unit in which reading the file is measured: `rows` or `bytes`."""
        return unit_of(self.format)


@dataclass(frozen=True)
class PlannedFile:
    """A file in the state in which it was found.

    Attributes:
        pin: The state of the file.
        format: The format of the file.
        size: The size of the file in units of `unit`: bytes (compressed if the file is), or the
            number of rows in the footer of a Parquet file.
        row_groups: The number of rows in each row group of a Parquet file.
        compression: The compression of a text file, or None.
        dialect: How a CSV file is written.
        document: Whether a JSON file is an array, or pretty-printed, instead of lines.
        keys: The columns whose values are in the path of the file.
    """

    pin: Pin
    format: FileFormat
    size: int
    row_groups: tuple[int, ...] = ()
    compression: str | None = None
    dialect: Dialect = PLAIN
    document: bool = False
    keys: Keys = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The unit in which reading the file is measured: `rows` or `bytes`."""
        return unit_of(self.format)


def unit_of(file_format: FileFormat) -> str:
    """Return the unit in which reading a file of a format is measured: `rows` or `bytes`."""
    return "rows" if file_format == "parquet" else "bytes"


def match_inputs(
    patterns: Sequence[str], conditions: Sequence[Condition] = ()
) -> list[FileMetadata]:
    """Return the files that patterns name, as `match_files` does, unless a table contains them.

    Args:
        patterns: Paths, globs and folders.
        conditions: The conditions on the keys in the path of a file that must be fulfilled.

    Raises:
        InputError: A pattern matches no file, cannot be listed, or matches files of a table of
            Delta Lake, Apache Iceberg or Apache Hudi; or no file fulfils the conditions.
        UsageError: A condition names a key that the path of a file lacks.
    """
    files = match_files(patterns)
    refuse_lakes_around(file.path for file in files)
    chosen = [file for file in files if accepted(file.path, conditions)]
    if not chosen:
        raise InputError(
            f"none of the {len(files):,} input files fulfils --partition_filter (the first is "
            f"{files[0].path})"
        )
    return chosen


def match_files(patterns: Sequence[str]) -> list[FileMetadata]:
    """Return the files that patterns name, sorted by path and without duplicates.

    A folder stands for all files below it. Names that start with `_` or `.` are left out, unless
    the pattern itself contains such a name. Files in a run's folder that its report does not list
    are left out too.

    Args:
        patterns: Paths, globs and folders.

    Raises:
        InputError: A pattern matches no file, or cannot be listed.
    """
    found: dict[str, FileMetadata] = {}
    for pattern in patterns:
        with file_errors(f"input {pattern!r} cannot be listed", InputError, READER):
            files = _match(pattern)
        if not files:
            raise InputError(
                f"no input file matches {pattern!r}: check the path, and quote globs so that the "
                "shell does not expand them"
            )
        for file in files:
            # Different spellings of a path (./a, a) name the same file.
            place = file.path if "://" in file.path else os.path.abspath(file.path)
            found.setdefault(place, file)
    try:
        others = superseded(file.path for file in found.values())
    except (OutputError, *FAULTS) as error:
        raise InputError(f"{', '.join(patterns)} cannot be read: {one_line(error)}") from error
    files = [file for file in found.values() if file.path not in others]
    return sorted(files, key=lambda file: file.path)


def _match(pattern: str) -> list[FileMetadata]:
    """Return the files of one pattern, including empty ones, which are reported as errors later."""
    if re.match(r"[^/]*[*?\[]", pattern):
        # Beam finds nothing if a wildcard has no folder before it.
        pattern = f"./{pattern}"
    try:
        if not pattern.endswith("/"):
            found = FileSystems.match([pattern])[0].metadata_list
            # Hidden names before the first wildcard are wanted, because the pattern spells them.
            said = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
            asked = _is_hidden(pattern[len(said) :])
            files = [f for f in found if asked or not _is_hidden(f.path[len(said) :])]
            files = [f for f in files if not os.path.isdir(f.path)]
            if files:
                return files
        folder = pattern.rstrip("/")
        inside = FileSystems.match([FileSystems.join(folder, "**")])[0].metadata_list
    except ValueError as error:
        raise InputError(f"input {pattern!r} cannot be listed: {error}") from error
    refuse_lakes_within(file.path for file in inside)
    return [file for file in inside if not _is_hidden(file.path[len(folder) :])]


def _is_hidden(path: str) -> bool:
    """Return whether any name in a path starts with `_` or `.`."""
    return any(name.startswith(("_", ".")) for name in path.strip("/").split("/"))


def format_of(path: str) -> FileFormat:
    """Return the format that the suffix of a path names, ignoring the suffix of a compression.

    Raises:
        UsageError: The suffix is not known.
    """
    name = without_compression(path).lower()
    for suffix, found in _SUFFIXES.items():
        if name.endswith(suffix):
            return found
    raise UsageError(
        f"cannot detect the format of {path}: its name ends in none of {', '.join(_SUFFIXES)}; "
        "pass --input_format parquet, csv or jsonl, or select files with a glob ('rows/*.csv')"
    )


def file_schema(path: str, file_format: FileFormat, dialect: Dialect = PLAIN) -> pa.Schema | None:
    """Return the columns of a file and its path; None for JSON, where each row names its own.

    Args:
        path: The path of the file.
        file_format: The format of the file.
        dialect: How a CSV file is written.

    Raises:
        InputError: The file cannot be read.
    """
    if file_format == "parquet":
        with open_parquet(path) as parquet:
            return with_keys(parquet.schema_arrow, keys_of(path))
    if file_format == "csv":
        names = read_header(path, dialect).names
        return with_keys(pa.schema([(name, pa.string()) for name in names]), keys_of(path))
    return None


def has_rows(path: str, file_format: FileFormat, dialect: Dialect = PLAIN) -> bool:
    """Return whether a file holds at least one row; only its first lines or its footer are read.

    Args:
        path: The path of the file.
        file_format: The format of the file.
        dialect: How a CSV file is written.

    Raises:
        InputError: The file cannot be read.
    """
    if file_format == "parquet":
        with open_parquet(path) as parquet:
            return bool(parquet.metadata.num_rows)
    header = read_header(path, dialect).size if file_format == "csv" else 0
    with open_text(path, dialect.encoding) as handle:
        handle.read(header)
        return any(line.strip() for line in iter(handle.readline, b""))


def plan_file(
    file: FileMetadata,
    file_format: FileFormat | None,
    dialect: Dialect = PLAIN,
    *,
    hive: bool = True,
) -> PlannedFile:
    """Pin a matched file, and find out what it holds.

    Args:
        file: The matched file.
        file_format: The format of the file, or None to detect it from the suffix.
        dialect: How a CSV file is written.
        hive: Whether folders of the form NAME=VALUE are columns.

    Raises:
        InputError: The file has changed since it was matched, or cannot be read.
        UsageError: The suffix of the file is not known.
    """
    kind = file_format or format_of(file.path)
    pinned = pin(file.path)
    if pinned.size != file.size_in_bytes:
        raise changed_file(file.path, file.size_in_bytes, pinned.size)
    keys = keys_of(file.path) if hive else {}
    if kind != "parquet":
        return replace(_plan_text(pinned, kind, dialect), keys=keys)
    with open_parquet(file.path, pinned) as parquet:
        footer = parquet.metadata
        groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        return PlannedFile(pinned, kind, footer.num_rows, groups, keys=keys)


def _plan_text(pinned: Pin, kind: FileFormat, dialect: Dialect) -> PlannedFile:
    compression, start = look_into(pinned.path)
    if kind == "jsonl" and start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise InputError(
            f"{pinned.path} is encoded in UTF-16: JSON must be UTF-8; convert the file, for "
            "example with iconv -f utf-16 -t utf-8"
        )
    if kind == "jsonl" and ends_in_cr(start):
        raise InputError(
            f"{pinned.path}: its lines end in CR alone: expected LF or CR LF; convert the file, "
            "for example with tr '\\r' '\\n'"
        )
    document = kind == "jsonl" and holds_document(pinned.path, start)
    return PlannedFile(
        pinned, kind, pinned.size, compression=compression, dialect=dialect, document=document
    )


def split_file(file: PlannedFile, range_rows: int | None = None) -> Iterator[FileRange]:
    """Split a file into ranges that cover it. The result depends only on the file, not on the run.

    Text files are split every RANGE_BYTES. Text that can only be read from its start is one range.
    A range of a Parquet file has as many row groups as it needs to have enough rows.

    Args:
        file: The file.
        range_rows: The number of rows that a range of a Parquet file should have; larger row groups
            are cut. None for RANGE_ROWS, without cutting row groups.
    """
    if file.format == "parquet":
        yield from _split_parquet(file, range_rows)
        return
    of_csv = file.format == "csv" and file.dialect.one_range
    whole = file.compression is not None or file.document or of_csv
    step = max(file.size, 1) if whole else RANGE_BYTES
    for start in range(0, file.size, step):
        yield FileRange(
            path=file.pin.path,
            format=file.format,
            start=start,
            stop=min(start + step, file.size),
            compression=file.compression,
            dialect=file.dialect,
            document=file.document,
            keys=file.keys,
            pin=file.pin,
        )


def _split_parquet(file: PlannedFile, range_rows: int | None) -> Iterator[FileRange]:
    first_row = 0
    for start, stop, skip, rows in _row_ranges(file.row_groups, range_rows):
        yield FileRange(
            path=file.pin.path,
            format=file.format,
            start=start,
            stop=stop,
            first_row=first_row,
            skip=skip,
            rows=rows,
            keys=file.keys,
            pin=file.pin,
        )
        first_row += rows


def _row_ranges(
    sizes: Sequence[int], range_rows: int | None
) -> Iterator[tuple[int, int, int | None, int]]:
    """Yield the first row group, the one after the last, the rows to skip, and the rows of ranges.

    Args:
        sizes: The number of rows in each row group.
        range_rows: As in `split_file`.
    """
    enough = RANGE_ROWS if range_rows is None else range_rows
    start, rows = 0, 0
    for i, size in enumerate(sizes):
        cuts = 1 if range_rows is None else min(-(-size // range_rows), MOST_CUTS)
        if cuts > 1:
            if start < i:
                yield start, i, None, rows
            bounds = [size * n // cuts for n in range(cuts + 1)]
            yield from ((i, i + 1, a, b - a) for a, b in pairwise(bounds))
            start, rows = i + 1, 0
            continue
        rows += size
        if rows >= enough or i == len(sizes) - 1:
            yield start, i + 1, None, rows
            start, rows = i + 1, 0
