"""Replays: score dead letters from files, a table or a subscription as a batch run."""

from __future__ import annotations

import sys
from dataclasses import replace

import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from cloud.errors import retry, translate_errors
from common.errors import OutputError, UsageError
from common.terminal import prints_to_stderr
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.thresholds import thresholds_of
from pipelines.batch.config import TableSink
from pipelines.batch.destinations import present_columns
from pipelines.batch.run import run, score_rows
from pipelines.batch.scoring import Scoring, fields_of
from pipelines.batch.sources import Source
from pipelines.beam_args import beam_options, runs_in_process
from pipelines.cloud_access import make_cloud
from pipelines.dataflow.start import reach
from pipelines.handlers import make_handler, read_model, scoring_manifest
from pipelines.options.flag import Parsed
from pipelines.replay.config import (
    LettersInSubscription,
    LettersInTable,
    ReplayConfig,
    replay_config,
)
from pipelines.replay.letter_sources import Replay, check_runs, open_letters
from pipelines.stream.messages import message_format, stream_fields
from transforms.encode import output_schema
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.json_rows.row_format import RowFormat
from transforms.lineage import BATCH_REPLAY, STREAM_REPLAY, Lineage
from transforms.messages.decode import MessageFormat
from transforms.output_fields import OutputFields
from transforms.provenance import Provenance
from transforms.replay.letters import Letter, lineage_of
from transforms.replay.read import ReadLetters, selected


def run_local(parsed: Parsed) -> None:
    """Run a replay and print its summary, or one line if there are no dead letters.

    Raises:
        MillraceError: If the run cannot start, fails, or leaves too many dead letters.
    """
    options = beam_options(parsed.beam_args, name="replay")
    config = replay_config(parsed)
    if isinstance(config.source, LettersInSubscription) and not runs_in_process(options):
        raise UsageError(
            "--input_subscription can only be replayed in this process, which holds the messages "
            "until their rows are written: leave out --runner, or let the stream write its dead "
            "letters to a table and replay the table"
        )
    endpoints = reach(parsed, options)
    cloud = _make_cloud(config, options, endpoints)
    with open_letters(config, cloud) as found:
        first = next(selected(found.letters, found.selection), None)
        check_runs(config, found, has_letters=first is not None)
        if first is None:
            # With --json_summary, standard output holds only the report.
            out = sys.stderr if config.run.json_summary else sys.stdout
            print(f"no dead letters in {', '.join(found.names)}: nothing to replay", file=out)
            return
        own = replace(config, run=replace(config.run, run_id=found.run_id))
        # Reading a model and making a handler may run code of the user.
        with prints_to_stderr(config.run.json_summary):
            model = read_model(config.model)
        _replay(own, found, first, model, options=options, endpoints=endpoints, cloud=cloud)


def _make_cloud(
    config: ReplayConfig, options: PipelineOptions, endpoints: Endpoints
) -> Cloud | None:
    """Return the Cloud, or None if no service is used. For Pub/Sub any project will do."""
    source = config.source
    if isinstance(source, LettersInTable) or config.tables:
        tables = (*config.tables, source.name if isinstance(source, LettersInTable) else None)
        return make_cloud(config.cloud, options, endpoints, tables)
    subscription = source.subscription if isinstance(source, LettersInSubscription) else None
    names = (subscription, config.output_topic, config.dead_letter_topic)
    own = next((name.split("/")[1] for name in names if name is not None), None)
    if own is None:
        return None
    project = config.cloud.billing_project or options.view_as(GoogleCloudOptions).project or own
    return Cloud(project, endpoints, float(config.cloud.retry_seconds))


def _replay(
    config: ReplayConfig,
    found: Replay,
    first: Letter,
    model: Manifest,
    *,
    options: PipelineOptions,
    endpoints: Endpoints,
    cloud: Cloud | None,
) -> None:
    """Run a replay to its end. The first dead letter decides whether it is one of a stream."""
    topics = _topics(config, cloud)
    manifest = scoring_manifest(config.model, model)
    if first.of_stream:
        name = STREAM_REPLAY
        fields = stream_fields(config.model, config.messages.window_seconds, manifest)
        read, schema = message_format(config.messages, manifest, fields, cloud), None
    else:
        name, fields = BATCH_REPLAY, fields_of(config.model, manifest)
        read = _row_format(config, manifest, fields)
        schema = _passed_on(config, manifest, fields, cloud)

    def open_it(provenance: Provenance, _: RunFolder | None) -> Source:
        source = ReadLetters(
            letters=found.letters,
            selection=found.selection,
            of_stream=first.of_stream,
            message_format=read,
            provenance=provenance,
            batch_rows=config.model.batch_rows,
            batch_bytes=config.model.batch_bytes,
        )
        lineage = _lineage(config, found)
        return Source(transform=source, schema=schema, names=found.names, lineage=lineage)

    with prints_to_stderr(config.run.json_summary):
        scoring = Scoring(
            name=name,
            config=config,
            handler=make_handler(config, model, fields, options, endpoints),
            manifest=manifest,
            packaged=thresholds_of(model),
            fields=fields,
        )
    graph = score_rows(scoring, options, cloud, open_it)
    run(replace(graph, topics=topics, cloud=cloud), options, config, endpoints)


def _lineage(config: ReplayConfig, found: Replay) -> Lineage | None:
    """Return the lineage of a replay into a table, or None if no run can replace its rows.

    Dead letters of a subscription are removed when they are replayed, so no later replay or run
    scores them again.
    """
    if isinstance(config.source, LettersInSubscription) or not config.tables:
        return None
    return lineage_of(found.run_id, selected(found.letters, found.selection))


def _topics(config: ReplayConfig, cloud: Cloud | None) -> dict[str, str]:
    """Return the topics by part. Raises OutputError if one does not exist."""
    given = {SCORES: config.output_topic, DEAD_LETTERS: config.dead_letter_topic}
    topics = {part: topic for part, topic in given.items() if topic is not None}
    for topic in topics.values():
        if cloud is not None:
            with translate_errors(OutputError, f"topic {topic} cannot be published to"):
                cloud.publisher().get_topic(topic=topic, retry=retry(cloud.retry_seconds))
    return topics


def _row_format(config: ReplayConfig, manifest: Manifest, fields: OutputFields) -> MessageFormat:
    """Return how to read the rows of batch runs. Raises UsageError for flags of streams."""
    for flag in config.of_messages:
        raise UsageError(
            f"--{flag} applies only to dead letters of streams, and these are of batch runs: "
            f"leave out --{flag}"
        )
    row_format = RowFormat(manifest, config.messages.id_column, fields.source)
    return MessageFormat(row_format, max_bytes=sys.maxsize, several=False)


def _passed_on(
    config: ReplayConfig, manifest: Manifest, fields: OutputFields, cloud: Cloud | None
) -> pa.Schema | None:
    """Return the types of the source columns that are passed on to a table, or None without one.

    They are the types in the table, because the JSON of a dead letter does not state them.
    """
    if cloud is None or not any(isinstance(sink, TableSink) for sink in config.sinks):
        return None
    present = present_columns(config.sinks, cloud)
    read = output_schema(fields, manifest, Provenance.of(manifest), None)
    by_name = {field.name: field for field in present}
    found = (by_name.get(name.lower(), read.field(name)) for name in fields.source)
    return pa.schema([f.with_name(n) for f, n in zip(found, fields.source, strict=True)])
