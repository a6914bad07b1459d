"""Streams: options to a graph, the graph to an endless run.

What a run in this process promises: a message is acknowledged when its row, or its dead
letter, is in every sink (transforms/messages/pull.py). A run that is stopped, by Ctrl-C,
by SIGTERM or by --stop_after_seconds, first ends what it has taken; one that fails or dies
leaves the rest to the next reader. So nothing is lost, and after a failure some rows are
written again, with the same row_id. What it cannot promise:

- One thread does all steps, one after the other, for one bundle at a time, and sets every
  step up anew for each bundle: rates and latencies say nothing about Dataflow's.
- A step that fails is repeated four times at once; then the run ends with its error. On
  Dataflow it would be repeated for ever, while the others go on.
- What waits is kept in memory: the rows of a span of --output_files, and with
  --deduplicate_seconds all ids that ever came, which also slow every step down.
- Ids are known since the start: what an earlier run had taken is no duplicate.
- Messages with an ordering key are scored in order, but not held back for one another.
- A subscription that was made for the run (--create_subscription) goes with it, and with it
  what a run that failed had not acknowledged.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)

from cloud.clients import Cloud
from cloud.endpoints import is_plain
from common.errors import UsageError
from model_handlers.batch_handler import BatchHandler
from model_handlers.manifest import Manifest
from pipelines.batch.sources import read_text
from pipelines.beam_args import (
    IN_PROCESS_STREAM,
    beam_options,
    is_dry_run,
    runs_in_process,
    runs_on_dataflow,
)
from pipelines.command import tell
from pipelines.dataflow.facts import JobFacts, label_value
from pipelines.dataflow.start import ask_for_accelerator, carry, describe, reach, start
from pipelines.dataflow.update_check import check_update
from pipelines.handlers import make_handler, read_model
from pipelines.options import (
    CloudOptions,
    ModelOptions,
    StreamRunOptions,
    StreamSinkOptions,
    StreamSourceOptions,
)
from pipelines.options.flag import Parsed
from pipelines.required import require_flags
from pipelines.stream.graph import ScoreStream, StreamSinks
from pipelines.stream.in_process import KeptModelHandler, Reading, watch
from pipelines.stream.sinks import open_sinks, prepare_sinks
from pipelines.stream.subscription import (
    claim,
    hidden_seconds,
    left_behind,
    open_subscription,
    reader_labels,
    released,
    temporary,
)
from transforms.encode import OutputFields, choose_fields, output_schema, reference_fields
from transforms.failures import Provenance, utc_now
from transforms.json_rows.row_format import RowFormat
from transforms.messages.avro import field_names
from transforms.messages.decode import MessageFormat
from transforms.messages.pull import PullMessages, open_intake
from transforms.messages.read import ReadMessages
from transforms.row_schemas import CARRIED
from transforms.validate import VECTOR_COLUMN


def run_local(parsed: Parsed) -> None:
    """The flags of stream_local -> an endless run."""
    run_stream("stream_local", parsed)


def run_vertex(parsed: Parsed) -> None:
    """The flags of stream_vertex -> an endless run."""
    run_stream("stream_vertex", parsed)


def run_stream(name: str, parsed: Parsed) -> None:
    """A pipeline's name and its flags -> an endless run, or a job that is started."""
    options = beam_options(parsed.beam_args, streaming=True, name=name)
    require_flags(name, parsed)
    cloud = stream_cloud(parsed, options)
    model = read_model(parsed)
    manifest = model.choose(parsed.get(ModelOptions).score_output).without_rows()
    fields = stream_fields(parsed, manifest)
    handler: BatchHandler[Any] = make_handler(parsed, model, fields, options, cloud.endpoints)
    if runs_in_process(options):
        handler = KeptModelHandler(handler)
    score_stream(name, parsed, handler, manifest, fields, options, cloud)


def stream_cloud(parsed: Parsed, options: PipelineOptions) -> Cloud:
    """Flags -> the Cloud; who pays, if no flag says so, is the project of the subscription."""
    endpoints = reach(parsed, options)
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
        raise UsageError(
            "--message_format avro: --avro_schema is missing"
            if schema is None
            else f"--avro_schema: expected --message_format avro, got {source.message_format}"
        )
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
    names = field_names(found.parsed_avro)
    missing = [name for name in manifest.features if name not in names]
    if missing and VECTOR_COLUMN not in names:
        raise UsageError(
            f"--avro_schema lacks the feature {missing[0]!r} of model {manifest.name}, and has no "
            f"array {VECTOR_COLUMN!r} either"
        )


def score_stream(
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
    run = parsed.get(StreamRunOptions)
    if run.stop_after_seconds is not None and not runs_in_process(options):
        raise UsageError(
            "--stop_after_seconds is for a run in this process: drop it; a job is drained"
        )
    run_id = run.run_id or f"{utc_now():%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    provenance = Provenance.of(manifest, run_id, name)
    schema = output_schema(fields, manifest, provenance, None)
    sinks = open_sinks(parsed, cloud)
    score = _score(
        parsed,
        handler=handler,
        manifest=manifest,
        fields=fields,
        provenance=provenance,
        schema=schema,
        cloud=cloud,
        sinks=sinks[0],
        failure_sinks=sinks[1],
    )
    if is_dry_run(options) or options.view_as(GoogleCloudOptions).update:
        _look_at(parsed, options, provenance, score, cloud)
        if is_dry_run(options):
            return
    cluster_by = parsed.get(StreamSinkOptions).cluster_by or ()
    prepare_sinks(*sinks, schema, fields, cluster_by, cloud)
    reader = label_value(f"{name}-{run_id}")
    with _subscription(parsed, options, reader, sinks, cloud) as (subscription, made, labelled):
        if _runs_here(options):
            hidden = 0.0 if made else hidden_seconds(subscription, cloud)
            reading = Reading(subscription, reader, made, cloud, hidden)
            _run_here(options, score, reading, run)
            return
        facts = JobFacts.of(provenance, subscription=subscription)
        pipeline = _pipeline(parsed, options, facts, score(source=ReadMessages(subscription)))
        followed = runs_on_dataflow(options)
        if followed:
            start(pipeline, facts, parsed)
        else:
            pipeline.run()
        after = left_behind(subscription, made=made, labelled=labelled, followed=followed)
        if after:
            tell(after)


def _look_at(
    parsed: Parsed,
    options: PipelineOptions,
    provenance: Provenance,
    score: functools.partial[ScoreStream],
    cloud: Cloud,
) -> None:
    """A run that is not started yet -> told, or compared with the job that it would replace."""
    source = parsed.get(StreamSourceOptions)
    # That of a topic is made when the stream is started.
    place = source.input_subscription or f"{source.input_topic}".replace("/topic", "/subscription")
    facts = JobFacts.of(provenance, subscription=source.input_subscription)
    planned = _pipeline(parsed, options, facts, score(source=ReadMessages(place)))
    if options.view_as(GoogleCloudOptions).update:
        loss = parsed.get(StreamRunOptions).allow_state_loss
        check_update(planned, cloud, allow_state_loss=loss)
    if is_dry_run(options):
        print(describe(planned, facts))


def _run_here(
    options: PipelineOptions,
    score: functools.partial[ScoreStream],
    reading: Reading,
    run: StreamRunOptions,
) -> None:
    """A stream in this process -> run to its end."""
    pipeline = beam.Pipeline(options=options)
    hold = (score.keywords["max_batch_wait_ms"] or 0) / 1000
    once = score.keywords["deduplicate_seconds"] is not None
    with open_intake(reading.cloud, reading.subscription, hold, once=once) as intake:
        pipeline | "ScoreStream" >> score(source=PullMessages(intake))
        watch(pipeline, intake, reading, run)


def _score(parsed: Parsed, **fields: Any) -> functools.partial[ScoreStream]:
    """Flags and the other fields of ScoreStream -> all but its source. Raises UsageError."""
    source = parsed.get(StreamSourceOptions)
    return functools.partial(
        ScoreStream,
        message_format=message_format(parsed, fields["manifest"], fields["fields"]),
        deduplicate_seconds=source.deduplicate_seconds,
        max_batch_wait_ms=source.max_batch_wait_ms,
        batch_rows=parsed.get(ModelOptions).rows(of_stream=True),
        **fields,
    )


def _pipeline(
    parsed: Parsed, options: PipelineOptions, facts: JobFacts, graph: ScoreStream
) -> beam.Pipeline:
    """A graph that runs elsewhere, and the facts about it -> its pipeline."""
    if runs_on_dataflow(options):
        carry(options, facts)
        ask_for_accelerator(parsed, options)
    pipeline = beam.Pipeline(options=options)
    pipeline | "ScoreStream" >> graph
    return pipeline


@contextmanager
def _subscription(
    parsed: Parsed,
    options: PipelineOptions,
    reader: str,
    sinks: tuple[StreamSinks, StreamSinks],
    cloud: Cloud,
) -> Iterator[tuple[str, bool, bool]]:
    """Flags -> the subscription, and whether it was made for it and its label says it is read.

    One that was made for a run in this process is removed when the block ends.
    """
    source = parsed.get(StreamSourceOptions)
    in_process = runs_in_process(options)
    topics = [to.topic for to in sinks if to.topic]
    name, made = open_subscription(source, cloud, topics)
    update = bool(options.view_as(GoogleCloudOptions).update)
    shared = source.allow_shared_subscription or update
    with temporary(name, made and in_process, cloud):
        # A job that is to be replaced, and is not, goes on.
        before = reader_labels(name, cloud) if update else {}
        labelled = claim(name, reader, cloud, lasting=not in_process, shared=shared)
        if not (labelled or is_plain(cloud.endpoints.pubsub)):
            tell(f"{name} cannot be labelled by this account: a second reader is not noticed")
        with released(name, reader, cloud, always=in_process, before=before):
            yield name, made, labelled


def _runs_here(options: PipelineOptions) -> bool:
    """Beam's options -> whether the stream runs in this process. Raises UsageError."""
    runner = options.view_as(StandardOptions).runner
    if runs_in_process(options) and runner != IN_PROCESS_STREAM:
        raise UsageError(f"--runner {runner} reads no Pub/Sub: leave it out to run in this process")
    return bool(runner == IN_PROCESS_STREAM)
