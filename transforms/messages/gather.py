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
from apache_beam.coders import FastPrimitivesCoder, VarIntCoder
from apache_beam.portability.api.org.apache.beam.model.pipeline.v1.beam_runner_api_pb2 import (
    GroupIntoBatchesPayload,
)
from apache_beam.portability.common_urns import composites
from apache_beam.transforms.combiners import CountCombineFn
from apache_beam.transforms.deduplicate import DeduplicatePerKey
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    CombiningValueStateSpec,
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
    """A DoFn that gathers the messages of a shard into lists.

    It is that of Beam's GroupIntoBatches, which limits only the number of elements (2.77). Its
    state has the same names and coders, by which an update hands it over.
    """

    VALUES = BagStateSpec("values", FastPrimitivesCoder())
    COUNT = CombiningValueStateSpec("count", FastPrimitivesCoder(), CountCombineFn())
    BYTES = ReadModifyWriteStateSpec("bytes", VarIntCoder())
    WINDOW = TimerSpec("window_end", TimeDomain.WATERMARK)
    WAIT = TimerSpec("buffering_end", TimeDomain.REAL_TIME)

    def __init__(self, rows: int, size: int, seconds: float) -> None:
        self._rows, self._size, self._seconds = rows, size, seconds

    def process(  # noqa: PLR0917
        self,
        # These are the parameters of a DoFn as Beam requires them.
        element: tuple[ShardedKey, bytes],
        window: Any = beam.DoFn.WindowParam,
        values: Any = beam.DoFn.StateParam(VALUES),  # noqa: B008
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
        size: Any = beam.DoFn.StateParam(BYTES),  # noqa: B008
        window_end: Any = beam.DoFn.TimerParam(WINDOW),  # noqa: B008
        wait: Any = beam.DoFn.TimerParam(WAIT),  # noqa: B008
    ) -> Iterator[_Keyed]:
        """Keep a message, and yield a list that is full."""
        length = len(element[1])
        before = size.read() or 0
        if before + length > self._size:
            yield from _take(values, count, size, wait)
            before = 0
        window_end.set(window.end)
        values.add(element)
        count.add(1)
        size.write(before + length)
        waiting = count.read()
        if waiting == 1:
            wait.set(time.time() + self._seconds)
        if waiting >= self._rows:
            yield from _take(values, count, size, wait)

    @on_timer(WINDOW)
    def at_the_end(
        self,
        values: Any = beam.DoFn.StateParam(VALUES),  # noqa: B008
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
        size: Any = beam.DoFn.StateParam(BYTES),  # noqa: B008
        wait: Any = beam.DoFn.TimerParam(WAIT),  # noqa: B008
    ) -> Iterator[_Keyed]:
        """Yield what waits when the stream ends."""
        return _take(values, count, size, wait)

    @on_timer(WAIT)
    def in_time(
        self,
        values: Any = beam.DoFn.StateParam(VALUES),  # noqa: B008
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
        size: Any = beam.DoFn.StateParam(BYTES),  # noqa: B008
        wait: Any = beam.DoFn.TimerParam(WAIT),  # noqa: B008
    ) -> Iterator[_Keyed]:
        """Yield what has waited long enough."""
        return _take(values, count, size, wait)


def _take(values: Any, count: Any, size: Any, wait: Any) -> Iterator[_Keyed]:
    """Yield the messages that wait, if there are any, and forget them."""
    if waiting := list(values.read()):
        for state in (values, count, size, wait):
            state.clear()
        yield waiting[0][0], [raw for _, raw in waiting]


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
    """The part of GatherMessages that runners recognize as Beam's GroupIntoBatches."""

    rows: int
    size: int
    wait_ms: int

    def expand(self, messages: beam.PCollection[Any]) -> beam.PCollection[Any]:
        """Apply both steps with the names that Beam's have."""
        dofn = _ListsDoFn(self.rows, self.size, self.wait_ms / 1000)
        return (
            messages
            | "Map(<lambda at util.py:1275>)"
            >> beam.Map(_shard).with_output_types(tuple[ShardedKeyType[bytes], bytes])
            | "GroupIntoBatches/ParDo(_GroupIntoBatchesDoFn)"
            >> beam.ParDo(dofn).with_output_types(tuple[ShardedKeyType[bytes], list[bytes]])
        )

    def to_runner_api_parameter(self, _: Any) -> tuple[str, GroupIntoBatchesPayload]:
        """Return what this is to a runner, and its limits."""
        return composites.GROUP_INTO_BATCHES_WITH_SHARDED_KEY.urn, GroupIntoBatchesPayload(
            batch_size=self.rows,
            batch_size_bytes=self.size,
            max_buffering_duration_millis=self.wait_ms,
        )
