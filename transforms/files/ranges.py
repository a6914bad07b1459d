"""Input files to ranges that can be read in parallel: the pieces of a file source."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from common.errors import InputError, OutputError, UsageError, one_line
from common.memory import check_memory
from transforms.files.csv_lines import read_header
from transforms.files.listing import superseded
from transforms.files.pins import Pin, changed_file, pin
from transforms.files.store import FAULTS
from transforms.files.text_lines import compression_of, open_text, without_compression

FileFormat = Literal["parquet", "csv", "jsonl"]

_SUFFIXES: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}

# Small enough to keep every core busy to the end, large enough that opening a file
# (about a millisecond) is not felt.
RANGE_ROWS = 131_072
RANGE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """A part of a file.

    start, stop: row groups of a Parquet file, bytes of a text file; a line belongs to
        the range in which it begins. first_row, rows: of a Parquet range. pin: the file as
        it was found, None where it may change.
    """

    path: str
    format: FileFormat
    start: int
    stop: int
    first_row: int = 0
    rows: int = 0
    pin: Pin | None = None

    @property
    def unit(self) -> str:
        """In what the reading of the file is measured."""
        return unit_of(self.format)


@dataclass(frozen=True)
class PlannedFile:
    """A file as it was found, to be read just so.

    row_groups: the rows of each, of a Parquet file. size: of the whole, in units of `unit`:
    bytes as they lie there, or the rows of Parquet's footer.
    """

    pin: Pin
    format: FileFormat
    size: int
    row_groups: tuple[int, ...] = ()

    @property
    def unit(self) -> str:
        """In what the reading of the file is measured."""
        return unit_of(self.format)


def unit_of(file_format: FileFormat) -> str:
    """A format -> in what the reading of its files is measured."""
    return "rows" if file_format == "parquet" else "bytes"


def match_files(patterns: Sequence[str]) -> list[FileMetadata]:
    """Paths, globs or folders -> the files they name, by path, each once.

    A folder means every file below it. Names that start with `_` or `.` are left out,
    unless a pattern asks for such names, and of a run's result what its report does not list.
    Raises InputError for a pattern that matches nothing.
    """
    found: dict[str, FileMetadata] = {}
    for pattern in patterns:
        files = _match(pattern)
        if not files:
            raise InputError(
                f"no input file matches {pattern!r}: check the path, and quote globs so that the "
                "shell leaves them alone"
            )
        for file in files:
            # The same file under another spelling (./a, a) is the same file.
            place = file.path if "://" in file.path else os.path.abspath(file.path)
            found.setdefault(place, file)
    try:
        others = superseded(file.path for file in found.values())
    except (OutputError, *FAULTS) as error:
        raise InputError(f"{', '.join(patterns)} cannot be read: {one_line(error)}") from error
    files = [file for file in found.values() if file.path not in others]
    return sorted(files, key=lambda file: file.path)


def _match(pattern: str) -> list[FileMetadata]:
    """One pattern -> its files; empty ones too, since an empty file is an error to be told."""
    if re.match(r"[^/]*[*?\[]", pattern):
        # Beam finds nothing for a wildcard without a folder before it.
        pattern = f"./{pattern}"
    try:
        if not pattern.endswith("/"):
            found = FileSystems.match([pattern])[0].metadata_list
            # What a pattern says itself is wanted: the part before its first wildcard.
            said = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
            asked = _is_hidden(pattern[len(said) :])
            files = [f for f in found if asked or not _is_hidden(f.path[len(said) :])]
            files = [f for f in files if not os.path.isdir(f.path)]
            if files:
                return files
        folder = pattern.rstrip("/")
        inside = FileSystems.match([FileSystems.join(folder, "**")])[0].metadata_list
    except (BeamIOError, ValueError) as error:
        raise InputError(f"input {pattern!r} cannot be listed: {error}") from error
    return [file for file in inside if not _is_hidden(file.path[len(folder) :])]


def _is_hidden(path: str) -> bool:
    """Whether a part of a path starts with `_` or `.`."""
    return any(name.startswith(("_", ".")) for name in path.strip("/").split("/"))


def format_of(path: str) -> FileFormat:
    """A path -> its format by suffix, behind a compression's. Raises UsageError."""
    name = without_compression(path).lower()
    for suffix, found in _SUFFIXES.items():
        if name.endswith(suffix):
            return found
    raise UsageError(
        f"cannot tell the format of {path} by its name ({', '.join(_SUFFIXES)}): say "
        "--input_format parquet, csv or jsonl, or choose the files with a glob ('rows/*.csv')"
    )


def open_parquet(path: str) -> pq.ParquetFile:
    """A path -> an open Parquet file, its footer read. Raises InputError.

    A local file is read by Arrow itself, without Python in between.
    """
    try:
        if "://" not in path:
            # Buffering a row group ahead hides a network's latency; on a disk it only costs memory.
            return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
        handle = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        return pq.ParquetFile(handle, pre_buffer=True, page_checksum_verification=True)
    except (pa.ArrowException, BeamIOError, OSError) as error:
        check_memory(error, path)
        raise InputError(
            f"{path} is not a readable Parquet file: {one_line(error).rstrip('.')}; it may be "
            "truncated, or of another format (--input_format)"
        ) from error


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


def plan_file(file: FileMetadata, file_format: FileFormat | None) -> PlannedFile:
    """A file that was matched -> the file as it is, pinned. Raises InputError, UsageError.

    file_format: None tells it by the name.
    """
    kind = file_format or format_of(file.path)
    pinned = pin(file.path)
    if pinned.size != file.size_in_bytes:
        raise changed_file(file.path, file.size_in_bytes, pinned.size)
    if kind != "parquet":
        return PlannedFile(pinned, kind, pinned.size)
    with open_parquet(file.path) as parquet:
        footer = parquet.metadata
        groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        return PlannedFile(pinned, kind, footer.num_rows, groups)


def split_file(file: PlannedFile) -> Iterator[FileRange]:
    """A file -> ranges that cover it. The cut depends on the file alone, never on the run.

    Parquet is cut between row groups, text at RANGE_BYTES; compressed text is one range.
    """
    path, size = file.pin.path, file.size
    if file.format == "parquet":
        yield from _split_parquet(file)
    elif compression_of(path):
        yield FileRange(path=path, format=file.format, start=0, stop=size, pin=file.pin)
    else:
        for start in range(0, size, RANGE_BYTES):
            stop = min(start + RANGE_BYTES, size)
            yield FileRange(path=path, format=file.format, start=start, stop=stop, pin=file.pin)


def _split_parquet(file: PlannedFile) -> Iterator[FileRange]:
    sizes = file.row_groups
    start, first_row, rows = 0, 0, 0
    for i, size in enumerate(sizes):
        rows += size
        if rows >= RANGE_ROWS or i == len(sizes) - 1:
            yield FileRange(
                path=file.pin.path,
                format=file.format,
                start=start,
                stop=i + 1,
                first_row=first_row,
                rows=rows,
                pin=file.pin,
            )
            start, first_row, rows = i + 1, first_row + rows, 0
