"""The names in the first rows of JSON Lines, which have no header that could list the columns."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import orjson

from transforms.files.text_lines import open_text

# How many rows are searched for a name before it counts as absent.
FIRST_ROWS = 10_000


class FirstRows(NamedTuple):
    """What the first rows of an input show.

    Attributes:
        rows: How many rows were read.
        names: The names that any of these rows has, in the order in which they appear.
    """

    rows: int
    names: tuple[str, ...]


def read_first_rows(paths: Sequence[str], wanted: Collection[str]) -> FirstRows:
    """Read rows of JSON Lines files until they have shown all wanted names, at most FIRST_ROWS.

    Lines that are not JSON objects show no names.

    Args:
        paths: The paths of the files.
        wanted: The names to find.

    Raises:
        InputError: A file cannot be read.
    """
    names: dict[str, None] = {}
    rows, missing = 0, set(wanted)
    for line in _lines(paths) if missing else ():
        rows += 1
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            names |= dict.fromkeys(row)
            missing.difference_update(row)
        if not missing or rows == FIRST_ROWS:
            break
    return FirstRows(rows, tuple(names))


def _lines(paths: Sequence[str]) -> Iterator[bytes]:
    """Yield the lines of files that are not blank."""
    for path in paths:
        with open_text(path) as handle:
            for line in iter(handle.readline, b""):
                if text := line.removeprefix(BOM_UTF8).strip():
                    yield text
