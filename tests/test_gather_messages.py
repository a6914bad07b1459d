"""Across bundles, no message is lost, and only duplicates are dropped."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream as Script
from apache_beam.testing.util import assert_that, equal_to

from transforms.messages.gather import (
    DropDuplicates,
    GatherMessages,
    as_bytes,
)
from transforms.messages.message import Message, parse_message, serialize

# The clock of a script starts at zero, but timers are set by the machine's clock. BEFORE seconds of
# the script are earlier than any timer, and another AFTER seconds are later than all of them.
BEFORE = int(time.time()) - 10_000
AFTER = 1_000_000


def raw(number: int, text: str = "{}") -> bytes:
    return serialize(Message(text.encode(), {"n": str(number)}, f"m{number}", 1_000_000, ""))


def run(source: Script, step: beam.PTransform, check: Callable[[list[Any]], None]) -> None:
    """Send a script through a step, on the only runner of Beam that supports scripts."""
    with beam.Pipeline("BundleBasedDirectRunner", PipelineOptions(streaming=True)) as pipeline:
        assert_that(pipeline | source | step, check)


def ids(messages: Iterable[Any]) -> list[str]:
    return [parse_message(message).message_id for message in messages]


def test_messages_of_every_form_are_serialized_once() -> None:
    message = raw(1)
    assert as_bytes(message) is message
    assert as_bytes(PubsubMessage._from_proto_str(message)) == message


def test_duplicates_are_dropped_for_the_given_time() -> None:
    source = (
        Script()
        .add_elements([raw(1), raw(2), raw(1)])
        .add_elements([raw(2), raw(3)])
        .advance_processing_time(BEFORE)
        .add_elements([raw(1, "other bytes")])
        .advance_processing_time(AFTER)
        .add_elements([raw(1, "again"), raw(4), raw(4)])
        .advance_watermark_to_infinity()
    )
    wanted = [raw(1), raw(2), raw(3), raw(1, "again"), raw(4)]
    run(source, DropDuplicates(60), equal_to(wanted))


def sent(number: int, event: str) -> bytes:
    """Return a message that its publisher may send again, with another id."""
    return serialize(Message(b"{}", {"event": event}, f"m{number}", 1_000_000, ""))


def test_an_attribute_identifies_messages_that_a_publisher_sends_again() -> None:
    without = [raw(1), raw(1), raw(2)]
    named_like_an_id = sent(5, "m1")
    source = (
        Script()
        .add_elements([sent(3, "x"), sent(4, "x"), *without, named_like_an_id])
        .add_elements([sent(6, "y"), sent(7, "m1")])
        .advance_watermark_to_infinity()
    )
    wanted = [sent(3, "x"), raw(1), raw(2), named_like_an_id, sent(6, "y")]
    run(source, DropDuplicates(60, "event"), equal_to(wanted))


def test_equal_messages_without_an_id_are_not_duplicates() -> None:
    message = serialize(Message(b"{}", {}, "", 1_000_000, ""))
    source = Script().add_elements([message, message]).advance_watermark_to_infinity()
    run(source, DropDuplicates(60), equal_to([message, message]))


@pytest.mark.slow
def test_a_list_has_a_limit_in_bytes() -> None:
    sizes = [300_000] * 14 + [10_000] * 70 + [1] * 10 + [3_000_000, 1]
    large = [serialize(Message(b"x" * n, {}, f"m{i}", 1, "")) for i, n in enumerate(sizes)]
    with beam.Pipeline("FnApiRunner") as pipeline:
        gathered = pipeline | beam.Create(large) | GatherMessages(60, 10**7, 2_000_000)

        def check(parts: list[Any]) -> None:
            assert sorted(i for part in parts for i in ids(part)) == sorted(ids(large))
            assert max(map(len, parts)) == 60
            # Only a message that is larger by itself exceeds the limit.
            over = [part for part in parts if sum(map(len, part)) > 2_000_000]
            assert list(map(ids, over)) == [["m94"]]
            assert len(parts) <= 9

        assert_that(gathered, check)


def test_messages_wait_for_messages_of_other_bundles_and_none_is_lost() -> None:
    source = Script()
    for i in range(7):
        source = source.add_elements([raw(i)])
    source = source.advance_processing_time(BEFORE).add_elements([raw(7), raw(8)])
    source = source.advance_processing_time(AFTER).add_elements([raw(9)])
    source = source.advance_processing_time(AFTER)

    def check(found: list[Any]) -> None:
        assert sorted(i for part in found for i in ids(part)) == [f"m{i}" for i in range(10)]
        assert all(type(part) is list for part in found)
        # Two full lists, a list of the message that waited until its time was over, and a list of
        # the last message.
        assert sorted(map(len, found)) == [1, 1, 4, 4]

    run(source.advance_watermark_to_infinity(), GatherMessages(4, 50), check)


def test_messages_that_still_wait_at_the_end_are_emitted() -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        gathered = pipeline | beam.Create(list(map(raw, range(5)))) | GatherMessages(1_000, 10**7)

        def check(parts: list[Any]) -> None:
            assert sorted(i for part in parts for i in ids(part)) == [f"m{i}" for i in range(5)]

        assert_that(gathered, check)


@beam.ptransform_fn
def dropped_and_gathered(messages: beam.PCollection[bytes]) -> beam.PCollection[list[bytes]]:
    return messages | DropDuplicates(600) | GatherMessages(7, 100)


def test_each_message_of_many_bundles_passes_both_steps_once() -> None:
    source = Script()
    for start in range(0, 200, 20):
        # Each message arrives twice, the second time half a script later.
        source = source.add_elements([raw(i % 100) for i in range(start, start + 20)])
    source = source.advance_processing_time(BEFORE + AFTER).advance_watermark_to_infinity()

    def check(found: list[Any]) -> None:
        assert sorted(i for part in found for i in ids(part)) == sorted(f"m{i}" for i in range(100))
        assert max(map(len, found)) == 7

    run(source, dropped_and_gathered(), check)
