"""The names in the first rows of JSON files, which have no header that could list the columns."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from transforms.files.hive import keys_of
from transforms.files.json_documents import holds_document, read_document
from transforms.files.text_lines import look_into, open_text
from transforms.json_rows.values import JSON_SPACE, read_json_values

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
    """Read rows of JSON files until they have shown all wanted names, at most FIRST_ROWS.

    Rows that are not JSON objects show no names.

    Args:
        paths: The paths of the files.
        wanted: The names to find.

    Raises:
        InputError: A file cannot be read.
    """
    names: dict[str, None] = {}
    rows, missing = 0, set(wanted)
    for found in _names(paths) if missing else ():
        rows += 1
        names |= dict.fromkeys(found)
        missing.difference_update(found)
        if not missing or rows == FIRST_ROWS:
            break
    return FirstRows(rows, tuple(names))


def _names(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yield the names of each row, with those of the folders of its file."""
    for path in paths:
        keys = keys_of(path)
        for text in row_texts(path):
            (row,) = read_json_values([text])
            yield [*row, *keys] if isinstance(row, dict) else []


def row_texts(path: str) -> Iterator[bytes]:
    """Yield the texts of the rows of a JSON file.

    Raises:
        InputError: The file cannot be read.
    """
    if holds_document(path, look_into(path)[1]):
        yield from (text for _, text in read_document(path))
        return
    with open_text(path) as handle:
        for line in iter(handle.readline, b""):
            if text := line.removeprefix(BOM_UTF8).strip(JSON_SPACE):
                yield text
