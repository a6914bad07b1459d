"""Derive ids for rows without one from their content, the same in every run on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import decoded, is_list, is_text
from common.plain_json import to_json

# Odd constants with well-spread bits, from the SplitMix64 and MurmurHash3 finalizers.
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_FIRST, _SECOND = np.uint64(0x94D049BB133111EB), np.uint64(0xC4CEB9FE1A85EC53)
_NULL = np.uint64(0x9E3779B97F4A7C15)


def content_ids(columns: Sequence[pa.Array]) -> pa.Array:
    """Derive an id of 32 hex digits for each row from all its values.

    Rows with equal values have equal ids, independently of the other rows of the batch. The hash
    has 128 bits, so different rows practically never share an id. It is not cryptographic: anyone
    can construct a row with a given id.

    Args:
        columns: The columns of the rows, at least one, all of the same length.

    Returns:
        A string column [rows].
    """
    rows = len(columns[0])
    first, second = np.full(rows, _FIRST), np.full(rows, _SECOND)
    for words in chain.from_iterable(map(_words, columns)):
        _fold(first, second, words)
    first ^= first >> np.uint64(33)
    first *= _MIX
    text = np.stack([first, second], axis=1).astype(">u8").tobytes().hex().encode()
    ends = np.arange(rows + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(rows, pa.py_buffer(ends), pa.py_buffer(text))


def _fold(first: np.ndarray, second: np.ndarray, words: np.ndarray) -> None:
    """Mix the next 64 bits of each row into its two hashes, in place."""
    mixed = words ^ (words >> np.uint64(32))
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(29)
    first *= _FIRST
    first += mixed
    second ^= mixed
    second *= _SECOND
    second ^= second >> np.uint64(31)


def _words(column: pa.Array) -> Iterator[np.ndarray]:
    """Yield the 64-bit words [rows] of a column; their number depends only on its type."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _words(decoded(column))
    if is_list(kind):
        words = _of_lists(column)
    elif pa.types.is_struct(kind):
        present = np.zeros(len(column), np.uint64)
        words = chain([present], *map(_words, column.flatten()))
    elif pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        words = _of_bits(column)
    elif is_text(kind) or pa.types.is_binary(kind):
        # Strings often repeat, so each distinct one is hashed once.
        distinct = column.cast(pa.binary()).dictionary_encode()
        places = np.asarray(distinct.indices.fill_null(0))
        words = (word[places] for word in _of_values(distinct.dictionary, lambda value: value))
    else:
        words = _of_values(column, to_json)
    if not column.null_count:
        return words
    null = np.asarray(column.is_null())
    return (np.where(null, _NULL, word) for word in words)


def _of_bits(column: pa.Array) -> Iterator[np.ndarray]:
    """Yield the bits of a column of numbers or times as words."""
    kind = column.type
    if kind.bit_width < 32:
        return _of_bits(column.cast(pa.float64() if pa.types.is_float16(kind) else pa.int64()))
    size, rows = kind.bit_width // 8, len(column)
    bits = np.frombuffer(column.buffers()[1] or b"", np.uint32 if size == 4 else np.uint64)
    width = size // bits.itemsize
    bits = bits[column.offset * width : (column.offset + rows) * width].reshape(rows, width)
    return (bits[:, i].astype(np.uint64) for i in range(width))


def _of_values(column: pa.Array, to_bytes: Callable[[Any], bytes]) -> Iterator[np.ndarray]:
    """Return the digests of a column's values in two words, given how a value becomes bytes."""
    digests = b"".join(
        hashlib.blake2b(b"" if value is None else to_bytes(value), digest_size=16).digest()
        for value in column.to_pylist()
    )
    words = np.frombuffer(digests or bytes(16), ">u8").astype(np.uint64).reshape(-1, 2)
    return iter((words[:, 0], words[:, 1]))


def _of_lists(column: pa.Array) -> Iterator[np.ndarray]:
    """Return two words that hash the length and the elements of each list of a column."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    first, second = lengths.astype(np.uint64), lengths.astype(np.uint64)
    for words in _words(column.flatten()):
        for place in range(lengths.max(initial=0)):
            has = slice(None) if (lengths > place).all() else np.flatnonzero(lengths > place)
            hashes = first[has], second[has]
            _fold(*hashes, words[starts[has] + place])
            first[has], second[has] = hashes
    return iter((first, second))


def content_id(message: bytes) -> str:
    """Derive an id of 32 hex digits from the bytes of a message; equal messages have equal ids."""
    return hashlib.blake2b(message, digest_size=16).hexdigest()
