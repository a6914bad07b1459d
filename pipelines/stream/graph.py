"""The graph of a stream: read messages, predict, and write rows and dead letters."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler

from cloud.clients import Cloud
from common.errors import OutputError
from common.record_batch import stamped, typed
from model_handlers.manifests.manifest import Manifest
from pipelines.stream.progress import (
    CountReceived,
    MeasureLatency,
    count_dead_letters,
    count_decided,
)
from transforms.bigquery.append import AppendToTable
from transforms.bigquery.schema import TableName
from transforms.chain import Each
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.encode import EncodeRows, without_ordering_keys
from transforms.files.sink.groups import WriteGroups
from transforms.files.sink.spans import WriteSpans
from transforms.files.sink.stream_files import StreamFiles
from transforms.files.sink.writers import OutputFormat
from transforms.messages.decode import MESSAGE_BYTES, DecodeDoFn, MessageFormat
from transforms.messages.gather import DropDuplicates, GatherMessages
from transforms.messages.publish import PublishBatches
from transforms.output_fields import OutputFields
from transforms.predict import PredictBetween
from transforms.provenance import Provenance, utc_now

# How long messages wait behind the step that drops duplicates: about as long as an append takes.
WAIT_MS = 100


@dataclass(frozen=True)
class StreamSinks:
    """Where a stream's rows, or its dead letters, are written: to all of the sinks that are set.

    Attributes:
        folder: The folder of the scores, or of the dead letters.
        file_seconds: The length in seconds of the spans of time to which files belong.
        ordering_keys: Whether messages on the topic have the ordering keys of the messages that
            their rows come from.
    """

    topic: str | None = None
    table: TableName | None = None
    folder: str | None = None
    file_seconds: int = 300
    ordering_keys: bool = False


@dataclass(kw_only=True)
class ScoreStream(beam.PTransform):
    """A transform that scores messages as they arrive, and writes rows and dead letters.

    Attributes:
        source: A transform whose elements transforms.messages.message.parse takes.
        schema: The schema of the output rows.
        deduplicate_seconds: As in StreamConfig.
        deduplicate_attribute: As in StreamConfig.
        max_batch_wait_ms: As in StreamConfig. Messages are always gathered after duplicates were
            dropped, for WAIT_MS by default, because then each message is a bundle.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The maximum number of bytes of a batch, as for DecodeMessages.
        names: The names that rows are expected to have, and the flag that names each. A worker
            logs a warning if its first rows lack one.
        in_stage: Whether all steps must be in the stage of the source, because it acknowledges
            messages when its stage is done (transforms/messages/pull.py).
    """

    source: beam.PTransform
    message_format: MessageFormat
    handler: ModelHandler[pa.RecordBatch, pa.RecordBatch, Any]
    manifest: Manifest
    fields: OutputFields
    provenance: Provenance
    schema: pa.Schema
    cloud: Cloud
    sinks: StreamSinks
    failure_sinks: StreamSinks
    deduplicate_seconds: int | None = None
    deduplicate_attribute: str | None = None
    max_batch_wait_ms: int | None = None
    batch_rows: int = 4_096
    batch_bytes: int = MESSAGE_BYTES
    names: Mapping[str, str] = field(default_factory=dict)
    in_stage: bool = False

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[pa.RecordBatch]:
        """Read, decode, predict, encode and write; return the encoded rows."""
        messages = pipeline | "ReadMessages" >> self.source
        wait_ms = self.max_batch_wait_ms
        if self.deduplicate_seconds is not None:
            drop = DropDuplicates(self.deduplicate_seconds, self.deduplicate_attribute)
            messages = messages | "DropDuplicates" >> drop
            wait_ms = WAIT_MS if wait_ms is None else wait_ms
        if wait_ms is not None:
            gather = GatherMessages(self.batch_rows, wait_ms, self.batch_bytes)
            messages = messages | "Gather" >> gather
        encoded, *failed = messages | "Score" >> self._score()
        rows = encoded
        if self.sinks.ordering_keys:
            rows = typed(encoded | "WithoutKeys" >> beam.Map(without_ordering_keys))
        refused = self._write(rows, encoded)
        for suffix, letters in self._together("RefusedRows", refused):
            letters | f"CountRefused{suffix}" >> beam.Map(count_dead_letters)
        for suffix, letters in self._together("Failures", [*failed, *refused]):
            self._write_failures(letters, suffix)
        return rows

    def _score(self) -> PredictBetween:
        """Return the transform from messages to encoded rows, with two outputs of dead letters."""
        decode = DecodeDoFn(
            self.message_format,
            self.provenance,
            self.batch_rows,
            self.batch_bytes,
            CountReceived(self.names),
            timed=bool(self.fields.timings),
        )
        started = self.fields.timings[1:]
        encode = EncodeRows(
            self.fields, self.provenance, self.schema, ordering_keys=self.sinks.ordering_keys
        )
        after = [MeasureLatency(), Each(encode.encode)]
        if decisions := self.fields.decisions(self.manifest):
            after.append(Each(functools.partial(count_decided, names=decisions)))
        return PredictBetween(
            self.handler,
            self.manifest,
            self.provenance,
            self.fields.needed,
            before=[decode],
            ready=[Each(functools.partial(stamped_now, name=name)) for name in started],
            after=after,
            on_failures=count_dead_letters,
        )

    def _together(
        self, label: str, collections: Sequence[beam.PCollection]
    ) -> Iterator[tuple[str, beam.PCollection]]:
        """Yield collections, and what to add to the names of the steps on them.

        They are one collection if steps need not stay in the stage of the source.
        """
        if self.in_stage:
            yield from ((str(i or ""), one) for i, one in enumerate(collections))
        elif collections:
            yield "", collections | label >> beam.Flatten()

    def _write(
        self, rows: beam.PCollection[pa.RecordBatch], keyed: beam.PCollection[pa.RecordBatch]
    ) -> list[beam.PCollection]:
        """Write rows to the sinks; return the dead letters of rows that a sink refuses.

        Args:
            rows: The rows.
            keyed: The same rows for the topic, which may have ordering keys.
        """
        to, refused = self.sinks, []
        if to.topic is not None:
            timed = bool(self.fields.timings)
            publish = PublishBatches(self.cloud, to.topic, "rows", self.provenance, timed)
            refused.append((keyed | "PublishRows" >> publish).failures)
        if to.table is not None:
            append = AppendToTable(
                cloud=self.cloud, table=to.table, schema=self.schema, provenance=self.provenance
            )
            refused.append((rows | "AppendRows" >> append).failures)
        if to.folder is not None:
            rows | "WriteRows" >> self._files(to.folder, to.file_seconds, "parquet")
        return refused

    def _write_failures(self, letters: beam.PCollection[pa.RecordBatch], suffix: str) -> None:
        to = self.failure_sinks
        if to.topic is not None:
            publish = PublishBatches(self.cloud, to.topic, "failures")
            letters | f"PublishDeadLetters{suffix}" >> publish
        if to.table is not None:
            append = AppendToTable(
                cloud=self.cloud, table=to.table, schema=FAILURE_SCHEMA, provenance=self.provenance
            )
            appended = letters | f"AppendDeadLetters{suffix}" >> append
            appended.failures | f"Refused{suffix}" >> beam.Map(raise_refused)
        if to.folder is not None:
            write = self._files(to.folder, to.file_seconds, "jsonl")
            letters | f"WriteDeadLetters{suffix}" >> write

    def _files(self, folder: str, seconds: int, output_format: OutputFormat) -> beam.PTransform:
        """Return the sink that writes to a folder."""
        files = StreamFiles(folder=folder, seconds=seconds, output_format=output_format)
        return WriteSpans(files) if self.in_stage else WriteGroups(files)


def stamped_now(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    """Return a batch with the present time in a new column."""
    return stamped(batch, name, utc_now())


def raise_refused(failures: pa.RecordBatch) -> None:
    """Raise OutputError for dead letters that their own table refuses: they must not get lost."""
    raise OutputError(
        f"the dead letter table refuses {failures.num_rows} rows: "
        f"{failures.column('message')[0].as_py()}; alter the table, or choose another "
        "--dead_letter_table"
    )
