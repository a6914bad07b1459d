"""Across bundles: dropping messages that came before, and waiting for larger batches.

Both keep state and so cost a shuffle; without them messages are scored in the bundle
that brings them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.transforms.deduplicate import DeduplicatePerKey
from apache_beam.utils.timestamp import Duration

from transforms.messages.message import parse_message, serialize


def as_bytes(element: Any) -> bytes:
    """A message as a runner's source gives it -> serialized, for state and shuffles."""
    return element if isinstance(element, bytes) else serialize(parse_message(element))


@dataclass
class DropDuplicates(beam.PTransform):
    """Messages -> the same without those whose id came within `seconds` before.

    Pub/Sub delivers a message again when it is not acknowledged in time.
    """

    seconds: int

    def expand(self, messages: beam.PCollection[Any]) -> beam.PCollection[bytes]:
        """by id -> Beam's deduplication -> without the key."""
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
    """Messages -> lists of `batch_rows`, or of those that came within `wait_ms`.

    Messages of a worker's thread wait together, or as the runner shards them.
    """

    batch_rows: int
    wait_ms: int

    def expand(self, messages: beam.PCollection[Any]) -> beam.PCollection[list[bytes]]:
        """one key -> Beam's GroupIntoBatches, sharded -> lists."""
        return (
            messages
            | "Serialize" >> beam.Map(as_bytes).with_output_types(bytes)
            | "Key" >> beam.Map(lambda raw: (b"", raw)).with_output_types(tuple[bytes, bytes])
            | "Group" >> beam.GroupIntoBatches.WithShardedKey(self.batch_rows, self.wait_ms / 1000)
            | "Lists" >> beam.Map(lambda pair: list(pair[1])).with_output_types(list[bytes])
        )
