"""Flags of a stream: where its messages come from, and where rows go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.options.flag import flag
from pipelines.options.forms import AT_LEAST_1, RUN_ID, SUBSCRIPTION, TOPIC
from pipelines.options.shared import (
    OutputSchema,
    cluster_by_flag,
    dead_letter_table_flag,
    output_schema_flag,
    output_table_flag,
)

MessageKind = Literal["json", "avro", "arrow"]


@dataclass(frozen=True, kw_only=True)
class StreamSourceOptions:
    """Where the messages come from, and how they are read."""

    input_subscription: str | None = flag(
        "subscription of Pub/Sub: projects/PROJECT/subscriptions/NAME",
        label="Input subscription",
        param_type="PUBSUB_SUBSCRIPTION",
        form=SUBSCRIPTION,
        metavar="SUBSCRIPTION",
    )
    input_topic: str | None = flag(
        "topic of Pub/Sub, with --create_subscription: projects/PROJECT/topics/NAME",
        label="Input topic",
        param_type="PUBSUB_TOPIC",
        form=TOPIC,
        metavar="TOPIC",
    )
    create_subscription: bool = flag(
        "make a subscription of --input_topic for this run; one that runs in this process removes "
        "it at its end",
        False,
        label="Create a subscription",
        param_type="BOOLEAN",
    )
    allow_shared_subscription: bool = flag(
        "read a subscription that another job's label says it reads: each gets a part of the "
        "messages",
        False,
        label="Allow a shared subscription",
        param_type="BOOLEAN",
    )
    message_format: MessageKind = flag(
        "json: one row a message; avro: one record of --avro_schema; arrow: an IPC stream of rows",
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
        "a larger message, compressed or not, is a dead letter",
        1 << 20,
        label="Largest message",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    id_column: str | None = flag(
        "field that identifies a row, kept as row_id (default: the message id)",
        label="Id field",
        metavar="NAME",
    )
    deduplicate_seconds: int | None = flag(
        "drop a message whose message id, Pub/Sub's own, came already within this time (default: "
        "none is dropped)",
        label="Deduplicate seconds",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    max_batch_wait_ms: int | None = flag(
        "wait so long for messages of other bundles, for larger batches (default: no wait)",
        label="Longest wait for a batch",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    window_seconds: int | None = flag(
        "write window_start and window_end of windows of this length; nothing waits for them",
        label="Window seconds",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )


@dataclass(frozen=True, kw_only=True)
class StreamSinkOptions:
    """Where the scored rows go; any of these together."""

    output_topic: str | None = flag(
        "topic of Pub/Sub for the results, one message of JSON a row",
        label="Output topic",
        param_type="PUBSUB_TOPIC",
        form=TOPIC,
        metavar="TOPIC",
    )
    output_table: str | None = output_table_flag()
    output_files: str | None = flag(
        "folder for Parquet files: FOLDER/scores/DAY/TIME-*.parquet",
        label="Output folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )
    file_seconds: int = flag(
        "span of time of one file of results or dead letters",
        300,
        label="File seconds",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    output_schema: OutputSchema = output_schema_flag()
    cluster_by: tuple[str, ...] | None = cluster_by_flag()


@dataclass(frozen=True)
class StreamFailureOptions:
    """Where the messages go that cannot be scored; at least one of these."""

    dead_letter_topic: str | None = flag(
        "topic of Pub/Sub for dead letters: the messages as they came, the reason in attributes",
        label="Dead letter topic",
        param_type="PUBSUB_TOPIC",
        form=TOPIC,
        metavar="TOPIC",
    )
    dead_letter_table: str | None = dead_letter_table_flag()
    dead_letter_files: str | None = flag(
        "folder for dead letters: FOLDER/dead_letters/DAY/TIME-*.jsonl",
        label="Dead letter folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )


@dataclass(frozen=True, kw_only=True)
class StreamRunOptions:
    """The run itself."""

    run_id: str | None = flag(
        "name of the run, written into every row (default: the time of the start)",
        label="Run id",
        form=RUN_ID,
        metavar="NAME",
    )
    report_seconds: int = flag(
        "a run in this process tells its rates and latencies so often",
        10,
        label="Report seconds",
        param_type="NUMBER",
        form=AT_LEAST_1,
        in_template=False,
    )
    stop_after_seconds: int | None = flag(
        "a run in this process stops when so long no message came (default: it runs until Ctrl-C)",
        label="Stop after seconds",
        param_type="NUMBER",
        form=AT_LEAST_1,
        in_template=False,
    )
    allow_state_loss: bool = flag(
        "of --update: a --transform_name_mapping may drop steps with the messages that they hold, "
        "which are acknowledged already",
        False,
        label="Allow state loss",
        in_template=False,
    )
    debug: bool = flag(
        "show tracebacks and Beam's own log",
        False,
        label="Debug",
        param_type="BOOLEAN",
        in_template=False,
    )
