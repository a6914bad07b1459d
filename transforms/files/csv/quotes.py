"""Find the quotes in CSV text that open and close values.

A quote opens a value only at the start of a field. Inside the value, two quotes stand for one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from transforms.files.csv.dialect import Dialect

_NEWLINE, _RETURN = b"\n\r"
_NONE = np.array([], np.int64)


class Quotes(NamedTuple):
    """Positions of quotes in a text, each in ascending order.

    Attributes:
        all: All quotes.
        turns: The quotes that open or close a value, in turns.
        misplaced: The quotes that close a value before the end of its field.
    """

    all: np.ndarray
    turns: np.ndarray
    misplaced: np.ndarray


def find_quotes(text: bytes, line_ends: np.ndarray, dialect: Dialect) -> Quotes:
    """Find the quotes of a text.

    If each quote of a line in turn could open and close a value, it does. Other lines are read
    character by character.

    Args:
        text: A text that starts with a row, and has no escaped characters.
        line_ends: The position after each line feed.
        dialect: How the text is written.
    """
    if dialect.quote is None or (quote := dialect.quote.encode()) not in text:
        return Quotes(_NONE, _NONE, _NONE)
    data = np.frombuffer(text, np.uint8)
    quotes = np.flatnonzero(data == quote[0])
    lines = np.searchsorted(line_ends, quotes, side="right")
    if dialect.multiline:
        lines = np.zeros(len(quotes), np.int64)
    fits = _fits(data, quotes, lines, dialect)
    if fits.all():
        return Quotes(quotes, quotes, _NONE)
    others = np.unique(lines[~fits])
    bounds = [(0, len(text))]
    if not dialect.multiline:
        starts, stops = np.append(0, line_ends), np.append(line_ends, len(text))
        bounds = list(zip(starts[others].tolist(), stops[others].tolist(), strict=True))
    spans = _spans(text, bounds, dialect)
    turns = np.sort(np.concatenate([quotes[~np.isin(lines, others)], *spans[:2]]))
    delimiter = dialect.field_end
    after = data[np.minimum(spans[1] + 1, len(data) - 1)]
    ends = np.isin(after, [ord(delimiter), _NEWLINE, _RETURN]) | (spans[1] + 1 == len(data))
    return Quotes(quotes, turns, spans[1][~ends])


def _fits(data: np.ndarray, quotes: np.ndarray, lines: np.ndarray, dialect: Dialect) -> np.ndarray:
    """Return which quotes could open or close a value, if they do so in turns on each line."""
    quote, field_end = data[quotes[0]], ord(dialect.field_end)
    before = np.where(quotes > 0, data[quotes - 1], _NEWLINE)
    after = np.where(quotes + 1 < len(data), data[(quotes + 1) % len(data)], _NEWLINE)
    number = np.arange(len(quotes))
    first = np.maximum.accumulate(np.where(np.diff(lines, prepend=-1) != 0, number, 0))
    opens = (number - first) % 2 == 0
    # Two quotes inside a value close it, and open it again at once.
    start = (before == field_end) | (before == _NEWLINE) | (before == quote)
    end = (after == field_end) | (after == _NEWLINE) | (after == _RETURN) | (after == quote)
    return np.where(opens, start, end)


def _spans(
    text: bytes, bounds: list[tuple[int, int]], dialect: Dialect
) -> tuple[np.ndarray, np.ndarray]:
    """Return where quoted values open, and where those that close do so, within each part."""
    quote, end = re.escape((dialect.quote or "").encode()), re.escape(dialect.field_end.encode())
    value = re.compile(
        rb"(?:\A|(?<=[%b\n]))%b(?:[^%b]++|%b%b)*+(%b)?" % (end, quote, quote, quote, quote, quote)
    )
    opens, closes = [], []
    for start, stop in bounds:
        for found in value.finditer(text[start:stop]):
            opens.append(start + found.start())
            if found[1]:
                closes.append(start + found.end() - 1)
    return np.array(opens, np.int64), np.array(closes, np.int64)
