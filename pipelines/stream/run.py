"""Streams: options to a graph, the graph to an endless run.

What a run in this process promises: a message is acknowledged when its row, or its dead
letter, is in every sink (transforms/messages/in_process_source.py). A run that is stopped, by
Ctrl-C, by SIGTERM or by --stop_after_seconds, first ends what it has taken; one that fails or dies
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
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud.clients import Cloud
from cloud.endpoints import Endpoints, is_plain
from common.errors import UsageError
from model_handlers.batch_handler import BatchHandler
from model_handlers.manifest import Manifest
from pipelines.beam_args import beam_options, is_dry_run, runs_in_process, runs_on_dataflow
from pipelines.command import say
from pipelines.dataflow.facts import JobFacts, label_value
from pipelines.dataflow.start import ask_for_accelerator, carry, describe_pipeline, reach, start
from pipelines.dataflow.update_check import check_update
from pipelines.handlers import make_handler, read_model
from pipelines.options import StreamRunOptions
from pipelines.options.flag import Parsed
from pipelines.stream.config import StreamConfig, Subscription, stream_config
from pipelines.stream.graph import ScoreStream
from pipelines.stream.in_process import KeptModelHandler, Reading, watch
from pipelines.stream.messages import message_format, stream_fields
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
from transforms.encode import OutputFields, output_schema
from transforms.messages.beam_source import ReadMessages
from transforms.messages.in_process_source import POLL_SECONDS, PullMessages, open_intake
from transforms.provenance import Provenance, utc_now


def run_local(parsed: Parsed) -> None:
    """The flags of stream_local -> an endless run."""
    run_stream("stream_local", parsed)


def run_vertex(parsed: Parsed) -> None:
    """The flags of stream_vertex -> an endless run."""
    run_stream("stream_vertex", parsed)


def run_stream(name: str, parsed: Parsed) -> None:
    """A pipeline's name and its flags -> an endless run, or a job that is started."""
    options = beam_options(parsed.beam_args, streaming=True, name=name)
    config = stream_config(name, parsed)
    cloud = stream_cloud(config, options, reach(parsed, options))
    model = read_model(config.model)
    manifest = model.choose(config.model.score_output).without_rows()
    fields = stream_fields(config.model, config.messages.window_seconds, manifest)
    handler: BatchHandler[Any] = make_handler(config, model, fields, options, cloud.endpoints)
    if runs_in_process(options):
        handler = KeptModelHandler(handler)
    score_stream(config, handler, manifest, fields, options=options, cloud=cloud)


def stream_cloud(config: StreamConfig, options: PipelineOptions, endpoints: Endpoints) -> Cloud:
    """A stream -> the Cloud; who pays, if no flag says so, is the project of the subscription."""
    named = config.cloud.billing_project or options.view_as(GoogleCloudOptions).project
    return Cloud(named or config.project, endpoints, float(config.cloud.retry_seconds))


def score_stream(
    config: StreamConfig,
    handler: Any,
    manifest: Manifest,
    fields: OutputFields,
    *,
    options: PipelineOptions,
    cloud: Cloud,
) -> None:
    """A stream, its handler and model -> an endless run, or a job started elsewhere.

    Raises InputError, OutputError, UsageError: whatever would fail the run is reported
    before it starts.
    """
    if config.run.stop_after_seconds is not None and not runs_in_process(options):
        raise UsageError(
            "--stop_after_seconds is for a run in this process: drop it; a job is drained"
        )
    run_id = config.run.run_id or f"{utc_now():%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    provenance = Provenance.of(manifest, run_id, config.pipeline)
    schema = output_schema(fields, manifest, provenance, None)
    sinks = open_sinks(config.sinks, config.letter_sinks, cloud)
    score = functools.partial(
        ScoreStream,
        message_format=message_format(config.messages, manifest, fields),
        handler=handler,
        manifest=manifest,
        fields=fields,
        provenance=provenance,
        schema=schema,
        cloud=cloud,
        sinks=sinks[0],
        failure_sinks=sinks[1],
        deduplicate_seconds=config.deduplicate_seconds,
        max_batch_wait_ms=config.max_batch_wait_ms,
        batch_rows=config.model.batch_rows,
    )
    if is_dry_run(options) or options.view_as(GoogleCloudOptions).update:
        _look_at(config, options, provenance, score, cloud)
        if is_dry_run(options):
            return
    prepare_sinks(
        *sinks, schema, fields=fields, cluster_by=config.sinks.cluster_by or (), cloud=cloud
    )
    _start(config, options, score, cloud)


def _start(
    config: StreamConfig,
    options: PipelineOptions,
    score: functools.partial[ScoreStream],
    cloud: Cloud,
) -> None:
    """A stream that nothing speaks against -> run here to its end, or started elsewhere."""
    provenance = score.keywords["provenance"]
    reader = label_value(f"{config.pipeline}-{provenance.run_id}")
    topics = [to for to in (config.sinks.output_topic, config.letter_sinks.dead_letter_topic) if to]
    with _subscription(config, options, reader, topics, cloud) as (subscription, made, labelled):
        if runs_in_process(options):
            hidden = 0.0 if made else hidden_seconds(subscription, cloud)
            reading = Reading(
                subscription=subscription,
                reader=reader,
                made=made,
                cloud=cloud,
                hidden_seconds=hidden,
            )
            _run_here(options, score, reading, config.run)
            return
        facts = JobFacts.of(provenance, subscription=subscription)
        graph = score(source=ReadMessages(subscription))
        pipeline = _pipeline(config, options, facts, graph)
        followed = runs_on_dataflow(options)
        if followed:
            start(pipeline, facts, cloud.endpoints)
        else:
            pipeline.run()
        after = left_behind(subscription, made=made, labelled=labelled, followed=followed)
        if after:
            say(after)


def _look_at(
    config: StreamConfig,
    options: PipelineOptions,
    provenance: Provenance,
    score: functools.partial[ScoreStream],
    cloud: Cloud,
) -> None:
    """A run that is not started yet -> shown, or compared with the job that it would replace."""
    source = config.source
    if isinstance(source, Subscription):
        place, facts = source.name, JobFacts.of(provenance, subscription=source.name)
    else:
        # That of a topic is made when the stream is started.
        place, facts = source.topic.replace("/topic", "/subscription"), JobFacts.of(provenance)
    planned = _pipeline(config, options, facts, score(source=ReadMessages(place)))
    if options.view_as(GoogleCloudOptions).update:
        check_update(planned, cloud, allow_state_loss=config.run.allow_state_loss)
    if is_dry_run(options):
        print(describe_pipeline(planned, facts))


def _run_here(
    options: PipelineOptions,
    score: functools.partial[ScoreStream],
    reading: Reading,
    run: StreamRunOptions,
) -> None:
    """A stream in this process -> run to its end."""
    from common.private_beam.in_process import add_polled_source

    add_polled_source(PullMessages, POLL_SECONDS)
    pipeline = beam.Pipeline(options=options)
    hold = (score.keywords["max_batch_wait_ms"] or 0) / 1000
    once = score.keywords["deduplicate_seconds"] is not None
    with open_intake(reading.cloud, reading.subscription, hold, once=once) as intake:
        pipeline | "ScoreStream" >> score(source=PullMessages(intake))
        watch(pipeline, intake, reading, run)


def _pipeline(
    config: StreamConfig, options: PipelineOptions, facts: JobFacts, graph: ScoreStream
) -> beam.Pipeline:
    """A graph that runs elsewhere, and the facts about it -> its pipeline."""
    if runs_on_dataflow(options):
        carry(options, facts)
        ask_for_accelerator(config.predictor, options)
    pipeline = beam.Pipeline(options=options)
    pipeline | "ScoreStream" >> graph
    return pipeline


@contextmanager
def _subscription(
    config: StreamConfig,
    options: PipelineOptions,
    reader: str,
    topics: list[str],
    cloud: Cloud,
) -> Iterator[tuple[str, bool, bool]]:
    """A stream -> the subscription, and whether it was made for it and its label says it is read.

    topics: that are written. A subscription that was made for a run in this process is removed
    when the block ends.
    """
    in_process = runs_in_process(options)
    name, made = open_subscription(config.source, cloud, topics)
    update = bool(options.view_as(GoogleCloudOptions).update)
    shared = config.allow_shared or update
    with temporary(name, made and in_process, cloud):
        # A job that is to be replaced, and is not, goes on.
        before = reader_labels(name, cloud) if update else {}
        labelled = claim(name, reader, cloud, lasting=not in_process, shared=shared)
        if not (labelled or is_plain(cloud.endpoints.pubsub)):
            say(f"{name} cannot be labelled by this account: a second reader is not noticed")
        with released(name, reader, cloud, always=in_process, before=before):
            yield name, made, labelled
