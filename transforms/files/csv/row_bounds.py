"""Find the rows in a block of CSV text: where they start and end, and which of them are broken.

All positions are found for a whole block at once. Only lines with stray quotes are looked at one
by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from transforms.dead_letters import Fault
from transforms.files.csv.dialect import Dialect
from transforms.files.csv.quotes import find_quotes
from transforms.files.text_lines import is_utf8

_NEWLINE, _RETURN = b"\n\r"


@dataclass(frozen=True, kw_only=True)
class CsvBlock:
    """A block of text and its rows. Blank lines are not rows.

    Attributes:
        stored: The block as it is stored in the file.
        text: The same text in UTF-8, apart from broken rows.
        starts: Where each row starts in the text, int64 [rows].
        ends: Where each row ends in the text, after its line end, int64 [rows].
        complete: Where the last row ends that has its line end in the block, in the block.
        opened: The first row that opens a quote and does not close it, or None.
        faults: Why a row is broken, by row.
    """

    stored: bytes
    text: bytes
    starts: np.ndarray
    ends: np.ndarray
    complete: int
    opened: int | None
    faults: Mapping[int, Fault]

    def text_of(self, rows: np.ndarray) -> bytes:
        """Return the text of one or more rows, in order."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return b"".join(self.text[self.starts[run[0]] : self.ends[run[-1]]] for run in runs)

    def stored_at(self, positions: np.ndarray) -> np.ndarray:
        """Return where lines that start or end at positions of the text do so in the block."""
        return _stored_at(positions, self.stored, self.text)


def find_rows(block: bytes, dialect: Dialect) -> CsvBlock:
    """Find the rows of a block that starts with a row.

    Args:
        block: Whole lines, as they are stored.
        dialect: How they are written.
    """
    text = block if dialect.is_utf8 else _in_utf8(block, dialect.encoding)
    plain = _unescaped(text, dialect)
    data = np.frombuffer(plain, np.uint8)
    ends = _line_ends(plain)
    quotes = find_quotes(plain, ends, dialect)
    if dialect.multiline:
        ends = ends[np.searchsorted(quotes.turns, ends) % 2 == 0]
    complete = int(ends[-1]) if len(ends) else 0
    if complete < len(text):
        ends = np.append(ends, len(text))
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    returns = np.flatnonzero(data == _RETURN) if b"\r" in plain else ends[:0]
    lengths = _lengths(data, starts, ends, returns)
    opened = _odd(quotes.turns, ends)
    stray = _holding(quotes.misplaced, ends)
    if quotes.all is not quotes.turns:
        stray |= _odd(quotes.all, ends) & ~opened
    broken = {
        f"expected {dialect.encoding.upper()}, got other bytes": _other_bytes(text, starts, ends),
        "expected CR only before LF, got one inside the line": _holding(
            _inner_returns(returns, starts + lengths, ends, quotes.turns, dialect), ends
        ),
        "expected a character after the escape character, got a line end": _holding(
            _dangling(data, dialect), ends
        ),
        "expected quotes only around a whole field, got a stray one": stray,
    }
    full = np.flatnonzero(lengths)
    faults: dict[int, Fault] = {}
    for message, rows in broken.items():
        for row in np.flatnonzero(rows[full]).tolist():
            faults.setdefault(row, Fault("invalid_csv", message))
    first_open = np.flatnonzero(opened[full])
    return CsvBlock(
        stored=block,
        text=text,
        starts=starts[full],
        ends=ends[full],
        complete=int(_stored_at(np.array([complete]), block, text)[0]),
        opened=int(first_open[0]) if len(first_open) else None,
        faults=faults,
    )


def _line_ends(text: bytes) -> np.ndarray:
    return np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE) + 1


def _stored_at(positions: np.ndarray, stored: bytes, text: bytes) -> np.ndarray:
    if stored is text:
        return positions
    # Both have the same lines; the end of the text may be that of a line without a line end.
    bounds = [np.concatenate([[0], _line_ends(t), [len(t)]]) for t in (stored, text)]
    found: np.ndarray = bounds[0][np.searchsorted(bounds[1], positions)]
    return found


def _in_utf8(block: bytes, encoding: str) -> bytes:
    """Return text of an encoding in UTF-8. Bytes that are not in the encoding stay no UTF-8.

    The other bytes of their rows keep their meaning, so that a quoted value ends where it should.
    """
    return block.decode(encoding, "surrogateescape").encode("utf-8", "surrogatepass")


def _unescaped(text: bytes, dialect: Dialect) -> bytes:
    """Replace each escaped character and the escape before it, so that they have no meaning."""
    if dialect.escape is None:
        return text
    other = rb"[\s\S]" if dialect.multiline else rb"[^\r\n]"
    return re.sub(re.escape(dialect.escape.encode()) + other, b"\0\0", text)


def _lengths(
    data: np.ndarray, starts: np.ndarray, ends: np.ndarray, returns: np.ndarray
) -> np.ndarray:
    """Return the lengths of rows without their line ends, given the positions of all CRs."""
    lengths = ends - starts
    if len(ends):
        lengths -= data[ends - 1] == _NEWLINE
    # Strip CR twice, because Windows programs often write CR CR LF.
    for _ in range(2 if len(returns) else 0):
        lengths -= (lengths > 0) & (data[starts + lengths - 1] == _RETURN)
    return lengths


def _inner_returns(
    returns: np.ndarray, stops: np.ndarray, ends: np.ndarray, turns: np.ndarray, dialect: Dialect
) -> np.ndarray:
    """Return the positions of CRs that are neither part of a line end nor in a quoted value."""
    if dialect.multiline:
        returns = returns[np.searchsorted(turns, returns) % 2 == 0]
    return returns[returns < stops[np.searchsorted(ends, returns, side="right")]]


def _dangling(data: np.ndarray, dialect: Dialect) -> np.ndarray:
    """Return the positions of escape characters that escape nothing."""
    escape = dialect.escape
    return np.array([], np.int64) if escape is None else np.flatnonzero(data == ord(escape))


def _other_bytes(text: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return which rows are not UTF-8."""
    if is_utf8(text):
        return np.zeros(len(starts), bool)
    parts = zip(starts.tolist(), ends.tolist(), strict=True)
    return np.array([not is_utf8(text[start:end]) for start, end in parts], bool)


def _holding(positions: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return which rows, given by their ends, hold at least one of these positions."""
    found = np.zeros(len(ends), bool)
    found[np.searchsorted(ends, positions, side="right")] = True
    return found


def _odd(positions: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return which rows, given by their ends, hold an odd number of these positions."""
    rows = np.searchsorted(ends, positions, side="right")
    odd: np.ndarray = np.bincount(rows, minlength=len(ends)) % 2 == 1
    return odd
