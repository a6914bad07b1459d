"""Find keys that appear twice in a JSON object; most readers silently use the last value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Doubled:
    """The value of a JSON object in which a key appears twice."""

    key: str


class DoubledKeyError(ValueError):
    """A key appears twice in a JSON object."""


def load_unique(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The JSON text.

    Raises:
        ValueError: The text is not valid JSON.
        DoubledKeyError: A key appears twice in an object.
    """
    value = json.loads(text, object_pairs_hook=_unique)
    if (key := doubled_key(value)) is not None:
        raise DoubledKeyError(doubled_text(key))
    return value


def load_marked(text: str | bytes) -> Any:
    """Return the value of a JSON text, with Doubled in place of each object with a repeated key.

    Args:
        text: The JSON text. All its numbers are read as floats.

    Raises:
        ValueError: The text is not valid JSON.
        RecursionError: The text is nested too deeply.
    """
    # Python refuses to read very long integers as int.
    return json.loads(text, object_pairs_hook=_unique, parse_int=float)


def doubled_key(value: Any) -> str | None:
    """Return a key that appears twice in an object in a value of `load_marked`, or None."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Doubled):
            return value.key
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return None


def doubled_text(key: str) -> str:
    """Return the text of an error about a key that appears twice."""
    return f"key {key[:60]!r} appears twice"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Doubled:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen = set()
    for key, _ in pairs:
        if key in seen:
            break
        seen.add(key)
    return Doubled(key)
