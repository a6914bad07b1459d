"""JSON texts to values: lines of files, messages and requests are read by the same rules.

orjson takes the last of two equal keys silently. Where no more colons may end a key than keys
were read, no key is there twice; other texts are read again by Python's own reader, which shows
every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import orjson

from model_handlers.unique_keys import doubled_key, doubled_text, load_marked
from transforms.dead_letters import Fault

# Of the bytes up to a quote, JSON allows no others before a colon than quotes and spaces.
_COLON, _QUOTE = b':"'
_KEY_END = re.compile(rb'"\s*:')
_NESTED = {dict, list}


def read_json_values(texts: Sequence[bytes | Fault]) -> list[Any]:
    """JSON texts, or Faults -> the value of each, or the Fault that it has.

    Reasons: `invalid_json`, and `duplicate_key` for an object with a key that is twice in it,
    or in an object within.
    """
    try:
        # A Fault is no JSON either.
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
    return values


def _value(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return Fault("invalid_json", f"not JSON: {error}")


def _checked(value: dict[str, Any], text: bytes) -> Any:
    """An object and its JSON -> the same, or its Fault."""
    if len(_KEY_END.findall(text)) == _count_keys(value):
        return value
    try:
        key = doubled_key(load_marked(text))
    except RecursionError:
        return Fault("invalid_json", "nested too deeply")
    if key is None:
        return value
    # Within a value, a key is a part of that value.
    message = doubled_text(key) if key in value else "a key of an object in it is there twice"
    return Fault("duplicate_key", message)


def _inner_keys(objects: Sequence[dict[str, Any]]) -> int:
    """Objects of JSON -> the keys of objects in them, as far as the first has such members."""
    names = [name for name, member in objects[0].items() if type(member) is dict]
    members = (one.get(name) for name in names for one in objects)
    return sum(len(member) for member in members if type(member) is dict)


def _count_keys(value: Any) -> int:
    """A value of JSON -> the keys of all objects in it."""
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
    """Texts of JSON, and how many keys were read -> how many keys they have at most.

    These are the colons after a quote or a space. All colons count where they are no more than
    the keys that were read: finding them takes a third of the time.
    """
    # As many at once as fit into the caches.
    parts = [
        np.frombuffer(b"".join(texts[i : i + 256]), np.uint8) for i in range(0, len(texts), 256)
    ]
    colons = sum(int(np.count_nonzero(part == _COLON)) for part in parts)
    return colons if colons <= keys else sum(map(_key_ends, parts))


def _key_ends(text: np.ndarray) -> int:
    ends = text[1:] == _COLON
    ends &= text[:-1] <= _QUOTE
    return int(np.count_nonzero(ends))
