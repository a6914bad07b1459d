"""Keys that an object of JSON names twice: readers take the last of them and say nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Doubled:
    """Stands for an object of JSON that names a key twice."""

    key: str


class DoubledKeyError(ValueError):
    """An object of JSON names a key twice."""


def load_unique(text: str | bytes) -> Any:
    """JSON -> its value. Raises ValueError, DoubledKeyError where a key is twice in an object."""
    value = json.loads(text, object_pairs_hook=_unique)
    if (key := doubled_key(value)) is not None:
        raise DoubledKeyError(doubled_text(key))
    return value


def load_marked(text: str | bytes) -> Any:
    """JSON -> its value, with Doubled for each object that has a key twice, all numbers floats.

    Raises RecursionError where it is nested too deeply.
    """
    # Python refuses to read integers of many digits as such.
    return json.loads(text, object_pairs_hook=_unique, parse_int=float)


def doubled_key(value: Any) -> str | None:
    """A value of `load_marked` -> a key that an object anywhere in it has twice, if any."""
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
    """A key that is there twice -> what an error says of it."""
    return f"key {key[:60]!r} is there twice"


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
