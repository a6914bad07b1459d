"""Flags of a replay: which dead letters are scored once more, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options.flag import flag
from pipelines.options.forms import AT_LEAST_1, SUBSCRIPTION, TOPIC
from pipelines.options.stream import MessageKind


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Which dead letters are scored once more, and how their messages are read."""

    input_files: tuple[str, ...] | None = flag(
        "paths, globs or folders of dead letters in JSON lines, as runs write them",
        label="Dead letter files",
        param_type="GCS_READ_FILE",
        metavar="PATTERN",
    )
    input_table: str | None = flag(
        "table of BigQuery with dead letters: project.dataset.table",
        label="Dead letter table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )
    input_subscription: str | None = flag(
        "subscription of a dead letter topic, read until it is empty: "
        "projects/PROJECT/subscriptions/NAME",
        label="Dead letter subscription",
        param_type="PUBSUB_SUBSCRIPTION",
        form=SUBSCRIPTION,
        metavar="SUBSCRIPTION",
    )
    max_messages: int = flag(
        "messages of --input_subscription at most",
        100_000,
        label="Largest number of messages",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    reason: tuple[str, ...] | None = flag(
        "only dead letters of these reasons", label="Reasons", metavar="A,B"
    )
    stage: tuple[str, ...] | None = flag(
        "only those of these stages: decode, validate, infer, encode", label="Stages", metavar="A,B"
    )
    since: str | None = flag(
        "only those of rows that failed at this time or later: 2026-11-20, 2026-11-20T12:00:00Z",
        label="Since",
        metavar="TIME",
    )
    pipeline: tuple[str, ...] | None = flag(
        "only those of these pipelines, as stream_local", label="Pipelines", metavar="A,B"
    )
    replayed_run_id: tuple[str, ...] | None = flag(
        "only those of these runs", label="Replayed runs", metavar="A,B"
    )
    message_format: MessageKind = flag(
        "as it was given to the stream that wrote the dead letters",
        "json",
        label="Message format",
        param_type="ENUM",
    )
    avro_schema: str | None = flag(
        "schema that Avro messages are written with: JSON, or @path of a file",
        label="Avro schema",
        metavar="JSON",
    )
    max_message_bytes: int = flag(
        "a larger message of a stream, compressed or not, is a dead letter again",
        1 << 20,
        label="Largest message",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    id_column: str | None = flag(
        "field that identifies a row, kept as row_id (default: the id that the dead letter has)",
        label="Id field",
        metavar="NAME",
    )
    window_seconds: int | None = flag(
        "write window_start and window_end of windows of this length, as the stream did",
        label="Window seconds",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    output_topic: str | None = flag(
        "topic of Pub/Sub that gets the results as well, one message of JSON a row",
        label="Output topic",
        param_type="PUBSUB_TOPIC",
        form=TOPIC,
        metavar="TOPIC",
    )
    dead_letter_topic: str | None = flag(
        "topic of Pub/Sub that gets the dead letters as well",
        label="Dead letter topic",
        param_type="PUBSUB_TOPIC",
        form=TOPIC,
        metavar="TOPIC",
    )
