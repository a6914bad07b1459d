"""A message of a model or of a service without the values of the row that it is about.

What others say of a row may quote it; a value of a row is written into its payload alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

HIDDEN = "..."
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:[,_]\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?(?![\w])"
)
_QUOTED = re.compile(r"(?P<quote>['\"`])(?P<text>.*?)(?P=quote)")
# A shorter text is a part of too many words.
_LONG = 4


def without_numbers(text: str, values: Sequence[np.ndarray]) -> str:
    """A text and the numbers of a row -> the text without those, also where they are rounded."""
    if _NUMBER.search(text) is None:
        return text
    numbers = np.concatenate([np.ravel(v).astype(np.float64) for v in values] or [np.empty(0)])

    def hide(found: re.Match[str]) -> str:
        return HIDDEN if _is_one_of(found.group(), numbers) else found.group()

    return _NUMBER.sub(hide, text) if len(numbers) else text


def _is_one_of(shown: str, numbers: np.ndarray) -> bool:
    """A number as it is written -> whether one of the numbers would be written so."""
    mantissa, _, exponent = re.sub("[,_]", "", shown).lower().partition("e")
    places = len(mantissa.partition(".")[2])
    # A whole number has to be the number: rounded, too many are 0 or 1.
    slack = 0.5000001 * 10.0 ** (int(exponent or 0) - places) if places or exponent else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        return bool((np.abs(numbers - float(f"{mantissa}e{exponent or 0}")) <= slack).any())


def without_cells(text: str, row: Mapping[str, Any]) -> str:
    """A text and a row's columns -> the text without what is in the cells."""
    cells = list(_leaves(list(row.values())))
    numbers = [float(cell) for cell in cells if isinstance(cell, (int, float, Decimal))]
    texts = [str(cell) for cell in cells if not isinstance(cell, (int, float, Decimal))]
    for cell in sorted(texts, key=len, reverse=True):
        if len(cell) >= _LONG:
            text = text.replace(cell, HIDDEN)

    def hide(found: re.Match[str]) -> str:
        # Services shorten what they quote.
        start = found["text"].removesuffix("...")
        if found["text"] in row or not any(cell.startswith(start) for cell in texts):
            return found.group()
        return f"{found['quote']}{HIDDEN}{found['quote']}"

    return without_numbers(_QUOTED.sub(hide, text), [np.array(numbers)])


def _leaves(value: Any) -> Iterator[Any]:
    """A value -> what is in it that holds no others; no nulls."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value
