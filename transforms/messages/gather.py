"""Steps across bundles: one drops duplicate messages, one waits for larger batches.

Both keep state and therefore need a shuffle. Without them, messages are scored in the bundle in
which they arrive. They are for Dataflow; elsewhere, the source does the same
(transforms/messages/intake.py).
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder, TupleCoder, VarIntCoder
from apache_beam.portability.api.org.apache.beam.model.pipeline.v1.beam_runner_api_pb2 import (
    GroupIntoBatchesPayload,
)
from apache_beam.portability.common_urns import composites
from apache_beam.transforms.deduplicate import DeduplicatePerKey
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.typehints.sharded_key_type import ShardedKeyType
from apache_beam.utils.sharded_key import ShardedKey
from apache_beam.utils.timestamp import Duration

from transforms.messages.decode import MESSAGE_BYTES
from transforms.messages.message import duplicate_key, parse_message, serialize

# A part of the keys of this process.
_PROCESS = uuid.uuid4().bytes
_Keyed = tuple[ShardedKey, list[bytes]]


def as_bytes(element: Any) -> bytes:
    """Return a message from a runner's source in serialized form, for state and shuffles."""
    return element if isinstance(element, bytes) else serialize(parse_message(element))


@dataclass
class DropDuplicates(beam.PTransform):
    """A step that drops a message if an equal one has arrived within the last `seconds`.

    Pub/Sub delivers a message again if it is not acknowledged in time. A publisher that retries
    sends the same content with another message id.

    Behind this step, Dataflow's bundles have one message each, because each key is a bundle.
    GatherMessages should follow.

    Attributes:
        seconds: How long a message is remembered.
        attribute: The attribute that identifies a message; None for the message id. A message
            without either is never dropped.
    """

    seconds: int
    attribute: str | None = None

    def expand(self, messages: beam.PCollection[Any]) -> beam.PCollection[bytes]:
        """Key messages by id, apply Beam's deduplication, and drop the key."""
        attribute = self.attribute

        def keyed(raw: bytes) -> tuple[str, bytes]:
            return duplicate_key(raw, attribute) or uuid.uuid4().hex, raw

        return (
            messages
            | "Serialize" >> beam.Map(as_bytes).with_output_types(bytes)
            | "ById" >> beam.Map(keyed).with_output_types(tuple[str, bytes])
            | "Deduplicate"
            >> DeduplicatePerKey(processing_time_duration=Duration(seconds=self.seconds))
            | "Messages" >> beam.Map(lambda pair: pair[1]).with_output_types(bytes)
        )


class _ListsDoFn(beam.DoFn):
    """A DoFn that keeps the messages of a shard in state until they fill a list or are due.

    Beam's GroupIntoBatches limits only the number of elements (2.77).
    """

    MESSAGES = BagStateSpec("messages", BytesCoder())
    HELD = ReadModifyWriteStateSpec("held", TupleCoder([VarIntCoder(), VarIntCoder()]))
    # FnApiRunner mixes up timers of different steps that have the same name (2.77).
    DUE = TimerSpec("messages_due", TimeDomain.REAL_TIME)
    DRAIN = TimerSpec("messages_drain", TimeDomain.WATERMARK)

    def __init__(self, rows: int, size: int, seconds: float) -> None:
        self._rows, self._size, self._seconds = rows, size, seconds

    def process(  # noqa: PLR0917
        self,
        # These are the parameters of a DoFn as Beam requires them.
        element: tuple[ShardedKey, bytes],
        window: Any = beam.DoFn.WindowParam,
        messages: Any = beam.DoFn.StateParam(MESSAGES),  # noqa: B008
        held: Any = beam.DoFn.StateParam(HELD),  # noqa: B008
        due: Any = beam.DoFn.TimerParam(DUE),  # noqa: B008
        drain: Any = beam.DoFn.TimerParam(DRAIN),  # noqa: B008
    ) -> Iterator[_Keyed]:
        """Keep a message, and yield a list that is full."""
        key, raw = element
        count, size = held.read() or (0, 0)
        if count and size + len(raw) > self._size:
            yield from self.flush(key, messages, held, due)
            count = size = 0
        if not count:
            due.set(time.time() + self._seconds)
            drain.set(window.max_timestamp())
        messages.add(raw)
        held.write((count + 1, size + len(raw)))
        if count + 1 >= self._rows:
            yield from self.flush(key, messages, held, due)

    @on_timer(DUE)
    @on_timer(DRAIN)
    def flush(
        self,
        key: Any = beam.DoFn.KeyParam,
        messages: Any = beam.DoFn.StateParam(MESSAGES),  # noqa: B008
        held: Any = beam.DoFn.StateParam(HELD),  # noqa: B008
        due: Any = beam.DoFn.TimerParam(DUE),  # noqa: B008
    ) -> Iterator[_Keyed]:
        """Yield the messages that wait, if there are any, and forget them."""
        if waiting := list(messages.read()):
            for used in (messages, held, due):
                used.clear()
            yield key, waiting


def _shard(keyed: tuple[bytes, bytes]) -> tuple[ShardedKey, bytes]:
    """Return a message with a key for this thread. Runners may shard it in another way."""
    key, raw = keyed
    return ShardedKey(key, _PROCESS + threading.get_ident().to_bytes(8, "big")), raw


@dataclass
class GatherMessages(beam.PTransform):
    """A step that gathers messages into lists.

    Messages of one worker thread are gathered together, or as the runner shards them.

    Attributes:
        batch_rows: The maximum number of messages in a list.
        wait_ms: How long a list waits for more messages, in milliseconds.
        batch_bytes: The maximum size of a list in bytes, at most MESSAGE_BYTES, unless a single
            message is larger.
    """

    batch_rows: int
    wait_ms: int
    batch_bytes: int = MESSAGE_BYTES

    def expand(self, messages: beam.PCollection[Any]) -> beam.PCollection[list[bytes]]:
        """Shard the messages, and gather those of each shard."""
        size = min(self.batch_bytes, MESSAGE_BYTES)
        return (
            messages
            | "Serialize" >> beam.Map(as_bytes).with_output_types(bytes)
            | "Key" >> beam.Map(lambda raw: (b"", raw)).with_output_types(tuple[bytes, bytes])
            | "Group" >> _Group(self.batch_rows, size, self.wait_ms)
            | "Lists" >> beam.Map(lambda pair: pair[1]).with_output_types(list[bytes])
        )


@dataclass
class _Group(beam.PTransform):
    """The part of GatherMessages that runners recognize, so that they choose the shards."""

    rows: int
    size: int
    wait_ms: int

    def expand(self, messages: beam.PCollection[Any]) -> beam.PCollection[Any]:
        """Shard by thread, and gather."""
        dofn = _ListsDoFn(self.rows, self.size, self.wait_ms / 1000)
        return (
            messages
            | "Shard" >> beam.Map(_shard).with_output_types(tuple[ShardedKeyType[bytes], bytes])
            | "Wait"
            >> beam.ParDo(dofn).with_output_types(tuple[ShardedKeyType[bytes], list[bytes]])
        )

    def to_runner_api_parameter(self, _: Any) -> tuple[str, GroupIntoBatchesPayload]:
        """Return what this is to a runner, and its limits."""
        return composites.GROUP_INTO_BATCHES_WITH_SHARDED_KEY.urn, GroupIntoBatchesPayload(
            batch_size=self.rows,
            batch_size_bytes=self.size,
            max_buffering_duration_millis=self.wait_ms,
        )
