"""Every flag of every pipeline, once: a frozen dataclass per concern, a field per flag.

A field's metadata holds what the command line's help and a Flex Template's parameter
need (pipelines/options/flag.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pipelines.options.flag import flag
from pipelines.options.launch import LaunchOptions

# Rows of a record batch. Rows of a stream wait for the rest of theirs.
BATCH_ROWS, STREAM_BATCH_ROWS = 32_768, 4_096

# Flags that batch runs and streams share.


def _output_table() -> Any:
    return flag(
        "table of BigQuery for the results, made if it is not there: project.dataset.table",
        label="Output table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )


def _output_schema() -> Any:
    return flag(
        "reference writes the rows of the reference pipeline: instance_id, anomaly_score, encoded, "
        "timestamp",
        "default",
        label="Output schema",
        param_type="ENUM",
        choices=("default", "reference"),
    )


def _cluster_by() -> Any:
    return flag(
        "columns by which a new --output_table is clustered, four at most",
        label="Cluster by",
        metavar="A,B",
    )


def _dead_letter_table() -> Any:
    return flag(
        "table of BigQuery for dead letters, made if it is not there (default, where no files are "
        "written: OUTPUT_TABLE_dead_letters)",
        label="Dead letter table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )


@dataclass(frozen=True)
class ModelOptions:
    """The model, and what of its answers is written."""

    model: str | None = flag(
        "model package: a folder with model.json, a .mar, or a model file",
        label="Model package",
        param_type="GCS_READ_FOLDER",
        metavar="PATH",
    )
    model_digest: str | None = flag(
        "sha256 that the model file must have; the run fails if it has another",
        label="Model digest",
        regex=r"(sha256:)?[0-9a-fA-F]{64}",
        metavar="SHA256",
    )
    trusted_modules: tuple[str, ...] | None = flag(
        "top-level Python modules that the model package's `architecture` may import; workers "
        "need them installed (default: none)",
        label="Trusted modules",
        metavar="A,B",
    )
    feature_columns: tuple[str, ...] | None = flag(
        "for a model file without model.json: its input columns, in order",
        label="Feature columns",
        metavar="A,B,C",
    )
    score_output: str | None = flag(
        "model output written as the column `score` (default: the manifest's)",
        label="Score output",
        metavar="NAME",
    )
    output_fields: tuple[str, ...] | None = flag(
        "model outputs and source columns to write besides id, score and lineage "
        "(default: the manifest's)",
        label="Output fields",
        metavar="A,B",
    )
    batch_rows: int | None = flag(
        "rows of a record batch at most, and with the model in the worker of one forward pass "
        "(default: 32768, of streams 4096)",
        label="Rows a batch",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
    )

    def rows(self, *, of_stream: bool = False) -> int:
        """Rows of a record batch at most: those that are asked for, or the default."""
        return self.batch_rows or (STREAM_BATCH_ROWS if of_stream else BATCH_ROWS)


@dataclass(frozen=True)
class DeviceOptions:
    """How the model runs in the worker."""

    device: str = flag(
        "auto, cpu, cuda or cuda:N",
        "auto",
        label="Device",
        regex=r"auto|cpu|cuda(:\d+)?",
    )
    precision: str = flag(
        "bf16 and fp16 run the model under autocast; they pay on CUDA",
        "float32",
        label="Precision",
        param_type="ENUM",
        choices=("float32", "bf16", "fp16"),
    )
    compile: bool = flag(
        "torch.compile the model (not for TorchScript); pays on CUDA",
        False,
        label="Compile the model",
        param_type="BOOLEAN",
    )


@dataclass(frozen=True)
class EndpointOptions:
    """The endpoint that has the model."""

    endpoint: str | None = flag(
        "Vertex AI endpoint: projects/P/locations/L/endpoints/ID, an id, or a display name",
        label="Endpoint",
        metavar="NAME",
    )
    endpoint_url: str | None = flag(
        "address of the endpoint where it is not Google's public one: of a private endpoint in "
        "your network, or of any server that answers as Vertex AI does",
        label="Endpoint URL",
        regex=r"https?://.+",
        metavar="URL",
    )
    endpoint_project: str | None = flag(
        "project of the endpoint, for an id or a display name (default: --project)",
        label="Endpoint project",
        metavar="PROJECT",
    )
    endpoint_location: str | None = flag(
        "location of the endpoint, for an id or a display name (default: --region)",
        label="Endpoint location",
        metavar="LOCATION",
    )
    instance_format: str = flag(
        "list sends the features of a row in order, named an object by column",
        "list",
        label="Instance format",
        param_type="ENUM",
        choices=("list", "named"),
    )
    endpoint_parameters: str | None = flag(
        "JSON object that is sent as the parameters of each request",
        label="Endpoint parameters",
        metavar="JSON",
    )
    endpoint_request_rows: int = flag(
        "rows of one request at most; it is split as well where it would be too large",
        100,
        label="Rows a request",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
    )
    endpoint_concurrency: int = flag(
        "requests that a worker process has in flight at most; fewer while the endpoint pushes "
        "back",
        8,
        label="Requests in flight",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
    )
    endpoint_timeout_seconds: int = flag(
        "how long one request may take",
        60,
        label="Request timeout",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
    )
    endpoint_cache_rows: int = flag(
        "predictions that a worker process remembers, by the features of their row; 0 for none",
        0,
        label="Cached predictions",
        param_type="NUMBER",
        regex=r"\d+",
    )
    skip_endpoint_check: bool = flag(
        "start without asking the endpoint for one known row first",
        False,
        label="Skip the endpoint check",
        param_type="BOOLEAN",
    )


@dataclass(frozen=True)
class SourceOptions:
    """Where the rows come from."""

    input_files: tuple[str, ...] | None = flag(
        "paths, globs or folders of Parquet, CSV or JSON lines files",
        label="Input files",
        param_type="GCS_READ_FILE",
        metavar="PATTERN",
    )
    input_format: str = flag(
        "format of the input files; auto tells it by each file's suffix",
        "auto",
        label="Input format",
        param_type="ENUM",
        choices=("auto", "parquet", "csv", "jsonl"),
    )
    input_table: str | None = flag(
        "table of BigQuery: project.dataset.table",
        label="Input table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )
    input_query: str | None = flag(
        "query in standard SQL whose result is read; @path takes it from a file",
        label="Input query",
        metavar="SQL",
    )
    row_restriction: str | None = flag(
        "rows of --input_table that are read, as in a WHERE clause; only these leave BigQuery",
        label="Row restriction",
        metavar="SQL",
    )
    read_method: str = flag(
        "direct reads by the Storage Read API; export by way of Parquet files in the temp location",
        "direct",
        label="Read method",
        param_type="ENUM",
        choices=("direct", "export"),
    )
    max_bytes_billed: int | None = flag(
        "a query that would scan more bytes is refused",
        label="Largest bytes billed",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
    )
    id_column: str | None = flag(
        "column that identifies a row, kept as row_id (default: derived, of files from the row's "
        "place, of tables from its features)",
        label="Id column",
        metavar="NAME",
    )


@dataclass(frozen=True)
class SinkOptions:
    """Where the scored rows go."""

    output_files: str | None = flag(
        "folder for the results: FOLDER/RUN_ID/scores/ and FOLDER/RUN_ID/report.json",
        label="Output folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )
    output_format: str = flag(
        "format of the output files",
        "parquet",
        label="Output format",
        param_type="ENUM",
        choices=("parquet", "csv", "jsonl"),
    )
    output_table: str | None = _output_table()
    output_schema: str = _output_schema()
    write_disposition: str = flag(
        "append to the rows of --output_table, truncate it first, or demand that it is empty",
        "append",
        label="Write disposition",
        param_type="ENUM",
        choices=("append", "truncate", "empty"),
    )
    cluster_by: tuple[str, ...] | None = _cluster_by()


@dataclass(frozen=True)
class FailureOptions:
    """Where the rows go that cannot be scored."""

    dead_letter_files: str | None = flag(
        "folder for dead letters, FOLDER/RUN_ID/dead_letters/ (default: the output folder)",
        label="Dead letter folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )
    dead_letter_table: str | None = _dead_letter_table()
    max_dead_letter_share: float = flag(
        "the run fails (exit code 1) if more than this share of the rows are dead letters, from 0 "
        "to 1; it always fails if no row is scored. What it wrote stays in place, and its report "
        "says so",
        0.5,
        label="Largest share of dead letters",
        param_type="NUMBER",
        regex=r"0(\.\d+)?|1(\.0+)?",
        metavar="SHARE",
    )


@dataclass(frozen=True)
class StreamSourceOptions:
    """Where the messages come from, and how they are read."""

    input_subscription: str | None = flag(
        "subscription of Pub/Sub: projects/PROJECT/subscriptions/NAME",
        label="Input subscription",
        param_type="PUBSUB_SUBSCRIPTION",
        regex=r"projects/[^/]+/subscriptions/[^/]+",
        metavar="SUBSCRIPTION",
    )
    input_topic: str | None = flag(
        "topic of Pub/Sub, with --create_subscription: projects/PROJECT/topics/NAME",
        label="Input topic",
        param_type="PUBSUB_TOPIC",
        regex=r"projects/[^/]+/topics/[^/]+",
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
    message_format: str = flag(
        "json: one row a message; avro: one record of --avro_schema; arrow: an IPC stream of rows",
        "json",
        label="Message format",
        param_type="ENUM",
        choices=("json", "avro", "arrow"),
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
        regex=r"[1-9]\d*",
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
        regex=r"[1-9]\d*",
    )
    max_batch_wait_ms: int | None = flag(
        "wait so long for messages of other bundles, for larger batches (default: no wait)",
        label="Longest wait for a batch",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
    )
    window_seconds: int | None = flag(
        "write window_start and window_end of windows of this length; nothing waits for them",
        label="Window seconds",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
    )


@dataclass(frozen=True)
class StreamSinkOptions:
    """Where the scored rows go; any of these together."""

    output_topic: str | None = flag(
        "topic of Pub/Sub for the results, one message of JSON a row",
        label="Output topic",
        param_type="PUBSUB_TOPIC",
        regex=r"projects/[^/]+/topics/[^/]+",
        metavar="TOPIC",
    )
    output_table: str | None = _output_table()
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
        regex=r"[1-9]\d*",
    )
    output_schema: str = _output_schema()
    cluster_by: tuple[str, ...] | None = _cluster_by()


@dataclass(frozen=True)
class StreamFailureOptions:
    """Where the messages go that cannot be scored; at least one of these."""

    dead_letter_topic: str | None = flag(
        "topic of Pub/Sub for dead letters: the messages as they came, the reason in attributes",
        label="Dead letter topic",
        param_type="PUBSUB_TOPIC",
        regex=r"projects/[^/]+/topics/[^/]+",
        metavar="TOPIC",
    )
    dead_letter_table: str | None = _dead_letter_table()
    dead_letter_files: str | None = flag(
        "folder for dead letters: FOLDER/dead_letters/DAY/TIME-*.jsonl",
        label="Dead letter folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )


@dataclass(frozen=True)
class StreamRunOptions:
    """The run itself."""

    run_id: str | None = flag(
        "name of the run, written into every row (default: the time of the start)",
        label="Run id",
        regex=r"[A-Za-z0-9][A-Za-z0-9._+:=-]{0,127}",
        metavar="NAME",
    )
    report_seconds: int = flag(
        "a run in this process tells its rates and latencies so often",
        10,
        label="Report seconds",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
        in_template=False,
    )
    stop_after_seconds: int | None = flag(
        "a run in this process stops when so long no message came (default: it runs until Ctrl-C)",
        label="Stop after seconds",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
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


@dataclass(frozen=True)
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
        regex=r"projects/[^/]+/subscriptions/[^/]+",
        metavar="SUBSCRIPTION",
    )
    max_messages: int = flag(
        "messages of --input_subscription at most",
        100_000,
        label="Largest number of messages",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
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
    message_format: str = flag(
        "as it was given to the stream that wrote the dead letters",
        "json",
        label="Message format",
        param_type="ENUM",
        choices=("json", "avro", "arrow"),
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
        regex=r"[1-9]\d*",
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
        regex=r"[1-9]\d*",
    )
    output_topic: str | None = flag(
        "topic of Pub/Sub that gets the results as well, one message of JSON a row",
        label="Output topic",
        param_type="PUBSUB_TOPIC",
        regex=r"projects/[^/]+/topics/[^/]+",
        metavar="TOPIC",
    )
    dead_letter_topic: str | None = flag(
        "topic of Pub/Sub that gets the dead letters as well",
        label="Dead letter topic",
        param_type="PUBSUB_TOPIC",
        regex=r"projects/[^/]+/topics/[^/]+",
        metavar="TOPIC",
    )


@dataclass(frozen=True)
class CloudOptions:
    """Google Cloud."""

    billing_project: str | None = flag(
        "project that pays for queries, jobs and reads (default: --project, or the credentials')",
        label="Billing project",
        metavar="PROJECT",
    )
    api_endpoints: tuple[str, ...] | None = flag(
        "other addresses of bigquery, bigquerystorage, storage and pubsub: private endpoints, or "
        "emulators (default: BIGQUERY_EMULATOR_HOST, BIGQUERY_STORAGE_EMULATOR_HOST, "
        "STORAGE_EMULATOR_HOST, PUBSUB_EMULATOR_HOST)",
        label="API endpoints",
        metavar="SERVICE=ADDRESS",
    )
    retry_seconds: int = flag(
        "how long errors of Google's services that pass by themselves are waited out",
        120,
        label="Retry seconds",
        param_type="NUMBER",
        regex=r"[1-9]\d*",
    )


@dataclass(frozen=True)
class RunOptions:
    """The run itself."""

    run_id: str | None = flag(
        "name of the run; a second run with the same name replaces the first "
        "(default: the time of the start)",
        label="Run id",
        regex=r"[A-Za-z0-9][A-Za-z0-9._+:=-]{0,127}",
        metavar="NAME",
    )
    json_summary: bool = flag(
        "print the report as JSON on standard output instead of a summary",
        False,
        label="JSON summary",
        param_type="BOOLEAN",
        in_template=False,
    )
    debug: bool = flag(
        "show tracebacks and Beam's own log",
        False,
        label="Debug",
        param_type="BOOLEAN",
        in_template=False,
    )


def all_flags() -> set[str]:
    """Nothing -> every flag of every options class, those of a launch too."""
    kinds = (
        ModelOptions,
        DeviceOptions,
        EndpointOptions,
        SourceOptions,
        SinkOptions,
        FailureOptions,
        StreamSourceOptions,
        StreamSinkOptions,
        StreamFailureOptions,
        StreamRunOptions,
        ReplayOptions,
        CloudOptions,
        RunOptions,
        LaunchOptions,
    )
    return {f"--{f.name}" for kind in kinds for f in dataclasses.fields(kind)}
