"""Values of JSON and Avro as cells of a raw type."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import chain
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from common.cells import is_text
from common.texts import to_text
from model_handlers.steps.raw import INFINITE_TEXT, become, each_item, expected
from model_handlers.steps.step import Cells

_WRONG = object()
_NOTHING = type(None)
# The Python types from which Arrow builds a column that `become` reads as it would read the text.
_TEXT: tuple[set[type], pa.DataType] = ({str, _NOTHING}, pa.string())
_PLAIN: Mapping[str, tuple[tuple[set[type], pa.DataType], ...]] = {
    "float64": (
        ({float, _NOTHING}, pa.float64()),
        ({int, _NOTHING}, pa.int64()),
        ({float, int, _NOTHING}, pa.float64()),
        _TEXT,
    ),
    "int64": (({int, _NOTHING}, pa.int64()), _TEXT),
    "bool": (({bool, _NOTHING}, pa.bool_()), _TEXT),
    "string": (_TEXT, ({float, _NOTHING}, pa.float64())),
    "timestamp": (_TEXT,),
    "datetime": (_TEXT,),
    "date": (_TEXT,),
    "binary": (({bytes, _NOTHING}, pa.binary()), _TEXT),
}


def read_column(values: pa.Array, raw: str) -> Cells:
    """Return the cells of a column as values of a raw type, and also lists that are JSON texts.

    Args:
        values: The column, of a type that `can_become` accepts. A CSV file has lists as texts such
            as `[1, 2]`.
        raw: The name of the raw type.
    """
    if not (raw.startswith("list<") and is_text(values.type)):
        return become(values, raw)
    return from_values(values.to_pylist(), raw)


def from_values(values: Sequence[Any], raw: str) -> Cells:
    """Return values that JSON or Avro has as cells of a raw type.

    Args:
        values: The value of each row. Avro has times, decimals and bytes besides those of JSON.
        raw: The name of the raw type.

    Returns:
        The cells, as `become` returns them. A value of another type is refused with `wrong_type`.
    """
    if raw.startswith("list<"):
        return _lists(values, raw)
    kinds = set(map(type, values))
    plain = next((type_ for types, type_ in _PLAIN[raw] if kinds <= types), None)
    if plain is not None:
        # An integer may have more than 64 bits, or more than a float; text half a surrogate pair.
        with suppress(pa.ArrowException, OverflowError, UnicodeEncodeError):
            return become(pa.array(values, plain), raw)
    texts = [_encodable(_READERS[raw](value)) for value in values]
    wrong = np.array([text is _WRONG for text in texts], bool)
    known = [None if text is _WRONG else text for text in texts]
    cells = become(pa.array(known, pa.binary() if raw == "binary" else pa.string()), raw)
    for kind in sorted({_name(v) for v, text in zip(values, texts, strict=True) if text is _WRONG}):
        of_kind = np.array([_name(value) == kind for value in values], bool)
        message = f"expected {expected(raw)}, got {kind}"
        cells = cells.refuse(wrong & of_kind, "wrong_type", message)
    if raw == "string":
        infinite = np.array([isinstance(v, float) and math.isinf(v) for v in values], bool)
        cells = cells.refuse(infinite, "not_finite", INFINITE_TEXT)
    return cells


def _lists(values: Sequence[Any], raw: str) -> Cells:
    """Return lists of values, or their JSON texts, as cells."""
    read = [_parsed(value) if isinstance(value, str) else value for value in values]
    wrong = {
        i: "text that is no JSON list" if isinstance(values[i], str) else _name(value)
        for i, value in enumerate(read)
        if not isinstance(value, list | _NOTHING)
    }
    lists = [value if isinstance(value, list) else [] for value in read]
    lengths = np.array([len(value) for value in lists], np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    missing = pa.array([value is None for value in read], pa.bool_())
    items = list(chain.from_iterable(lists))
    places = pa.array(np.arange(len(items)))
    rows = Cells(pa.ListArray.from_arrays(offsets, places, mask=missing))
    cells = each_item(rows, lambda _: from_values(items, raw[5:-1]))
    for kind in sorted(set(wrong.values())):
        of_kind = np.zeros(len(values), bool)
        of_kind[[i for i, found in wrong.items() if found == kind]] = True
        cells = cells.refuse(of_kind, "wrong_type", f"expected {expected(raw)}, got {kind}")
    return cells


def _parsed(text: str) -> Any:
    """Return the JSON value of a text, null for an empty text, or the text if it is not JSON."""
    if not text.strip():
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _name(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", str: "text", bytes: "bytes"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "another value")


def _encodable(text: Any) -> Any:
    """Return a text, or _WRONG if it has half a surrogate pair."""
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError:
            return _WRONG
    return text


def _number(value: Any) -> Any:
    """Return the text of a number, null, or _WRONG."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str | _NOTHING):
        return _WRONG
    return None if value is None else str(value)


def _bool(value: Any) -> Any:
    if isinstance(value, bool | int | float | Decimal):
        return str(value)
    return value if isinstance(value, str | _NOTHING) else _WRONG


def _text(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    return _WRONG if isinstance(value, dict | list | bytes) else to_text(value)


def _time(value: Any) -> Any:
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value if isinstance(value, str | _NOTHING) else _WRONG


def _bytes(value: Any) -> Any:
    if isinstance(value, bytes | _NOTHING):
        return value
    try:
        return base64.b64decode(value.strip(), validate=True) or None
    except (AttributeError, ValueError):
        return _WRONG


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "float64": _number,
    "int64": _number,
    "bool": _bool,
    "string": _text,
    "timestamp": _time,
    "datetime": _time,
    "date": _time,
    "binary": _bytes,
}
