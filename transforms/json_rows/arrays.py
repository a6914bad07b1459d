"""Split the text of a JSON array into the texts of its elements."""

from __future__ import annotations

import re

import msgspec

_BETWEEN = re.compile(rb"\s*[\[,]\s*")
# These are no JSON, but many programs write them.
_CONSTANTS = re.compile(rb'"(?:[^"\\]|\\.)*+"|NaN|Infinity')
_SAME_LENGTH = {b"NaN": b"0e0", b"Infinity": b"0e000000"}
_decode = msgspec.json.Decoder(list[msgspec.Raw]).decode


def without_constants(text: bytes) -> bytes:
    """Return a JSON text with a number of the same length in place of each NaN and Infinity."""
    if b"NaN" in text or b"Infinity" in text:
        return _CONSTANTS.sub(lambda found: _SAME_LENGTH.get(found[0], found[0]), text)
    return text


def split_array(text: bytes) -> list[tuple[int, bytes]]:
    """Return the exact text of each element of an array, and the byte at which it starts.

    Elements may contain NaN and Infinity.

    Args:
        text: The JSON text of the array.

    Raises:
        ValueError: The text is not a valid array, or is nested too deeply.
    """
    try:
        elements = _decode(without_constants(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    rows, at = [], 0
    for element in elements:
        start = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        at = start + len(memoryview(element))
        rows.append((start, text[start:at]))
    return rows
