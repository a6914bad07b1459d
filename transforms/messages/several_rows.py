"""Split messages of several JSON rows: an array of objects, or JSON Lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import orjson
from msgspec import structs

from transforms.dead_letters import Fault
from transforms.json_rows.arrays import split_array, without_constants
from transforms.json_rows.values import JSON_SPACE
from transforms.messages.message import REPLAYED_ID, Message


class Rows(NamedTuple):
    """Rows in the order of their messages.

    Attributes:
        messages: The message of each row. Its data is the row, if the message holds several.
        bodies: The content of each row, or the Fault of its message.
        ids: The derived id of each row.
    """

    messages: Sequence[Message]
    bodies: Sequence[bytes | Fault]
    ids: Sequence[str]


def row_id(message: Message) -> str:
    """Return the id of a message's row: the message's, unless the row had one when it failed."""
    attributes = message.attributes
    return (attributes and attributes.get(REPLAYED_ID)) or message.message_id


def split_rows(messages: Sequence[Message], bodies: Sequence[bytes | Fault]) -> Rows:
    """Return the rows of JSON messages. Those of a message of several are numbered.

    Args:
        messages: The messages.
        bodies: The content of each message, or its Fault.
    """
    parts = [
        # Most messages are an object on one line.
        None
        if isinstance(body, Fault) or (body[:1] == b"{" and b"\n" not in body)
        else several(body)
        for body in bodies
    ]
    if not any(parts):
        return Rows(messages, bodies, [row_id(message) for message in messages])
    split: list[tuple[Message, bytes | Fault, str]] = []
    for message, body, rows in zip(messages, bodies, parts, strict=True):
        own = row_id(message)
        if rows is None:
            split.append((message, body, own))
        else:
            split += [
                (structs.replace(message, data=row), row, f"{own}-{i}")
                for i, row in enumerate(rows)
            ]
    return Rows(*map(list, zip(*split, strict=True)))


def several(body: bytes) -> list[bytes] | None:
    """Return the rows of a message that holds several; None if it is one row, or none at all.

    In an array with an object, each element is a row, and so is each line after a first line that
    is an object. A row may have any fault.

    Args:
        body: The content of the message.
    """
    if body.lstrip(JSON_SPACE)[:1] == b"[":
        return _array(body)
    first, _, rest = body.lstrip(JSON_SPACE).partition(b"\n")
    if not rest.strip(JSON_SPACE) or not _is_object(first):
        return None
    lines = (line.strip(JSON_SPACE) for line in body.split(b"\n"))
    return [line for line in lines if line]


def _array(body: bytes) -> list[bytes] | None:
    try:
        rows = [row for _, row in split_array(body)]
    except ValueError:
        return None
    return rows if any(row[:1] == b"{" for row in rows) else None


def _is_object(line: bytes) -> bool:
    """Return whether a line is a whole JSON object, which an object over several lines is not."""
    try:
        return line[:1] == b"{" and isinstance(orjson.loads(without_constants(line)), dict)
    except orjson.JSONDecodeError:
        return False
