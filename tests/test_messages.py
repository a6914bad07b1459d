"""Messages are parsed without loss, in whichever form a runner delivers them."""

import datetime
from collections.abc import Mapping

import orjson
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from common.record_batch import MESSAGE_TYPE
from transforms.dead_letters import describe_messages
from transforms.messages.message import (
    ATTEMPTS,
    Message,
    attempts_of,
    message_column,
    parse_message,
    serialize,
)

# From 1970 to 2100, in microseconds.
TIMES = st.integers(0, 4_102_444_800_000_000)
TEXT = st.text(max_size=20)
MESSAGES = st.builds(
    Message,
    data=st.binary(max_size=50),
    attributes=st.dictionaries(TEXT, TEXT, max_size=5),
    message_id=st.text(min_size=1, max_size=20),
    event_time=TIMES,
    ordering_key=TEXT,
)
NOW = datetime.datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=datetime.UTC)


def plain(message: Message) -> Message:
    return structs.replace(message, attributes=dict(message.attributes))


@given(MESSAGES)
def test_a_message_survives_serialization_unchanged(message: Message) -> None:
    assert plain(parse_message(serialize(message))) == message


@given(MESSAGES)
def test_beams_object_and_the_bytes_are_parsed_alike(message: Message) -> None:
    assert plain(parse_message(PubsubMessage._from_proto_str(serialize(message)))) == message


def test_messages_without_an_id_are_distinguished_by_their_content() -> None:
    one = serialize(Message(b"{}", {}, "", 1, ""))
    other = serialize(Message(b"[]", {}, "", 1, ""))
    assert (
        parse_message(one).message_id
        == parse_message(one).message_id
        != parse_message(other).message_id
        != ""
    )


@pytest.mark.parametrize(
    ("attributes", "attempts"),
    [
        ({}, 1),
        ({ATTEMPTS: "1"}, 2),
        ({ATTEMPTS: "41"}, 42),
        ({ATTEMPTS: ""}, 1),
        ({ATTEMPTS: "-3"}, 1),
        ({ATTEMPTS: "1.5"}, 1),
        ({ATTEMPTS: "often"}, 1),
        ({ATTEMPTS: "9" * 1024}, 1),
    ],
)
def test_attempts_of_a_message_are_read_from_its_attributes(
    attributes: Mapping[str, str], attempts: int
) -> None:
    assert attempts_of(Message(b"", attributes, "1", 0, "")) == attempts


@given(st.lists(MESSAGES, max_size=5))
def test_the_column_has_the_fields_of_messages(messages: list[Message]) -> None:
    column = message_column(messages, NOW)
    assert column.type == MESSAGE_TYPE
    for row, message in zip(column.to_pylist(), messages, strict=True):
        assert row["message_id"] == message.message_id
        assert round(row["event_time"].timestamp() * 1e6) == message.event_time
        assert row["received_at"] == NOW
        assert (row["ordering_key"] or "") == message.ordering_key
        assert orjson.loads(row["attributes"] or "{}") == message.attributes
    for described, message in zip(describe_messages(column), messages, strict=True):
        assert described["id"] == message.message_id
        assert described.get("attributes", {}) == message.attributes
        assert described.get("ordering_key", "") == message.ordering_key
