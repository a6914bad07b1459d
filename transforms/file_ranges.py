"""Input files to ranges that can be read in parallel: the pieces of a file source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from model_handlers.errors import InputError, UsageError

FileFormat = Literal["parquet", "csv", "jsonl"]

_SUFFIXES: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_COMPRESSED = (".gz", ".bz2", ".zst", ".deflate")

# Small enough to keep every core busy to the end, large enough that opening a file
# (about a millisecond) is not felt.
RANGE_ROWS = 131_072
RANGE_BYTES = 64 << 20


@dataclass(frozen=True)
class FileRange:
    """A part of a file.

    start, stop: row groups of a Parquet file, bytes of a text file; a line belongs to
        the range in which it begins. first_row, rows: of a Parquet range.
    """

    path: str
    format: FileFormat
    start: int
    stop: int
    first_row: int = 0
    rows: int = 0


def match_files(patterns: Sequence[str]) -> list[FileMetadata]:
    """Paths, globs or folders -> the files they name, by path, each once.

    A folder means every file below it whose name starts with neither `_` nor `.`.
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
        found |= {file.path: file for file in files}
    return [found[path] for path in sorted(found)]


def _match(pattern: str) -> list[FileMetadata]:
    """One pattern -> its files; empty ones too, since an empty file is an error to be told."""
    folder = pattern.rstrip("/")
    try:
        if not pattern.endswith("/"):
            found = FileSystems.match([pattern])[0].metadata_list
            files = [file for file in found if not os.path.isdir(file.path)]
            if files:
                return files
        inside = FileSystems.match([FileSystems.join(folder, "**")])[0].metadata_list
    except (BeamIOError, ValueError) as error:
        raise InputError(f"input {pattern!r} cannot be listed: {error}") from error
    return [file for file in inside if _is_data(file.path, folder)]


def _is_data(path: str, folder: str) -> bool:
    names = path[len(folder) :].strip("/").split("/")
    return not any(name.startswith(("_", ".")) for name in names)


def format_of(path: str) -> FileFormat:
    """A path -> its format by suffix, behind a compression's. Raises UsageError."""
    name = path.lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    for suffix, found in _SUFFIXES.items():
        if name.endswith(suffix):
            return found
    raise UsageError(
        f"cannot tell the format of {path} by its name ({', '.join(_SUFFIXES)}): say "
        "--input_format parquet, csv or jsonl"
    )


def open_file(path: str) -> Any:
    """A path on any Beam filesystem -> an open file, decompressed by its suffix."""
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.AUTO)
    except (BeamIOError, OSError) as error:
        raise InputError(f"input file {path} cannot be opened: {error}") from error


def open_parquet(path: str) -> pq.ParquetFile:
    """A path -> an open Parquet file, its footer read. Raises InputError.

    A local file is read by Arrow itself, without Python in between.
    """
    try:
        if "://" not in path:
            return pq.ParquetFile(path)
        handle = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        return pq.ParquetFile(handle, pre_buffer=True)
    except (pa.ArrowException, BeamIOError, OSError) as error:
        raise InputError(
            f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}; it may be "
            "truncated, or of another format (--input_format)"
        ) from error


def split_file(file: FileMetadata, file_format: FileFormat | None) -> Iterator[FileRange]:
    """A file -> ranges that cover it. The cut depends on the file alone, never on the run.

    Parquet is cut between row groups, text at RANGE_BYTES; compressed text is one range.
    Raises InputError, UsageError.
    """
    kind = file_format or format_of(file.path)
    if kind == "parquet":
        yield from _split_parquet(file.path)
    elif file.path.lower().endswith(_COMPRESSED):
        yield FileRange(file.path, kind, 0, 1 << 62)
    else:
        for start in range(0, file.size_in_bytes, RANGE_BYTES):
            stop = min(start + RANGE_BYTES, file.size_in_bytes)
            yield FileRange(file.path, kind, start, stop)


def _split_parquet(path: str) -> Iterator[FileRange]:
    with open_parquet(path) as parquet:
        sizes = [
            parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)
        ]
    start, first_row, rows = 0, 0, 0
    for i, size in enumerate(sizes):
        rows += size
        if rows >= RANGE_ROWS or i == len(sizes) - 1:
            yield FileRange(path, "parquet", start, i + 1, first_row, rows)
            start, first_row, rows = i + 1, first_row + rows, 0
