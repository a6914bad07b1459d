"""Publish: output rows and dead letters as messages on Pub/Sub topics.

A scored row is one JSON object. Its attributes let a receiver drop duplicates. If rows have the
column ORDERING_KEY, messages get its values as ordering keys.

A dead letter is the message as it arrived, byte for byte, so it can be read again. Attributes that
start with `millrace_` describe the failure. If a message would then have too many attributes, some
of its original ones are dropped.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import OutputError
from common.json_objects import json_objects
from common.measures import PUBLISH
from transforms.accounts import Count
from transforms.dead_letters import Fault, failure_batch
from transforms.encode import ORDERING_KEY
from transforms.messages.message import OWN, schema_attributes
from transforms.provenance import Provenance, utc_now
from transforms.row_ids import content_id
from transforms.split import Split, split_outputs

# The limits of one request. Pub/Sub accepts 1,000 messages and 10 MB. A larger message is sent on
# its own, and leaves some room for the topic's name and the framing. All messages of a request must
# have the same ordering key.
REQUEST_MESSAGES = 1_000
REQUEST_BYTES = 8 << 20
MESSAGE_BYTES = 9_990_000
# Pub/Sub's limits: the attributes of a message, and the bytes of an attribute's value.
ATTRIBUTES = 100
ATTRIBUTE_BYTES = 1024
# The prefix of attributes that only Pub/Sub itself may set.
RESERVED = "goog"
# Attributes with fields of the original message, by their names in transforms/dead_letters.py.
MESSAGE_ATTRIBUTES = {
    f"{OWN}message_id": "id",
    f"{OWN}event_time": "event_time",
    f"{OWN}ordering_key": "ordering_key",
}
PUBLISHED = "published"
# When the JSON of a row was made.
ENCODED_AT = "encoded_at"
# To how many ordering keys a thread publishes at once. A request takes some 20 ms.
KEYS_AT_ONCE = 64


class Outgoing(NamedTuple):
    """A message to publish."""

    data: bytes
    attributes: Mapping[str, str]
    ordering_key: str = ""


def row_messages(rows: pa.RecordBatch, *, timed: bool = False) -> list[Outgoing]:
    """Return one JSON message per output row.

    The attributes are the row id, and the columns that are equal in all rows of a run.

    Args:
        rows: The rows, with the row id as the first column. The column ORDERING_KEY is not part of
            the JSON.
        timed: Whether to add the attribute ENCODED_AT.
    """
    if not rows.num_rows:
        return []
    keys: Iterable[str | None] = repeat("")
    if ORDERING_KEY in rows.schema.names:
        keys = rows.column(ORDERING_KEY).to_pylist()
        rows = rows.drop_columns(ORDERING_KEY)
    same = {
        name: _shortened(str(rows.column(name)[0].as_py()))
        for name in ("run_id", "model_name", "model_digest")
        if name in rows.schema.names
    }
    ids, bodies = rows.column(0).to_pylist(), json_objects(rows)
    if timed:
        same[ENCODED_AT] = utc_now().isoformat()
    return [
        Outgoing(data, {"row_id": id_attribute(row_id), **same}, key or "")
        for row_id, data, key in zip(ids, bodies, keys, strict=False)
    ]


def id_attribute(row_id: Any) -> str:
    """Return a row id as the value of an attribute: its hash if it is too long."""
    text = str(row_id)
    fits = len(text) <= ATTRIBUTE_BYTES // 4 or len(text.encode()) <= ATTRIBUTE_BYTES
    return text if fits else content_id(text.encode())


def failure_messages(failures: pa.RecordBatch) -> list[Outgoing]:
    """Return the messages of dead letters as they arrived, with the failure as attributes.

    Attributes that only Pub/Sub may set are left out, but those that describe the schema get the
    prefix `millrace_`. The attributes of an earlier failure are left out too. If there are too many
    attributes, the last by name are dropped, and `millrace_attributes_dropped` is their number. If
    the message is too large, the end of its payload is cut off, and `millrace_payload_bytes` is its
    original size.
    """
    return [_failure_message(record) for record in failures.to_pylist()]


def _failure_message(record: Mapping[str, Any]) -> Outgoing:
    own = {
        f"{OWN}attempts": str(record["attempts"]),
        f"{OWN}failed_at": record["failed_at"].isoformat(),
    }
    for name in ("stage", "reason", "message", "row_id", "run_id", "pipeline", "model_digest"):
        if record[name]:
            fit = id_attribute if name == "row_id" else _shortened
            own[f"{OWN}{name}"] = fit(record[name])
    message = orjson.loads(record["attributes"]).get("message", {})
    for name, key in MESSAGE_ATTRIBUTES.items():
        if message.get(key):
            own[name] = _shortened(message[key])
    given = message.get("attributes", {})
    own |= {f"{OWN}{name}": _shortened(text) for name, text in schema_attributes(given).items()}
    names = sorted(name for name in given if not name.startswith((RESERVED, OWN)))
    if len(names) + len(own) > ATTRIBUTES:
        kept = ATTRIBUTES - len(own) - 1
        own[f"{OWN}attributes_dropped"] = str(len(names) - kept)
        names = names[:kept]
    letter = Outgoing(record["payload"], {name: given[name] for name in names} | own)
    if (excess := size_of(letter) - MESSAGE_BYTES) > 0:
        own = {f"{OWN}payload_bytes": str(len(letter.data))}
        # Cut off 100 bytes more, for the attribute itself.
        return Outgoing(letter.data[: -excess - 100], {**letter.attributes, **own})
    return letter


def _shortened(text: str) -> str:
    return text.encode()[:ATTRIBUTE_BYTES].decode(errors="ignore")


def size_of(message: Outgoing) -> int:
    """Return an upper estimate of the bytes that a message takes in a request."""
    texts = (*message.attributes, *message.attributes.values())
    lengths = (len(text) if text.isascii() else len(text.encode()) for text in texts)
    return len(message.data) + sum(lengths) + 8 * len(texts)


def requests(messages: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    """Yield lists of messages that fit into one request each, in order."""
    waiting: list[Outgoing] = []
    size = 0
    for message in messages:
        own = size_of(message)
        if waiting and (len(waiting) == REQUEST_MESSAGES or size + own > REQUEST_BYTES):
            yield waiting
            waiting, size = [], 0
        waiting.append(message)
        size += own
    if waiting:
        yield waiting


def publish(client: Any, topic: str, messages: list[Outgoing], retry_seconds: float) -> None:
    """Publish messages in one request.

    The client's own batching would need a thread and ten times the time.

    Args:
        client: The generated PublisherClient, which does not batch.
        topic: The full name of the topic.
        messages: The messages of one request, with the same ordering key.
        retry_seconds: How long to retry transient errors.

    Raises:
        GoogleAPICallError: The messages were not published.
    """
    from google.pubsub_v1.types import PublishRequest

    request = PublishRequest.pb(PublishRequest(topic=topic))
    for message in messages:
        request.messages.add(
            data=message.data, attributes=message.attributes, ordering_key=message.ordering_key
        )
    client.publish(
        request=PublishRequest.wrap(request), retry=retry(retry_seconds), timeout=retry_seconds
    )


class _PublishDoFn(beam.DoFn):
    """A DoFn that publishes record batches and yields ((`published`,), rows) for each flush.

    It flushes at the end of a bundle, or earlier if REQUEST_MESSAGES are waiting.
    """

    def __init__(
        self,
        cloud: Cloud,
        topic: str,
        kind: Literal["rows", "failures"],
        provenance: Provenance | None,
        timed: bool,
    ) -> None:
        self._cloud, self._topic, self._provenance = cloud, topic, provenance
        rows = functools.partial(row_messages, timed=timed)
        self._encode = rows if kind == "rows" else failure_messages

    def start_bundle(self) -> None:
        self._waiting: list[Outgoing] = []

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        messages = self._encode(batch)
        # Computing sizes takes time, so it is only done if a row is large.
        if any(len(message.data) > MESSAGE_BYTES // 2 for message in messages):
            sizes = [size_of(message) for message in messages]
            large = [i for i, size in enumerate(sizes) if size > MESSAGE_BYTES]
            if large:
                yield self._refused(batch.column(0).take(large), [messages[i] for i in large])
            messages = [m for m, size in zip(messages, sizes, strict=True) if size <= MESSAGE_BYTES]
        self._waiting += messages
        if len(self._waiting) >= REQUEST_MESSAGES:
            yield self._flush()

    def _refused(self, ids: pa.Array, messages: list[Outgoing]) -> beam.pvalue.TaggedOutput:
        """Return dead letters of rows that are larger than a message may be."""
        faults = [
            f"expected a message of at most {MESSAGE_BYTES:,} bytes with its attributes, got "
            f"{size_of(message):,}"
            for message in messages
        ]
        if self._provenance is None:
            raise OutputError(
                f"row {ids[0]} cannot be published to {self._topic}: {faults[0]}; choose fewer "
                "--output_fields"
            )
        failures = failure_batch(
            ids.to_pylist(),
            [message.data for message in messages],
            [Fault("too_large", fault) for fault in faults],
            stage="write",
            provenance=self._provenance,
            failed_at=utc_now(),
        )
        return beam.pvalue.TaggedOutput("failures", failures)

    def finish_bundle(self) -> Iterator[Any]:
        if self._waiting:
            yield GlobalWindows.windowed_value_at_end_of_window(self._flush())

    def _flush(self) -> Count:
        waiting, self._waiting = self._waiting, []
        errors = translate_errors(OutputError, f"topic {self._topic} cannot be published to")
        with errors, PUBLISH.timed():
            client = self._cloud.publisher()
            groups = defaultdict(list)
            for message in waiting:
                groups[message.ordering_key].append(message)
            if len(groups) == 1:
                self._publish(client, waiting)
            else:
                self._publish_at_once(client, groups.values())
        return (PUBLISHED,), len(waiting)

    def _publish(self, client: Any, messages: list[Outgoing]) -> None:
        """Publish messages of one ordering key: each request after the answer to the one before."""
        for part in requests(messages):
            publish(client, self._topic, part, self._cloud.retry_seconds)

    def _publish_at_once(self, client: Any, groups: Collection[list[Outgoing]]) -> None:
        """Publish messages of several ordering keys; raise the first error when all are done."""
        with ThreadPoolExecutor(min(len(groups), KEYS_AT_ONCE)) as pool:
            # The context names what the calls do.
            calls = [pool.submit(copy_context().run, self._publish, client, g) for g in groups]
        for call in calls:
            call.result()


@dataclass
class PublishBatches(beam.PTransform):
    """A sink that publishes output rows or dead letters to a topic, and counts them.

    Attributes:
        cloud: Makes the client, and limits retries.
        topic: The full name of the topic.
        kind: `rows` for output rows, `failures` for dead letters.
        provenance: The run and the model, for dead letters of rows that are too large for a
            message. Without it, such a row raises OutputError.
        timed: Whether messages of output rows have the attribute ENCODED_AT.
    """

    cloud: Cloud
    topic: str
    kind: Literal["rows", "failures"] = "rows"
    provenance: Provenance | None = None
    timed: bool = False

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Split:
        """Apply one DoFn."""
        dofn = _PublishDoFn(self.cloud, self.topic, self.kind, self.provenance, self.timed)
        return split_outputs(batches, dofn, counts=True)
