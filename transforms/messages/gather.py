"""Steps across bundles: one drops duplicate messages, one waits for larger batches.

Both keep state and therefore need a shuffle. Without them, messages are scored in the bundle in
which they arrive. They are for Dataflow; elsewhere, the source does the same
(transforms/messages/intake.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.transforms.deduplicate import DeduplicatePerKey
from apache_beam.utils.timestamp import Duration

from transforms.messages.message import parse_message, serialize


def as_bytes(element: Any) -> bytes:
    """Return a message from a runner's source in serialized form, for state and shuffles."""
    return element if isinstance(element, bytes) else serialize(parse_message(element))


@dataclass
class DropDuplicates(beam.PTransform):
    """A step that drops a message if its id has arrived within the last `seconds`.

    Pub/Sub delivers a message again if it is not acknowledged in time.
    """

    seconds: int

    def expand(self, messages: beam.PCollection[Any]) -> beam.PCollection[bytes]:
        """Key messages by id, apply Beam's deduplication, and drop the key."""
        return (
            messages
            | "Serialize" >> beam.Map(as_bytes).with_output_types(bytes)
            | "ById"
            >> beam.Map(lambda raw: (parse_message(raw).message_id, raw)).with_output_types(
                tuple[str, bytes]
            )
            | "Deduplicate"
            >> DeduplicatePerKey(processing_time_duration=Duration(seconds=self.seconds))
            | "Messages" >> beam.Map(lambda pair: pair[1]).with_output_types(bytes)
        )


@dataclass
class GatherMessages(beam.PTransform):
    """A step that gathers messages into lists.

    Messages of one worker thread are gathered together, or as the runner shards them.

    Attributes:
        batch_rows: The maximum number of messages in a list.
        wait_ms: How long a list waits for more messages, in milliseconds.
    """

    batch_rows: int
    wait_ms: int

    def expand(self, messages: beam.PCollection[Any]) -> beam.PCollection[list[bytes]]:
        """Give all messages one key, and apply Beam's GroupIntoBatches with sharded keys."""
        return (
            messages
            | "Serialize" >> beam.Map(as_bytes).with_output_types(bytes)
            | "Key" >> beam.Map(lambda raw: (b"", raw)).with_output_types(tuple[bytes, bytes])
            | "Group" >> beam.GroupIntoBatches.WithShardedKey(self.batch_rows, self.wait_ms / 1000)
            | "Lists" >> beam.Map(lambda pair: list(pair[1])).with_output_types(list[bytes])
        )
