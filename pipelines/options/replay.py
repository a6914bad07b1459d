"""Flags of a replay: which dead letters to score again, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options.flag import flag
from pipelines.options.forms import AT_LEAST_1, DURATION, SUBSCRIPTION, TOPIC
from pipelines.options.stream import MessageKind


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Which dead letters to score again, and how to read them."""

    input_files: tuple[str, ...] | None = flag(
        "paths, globs or folders of dead letters that runs wrote as JSON Lines",
        label="Dead letter files",
        param_type="GCS_READ_FILE",
        metavar="PATTERN",
    )
    input_table: str | None = flag(
        "BigQuery table of dead letters, as project.dataset.table",
        label="Dead letter table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )
    input_subscription: str | None = flag(
        "subscription to a dead letter topic, as projects/PROJECT/subscriptions/NAME; read until "
        "it is empty",
        label="Dead letter subscription",
        param_type="PUBSUB_SUBSCRIPTION",
        form=SUBSCRIPTION,
        metavar="SUBSCRIPTION",
    )
    max_messages: int = flag(
        "maximum number of messages to read from --input_subscription",
        100_000,
        label="Maximum number of messages",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    reason: tuple[str, ...] | None = flag(
        "replay only dead letters with these reasons", label="Reasons", metavar="A,B"
    )
    stage: tuple[str, ...] | None = flag(
        "replay only dead letters from these stages: decode, validate, infer, encode",
        label="Stages",
        metavar="A,B",
    )
    since: str | None = flag(
        "replay only rows that failed at this time or later, such as 2026-11-20 or "
        "2026-11-20T12:00:00Z",
        label="Since",
        metavar="TIME",
    )
    pipeline: tuple[str, ...] | None = flag(
        "replay only dead letters of these pipelines, such as stream_local",
        label="Pipelines",
        metavar="A,B",
    )
    replayed_run_id: tuple[str, ...] | None = flag(
        "replay only dead letters of runs with these ids", label="Replayed runs", metavar="A,B"
    )
    message_format: MessageKind = flag(
        "message format of the stream that wrote the dead letters",
        "json",
        label="Message format",
        param_type="ENUM",
    )
    avro_schema: str | None = flag(
        "schema of the Avro messages, as JSON; @PATH reads it from a file. Messages that name "
        "another revision are read by that one",
        label="Avro schema",
        metavar="JSON",
    )
    avro_revisions: tuple[str, ...] | None = flag(
        "files with the schemas of other revisions, by revision id or Confluent schema id "
        "(default: revisions that messages name are fetched from Pub/Sub)",
        label="Avro revisions",
        metavar="ID=PATH",
    )
    max_message_bytes: int = flag(
        "maximum size of a stream's message in bytes, before and after decompression; a larger "
        "message becomes a dead letter again",
        1 << 20,
        label="Maximum message size",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    id_column: str | None = flag(
        "field that identifies a row, written as row_id (default: the id in the dead letter)",
        label="Id field",
        metavar="NAME",
    )
    window_seconds: int | None = flag(
        "length of a window in seconds, as in the stream; adds to each row the window_start and "
        "window_end of its window",
        label="Window seconds",
        param_type="NUMBER",
        form=DURATION,
    )
    output_topic: str | None = flag(
        "Pub/Sub topic to publish the results to as well, one JSON message per row",
        label="Output topic",
        param_type="PUBSUB_TOPIC",
        form=TOPIC,
        metavar="TOPIC",
    )
    dead_letter_topic: str | None = flag(
        "Pub/Sub topic to publish the dead letters to as well",
        label="Dead letter topic",
        param_type="PUBSUB_TOPIC",
        form=TOPIC,
        metavar="TOPIC",
    )
