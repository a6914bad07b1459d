"""Streams: options to a graph, the graph to an endless run, its rates to the user."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.runners.runner import PipelineState

from cloud.clients import Cloud
from cloud.errors import retry, told_as
from model_handlers.contract import Manifest
from model_handlers.errors import OutputError, UsageError
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from pipelines.beam_args import beam_options, runs_in_process
from pipelines.cloud_access import connect
from pipelines.destinations import check_cluster_by
from pipelines.graph import ScoreStream, StreamSinks
from pipelines.options import (
    CloudOptions,
    ModelOptions,
    Parsed,
    StreamFailureOptions,
    StreamRunOptions,
    StreamSinkOptions,
    StreamSourceOptions,
    require,
)
from pipelines.sources import read_text
from pipelines.stream_progress import Tally, report_line, start_tally, summary
from pipelines.subscription import claim, open_subscription, release, temporary
from transforms.bigquery_schema import TableName
from transforms.bigquery_tables import check_table, create_table, find_table
from transforms.commit_files import DEAD_LETTERS, SCORES, make_folder
from transforms.decode_messages import MessageFormat
from transforms.encode import (
    CARRIED,
    OutputFields,
    choose_fields,
    output_schema,
    reference_fields,
)
from transforms.failures import FAILURE_SCHEMA, Provenance, utc_now
from transforms.read_pubsub import ReadMessages
from transforms.row_format import RowFormat

# How long the last rows may take to the sinks after the last message was decoded.
SETTLE_SECONDS = 2.0


def run_local(parsed: Parsed) -> None:
    """The flags of stream_local -> an endless run."""
    options = beam_options(parsed.beam_args, streaming=True)
    model = parsed.get(ModelOptions)
    sink, failures = parsed.get(StreamSinkOptions), parsed.get(StreamFailureOptions)
    source = parsed.get(StreamSourceOptions)
    require(
        "stream_local",
        input_subscription=source.input_subscription or source.input_topic,
        model=model.model,
        output_topic=sink.output_topic or sink.output_table or sink.output_files,
        dead_letter_topic=failures.dead_letter_topic
        or failures.dead_letter_table
        or failures.dead_letter_files,
    )
    cloud = stream_cloud(parsed, options)
    path = model.model or ""
    manifest = read_manifest(
        path, digest=model.model_digest, feature_columns=model.feature_columns
    ).choose(model.score_output)
    fields = stream_fields(parsed, manifest)
    handler = TorchModelHandler(
        path,
        manifest,
        outputs=fields.needed,
        device=model.device,
        precision=model.precision,  # type: ignore[arg-type]
        compile=model.compile,
        batch_rows=model.batch_rows,
    )
    run_stream("stream_local", parsed, handler, manifest, fields, options, cloud)


def stream_cloud(parsed: Parsed, options: PipelineOptions) -> Cloud:
    """Flags -> the Cloud; who pays, if no flag says so, is the project of the subscription."""
    endpoints = connect(parsed, options)
    flags, source = parsed.get(CloudOptions), parsed.get(StreamSourceOptions)
    own = (source.input_subscription or source.input_topic or "projects/unnamed/").split("/")[1]
    project = flags.billing_project or options.view_as(GoogleCloudOptions).project or own
    return Cloud(project, endpoints, float(flags.retry_seconds))


def stream_fields(parsed: Parsed, manifest: Manifest) -> OutputFields:
    """Flags and a manifest -> what is written of each row. Raises UsageError."""
    names = parsed.get(ModelOptions).output_fields
    window = parsed.get(StreamSourceOptions).window_seconds
    if parsed.get(StreamSinkOptions).output_schema == "default":
        return replace(choose_fields(manifest, names, stream=True), window_seconds=window)
    if names is not None:
        raise UsageError("--output_schema reference has fields of its own: drop --output_fields")
    return replace(reference_fields(manifest), stream=True, window_seconds=window)


def message_format(parsed: Parsed, manifest: Manifest, fields: OutputFields) -> MessageFormat:
    """Flags, a manifest and the fields -> how messages are read. Raises UsageError."""
    source = parsed.get(StreamSourceOptions)
    carried = tuple((n, kind) for n, kind in CARRIED if n not in manifest.features)
    row_format = RowFormat(manifest, source.id_column, fields.source, carried)
    schema = None if source.avro_schema is None else read_text(source.avro_schema, "avro_schema")
    if (source.message_format == "avro") != (schema is not None):
        raise UsageError("--avro_schema belongs to --message_format avro, and the other way round")
    found = MessageFormat(
        row_format,
        source.message_format,  # type: ignore[arg-type]
        schema,
        source.max_message_bytes,
    )
    if schema is not None:
        _check_avro(found, manifest)
    return found


def _check_avro(found: MessageFormat, manifest: Manifest) -> None:
    names = {field["name"] for field in found.parsed_avro.get("fields", [])}
    missing = [name for name in manifest.features if name not in names]
    if missing and "features" not in names:
        raise UsageError(
            f"--avro_schema lacks the feature {missing[0]!r} of model {manifest.name}, and has no "
            "array 'features' either"
        )


def run_stream(
    name: str,
    parsed: Parsed,
    handler: Any,
    manifest: Manifest,
    fields: OutputFields,
    options: PipelineOptions,
    cloud: Cloud,
) -> None:
    """A pipeline's name, flags, handler and model -> an endless run, or a job started elsewhere.

    Raises InputError, OutputError, UsageError: whatever would fail the run is told
    before it starts.
    """
    run_id = parsed.get(StreamRunOptions).run_id or utc_now().strftime("%Y%m%dT%H%M%SZ")
    provenance = Provenance.of(manifest, run_id, name)
    schema = output_schema(fields, manifest, provenance, None)
    sinks = _sinks(parsed, cloud)
    failure_sinks = _failure_sinks(parsed, cloud)
    topics = [topic for topic in (sinks.topic, failure_sinks.topic) if topic]
    read = message_format(parsed, manifest, fields)
    _prepare(parsed, sinks, failure_sinks, schema, fields, cloud)
    source = parsed.get(StreamSourceOptions)
    subscription, made = open_subscription(source, cloud, topics)
    graph = ScoreStream(
        ReadMessages(subscription),
        read,
        handler,
        manifest,
        fields,
        provenance,
        schema,
        cloud,
        sinks,
        failure_sinks,
        source.deduplicate_seconds,
        source.max_batch_wait_ms,
        min(parsed.get(ModelOptions).batch_rows, 4_096),
    )
    in_process = runs_in_process(options)
    reader = re.sub(r"[^a-z0-9_-]", "_", f"{name}-{run_id}".lower())[:63]
    with temporary(subscription, made and in_process, cloud):
        claim(
            subscription,
            reader,
            cloud,
            lasting=not in_process,
            shared=source.allow_shared_subscription,
        )
        pipeline = beam.Pipeline(options=options)
        pipeline | "ScoreStream" >> graph
        if not in_process:
            pipeline.run()
            return
        try:
            _watch(pipeline, subscription, reader, cloud, parsed.get(StreamRunOptions))
        finally:
            release(subscription, reader, cloud)


def _sinks(parsed: Parsed, cloud: Cloud) -> StreamSinks:
    flags = parsed.get(StreamSinkOptions)
    table = flags.output_table
    return StreamSinks(
        flags.output_topic,
        None if table is None else TableName.parse(table, "output_table", cloud.project),
        None if flags.output_files is None else os.path.join(flags.output_files, SCORES),
        flags.file_seconds,
    )


def _failure_sinks(parsed: Parsed, cloud: Cloud) -> StreamSinks:
    flags = parsed.get(StreamFailureOptions)
    table, files = flags.dead_letter_table, flags.dead_letter_files
    return StreamSinks(
        flags.dead_letter_topic,
        None if table is None else TableName.parse(table, "dead_letter_table", cloud.project),
        None if files is None else os.path.join(files, DEAD_LETTERS),
        parsed.get(StreamSinkOptions).file_seconds,
    )


def _prepare(
    parsed: Parsed,
    sinks: StreamSinks,
    failure_sinks: StreamSinks,
    schema: pa.Schema,
    fields: OutputFields,
    cloud: Cloud,
) -> None:
    """Looks at every sink before the run. Raises OutputError, UsageError."""
    cluster_by = parsed.get(StreamSinkOptions).cluster_by or ()
    check_cluster_by(cluster_by, schema)
    for to, rows, time_column, clusters in (
        (sinks, schema, fields.time_column, cluster_by),
        (failure_sinks, FAILURE_SCHEMA, "failed_at", ()),
    ):
        if to.table is not None:
            with told_as(OutputError, f"table {to.table} cannot be written"):
                client = cloud.bigquery()
                table = find_table(client, to.table, cloud) or create_table(
                    client, to.table, rows, time_column, clusters, cloud
                )
            check_table(table, rows, clusters)
        if to.topic is not None:
            with told_as(OutputError, f"topic {to.topic} cannot be published to"):
                cloud.publisher().get_topic(topic=to.topic, retry=retry(cloud.retry_seconds))
        if to.folder is not None:
            make_folder(to.folder)


def _watch(
    pipeline: beam.Pipeline,
    subscription: str,
    reader: str,
    cloud: Cloud,
    options: StreamRunOptions,
) -> None:
    """A pipeline in this process -> run until Ctrl-C, or until no message came for long enough.

    Raises what the pipeline raised.
    """
    tally = start_tally()
    result = pipeline.run()
    begin = told = time.monotonic()
    rows = 0
    try:
        while not PipelineState.is_terminal(result.state):
            time.sleep(0.2)
            now = time.monotonic()
            if now - told >= options.report_seconds:
                _tell(report_line(tally, tally.received - rows, now - told))
                rows, told = tally.received, now
                claim(subscription, reader, cloud, lasting=False, shared=True)
            idle = now - max(tally.last_message, begin)
            if options.stop_after_seconds is not None and idle > options.stop_after_seconds:
                break
        else:
            result.wait_until_finish()
    except KeyboardInterrupt:
        _tell("stopping: what was taken from the subscription is scored first")
    _settle(tally)
    seconds = time.monotonic() - begin
    _tell(summary(tally, seconds))


def _settle(tally: Tally, patience: float = 30.0) -> None:
    """Waits until every row that was received is scored or dead-lettered, and a little more."""
    deadline = time.monotonic() + patience
    while tally.received != tally.scored + tally.dead_letters and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(SETTLE_SECONDS)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
