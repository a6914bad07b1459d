"""Write the values of a source as JSON, of any type."""

from __future__ import annotations

import base64
import math
from typing import Any

import orjson


def to_json(value: Any) -> bytes:
    """Write a row as JSON.

    NaN, the infinities and integers of more than 64 bits become strings, bytes become base64.

    Raises:
        TypeError: The value cannot be written as JSON.
        RecursionError: The value is nested too deeply, such as a list that contains itself.
    """
    return orjson.dumps(_plain(value), default=str, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
