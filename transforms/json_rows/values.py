"""Parse JSON: lines of files, messages and requests are parsed by the same rules.

orjson silently keeps the last of two equal keys. To detect duplicate keys, the colons that can
end a key are counted: if there are no more colons than keys, no key occurs twice.
Other texts are parsed again by Python's own parser, which reports every key.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import orjson

from model_handlers.manifests.unique_keys import doubled_key, doubled_text, load_marked
from transforms.dead_letters import Fault

# The white space that JSON allows around a value. Python would strip more.
JSON_SPACE = b" \t\r\n"
# Of all byte values up to that of a quote, JSON only allows quotes and whitespace before a colon.
_COLON, _QUOTE = b':"'
_KEY_END = re.compile(rb'"\s*:')
_NESTED = {dict, list}
# The types of values that may be, or contain, an integer that was rounded.
_INEXACT = {float, dict, list}
_LONG = re.compile(rb"[0-9]{19}")
# What messages call the types of Python that JSON values have.
_TYPES = {
    type(None): "null",
    str: "string",
    bool: "boolean",
    int: "integer",
    dict: "object",
}
# Constants that are not JSON. Numbers that no program writes mark them while orjson reads a text.
# They start with a minus sign, so that nothing before them can become a part of the number.
_CONSTANTS = re.compile(rb'"(?:[^"\\]|\\.)*+"|(?:NaN|-?Infinity)(?!\w)')
_MARKS = {
    b"NaN": b"-1.7320508075688772e-303",
    b"Infinity": b"-2.2360679774997896e-303",
    b"-Infinity": b"-2.6457513110645907e-303",
}
_CONSTANT_OF = {float(mark): float(name) for name, mark in _MARKS.items()}


def read_json_values(texts: Sequence[bytes | Fault], exact: Sequence[str] = ()) -> list[Any]:
    """Parse JSON texts.

    Args:
        texts: JSON texts, or Faults, which are returned as they are.
        exact: The members of objects in which integers of more than 64 bits keep all their
            digits. In others they become floats.

    Returns:
        The value of each text, or its Fault. The reason is `invalid_json`, or `duplicate_key` if
        an object, at any depth, contains a key twice.
    """
    try:
        # orjson also raises this error for a Fault.
        values = [orjson.loads(cast(bytes, text)) for text in texts]
    except orjson.JSONDecodeError:
        values = [text if isinstance(text, Fault) else _value(text) for text in texts]
    objects = [value for value in values if type(value) is dict]
    if len(objects) == len(values):
        of_objects = cast(Sequence[bytes], texts)
    else:
        pairs = zip(texts, values, strict=True)
        of_objects = [cast(bytes, text) for text, value in pairs if type(value) is dict]
    keys = sum(map(len, objects))
    ends = count_key_ends(of_objects, keys)
    if ends > keys and ends > keys + _inner_keys(objects):
        checked = map(_checked, objects, of_objects)
        values = [next(checked) if type(value) is dict else value for value in values]
    for name in exact:
        cells = [value.get(name) if type(value) is dict else None for value in values]
        if not _INEXACT.isdisjoint(map(type, cells)):
            _read_again(name, cells, values, texts)
    return values


def _read_again(
    name: str, cells: Sequence[Any], values: Sequence[Any], texts: Sequence[bytes | Fault]
) -> None:
    """Replace members with integers that orjson has rounded to floats, in place."""
    for cell, value, text in zip(cells, values, texts, strict=True):
        if type(cell) is float:
            rounded = abs(cell) >= 1 << 63
        else:
            rounded = type(cell) in _NESTED and _LONG.search(cast(bytes, text)) is not None
        if rounded:
            with contextlib.suppress(RecursionError):
                value[name] = json.loads(cast(bytes, text), parse_int=_integer)[name]


def _integer(digits: str) -> int | str:
    # Python refuses to convert much longer texts.
    return int(digits) if len(digits) < 4_000 else digits


def _value(text: bytes) -> Any:
    try:
        return load_json(text)
    except ValueError as error:
        return Fault("invalid_json", str(error))


def load_json(text: bytes) -> Any:
    """Return the value of a JSON text, in which NaN and Infinity are numbers.

    Args:
        text: The JSON text.

    Raises:
        ValueError: The text is not JSON, or is nested too deeply.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            return _with_constants(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except ValueError:
            raise ValueError(f"not JSON: {error}") from None


def _with_constants(text: bytes) -> Any:
    """Return the value of a JSON text that contains NaN or Infinity, which many programs write.

    Raises:
        ValueError: The text is not JSON even so.
        RecursionError: The text is nested too deeply.
    """
    if b"NaN" not in text and b"Infinity" not in text:
        raise ValueError("no constants")
    marked = _CONSTANTS.sub(lambda found: _MARKS.get(found[0], found[0]), text)
    return _unmarked(orjson.loads(marked))


def _unmarked(value: Any) -> Any:
    if type(value) is dict:
        return {name: _unmarked(member) for name, member in value.items()}
    if type(value) is list:
        return [_unmarked(item) for item in value]
    return _CONSTANT_OF.get(value, value) if type(value) is float else value


def _checked(value: dict[str, Any], text: bytes) -> Any:
    """Return an object, or its Fault if its JSON contains a key twice."""
    if len(_KEY_END.findall(text)) == _count_keys(value):
        return value
    try:
        key = doubled_key(load_marked(text))
    except RecursionError:
        return Fault("invalid_json", "nested too deeply")
    if key is None:
        return value
    # A key of an inner object is part of a value, and messages never contain values.
    message = doubled_text(key) if key in value else "a nested object contains a key twice"
    return Fault("duplicate_key", message)


def _inner_keys(objects: Sequence[dict[str, Any]]) -> int:
    """Count the keys of inner objects, but only under names with an object in the first row."""
    names = [name for name, member in objects[0].items() if type(member) is dict]
    members = (one.get(name) for name in names for one in objects)
    return sum(len(member) for member in members if type(member) is dict)


def _count_keys(value: Any) -> int:
    """Count the keys of all objects in a JSON value."""
    keys, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        items: Iterable[Any] = value
        if type(value) is dict:
            keys += len(value)
            items = value.values()
        waiting += [item for item in items if type(item) in _NESTED]
    return keys


def count_key_ends(texts: Sequence[bytes], keys: int) -> int:
    """Return an upper bound on the number of keys in JSON texts.

    The bound is the number of colons after a quote or whitespace. If there are no more colons
    than keys, the number of all colons is returned, which takes a third of the time.

    Args:
        texts: JSON texts.
        keys: How many keys were read.
    """
    # Join only as many texts at once as fit into the caches.
    parts = [
        np.frombuffer(b"".join(texts[i : i + 256]), np.uint8) for i in range(0, len(texts), 256)
    ]
    colons = sum(int(np.count_nonzero(part == _COLON)) for part in parts)
    return colons if colons <= keys else sum(map(_key_ends, parts))


def _key_ends(text: np.ndarray) -> int:
    ends = text[1:] == _COLON
    ends &= text[:-1] <= _QUOTE
    return int(np.count_nonzero(ends))


def json_type(value: Any) -> str:
    """Return the name of a JSON value's type in words that do not depend on Python."""
    kind = type(value)
    return _TYPES.get(kind, kind.__name__)
