"""Read any byte range of a text file in blocks of whole lines, compressed or not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from common.errors import InputError, one_line
from common.memory import check_memory

BLOCK_BYTES = 8 << 20

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def compression_of(path: str) -> str | None:
    """Return the compression that the suffix of a path names, or None."""
    found = (kind for suffix, kind in _COMPRESSIONS.items() if path.lower().endswith(suffix))
    return next(found, None)


def without_compression(path: str) -> str:
    """Return a path without the suffix of its compression."""
    return path[: path.rindex(".")] if compression_of(path) else path


class Block(NamedTuple):
    """Whole lines of a text file.

    Attributes:
        offset: The byte of the decompressed text at which the lines start.
        lines: The lines.
        span: The first byte of the file that they were read from, and the byte after the last
            one. If the file is compressed, these differ from the bytes of the text.
    """

    offset: int
    lines: bytes
    span: tuple[int, int]


@contextmanager
def open_text(path: str) -> Iterator[Any]:
    """Open a file on any Beam filesystem, and decompress it if its name says so.

    Raises:
        InputError: The file cannot be read.
    """
    with _open(path) as handle:
        yield _decompressed(handle, path)


def _decompressed(handle: Any, path: str) -> Any:
    """Return a decompressed view of an open file, if its name says that it is compressed.

    Arrow raises for a truncated file. Beam would treat the truncation as the end of the text.
    """
    kind = compression_of(path)
    if kind is None:
        return handle
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(handle, "r"), kind))


@contextmanager
def _open(path: str) -> Iterator[Any]:
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as handle:
            yield handle
    except (BeamIOError, OSError, MemoryError) as error:
        check_memory(error, path)
        hint = (
            "; check that it is complete, and compressed as its name says"
            if compression_of(path)
            else ""
        )
        raise InputError(f"input file {path} cannot be read: {one_line(error)}{hint}") from error


def line_blocks(path: str, start: int, stop: int) -> Iterator[Block]:
    """Read the lines of a byte range of a text file in blocks of some megabytes.

    A line belongs to the range in which it starts. Adjacent ranges therefore yield each line
    once, and the spans of their blocks cover the file. Only the last line of the file may lack a
    line end. Compressed text is always read whole.

    Args:
        path: A path on any Beam filesystem.
        start: The first byte of the range.
        stop: The byte after the last one of the range.

    Raises:
        InputError: The file cannot be read, or ends before `stop`.
    """
    with _open(path) as handle:
        if compression_of(path):
            yield from _compressed_blocks(handle, path)
        else:
            yield from _plain_blocks(handle, path, start, stop)


def _plain_blocks(handle: Any, path: str, start: int, stop: int) -> Iterator[Block]:
    offset = start
    if start > 0:
        # The line that contains the byte before the range belongs to the range before.
        handle.seek(start - 1)
        offset = start - 1 + len(handle.readline())
    while offset < stop:
        lines = handle.read(min(BLOCK_BYTES, stop - offset))
        if not lines:
            raise InputError(
                f"input file {path} ends at byte {offset:,}, expected at least {stop:,}: it was "
                "truncated during the run; run again once no other process changes the input"
            )
        if not lines.endswith(b"\n"):
            lines += handle.readline()
        yield Block(offset, lines, (offset, offset + len(lines)))
        offset += len(lines)


def _compressed_blocks(handle: Any, path: str) -> Iterator[Block]:
    """Yield all lines. The last block is empty: it stands for the end of the compressed data."""
    text, offset, place = _decompressed(handle, path), 0, 0
    while lines := text.read(BLOCK_BYTES):
        if not lines.endswith(b"\n"):
            lines += text.readline()
        yield Block(offset, lines, (place, place := handle.tell()))
        offset += len(lines)
    yield Block(offset, b"", (place, handle.tell()))
