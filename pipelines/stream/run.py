"""Run a stream: turn its flags into a graph, and run the graph here or start it elsewhere.

On Dataflow a stream is a job that outlives this process. On other runners this process starts it
and follows it to its end.

On these runners a message is acknowledged when its row, or its dead letter, is in every sink
(transforms/messages/pull.py). A run that is stopped by Ctrl-C, SIGTERM or --stop_after_seconds
first scores and writes the messages that it has received. A run that fails or is killed leaves its
messages to the next reader. So no message is lost, and after a failure some rows are written again,
with the same row_id. Such runs have limits:

- In this process, one thread executes all steps, one after the other, for one bundle at a time. Its
  rates and latencies say nothing about those on Dataflow.
- A step that fails ends the run with its error. Dataflow would retry the step without end, while
  other steps continue.
- Waiting data is kept in memory: the rows of a span of --output_files, and with
  --deduplicate_seconds the ids of that time.
- Ids are remembered only within a run and a process: a message that an earlier run has read is not
  a duplicate.
- Messages with an ordering key are scored in order if there is one reader, but none is held back
  for another one.
- A subscription that the run has created (--create_subscription) is deleted when the run ends. If
  the run failed, the messages that it had not acknowledged are lost with it.
- If the workers are other processes, this process reports neither rates nor the balance, and Ctrl-C
  cancels the job.
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
from model_handlers.batch_handler import BatchHandler
from model_handlers.endpoints.handler import VertexEndpointHandler
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.thresholds import thresholds_flag
from pipelines.beam_args import beam_options, is_dry_run, runs_on_dataflow
from pipelines.command import say
from pipelines.dataflow.facts import JobFacts, label_value
from pipelines.dataflow.start import ask_for_accelerator, carry, describe_pipeline, reach, start
from pipelines.dataflow.update_check import check_update
from pipelines.handlers import make_handler, read_model, scoring_manifest
from pipelines.options.flag import Parsed
from pipelines.stream.config import StreamConfig, Subscription, stream_config
from pipelines.stream.graph import ScoreStream
from pipelines.stream.in_process import Reading
from pipelines.stream.messages import message_format, row_timings, stream_fields
from pipelines.stream.promises import check_dataflow, check_own_source, drain_advice
from pipelines.stream.pulled import expected_names, pulled_graph, pulled_source, run_pulled
from pipelines.stream.sinks import look_at_tables, open_sinks, prepare_sinks
from pipelines.stream.subscription import (
    claim,
    hidden_seconds,
    left_behind,
    open_subscription,
    reader_labels,
    released,
    temporary,
)
from transforms.encode import output_schema
from transforms.messages.beam_source import ReadMessages
from transforms.output_fields import OutputFields
from transforms.provenance import Provenance, utc_now


def run_local(parsed: Parsed) -> None:
    """Run stream_local with its flags."""
    run_stream("stream_local", parsed)


def run_vertex(parsed: Parsed) -> None:
    """Run stream_vertex with its flags."""
    run_stream("stream_vertex", parsed)


def run_stream(name: str, parsed: Parsed) -> None:
    """Run a stream in this process until it is stopped, or start it as a job elsewhere.

    Args:
        name: The name of the pipeline, such as `stream_local`.
        parsed: All flags.

    Raises:
        UsageError: A flag is missing or invalid.
        MillraceError: The run cannot start, or has failed. Whatever would make it fail is
            reported before it starts, as far as it can be known.
    """
    options = beam_options(parsed.beam_args, streaming=True, name=name)
    config = stream_config(name, parsed)
    cloud = stream_cloud(config, options, reach(parsed, options))
    model = read_model(config.model)
    manifest = scoring_manifest(config.model, model)
    window_seconds = config.messages.window_seconds
    fields = stream_fields(config.model, window_seconds, manifest, row_timings(config))
    handler: BatchHandler[Any] = make_handler(config, model, fields, options, cloud.endpoints)
    if isinstance(handler, VertexEndpointHandler) and manifest.has_steps:
        say(f"the {handler.prepare_at} prepares the rows of endpoint {handler.address.label}")
    score_stream(config, handler, manifest, fields, options=options, cloud=cloud)


def stream_cloud(config: StreamConfig, options: PipelineOptions, endpoints: Endpoints) -> Cloud:
    """Return the Cloud of a stream.

    Unless a flag names another project, the project of the subscription is billed.

    Args:
        config: The configuration of the stream.
        options: Beam's options of the run.
        endpoints: The addresses of the services.
    """
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
    """Run a stream with a model handler in this process, or start it as a job elsewhere.

    Args:
        config: The configuration of the stream.
        handler: The model handler that predicts.
        manifest: The manifest of the model.
        fields: The fields that are written of each row.
        options: Beam's options of the run.
        cloud: The project, the service addresses and how long to retry.

    Raises:
        UsageError: The flags exclude each other, or do not fit the model.
        InputError: The subscription cannot be read.
        OutputError: A sink cannot be written.
    """
    if runs_on_dataflow(options):
        google = options.view_as(GoogleCloudOptions)
        check_dataflow(config, google.dataflow_service_options or ())
    else:
        check_own_source(config)
    run_id = config.run.run_id or f"{utc_now():%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    provenance = Provenance.of(manifest, run_id, config.pipeline)
    schema = output_schema(fields, manifest, provenance, None)
    sinks = open_sinks(config.sinks, config.letter_sinks, cloud)
    score = functools.partial(
        ScoreStream,
        message_format=message_format(config.messages, manifest, fields, cloud),
        handler=handler,
        manifest=manifest,
        fields=fields,
        provenance=provenance,
        schema=schema,
        cloud=cloud,
        sinks=sinks[0],
        failure_sinks=sinks[1],
        deduplicate_seconds=config.deduplicate_seconds,
        deduplicate_attribute=config.deduplicate_attribute,
        max_batch_wait_ms=config.max_batch_wait_ms,
        batch_rows=config.model.batch_rows,
        batch_bytes=config.model.batch_bytes,
    )
    if is_dry_run(options) or options.view_as(GoogleCloudOptions).update:
        if is_dry_run(options):
            look_at_tables(*sinks, schema, cluster_by=config.sinks.cluster_by or (), cloud=cloud)
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
    """Run a stream that has been checked, or start it elsewhere."""
    provenance = score.keywords["provenance"]
    reader = label_value(f"{config.pipeline}-{provenance.run_id}")
    topics = [to for to in (config.sinks.output_topic, config.letter_sinks.dead_letter_topic) if to]
    with _subscription(config, options, reader, topics, cloud) as (subscription, made, labelled):
        if not runs_on_dataflow(options):
            hidden = 0.0 if made else hidden_seconds(subscription, cloud)
            reading = Reading(
                subscription=subscription,
                reader=reader,
                made=made,
                cloud=cloud,
                hidden_seconds=hidden,
            )
            run_pulled(options, config, score, reading)
            return
        facts = _job_facts(config, provenance, subscription)
        graph = score(source=_source(config, subscription), names=expected_names(score))
        start(_pipeline(config, options, facts, graph), facts, cloud.endpoints)
        if advice := drain_advice(config):
            say(advice)
        after = left_behind(subscription, made=made, labelled=labelled, followed=True)
        if after:
            say(after)


def _source(config: StreamConfig, subscription: str) -> ReadMessages:
    """Return Dataflow's source. It drops duplicates itself if no step does."""
    attribute = config.deduplicate_attribute if config.deduplicate_seconds is None else None
    return ReadMessages(subscription, attribute)


def _job_facts(config: StreamConfig, provenance: Provenance, subscription: str | None) -> JobFacts:
    """Return the facts that the job of a stream carries."""
    thresholds = thresholds_flag(config.model.thresholds)
    return JobFacts.of(provenance, subscription=subscription, thresholds=thresholds)


def _look_at(
    config: StreamConfig,
    options: PipelineOptions,
    provenance: Provenance,
    score: functools.partial[ScoreStream],
    cloud: Cloud,
) -> None:
    """Print a stream for a dry run, or compare it with the job that it would replace."""
    source = config.source
    if isinstance(source, Subscription):
        place, facts = source.name, _job_facts(config, provenance, source.name)
    else:
        # The subscription of a topic is created when the stream starts.
        place = source.topic.replace("/topic", "/subscription")
        facts = _job_facts(config, provenance, None)
    if runs_on_dataflow(options):
        graph = score(source=_source(config, place))
    else:
        reading = Reading(subscription=place, reader="dry-run", made=False, cloud=cloud)
        graph = pulled_graph(score, pulled_source(config, reading))
    planned = _pipeline(config, options, facts, graph)
    if options.view_as(GoogleCloudOptions).update:
        check_update(planned, cloud, allow_state_loss=config.run.allow_state_loss)
    if is_dry_run(options):
        print(describe_pipeline(planned, facts))


def _pipeline(
    config: StreamConfig, options: PipelineOptions, facts: JobFacts, graph: ScoreStream
) -> beam.Pipeline:
    """Return the pipeline of a graph that runs elsewhere."""
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
    """Open the subscription of a stream, and set its label while the block runs.

    Yields the name of the subscription, whether it was created for this stream, and whether its
    label names the stream. When the block ends, a subscription that was created for a run that ends
    with this process is deleted. `topics` are the topics that the stream writes to.
    """
    ends_here = not runs_on_dataflow(options)
    name, made = open_subscription(config.source, cloud, topics)
    update = bool(options.view_as(GoogleCloudOptions).update)
    shared = config.allow_shared or update
    with temporary(name, made and ends_here, cloud):
        # If the job is not replaced after all, it keeps reading, and needs its labels again.
        before = reader_labels(name, cloud) if update else {}
        labelled = claim(name, reader, cloud, lasting=not ends_here, shared=shared)
        if not (labelled or is_plain(cloud.endpoints.pubsub)):
            say(
                f"this account cannot set labels of {name}, so a second reader would not be "
                "refused and would take a part of the messages: grant the account the role "
                "roles/pubsub.editor"
            )
        with released(name, reader, cloud, always=ends_here, before=before):
            yield name, made, labelled
