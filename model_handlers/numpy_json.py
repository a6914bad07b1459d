"""Arrays to JSON and back, by the column: a fraction of what a dict a row costs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import orjson

_NUMBERS = {float, int, type(None)}


def dump_rows(array: np.ndarray) -> bytes:
    """An array [rows, ...] -> the JSON text of a list with an element a row.

    Numbers are as short as their dtype allows; NaN and the infinities are null.
    """
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)


def dump_objects(keys: Sequence[str], arrays: Sequence[np.ndarray]) -> bytes:
    """A key and an array [rows, ...] each -> the JSON text of a list, one object a row."""
    if not len(arrays[0]):
        return b"[]"
    members = []
    for key, array in zip(keys, arrays, strict=True):
        depth = array.ndim - 1
        name = orjson.dumps(key).replace(b"%", b"%%")
        members.append(b"%b:%b%%b%b" % (name, b"[" * depth, b"]" * depth))
    row = b"{%b}" % b",".join(members)
    columns = zip(*map(row_texts, arrays), strict=True)
    return b"[%b]" % b",".join([row % cells for cells in columns])


def row_texts(array: np.ndarray) -> list[bytes]:
    """An array [rows, ...] -> the JSON text of each row, without its outer brackets."""
    text, depth = dump_rows(array), array.ndim
    between = b"]" * (depth - 1) + b"," + b"[" * (depth - 1)
    return text[depth:-depth].split(between)


def is_bare(name: str) -> bool:
    """Whether JSON takes a name as it is, without escaping; msgspec knows no other."""
    return orjson.dumps(name) == b'"%b"' % name.encode()


@functools.lru_cache(maxsize=64)
def member_reader(
    key: str, members: tuple[tuple[str, str, int], ...]
) -> Callable[[bytes], list[list[Any]]] | None:
    """A key, and name, dtype and depth of members -> a reader of {key: [{name: value, ...}, ...]}.

    It gives the values of each member, and raises MsgspecError or UnicodeDecodeError for
    anything else: a member that is missing, or a value of another type or depth. What else an
    object has is passed over, in a fraction of the time of making it. None for names that
    have to be escaped.
    """
    if not all(is_bare(name) for name in (key, *(name for name, _, _ in members))):
        return None
    fields: list[Any] = []
    for i, (_, dtype, depth) in enumerate(members):
        is_float = dtype.startswith("float")
        kind: Any = float | None if is_float else bool if dtype == "bool" else int
        for _ in range(depth):
            kind = list[kind]
        fields.append((f"_{i}", kind))
    renamed = {f"_{i}": name for i, (name, _, _) in enumerate(members)}
    row = msgspec.defstruct("Row", fields, rename=renamed, gc=False)
    whole = msgspec.defstruct("Whole", [("rows", list[row])], rename={"rows": key}, gc=False)  # type: ignore[valid-type]
    decode = msgspec.json.Decoder(whole).decode
    getters = [attrgetter(name) for name in renamed]

    def read(body: bytes) -> list[list[Any]]:
        rows = decode(body).rows  # type: ignore[attr-defined]
        return [list(map(getter, rows)) for getter in getters]

    return read


def read_array(values: Sequence[Any], dtype: str, shape: Sequence[int]) -> np.ndarray | None:
    """A JSON value a row -> an array [rows, *shape] of a dtype, null and NaN as NaN.

    None if any value is another: of another shape, no number, or none that the dtype holds.
    """
    flat = values
    for size in shape:
        if {*map(type, flat)} - {list} or {*map(len, flat)} - {size}:
            return None
        flat = list(chain.from_iterable(flat))
    kinds = {*map(type, flat)}
    if dtype == "bool":
        return None if kinds - {bool} else np.array(flat, bool).reshape(len(values), *shape)
    if kinds - _NUMBERS:
        return None
    try:
        if dtype.startswith("float"):
            with np.errstate(over="ignore"):
                array = np.array(flat, np.float64).astype(dtype, copy=False)
        else:
            # By way of Python's integers, which are exact.
            whole = [int(value) for value in flat]
            array = np.array(whole, dtype)
            if whole != flat:
                return None
    except (TypeError, ValueError, OverflowError):
        return None
    return array.reshape(len(values), *shape)
