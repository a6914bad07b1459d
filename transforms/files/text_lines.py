"""Text files to blocks of whole lines, from any byte range, compressed or not."""

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
    """A path -> how its bytes are compressed, told by its suffix."""
    found = (kind for suffix, kind in _COMPRESSIONS.items() if path.lower().endswith(suffix))
    return next(found, None)


def without_compression(path: str) -> str:
    """A path -> the same without the suffix of a compression."""
    return path[: path.rindex(".")] if compression_of(path) else path


class Block(NamedTuple):
    """Whole lines of a text file.

    offset: the byte of the text at which they begin. span: the bytes of the file that they
    were read from, which are others where it is compressed.
    """

    offset: int
    lines: bytes
    span: tuple[int, int]


@contextmanager
def open_text(path: str) -> Iterator[Any]:
    """A path on any Beam filesystem -> its file, open and decompressed. Raises InputError."""
    with _open(path) as handle:
        yield _decompressed(handle, path)


def _decompressed(handle: Any, path: str) -> Any:
    """An open file -> the same, decompressed as its name says.

    Arrow decompresses: it raises for a file that was cut off, where Beam would take
    its end for the end of the text.
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
        hint = ": is it complete, and compressed as its name says?" if compression_of(path) else ""
        raise InputError(f"input file {path} cannot be read: {one_line(error)}{hint}") from error


def line_blocks(path: str, start: int, stop: int) -> Iterator[Block]:
    """A byte range of a text file -> its lines in blocks of some megabytes.

    A line belongs to the range in which it begins, so ranges side by side give each
    line once, and the spans of their blocks cover the file. Only the last line of the file
    may lack its end. Compressed text is read whole. Raises InputError, also for a file that
    ends before `stop`.
    """
    with _open(path) as handle:
        if compression_of(path):
            yield from _compressed_blocks(handle, path)
        else:
            yield from _plain_blocks(handle, path, start, stop)


def _plain_blocks(handle: Any, path: str, start: int, stop: int) -> Iterator[Block]:
    offset = start
    if start > 0:
        # The line that the byte before belongs to is the neighbour's.
        handle.seek(start - 1)
        offset = start - 1 + len(handle.readline())
    while offset < stop:
        lines = handle.read(min(BLOCK_BYTES, stop - offset))
        if not lines:
            raise InputError(
                f"input file {path} ends at byte {offset:,}, expected at least {stop:,}: it was "
                "truncated during the run"
            )
        if not lines.endswith(b"\n"):
            lines += handle.readline()
        yield Block(offset, lines, (offset, offset + len(lines)))
        offset += len(lines)


def _compressed_blocks(handle: Any, path: str) -> Iterator[Block]:
    """The last block may be empty: it is of what ends the compressed text."""
    text, offset, place = _decompressed(handle, path), 0, 0
    while lines := text.read(BLOCK_BYTES):
        if not lines.endswith(b"\n"):
            lines += text.readline()
        yield Block(offset, lines, (place, place := handle.tell()))
        offset += len(lines)
    yield Block(offset, b"", (place, handle.tell()))
