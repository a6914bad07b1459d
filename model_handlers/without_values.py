"""Remove the values of a row from a message that a model or a service wrote about the row.

Such a message may quote the row, but values of a row may be written only to its payload.
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
# A shorter text is part of too many words.
_LONG = 4


def without_numbers(text: str, values: Sequence[np.ndarray]) -> str:
    """Replace the numbers of a row in a text by "...", even if the text rounds them.

    Args:
        text: The text.
        values: Arrays of the row's numbers.
    """
    if _NUMBER.search(text) is None:
        return text
    numbers = np.concatenate([np.ravel(v).astype(np.float64) for v in values] or [np.empty(0)])

    def hide(found: re.Match[str]) -> str:
        return HIDDEN if _is_one_of(found.group(), numbers) else found.group()

    return _NUMBER.sub(hide, text) if len(numbers) else text


def _is_one_of(shown: str, numbers: np.ndarray) -> bool:
    """Return whether one of the numbers, rounded to the digits of a written number, equals it."""
    mantissa, _, exponent = re.sub("[,_]", "", shown).lower().partition("e")
    places = len(mantissa.partition(".")[2])
    # A whole number must match exactly, because too many numbers round to 0 or 1.
    slack = 0.5000001 * 10.0 ** (int(exponent or 0) - places) if places or exponent else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        return bool((np.abs(numbers - float(f"{mantissa}e{exponent or 0}")) <= slack).any())


def without_cells(text: str, row: Mapping[str, Any]) -> str:
    """Replace the values of a row in a text by "...".

    Args:
        text: The text.
        row: The values of the row, by column name. Names of columns stay in the text.
    """
    cells = list(_leaves(list(row.values())))
    numbers = [float(cell) for cell in cells if isinstance(cell, (int, float, Decimal))]
    texts = [str(cell) for cell in cells if not isinstance(cell, (int, float, Decimal))]
    for cell in sorted(texts, key=len, reverse=True):
        if len(cell) >= _LONG:
            text = text.replace(cell, HIDDEN)

    def hide(found: re.Match[str]) -> str:
        # Services shorten the values that they quote, and end them with "...".
        start = found["text"].removesuffix("...")
        if found["text"] in row or not any(cell.startswith(start) for cell in texts):
            return found.group()
        return f"{found['quote']}{HIDDEN}{found['quote']}"

    return without_numbers(_QUOTED.sub(hide, text), [np.array(numbers)])


def _leaves(value: Any) -> Iterator[Any]:
    """Yield all values within nested objects and lists, except nulls."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value
