"""Publish: output rows and dead letters as messages on Pub/Sub topics.

A scored row is one JSON object; its attributes let a receiver drop what comes twice.
A dead letter is the message as it came, byte for byte, with what went wrong in
attributes that begin with `millrace_`; so it can be read again as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindows

from cloud.clients import Cloud
from cloud.errors import retry, told_as
from model_handlers.errors import OutputError
from transforms.messages import ATTEMPTS
from transforms.reconcile import Count

# Of one request to Pub/Sub, which takes 1,000 messages and 10 MB.
REQUEST_MESSAGES = 1_000
REQUEST_BYTES = 8 << 20
# Pub/Sub's limit for an attribute's value.
ATTRIBUTE_BYTES = 1024
PUBLISHED = "published"


class Outgoing(NamedTuple):
    """A message to publish."""

    data: bytes
    attributes: Mapping[str, str]


def row_messages(rows: pa.RecordBatch) -> list[Outgoing]:
    """Output rows -> one message each: JSON without nulls, attributes for deduplication.

    Times are ISO 8601 in UTC; NaN and the infinities are null; float32 is as short as it is.
    """
    names, count = rows.schema.names, rows.num_rows
    if not count:
        return []
    # A piece of JSON a cell, made by the column: several times as fast as by the row.
    varying, constant = [], []
    for name, column in zip(names, rows.columns, strict=True):
        if column.null_count == count:
            continue
        if _is_constant(column):
            constant += _members(name, json_cells(column.slice(0, 1)))
        else:
            varying.append(_members(name, json_cells(column)))
    tail = b",".join(filter(None, constant))
    same = {
        name: str(rows.column(name)[0].as_py())
        for name in ("run_id", "model_name", "model_digest")
        if name in names
    }
    return [
        Outgoing(b"{%b}" % b",".join(filter(None, (*row, tail))), {"row_id": str(row_id), **same})
        for row_id, row in zip(rows.column(0).to_pylist(), _rows(varying, count), strict=True)
    ]


def _rows(columns: list[list[bytes | None]], count: int) -> Iterator[tuple[bytes | None, ...]]:
    return zip(*columns, strict=True) if columns else iter([()] * count)


def _is_constant(column: pa.Array) -> bool:
    """Whether all cells are surely the same: one word, or one moment."""
    if column.null_count:
        return False
    if pa.types.is_dictionary(column.type):
        return len(column.dictionary) == 1
    if pa.types.is_timestamp(column.type):
        low, high = pc.min_max(column).values()
        return bool(low == high)
    return False


def _members(name: str, cells: list[bytes | None]) -> list[bytes | None]:
    """A column's name and its cells as JSON -> `"name":cell`, None for null."""
    key = orjson.dumps(name) + b":"
    return [None if cell is None else key + cell for cell in cells]


def json_cells(column: pa.Array) -> list[bytes | None]:
    """A column -> each cell as JSON, None for null."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        words = json_cells(column.dictionary)
        return [None if i is None else words[i] for i in column.indices.to_pylist()]
    if column.null_count:
        return [None if value is None else _json(value) for value in column.to_pylist()]
    if pa.types.is_timestamp(kind):
        suffix = b'Z"' if kind.tz else b'"'
        texts = np.datetime_as_string(column.cast(pa.timestamp("us")).to_numpy(), unit="us")
        return [b'"' + text + suffix for text in texts.astype("S").tolist()]
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return list(_json(column.to_numpy())[1:-1].split(b","))
    if pa.types.is_fixed_size_list(kind) and _is_plain(kind.value_type):
        values = np.asarray(column.flatten()).reshape(len(column), kind.list_size)
        return [b"[%b]" % cell for cell in _json(values)[2:-2].split(b"],[")]
    return [_json(value) for value in column.to_pylist()]


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_SERIALIZE_NUMPY)


def failure_messages(failures: pa.RecordBatch) -> list[Outgoing]:
    """Failure records -> the messages as they came, with what went wrong as attributes."""
    messages = []
    for record in failures.to_pylist():
        told = orjson.loads(record["attributes"])
        attributes = dict(told.get("message", {}).get("attributes", {}))
        attributes[ATTEMPTS] = str(record["attempts"])
        attributes["millrace_failed_at"] = record["failed_at"].isoformat()
        for name in ("stage", "reason", "message", "row_id", "run_id", "pipeline", "model_digest"):
            if record[name]:
                attributes[f"millrace_{name}"] = _shortened(record[name])
        messages.append(Outgoing(record["payload"], attributes))
    return messages


def _shortened(text: str) -> str:
    return text.encode()[:ATTRIBUTE_BYTES].decode(errors="ignore")


def requests(messages: list[Outgoing]) -> Iterator[list[Outgoing]]:
    """Messages -> lists of them that one request takes, in order."""
    waiting: list[Outgoing] = []
    size = 0
    for message in messages:
        own = len(message.data) + sum(len(k) + len(v) + 8 for k, v in message.attributes.items())
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

    def __init__(self, cloud: Cloud, topic: str, kind: Literal["rows", "failures"]) -> None:
        self._cloud, self._topic = cloud, topic
        self._encode = row_messages if kind == "rows" else failure_messages

    def start_bundle(self) -> None:
        self._waiting: list[Outgoing] = []

    def process(self, batch: pa.RecordBatch) -> Iterator[Count]:
        self._waiting += self._encode(batch)
        if len(self._waiting) >= REQUEST_MESSAGES:
            yield self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        if self._waiting:
            yield GlobalWindows.windowed_value_at_end_of_window(self._flush())

    def _flush(self) -> Count:
        waiting, self._waiting = self._waiting, []
        with told_as(OutputError, f"topic {self._topic} cannot be published to"):
            client = self._cloud.publisher()
            for messages in requests(waiting):
                publish(client, self._topic, messages, self._cloud.retry_seconds)
        return (PUBLISHED,), len(waiting)


@dataclass
class PublishBatches(beam.PTransform):
    """Batches of output rows, or failure records -> counts of messages published to a topic."""

    cloud: Cloud
    topic: str
    kind: Literal["rows", "failures"] = "rows"

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Count]:
        """One DoFn."""
        return batches | beam.ParDo(_PublishDoFn(self.cloud, self.topic, self.kind))
