"""Flags of a stream: where its messages come from, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.options.flag import flag
from pipelines.options.forms import (
    AT_LEAST_1,
    DURATION,
    RUN_ID,
    SECONDS_OF_DAY,
    SUBSCRIPTION,
    TOPIC,
)
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
        "Pub/Sub subscription to read, as projects/PROJECT/subscriptions/NAME",
        label="Input subscription",
        param_type="PUBSUB_SUBSCRIPTION",
        form=SUBSCRIPTION,
        metavar="SUBSCRIPTION",
    )
    input_topic: str | None = flag(
        "Pub/Sub topic to read with --create_subscription, as projects/PROJECT/topics/NAME",
        label="Input topic",
        param_type="PUBSUB_TOPIC",
        form=TOPIC,
        metavar="TOPIC",
    )
    create_subscription: bool = flag(
        "create a subscription to --input_topic for this run, which deletes it at the end; a job "
        "on Dataflow leaves it for you to delete",
        False,
        label="Create a subscription",
        param_type="BOOLEAN",
    )
    allow_shared_subscription: bool = flag(
        "read the subscription even if its label names another reader; each reader then receives "
        "only part of the messages",
        False,
        label="Allow a shared subscription",
        param_type="BOOLEAN",
    )
    stream_readers: int | None = flag(
        "how many requests for messages are sent at once; not for a job on Dataflow, which decides "
        "itself (default: 1)",
        label="Readers",
        param_type="NUMBER",
        form=AT_LEAST_1,
        in_template=False,
    )
    message_format: MessageKind = flag(
        "content of a message. json: one row; avro: one record of --avro_schema; arrow: an IPC "
        "stream of rows",
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
        "maximum size of a message in bytes, before and after decompression; a larger message "
        "becomes a dead letter",
        1 << 20,
        label="Maximum message size",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    id_column: str | None = flag(
        "field that identifies a row, written as row_id (default: the message id)",
        label="Id field",
        metavar="NAME",
    )
    deduplicate_seconds: int | None = flag(
        "drop a message if Pub/Sub has delivered the same message id in the last N seconds "
        "(default: keep duplicates)",
        label="Deduplicate seconds",
        param_type="NUMBER",
        form=DURATION,
    )
    deduplicate_attribute: str | None = flag(
        "attribute that identifies a message instead of the message id, for publishers that send "
        "a message again; with --deduplicate_seconds, or on Dataflow in exactly-once mode",
        label="Deduplicate attribute",
        metavar="NAME",
    )
    max_batch_wait_ms: int | None = flag(
        "wait up to this many milliseconds for messages from other bundles, to build larger "
        "batches (default: do not wait; 100 behind --deduplicate_seconds on Dataflow)",
        label="Maximum wait for a batch",
        param_type="NUMBER",
        form=DURATION,
    )
    window_seconds: int | None = flag(
        "length of a window in seconds; adds to each row the window_start and window_end of its "
        "window, without waiting for the window to close",
        label="Window seconds",
        param_type="NUMBER",
        form=DURATION,
    )


@dataclass(frozen=True, kw_only=True)
class StreamSinkOptions:
    """Where the scored rows go (a topic, a table, a folder, or several of them)."""

    output_topic: str | None = flag(
        "Pub/Sub topic for the results, as projects/PROJECT/topics/NAME; one JSON message per row",
        label="Output topic",
        param_type="PUBSUB_TOPIC",
        form=TOPIC,
        metavar="TOPIC",
    )
    keep_ordering_keys: bool = flag(
        "publish each result with the ordering key of the message that it comes from; one request "
        "for each key, so it suits few keys",
        False,
        label="Keep ordering keys",
        param_type="BOOLEAN",
    )
    output_table: str | None = output_table_flag()
    output_files: str | None = flag(
        "folder for Parquet files: FOLDER/scores/DAY/TIME-*.parquet",
        label="Output folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )
    file_seconds: int = flag(
        "length of the time spans of files of results or dead letters, in seconds; a file is "
        "written early when it has 1,048,576 rows, or when its rows take 64 MB",
        300,
        label="File seconds",
        param_type="NUMBER",
        form=SECONDS_OF_DAY,
    )
    output_schema: OutputSchema = output_schema_flag()
    row_timings: bool = flag(
        "add to each row the times at which its message was decoded and its prediction started, "
        "and to each message of --output_topic the time at which it was encoded; a scale test then "
        "shows where the time goes in the pipeline",
        False,
        label="Row timings",
        param_type="BOOLEAN",
    )
    cluster_by: tuple[str, ...] | None = cluster_by_flag()


@dataclass(frozen=True)
class StreamFailureOptions:
    """Dead letters, the messages that cannot be scored."""

    dead_letter_topic: str | None = flag(
        "Pub/Sub topic for dead letters, as projects/PROJECT/topics/NAME; each message is "
        "unchanged and has the reason in its attributes",
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
    """The run."""

    run_id: str | None = flag(
        "name of the run, written into every row (default: the start time and a random suffix)",
        label="Run id",
        form=RUN_ID,
        metavar="NAME",
    )
    report_seconds: int = flag(
        "print rates and latencies every N seconds; only if the workers are in this process",
        10,
        label="Report seconds",
        param_type="NUMBER",
        form=DURATION,
        in_template=False,
    )
    stop_after_seconds: int | None = flag(
        "stop after N seconds without a message; not for a job on Dataflow (default: run until "
        "Ctrl-C)",
        label="Stop after seconds",
        param_type="NUMBER",
        form=DURATION,
        in_template=False,
    )
    allow_state_loss: bool = flag(
        "with --update, accept a --transform_name_mapping that drops steps together with the "
        "messages that they hold; these messages are already acknowledged and are lost",
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
