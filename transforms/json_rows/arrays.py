"""Split a JSON array into the texts of its elements."""

from __future__ import annotations

import re

import msgspec

_BETWEEN = re.compile(rb"[\s,]*")
# These are no JSON, but many programs write them.
_CONSTANTS = re.compile(rb'"(?:[^"\\]|\\.)*+"|NaN|Infinity')
_SAME_LENGTH = {b"NaN": b"0e0", b"Infinity": b"0e000000"}
_decode = msgspec.json.Decoder(list[msgspec.Raw]).decode


def array_elements(text: bytes) -> list[tuple[int, bytes]]:
    """Return each element of an array, with the byte of the text at which it starts.

    NaN and Infinity count as numbers.

    Args:
        text: The text of the array, from its bracket on.

    Raises:
        msgspec.DecodeError: The text is not a valid array.
        UnicodeDecodeError: A key is not UTF-8.
        RecursionError: The array is nested too deeply.
    """
    valid = text
    if b"NaN" in text or b"Infinity" in text:
        valid = _CONSTANTS.sub(lambda found: _SAME_LENGTH.get(found[0], found[0]), text)
    elements, end = [], 1
    for element in _decode(valid):
        start = _BETWEEN.match(text, end).end()  # type: ignore[union-attr]
        end = start + len(bytes(element).strip())
        elements.append((start, text[start:end]))
    return elements
