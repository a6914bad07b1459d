"""Decompress data of others within a limit: the content of a message, or the body of a request."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Literal

import pyarrow as pa

Compression = Literal["gzip", "deflate", "identity"]

# The values of `Content-Encoding`. Source: RFC 9110, section 8.4.1.
_NAMES: dict[str, Compression] = {
    "": "identity",
    "identity": "identity",
    "gzip": "gzip",
    "x-gzip": "gzip",
    "deflate": "deflate",
}


class TooLarge(ValueError):
    """The decompressed data exceeds the limit."""


def compression_of(encoding: str) -> Compression | None:
    """Return the compression that a content encoding names, or None if it is not known."""
    return _NAMES.get(encoding.strip().lower())


def decompress(data: bytes, compression: Compression, limit: int) -> bytes:
    """Decompress data, in memory and time that the limit and the size of the data bound.

    Args:
        data: The data. Gzip may have several members, and zeros after the last one.
        compression: Its compression. Deflate may lack the header and the checksum of zlib.
        limit: The largest size of the result, in bytes.

    Raises:
        TooLarge: The result exceeds the limit.
        ValueError: The data is incomplete or damaged, or has another format.
    """
    if compression == "identity":
        return _within(data, limit)
    if compression == "gzip":
        return _inflate(data, limit, zlib.MAX_WBITS + 16)
    try:
        return _inflate(data, limit, zlib.MAX_WBITS)
    except TooLarge:
        raise
    except ValueError:
        return _inflate(data, limit, -zlib.MAX_WBITS)


def _within(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise TooLarge
    return data


def _inflate(data: bytes, limit: int, wbits: int) -> bytes:
    inflate = zlib.decompressobj(wbits)
    try:
        first = _within(inflate.decompress(data, limit + 1), limit)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflate.eof:
        raise ValueError("the data is incomplete")
    rest = inflate.unused_data
    if not rest.strip(b"\0"):
        return first
    if wbits < zlib.MAX_WBITS + 16:
        raise ValueError("other data follows")
    # Arrow takes twenty microseconds to start, but reads thousands of members in linear time. It
    # fails at zeros after the last one.
    try:
        return _within(
            pa.CompressedInputStream(pa.BufferReader(data), "gzip").read(limit + 1), limit
        )
    except OSError:
        return _in_python(data, limit)


def _in_python(data: bytes, limit: int) -> bytes:
    """Read gzip with zeros after several members, at which Arrow fails."""
    try:
        return _within(gzip.GzipFile(fileobj=io.BytesIO(data)).read(limit + 1), limit)
    except EOFError as error:
        raise ValueError("the data is incomplete") from error
    except (OSError, zlib.error) as error:
        raise ValueError("other data follows") from error
