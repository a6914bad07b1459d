"""Pub/Sub messages as they arrive, and the column of their fields that travels with rows."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import orjson
import pyarrow as pa
from google.pubsub_v1.types import PubsubMessage as _ProtoPlusMessage

from common.record_batch import MESSAGE_TYPE, UTC_MICROSECONDS
from transforms.row_ids import content_id

# Attributes of a dead letter that is sent again: how many times it was tried, the id of its row,
# and the stage in which it failed.
ATTEMPTS = "millrace_attempts"
REPLAYED_ID = "millrace_row_id"
STAGE = "millrace_stage"

OWN = "millrace_"
# What Pub/Sub says about a message of a topic with a schema: its encoding, and the schema with its
# revision. Only Pub/Sub may set these attributes, so dead letters have them with the prefix OWN.
SCHEMA_ENCODING, SCHEMA_REVISION, SCHEMA_NAME = _OF_SCHEMA = (
    "googclient_schemaencoding",
    "googclient_schemarevisionid",
    "googclient_schemaname",
)

_FIELDS = list(MESSAGE_TYPE)
# The bare protobuf class; its proto-plus wrapper takes ten times as long.
_Proto = type(_ProtoPlusMessage.pb(_ProtoPlusMessage()))


class Message(msgspec.Struct, frozen=True, gc=False):
    """A Pub/Sub message.

    Attributes:
        event_time: When it was published, in microseconds since 1970.
    """

    data: bytes
    attributes: Mapping[str, str]
    message_id: str
    event_time: int
    ordering_key: str


def parse_message(element: Any) -> Message:
    """Return an element of a message source as a Message.

    Args:
        element: A serialized PubsubMessage (from Dataflow), Beam's object of that name (from
            Beam's local source), or a Message.
    """
    if isinstance(element, bytes):
        proto = _Proto.FromString(element)
        time, attributes = proto.publish_time, proto.attributes
        return Message(
            proto.data,
            # Each look into a map of protobuf costs more than a copy of its few entries.
            dict(attributes) if attributes else {},
            # Some sources have no ids; then the content of the message identifies its row.
            proto.message_id or content_id(element),
            time.seconds * 1_000_000 + time.nanos // 1000,
            proto.ordering_key,
        )
    if isinstance(element, Message):
        return element
    published = element.publish_time
    return Message(
        element.data or b"",
        element.attributes or {},
        element.message_id or "",
        round(published.timestamp() * 1_000_000) if published is not None else 0,
        element.ordering_key or "",
    )


def serialize(message: Message) -> bytes:
    """Return a message as a serialized PubsubMessage."""
    proto = _Proto(
        data=message.data,
        attributes=dict(message.attributes),
        message_id=message.message_id,
        ordering_key=message.ordering_key,
    )
    proto.publish_time.FromMicroseconds(message.event_time)
    return bytes(proto.SerializeToString())


def duplicate_key(raw: bytes, attribute: str | None) -> str:
    """Return what a serialized message has in common with its duplicates; empty if it has none.

    Args:
        raw: A serialized PubsubMessage.
        attribute: The name of the attribute that identifies a message; None for its id. A message
            without that attribute is identified by its id.
    """
    proto = _Proto.FromString(raw)
    own = proto.attributes.get(attribute, "") if attribute is not None else ""
    # An id may equal the attribute of another message.
    return f"{attribute}={own}" if own else str(proto.message_id)


def schema_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return what the attributes of a message, or of its dead letter, say about its schema."""
    found = {name: attributes.get(name) or attributes.get(OWN + name) for name in _OF_SCHEMA}
    return {name: text for name, text in found.items() if text}


def attempts_of(message: Message) -> int:
    """Return how many times a message has been tried, including this time."""
    text = message.attributes.get(ATTEMPTS, "")
    return int(text) + 1 if text.isdecimal() and len(text) < 10 else 1


def message_column(messages: Sequence[Message], received_at: datetime.datetime) -> pa.StructArray:
    """Return the column MESSAGE of rows, one message per row.

    Args:
        messages: The messages.
        received_at: When they were received.
    """
    rows = len(messages)
    keys, texts, attempts = _nulls(rows), _nulls(rows), _first(rows)
    if any(m.ordering_key for m in messages):
        keys = pa.array([m.ordering_key or None for m in messages], pa.string())
    if any(m.attributes for m in messages):
        attributes = [_json(m.attributes) if m.attributes else None for m in messages]
        texts = pa.array(attributes, pa.string())
        attempts = pa.array([attempts_of(m) for m in messages], pa.int64())
    return pa.StructArray.from_arrays(
        [
            pa.array([m.message_id for m in messages], pa.string()),
            pa.array([m.event_time for m in messages], UTC_MICROSECONDS),
            pa.repeat(pa.scalar(received_at, UTC_MICROSECONDS), rows),
            keys,
            texts,
            attempts,
        ],
        fields=_FIELDS,
    )


@lru_cache(maxsize=64)
def _nulls(rows: int) -> pa.StringArray:
    return pa.nulls(rows, pa.string())


@lru_cache(maxsize=64)
def _first(rows: int) -> pa.Int64Array:
    """Return the attempts of rows that are all tried for the first time."""
    return pa.repeat(pa.scalar(1, pa.int64()), rows)


def _json(attributes: Mapping[str, str]) -> str:
    return orjson.dumps(dict(attributes)).decode()
