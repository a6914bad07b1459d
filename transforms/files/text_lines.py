"""Read any byte range of a text file in blocks of whole lines, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from common.errors import InputError, one_line
from common.memory import check_memory
from transforms.files.csv.dialect import is_byte_encoding

BLOCK_BYTES = 8 << 20
# How much of a file shows how it is written.
START_BYTES = 64 << 10

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# The bytes with which a compressed file starts. No CSV or JSON text starts with them.
_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b"),
    # A level, and the start of a block or, if there is no text, of the end.
    "bz2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    # A frame of text, or one of another program, as pzstd writes it.
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}


def compression_of(path: str) -> str | None:
    """Return the compression that the suffix of a path names, or None."""
    found = (kind for suffix, kind in _COMPRESSIONS.items() if path.lower().endswith(suffix))
    return next(found, None)


def compression_within(start: bytes) -> str | None:
    """Return the compression of a file that starts with these bytes, or None."""
    return next((kind for kind, magic in _MAGIC.items() if magic.match(start)), None)


def is_utf8(text: bytes) -> bool:
    """Return whether bytes are UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


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
def open_text(path: str, encoding: str = "utf-8") -> Iterator[Any]:
    """Open a text file on any Beam filesystem, and decompress it if it is compressed.

    Args:
        path: The path of the file.
        encoding: The encoding of the text. Unless it is a byte encoding, the text is read in
            UTF-8.

    Raises:
        InputError: The file cannot be read.
    """
    with _open(path) as handle:
        compression = compression_of(path) or compression_within(handle.read(16))
        handle.seek(0)
        yield _text(handle, compression, encoding)


def look_into(path: str) -> tuple[str | None, bytes]:
    """Return the compression of a file, or None, and the first bytes of its text.

    Raises:
        InputError: The file cannot be read.
    """
    with _open(path) as handle:
        compression = compression_of(path) or compression_within(handle.read(16))
        handle.seek(0)
        return compression, bytes(_text(handle, compression, "utf-8").read(START_BYTES))


def _text(handle: Any, compression: str | None, encoding: str) -> Any:
    """Return the text of an open file, decompressed, in UTF-8 or in a byte encoding.

    Arrow raises for a truncated file. Beam would treat the truncation as the end of the text.
    """
    raw = None
    if compression in _IN_PYTHON:
        raw = io.BufferedReader(_Unpacked(handle, compression))
    elif compression is not None:
        raw = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(handle, "r"), compression))
    if is_byte_encoding(encoding):
        return raw or handle
    source = pa.PythonFile(raw or handle, "r")
    return io.BufferedReader(pa.transcoding_input_stream(source, encoding, "utf-8"))


_IN_PYTHON: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda handle: gzip.GzipFile(fileobj=handle),
    "bz2": bz2.BZ2File,
}


class _Unpacked(io.RawIOBase):
    """The text of a file in gzip or bz2.

    Arrow is faster than Python, but fails at zero bytes after the end of a gzip file, which tapes
    and disks add, and at an empty part of a bz2 file.
    """

    def __init__(self, handle: Any, compression: str) -> None:
        self._handle = handle
        self._open = _IN_PYTHON[compression]
        # Arrow closes the handle when it is deleted, so it is kept.
        self._arrow = pa.CompressedInputStream(pa.PythonFile(handle, "r"), compression)
        self._python: Any = None
        self._fault: Exception = OSError()
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._python is None:
            try:
                size = int(self._arrow.readinto(buffer))
            except (OSError, pa.ArrowException) as error:
                self._start_again(error)
            else:
                self._size += size
                return size
        return self._read_slowly(buffer)

    def _start_again(self, fault: Exception) -> None:
        """Read on with Python, from where Arrow stopped."""
        self._fault = fault
        self._handle.seek(0)
        self._python = self._open(self._handle)
        while self._size:
            if (size := self._read_slowly(bytearray(min(self._size, 1 << 20)))) == 0:
                raise fault
            self._size -= size

    def _read_slowly(self, buffer: Any) -> int:
        try:
            return int(self._python.readinto(buffer))
        except (EOFError, OSError, zlib.error) as error:
            # Python's own messages contain bytes of the file.
            raise self._fault from error


@contextmanager
def _open(path: str) -> Iterator[Any]:
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as handle:
            yield handle
    except UnicodeDecodeError as error:
        # The message of Python contains bytes of the file.
        cut = "end" in error.reason or "truncated" in error.reason
        found = "ends in the middle of a character" if cut else "has other bytes"
        raise InputError(
            f"input file {path} cannot be read: expected {error.encoding.upper()}, but the text "
            f"{found}: write the file again, or name its --csv_encoding"
        ) from error
    except (BeamIOError, OSError, MemoryError, UnicodeError, pa.ArrowException) as error:
        check_memory(error, path)
        hint = (
            "; check that it is complete, and compressed as its name says"
            if compression_of(path)
            else ""
        )
        raise InputError(f"input file {path} cannot be read: {one_line(error)}{hint}") from error


def line_blocks(
    path: str, start: int, stop: int, compression: str | None = None, encoding: str = "utf-8"
) -> Iterator[Block]:
    """Read the lines of a byte range of a text file in blocks of some megabytes.

    A line belongs to the range in which it starts. Adjacent ranges therefore yield each line
    once, and the spans of their blocks cover the file. Only the last line of the file may lack a
    line end. Text that is compressed, or not in a byte encoding, is always read whole.

    Args:
        path: A path on any Beam filesystem.
        start: The first byte of the range.
        stop: The byte after the last one of the range.
        compression: The compression of the file, or None for the one that its name says.
        encoding: The encoding of the text. Unless it is a byte encoding, the lines are in UTF-8.

    Raises:
        InputError: The file cannot be read, or ends before `stop`.
    """
    compression = compression or compression_of(path)
    with _open(path) as handle:
        if compression is None and is_byte_encoding(encoding):
            yield from _plain_blocks(handle, path, start, stop)
        else:
            yield from _whole_blocks(handle, _text(handle, compression, encoding))


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


def _whole_blocks(handle: Any, text: Any) -> Iterator[Block]:
    """Yield all lines. The last block is empty: it stands for the end of the stored data."""
    offset, place = 0, 0
    while lines := text.read(BLOCK_BYTES):
        if not lines.endswith(b"\n"):
            lines += text.readline()
        yield Block(offset, lines, (place, place := handle.tell()))
        offset += len(lines)
    yield Block(offset, b"", (place, handle.tell()))
