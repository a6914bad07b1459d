"""DecodeMessages: messages to source batches inside a bundle, without windows or delay.

A message is one or several rows of JSON, one row of Avro, or many rows of Arrow. A message that
cannot be read becomes one dead letter with its exact bytes, and so does a row of several. The
modules of this folder add the reasons `empty_message`, `too_large`, `unknown_encoding`,
`invalid_gzip`, `invalid_avro`, `invalid_arrow` and `wrong_schema` to those in
transforms/json_rows/values.py and transforms/json_rows/row_format.py.

A dead letter that is sent again is marked by its attributes (transforms/messages/message.py). Its
row keeps its id. If it had been decoded before it failed, it is read as the columns that it had.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp

from common.measures import DECODE, MESSAGES
from common.record_batch import MESSAGE, concat_batches, rebatch, stamped, typed
from transforms.accounts import found
from transforms.bundles import current_bundle
from transforms.dead_letters import Fault, failure_batch
from transforms.files.read import Read
from transforms.json_rows.columns import column_values
from transforms.json_rows.decode import decode_rows, source_rows
from transforms.json_rows.row_format import RowFormat
from transforms.json_rows.values import read_json_values
from transforms.messages.arrow import read_arrow
from transforms.messages.avro_revisions import AvroRevisions
from transforms.messages.body import changes_decoding, is_row, read_bodies
from transforms.messages.message import (
    SCHEMA_ENCODING,
    STAGE,
    Message,
    message_column,
    parse_message,
    schema_attributes,
)
from transforms.messages.named_rows import NamedRows
from transforms.messages.several_rows import row_id, split_rows
from transforms.provenance import Provenance, utc_now
from transforms.row_schemas import DECODED_AT

MessageKind = Literal["json", "avro", "arrow"]

# The largest size of a batch's messages. As Python values they take several times as much memory.
MESSAGE_BYTES = 32 << 20

# The reasons of data that has another format.
_UNREADABLE = {"invalid_json", "not_an_object", "invalid_arrow"}
_BINARY = (
    f"its attribute {SCHEMA_ENCODING} is BINARY, so it is Avro: use --message_format avro with "
    "--avro_schema"
)


@dataclass(frozen=True)
class MessageFormat:
    """The format of messages, and the rows to read from them.

    Attributes:
        row_format: The columns to read.
        kind: The encoding of a message.
        avro: The schemas of Avro messages.
        max_bytes: The largest size of a message in bytes, both compressed and uncompressed.
        several: Whether a JSON message may hold several rows.
    """

    row_format: RowFormat
    kind: MessageKind = "json"
    avro: AvroRevisions | None = None
    max_bytes: int = 1 << 20
    several: bool = True

    @cached_property
    def named_rows(self) -> NamedRows:
        """The reader of rows that name every feature."""
        return NamedRows(self.row_format)

    def __getstate__(self) -> dict[str, Any]:
        # Workers compute the cached property themselves.
        return {k: v for k, v in self.__dict__.items() if k != "named_rows"}


class Counted(NamedTuple):
    """Decoded messages.

    Attributes:
        batches: The source batches.
        failures: The dead letters, or None if no message failed.
        messages: How many messages were decoded, which is counted by their rows and dead letters.
    """

    batches: list[pa.RecordBatch]
    failures: pa.RecordBatch | None
    messages: int


def decode_messages(
    messages: Sequence[Message],
    message_format: MessageFormat,
    provenance: Provenance,
    received_at: datetime.datetime,
) -> tuple[list[pa.RecordBatch], pa.RecordBatch | None]:
    """Decode messages into source batches with the column MESSAGE, and dead letters.

    Every row is in exactly one of the two. The rows of an Arrow message, or of a JSON message of
    several, are numbered: their ids are message_id-0, message_id-1, ...

    Args:
        messages: The messages to decode.
        message_format: Their format.
        provenance: The run and the model, for dead letters.
        received_at: When the messages were received.

    Returns:
        The source batches, in the order of the messages, and the dead letters, or None if no
        message failed.
    """
    return decode_counted(messages, message_format, provenance, received_at)[:2]


def decode_counted(
    messages: Sequence[Message],
    message_format: MessageFormat,
    provenance: Provenance,
    received_at: datetime.datetime,
) -> Counted:
    """Do the same as `decode_messages`, and count the messages."""
    if not messages:
        return Counted([], None, 0)
    if message_format.kind != "arrow":
        return _decode_rows(messages, message_format, provenance, received_at)
    streams = [message for message in messages if not is_row(message)]
    batches, failures = _decode_arrow(streams, message_format, provenance, received_at)
    count = len(streams)
    if count < len(messages):
        rows = [message for message in messages if is_row(message)]
        more, failed, others = _decode_rows(rows, message_format, provenance, received_at)
        batches, count = batches + more, count + others
        both = [found for found in (failures, failed) if found is not None]
        failures = concat_batches(both) if both else None
    return Counted(batches, failures, count)


def _decode_named(
    messages: Sequence[Message], message_format: MessageFormat, received_at: datetime.datetime
) -> pa.RecordBatch | None:
    """Return messages that only name known columns as a source batch, or None if one differs."""
    payloads = [message.data for message in messages]
    sizes = [len(payload) for payload in payloads]
    if (
        message_format.kind == "avro"
        or not 0 < min(sizes) <= max(sizes) <= message_format.max_bytes
        or changes_decoding(messages)
    ):
        return None
    read = message_format.named_rows.read(payloads)
    if read is None:
        return None
    ids = [message.message_id for message in messages]
    if read.ids is not None:
        ids = [derived if own is None else own for own, derived in zip(read.ids, ids, strict=True)]
    batch = source_rows(ids, read.columns, payloads)
    return batch.append_column(MESSAGE, message_column(messages, received_at))


def _decode_rows(
    messages: Sequence[Message],
    message_format: MessageFormat,
    provenance: Provenance,
    received_at: datetime.datetime,
) -> Counted:
    """Decode messages whose rows are JSON or Avro, like decode_counted."""
    batch = _decode_named(messages, message_format, received_at)
    if batch is not None:
        return Counted([batch], None, batch.num_rows)
    sent = len(messages)
    bodies: Sequence[bytes | Fault] = read_bodies(messages, message_format.max_bytes)
    ids: Sequence[str] = [row_id(message) for message in messages]
    if message_format.kind == "json" and message_format.several:
        messages, bodies, ids = split_rows(messages, bodies)
    more = len(messages) - sent
    if message_format.avro is not None:
        read = message_format.avro.read
        rows = [
            body if isinstance(body, Fault) else read(body, message.attributes)
            for body, message in zip(bodies, messages, strict=True)
        ]
    else:
        rows = read_json_values(bodies, message_format.row_format.texts)
    # A row that failed after it was decoded was sent as the JSON of its columns.
    replayed = [
        i
        for i, message in enumerate(messages)
        if message.attributes and message.attributes.get(STAGE, "decode") != "decode"
    ]
    for i in replayed:
        rows[i] = column_values(rows[i], message_format.row_format.manifest)
    payloads = [message.data for message in messages]
    decoded = decode_rows(
        rows, payloads, ids, message_format.row_format, as_vector=True, replayed=replayed
    )
    batches = []
    if decoded.batch is not None:
        good = [messages[i] for i in decoded.good] if decoded.bad else messages
        column = message_column(good, received_at)
        batches.append(decoded.batch.append_column(MESSAGE, column))
    bad, faults = [messages[i] for i in decoded.bad], decoded.faults
    if message_format.avro is None:
        faults = _naming_avro(bad, faults)
    failures = _failures(bad, decoded.failed_ids, faults, provenance, received_at)
    return Counted(batches, failures, decoded.rows - more)


def _failures(
    messages: Sequence[Message],
    ids: Sequence[str],
    faults: Sequence[Fault],
    provenance: Provenance,
    received_at: datetime.datetime,
) -> pa.RecordBatch | None:
    if not messages:
        return None
    return failure_batch(
        ids,
        [message.data for message in messages],
        faults,
        stage="decode",
        provenance=provenance,
        failed_at=utc_now(),
        messages=message_column(messages, received_at),
    )


def _decode_arrow(
    messages: Sequence[Message],
    message_format: MessageFormat,
    provenance: Provenance,
    received_at: datetime.datetime,
) -> tuple[list[pa.RecordBatch], pa.RecordBatch | None]:
    batches, bad, faults = [], [], []
    limit = message_format.max_bytes
    for message, body in zip(messages, read_bodies(messages, limit), strict=True):
        read: pa.RecordBatch | Fault = (
            body
            if isinstance(body, Fault)
            else read_arrow(body, row_id(message), message_format.row_format, limit)
        )
        if isinstance(read, Fault):
            bad.append(message)
            faults.append(read)
        else:
            same = np.zeros(read.num_rows, np.int64)
            column = message_column([message], received_at).take(pa.array(same))
            batches.append(read.append_column(MESSAGE, column))
    ids = [row_id(message) for message in bad]
    faults = _naming_avro(bad, faults)
    return batches, _failures(bad, ids, faults, provenance, received_at)


def _naming_avro(messages: Sequence[Message], faults: Sequence[Fault]) -> list[Fault]:
    """Return faults that say which flags read messages that are Avro by their attributes.

    Args:
        messages: Messages that were not read as Avro.
        faults: The fault of each message.
    """
    return [
        replace(fault, message=f"{fault.message}; {_BINARY}")
        if fault.reason in _UNREADABLE
        and schema_attributes(message.attributes or {}).get(SCHEMA_ENCODING) == "BINARY"
        else fault
        for message, fault in zip(messages, faults, strict=True)
    ]


class DecodeDoFn(beam.DoFn):
    """A DoFn that decodes messages, or lists of messages, into source batches.

    Dead letters go to the output `failures`, and the number of messages in a bundle to `counts`.

    Args:
        message_format: As for DecodeMessages.
        provenance: As for DecodeMessages.
        batch_rows: As for DecodeMessages.
        batch_bytes: As for DecodeMessages.
        on_rows: A function to call with all rows and all dead letters, or None.
        timed: Whether to add the column DECODED_AT.
    """

    def __init__(
        self,
        message_format: MessageFormat,
        provenance: Provenance,
        batch_rows: int,
        batch_bytes: int,
        on_rows: Callable[[pa.RecordBatch], None] | None = None,
        *,
        timed: bool = False,
    ) -> None:
        self._format, self._provenance, self._batch_rows = message_format, provenance, batch_rows
        self._batch_bytes, self._on_rows = min(batch_bytes, MESSAGE_BYTES), on_rows
        self._timed = timed

    def start_bundle(self) -> None:
        """Start without messages."""
        self._waiting: list[Any] = []
        self._bytes = 0
        self._decoded = 0

    def process(self, element: Any) -> Iterable[Any]:
        """Return what is ready once a message, or a list of them, was added."""
        # This is not a generator, because most messages yield nothing yet.
        if isinstance(element, list):
            return chain.from_iterable(map(self._add, element))
        return self._add(element)

    def _add(self, message: Any) -> Iterable[Any]:
        if not self._waiting:
            self._received = utc_now()
        self._waiting.append(message)
        self._bytes += len(message if isinstance(message, bytes) else message.data or b"")
        full = len(self._waiting) >= self._batch_rows or self._bytes >= self._batch_bytes
        return self._flush() if full else ()

    def finish_bundle(self) -> Iterator[Any]:
        """Yield what is left, and the number of messages."""
        # All rows of the bundle get the present time, which is never behind the watermark.
        now = Timestamp.now()
        for value in self._flush() if self._waiting else ():
            if isinstance(value, beam.pvalue.TaggedOutput):
                windowed = GlobalWindows.windowed_value(value.value, timestamp=now)
                yield beam.pvalue.TaggedOutput(value.tag, windowed)
            else:
                yield GlobalWindows.windowed_value(value, timestamp=now)
        if (bundle := current_bundle()) is not None:
            bundle.decoded += self._decoded
        if self._decoded:
            MESSAGES.add(self._decoded)
        count = GlobalWindows.windowed_value(found("messages", self._decoded), timestamp=now)
        yield beam.pvalue.TaggedOutput("counts", count)

    def _flush(self) -> Iterator[Any]:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        with DECODE.timed():
            batches, failures, count = decode_counted(
                [parse_message(message) for message in waiting],
                self._format,
                self._provenance,
                self._received,
            )
        if self._timed:
            now = utc_now()
            batches = [stamped(batch, DECODED_AT, now) for batch in batches]
        if self._on_rows is not None:
            for rows in (*batches, *([] if failures is None else [failures])):
                self._on_rows(rows)
        yield from rebatch(batches, self._batch_rows, self._batch_bytes)
        if failures is not None:
            yield beam.pvalue.TaggedOutput("failures", failures)
        self._decoded += count


@dataclass
class DecodeMessages(beam.PTransform):
    """A step that decodes serialized PubsubMessages, or lists of them, into source batches.

    Attributes:
        message_format: The format of the messages.
        provenance: The run and the model, for dead letters.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The most bytes that a batch of several rows may have. It gets no more messages
            once they have this many bytes, or 32 MB.
    """

    message_format: MessageFormat
    provenance: Provenance
    batch_rows: int = 4_096
    batch_bytes: int = MESSAGE_BYTES

    def expand(self, messages: beam.PCollection[Any]) -> Read:
        """Apply one DoFn with three outputs."""
        dofn = DecodeDoFn(self.message_format, self.provenance, self.batch_rows, self.batch_bytes)
        decoded = messages | beam.ParDo(dofn).with_outputs("failures", "counts", main="good")
        return Read(typed(decoded.good), typed(decoded.failures), decoded.counts)
