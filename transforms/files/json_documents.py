"""Find the rows of a JSON file that does not have one row per line."""

from __future__ import annotations

import re
from codecs import BOM_UTF8

import orjson

from common.errors import InputError, one_line
from transforms.files.text_lines import open_text, without_compression
from transforms.json_rows.arrays import split_array
from transforms.json_rows.values import JSON_SPACE

# A whole file is read into memory. This is the size of its text in bytes.
LARGEST_DOCUMENT = 512 << 20
# JSON separates values by commas, except at the top level. A string contains no line break.
_BETWEEN_OBJECTS = re.compile(rb"(?<=\})[ \t\r]*\n[ \t\r\n]*(?=\{)")
_BETWEEN_LINES = re.compile(rb"[}\]][ \t]*\r[ \t\r]*[{\[]")


def holds_document(path: str, start: bytes) -> bool:
    """Return whether a JSON file has not one row per line, by its name and its first bytes."""
    return without_compression(path).lower().endswith(".json") and is_document(start)


def is_document(start: bytes) -> bool:
    """Return whether a JSON text is an array or pretty-printed, judging by its first bytes."""
    text = start.removeprefix(BOM_UTF8).lstrip(JSON_SPACE)
    first, _, rest = text.partition(b"\n")
    if text.startswith(b"["):
        # Lines that are arrays are rows at fault, each of them.
        return not (rest.strip(JSON_SPACE) and _is_json(first))
    pretty = text.startswith(b"{") and not first.rstrip(JSON_SPACE).endswith(b"}")
    return pretty and bool(rest) and not rest.lstrip(JSON_SPACE).startswith(b"{")


def ends_in_cr(start: bytes) -> bool:
    """Return whether the lines of a JSON file end in CR alone, judging by its first bytes."""
    return b"\n" not in start and _BETWEEN_LINES.search(start) is not None


def read_document(path: str) -> list[tuple[int, bytes]]:
    """Return the rows of a file that is one document, as `rows_of_document` does.

    Raises:
        InputError: The file cannot be read, is too large, or is not valid JSON.
    """
    with open_text(path) as handle:
        text = handle.read(LARGEST_DOCUMENT + 1)
    if len(text) > LARGEST_DOCUMENT:
        raise InputError(
            f"{path} is one JSON document of more than {LARGEST_DOCUMENT >> 20} MiB, which "
            "would be read into memory whole: convert it to one row per line, for example with "
            "jq -c '.[]' for an array"
        )
    return rows_of_document(bytes(text), path)


def rows_of_document(text: bytes, path: str) -> list[tuple[int, bytes]]:
    """Return the rows of a document, each with the byte of the text at which it starts.

    Args:
        text: The text of the whole file.
        path: The path of the file, for messages.

    Raises:
        InputError: The text is an array, and not valid JSON.
    """
    start = len(text) - len(text.removeprefix(BOM_UTF8).lstrip(JSON_SPACE))
    if text[start : start + 1] != b"[":
        bounds = [start]
        for between in _BETWEEN_OBJECTS.finditer(text, start):
            bounds += between.span()
        bounds.append(len(text.rstrip(JSON_SPACE)))
        return [(at, text[at:end]) for at, end in zip(bounds[::2], bounds[1::2], strict=True)]
    try:
        return [(start + at, row) for at, row in split_array(text[start:])]
    except ValueError as error:
        raise InputError(
            f"{path} is one JSON array, and not valid: {one_line(error)}; write the file again, or "
            "convert it to one row per line"
        ) from error


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
