"""The content of messages: decompressed as an attribute says, and within the limit of its size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from common.compression import TooLarge, compression_of, decompress
from transforms.dead_letters import Fault
from transforms.messages.message import REPLAYED_ID, STAGE, Message

ENCODING = "content-encoding"
# The attributes that change how a message is read, in lower case.
_DECODING = {ENCODING, REPLAYED_ID, STAGE}


def changes_decoding(messages: Sequence[Message]) -> bool:
    """Return whether any message has an attribute that changes how it is read."""
    return not _DECODING.isdisjoint(key.lower() for key in _keys(messages))


def is_row(message: Message) -> bool:
    """Return whether a message is one row of a message of many, sent again as JSON."""
    return message.data[:1] == b"{" and REPLAYED_ID in message.attributes


def read_bodies(messages: Sequence[Message], limit: int) -> list[bytes | Fault]:
    """Return the decompressed content of each message, or its Fault.

    Args:
        messages: The messages.
        limit: The largest size of a message in bytes, both compressed and decompressed.
    """
    # Senders spell the name of the attribute in different ways.
    keys = [key for key in _keys(messages) if key.lower() == ENCODING]
    return [_read_body(message, keys, limit) for message in messages]


def _keys(messages: Iterable[Message]) -> set[str]:
    return set().union(*(m.attributes for m in messages if m.attributes))


def _read_body(message: Message, keys: Sequence[str], limit: int) -> bytes | Fault:
    data = message.data
    if len(data) > limit:
        return Fault("too_large", f"expected at most {limit:,} bytes, got {len(data):,}")
    if data and (encoding := _encoding(message.attributes, keys)):
        # A row of a larger message is sent again with the attributes of the whole message.
        body = data if is_row(message) else _decompressed(data, encoding, limit)
        if isinstance(body, Fault):
            return body
        data = body
    return data or Fault("empty_message", "the message has no data")


def _encoding(attributes: Mapping[str, str], keys: Sequence[str]) -> str:
    """Return the value of the first of some attributes that a message has."""
    return next((attributes[key] for key in keys if key in attributes), "")


def _decompressed(data: bytes, encoding: str, limit: int) -> bytes | Fault:
    compression = compression_of(encoding)
    if compression is None:
        return Fault(
            "unknown_encoding",
            f"{ENCODING} is {encoding[:40]!r}: expected gzip, deflate or identity",
        )
    try:
        return decompress(data, compression, limit)
    except TooLarge:
        return Fault("too_large", f"expected at most {limit:,} bytes uncompressed, got more")
    except ValueError as error:
        return Fault(
            "invalid_gzip", f"{ENCODING} is {compression}, but the data does not fit: {error}"
        )
