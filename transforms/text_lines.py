"""Text files to blocks of whole lines, from any byte range, compressed or not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from model_handlers.errors import InputError, one_line

BLOCK_BYTES = 8 << 20

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def compression_of(path: str) -> str | None:
    """A path -> how its bytes are compressed, told by its suffix."""
    found = (kind for suffix, kind in _COMPRESSIONS.items() if path.lower().endswith(suffix))
    return next(found, None)


def without_compression(path: str) -> str:
    """A path -> the same without the suffix of a compression."""
    return path[: path.rindex(".")] if compression_of(path) else path


@contextmanager
def open_text(path: str) -> Iterator[Any]:
    """A path on any Beam filesystem -> its file, open and decompressed. Raises InputError.

    Arrow decompresses: it raises for a file that was cut off, where Beam would take
    its end for the end of the text.
    """
    try:
        handle = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        with handle:
            kind = compression_of(path)
            yield (
                handle
                if kind is None
                else io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(handle, "r"), kind))
            )
    except (BeamIOError, OSError) as error:
        hint = ": is it complete, and compressed as its name says?" if compression_of(path) else ""
        raise InputError(f"input file {path} cannot be read: {one_line(error)}{hint}") from error


def line_blocks(path: str, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """A byte range of a text file -> (offset, whole lines) in blocks of some megabytes.

    A line belongs to the range in which it begins, so ranges side by side give each
    line once. Only the last line of the file may lack its end.
    """
    with open_text(path) as handle:
        offset = start
        if start > 0:
            # The line that the byte before belongs to is the neighbour's.
            handle.seek(start - 1)
            offset = start - 1 + len(handle.readline())
        while offset < stop:
            block = handle.read(min(BLOCK_BYTES, stop - offset))
            if not block:
                return
            if not block.endswith(b"\n"):
                block += handle.readline()
            yield offset, block
            offset += len(block)
