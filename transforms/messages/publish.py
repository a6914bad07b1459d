"""Publish: output rows and dead letters as messages on Pub/Sub topics.

A scored row is one JSON object; its attributes let a receiver drop what comes twice.
A dead letter is the message as it came, byte for byte, with what went wrong in
attributes that begin with `millrace_`; so it can be read again as it is. Where these
would be more than a message may have, own attributes of the message make room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import OutputError
from transforms.accounts import Count
from transforms.dead_letters import Fault, failure_batch
from transforms.json_rows.write import json_objects
from transforms.provenance import Provenance, utc_now
from transforms.row_ids import content_id
from transforms.split import Split, split_outputs

# Of one request to Pub/Sub, which takes 1,000 messages and 10 MB. A larger message goes
# alone, and needs some room for the topic's name and the framing.
REQUEST_MESSAGES = 1_000
REQUEST_BYTES = 8 << 20
MESSAGE_BYTES = 9_990_000
# Pub/Sub's limits: of a message's attributes, and of the value of one.
ATTRIBUTES = 100
ATTRIBUTE_BYTES = 1024
# Attributes that only Pub/Sub itself may set.
RESERVED = "goog"
OWN = "millrace_"
# What a dead letter says of the message that it was, as transforms/dead_letters.py names it.
MESSAGE_ATTRIBUTES = {
    f"{OWN}message_id": "id",
    f"{OWN}event_time": "event_time",
    f"{OWN}ordering_key": "ordering_key",
}
PUBLISHED = "published"


class Outgoing(NamedTuple):
    """A message to publish."""

    data: bytes
    attributes: Mapping[str, str]


def row_messages(rows: pa.RecordBatch) -> list[Outgoing]:
    """Output rows, whose first column is the id -> one message each, of JSON.

    Its attributes are the id and whatever is the same in the rows of a run.
    """
    if not rows.num_rows:
        return []
    same = {
        name: _shortened(str(rows.column(name)[0].as_py()))
        for name in ("run_id", "model_name", "model_digest")
        if name in rows.schema.names
    }
    ids = rows.column(0).to_pylist()
    return [
        Outgoing(data, {"row_id": id_attribute(row_id), **same})
        for row_id, data in zip(ids, json_objects(rows), strict=True)
    ]


def id_attribute(row_id: Any) -> str:
    """A row's id -> the same as an attribute: its hash where it is too long for one."""
    text = str(row_id)
    fits = len(text) <= ATTRIBUTE_BYTES // 4 or len(text.encode()) <= ATTRIBUTE_BYTES
    return text if fits else content_id(text.encode())


def failure_messages(failures: pa.RecordBatch) -> list[Outgoing]:
    """Failure records -> the messages as they came, with what went wrong as attributes.

    Left out are attributes that nobody may set, those of an earlier failure, and of more
    than there is room for the last by name: `millrace_attributes_dropped` says how many.
    Of a payload that leaves no room for them the end: `millrace_payload_bytes` is its size.
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
    told = message.get("attributes", {})
    names = sorted(name for name in told if not name.startswith((RESERVED, OWN)))
    if len(names) + len(own) > ATTRIBUTES:
        kept = ATTRIBUTES - len(own) - 1
        own[f"{OWN}attributes_dropped"] = str(len(names) - kept)
        names = names[:kept]
    letter = Outgoing(record["payload"], {name: told[name] for name in names} | own)
    if (excess := size_of(letter) - MESSAGE_BYTES) > 0:
        own = {f"{OWN}payload_bytes": str(len(letter.data))}
        # As many bytes more as that attribute itself may take.
        return Outgoing(letter.data[: -excess - 100], {**letter.attributes, **own})
    return letter


def _shortened(text: str) -> str:
    return text.encode()[:ATTRIBUTE_BYTES].decode(errors="ignore")


def size_of(message: Outgoing) -> int:
    """A message -> about its bytes in a request, not fewer."""
    texts = (*message.attributes, *message.attributes.values())
    lengths = (len(text) if text.isascii() else len(text.encode()) for text in texts)
    return len(message.data) + sum(lengths) + 8 * len(texts)


def requests(messages: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    """Messages -> lists of them that one request takes, in order."""
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
    """Messages -> published, all of them. Raises GoogleAPICallError.

    One request of many messages: the client's own batching takes a thread and ten
    times the time.
    """
    from google.pubsub_v1.types import PublishRequest

    request = PublishRequest.pb(PublishRequest(topic=topic))
    for message in messages:
        request.messages.add(data=message.data, attributes=message.attributes)
    client.publish(
        request=PublishRequest.wrap(request), retry=retry(retry_seconds), timeout=retry_seconds
    )


class _PublishDoFn(beam.DoFn):
    """Record batches -> ((`published`,), rows) once they are published, at a bundle's end."""

    def __init__(
        self,
        cloud: Cloud,
        topic: str,
        kind: Literal["rows", "failures"],
        provenance: Provenance | None,
    ) -> None:
        self._cloud, self._topic, self._provenance = cloud, topic, provenance
        self._encode = row_messages if kind == "rows" else failure_messages

    def start_bundle(self) -> None:
        self._waiting: list[Outgoing] = []

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        messages = self._encode(batch)
        # Only of rows this large the size has to be known.
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
        """Rows that are larger than a message may be -> failure records."""
        told = f"{len(messages[0].data):,} bytes: a message of Pub/Sub takes 10 MB at most"
        if self._provenance is None:
            raise OutputError(
                f"row {ids[0]} cannot be published to {self._topic}: {told}; choose fewer "
                "--output_fields"
            )
        failures = failure_batch(
            ids.to_pylist(),
            [message.data for message in messages],
            [Fault("too_large", told)] * len(messages),
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
        with translate_errors(OutputError, f"topic {self._topic} cannot be published to"):
            client = self._cloud.publisher()
            for messages in requests(waiting):
                publish(client, self._topic, messages, self._cloud.retry_seconds)
        return (PUBLISHED,), len(waiting)


@dataclass
class PublishBatches(beam.PTransform):
    """Batches of output rows, or failure records -> messages of a topic, counted.

    provenance: what failure records say of rows that are too large for a message; without
    it one such row is an OutputError.
    """

    cloud: Cloud
    topic: str
    kind: Literal["rows", "failures"] = "rows"
    provenance: Provenance | None = None

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Split:
        """One DoFn."""
        dofn = _PublishDoFn(self.cloud, self.topic, self.kind, self.provenance)
        return split_outputs(batches, dofn, counts=True)
