"""Replays: dead letters from wherever they lie through the graph of a batch run."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import replace

import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from cloud.errors import retry, told_as
from common.errors import OutputError, UsageError
from model_handlers.manifest import Manifest
from pipelines.batch.destinations import writes_bigquery
from pipelines.batch.run import fields_of, run, score_rows
from pipelines.batch.sources import Source
from pipelines.beam_args import beam_options
from pipelines.cloud_access import make_cloud
from pipelines.dataflow.start import reach
from pipelines.handlers import make_handler, read_model
from pipelines.options import (
    CloudOptions,
    ModelOptions,
    ReplayOptions,
    RunOptions,
    SinkOptions,
    SourceOptions,
    StreamSinkOptions,
    StreamSourceOptions,
)
from pipelines.options.flag import Parsed, require
from pipelines.options.idle_flags import check_idle_flags
from pipelines.replay.letter_sources import Replay, check_source, open_letters, select
from pipelines.stream.run import message_format, stream_fields
from transforms.bigquery.schema import TableName, arrow_schema
from transforms.bigquery.tables import find_table
from transforms.dead_letters.letters import Letter, lineage_of
from transforms.dead_letters.read import ReadLetters, selected
from transforms.encode import OutputFields, output_schema
from transforms.failures import Provenance
from transforms.files.run_folder import DEAD_LETTERS, SCORES
from transforms.json_rows.row_format import RowFormat
from transforms.lineage import BATCH_REPLAY, STREAM_REPLAY, Lineage
from transforms.messages.decode import MessageFormat

# Flags of messages, which dead letters of batch runs are not.
_OF_MESSAGES = ("message_format", "avro_schema", "max_message_bytes", "window_seconds")


def run_local(parsed: Parsed) -> None:
    """The flags of replay -> a finished run and its summary, or a line that there is none."""
    options = beam_options(parsed.beam_args, name="replay")
    flags, sink = parsed.get(ReplayOptions), parsed.get(SinkOptions)
    require(
        "replay",
        input_files=flags.input_files or flags.input_table or flags.input_subscription,
        model=parsed.get(ModelOptions).model,
        output_files=sink.output_files or sink.output_table,
    )
    check_idle_flags(parsed)
    selection = select(flags)
    check_source(flags, options)
    parsed = as_batch_run(parsed)
    endpoints = reach(parsed, options)
    cloud = _make_cloud(parsed, options, endpoints)
    with open_letters(parsed, selection, cloud) as found:
        first = next(selected(found.letters, found.selection), None)
        if first is None:
            # Standard output is for a report alone where it is asked for as JSON.
            out = sys.stderr if parsed.get(RunOptions).json_summary else sys.stdout
            print(f"no dead letters in {', '.join(found.names)}: nothing to replay", file=out)
            return
        _replay(parsed, found, first, options, endpoints, cloud)


def as_batch_run(parsed: Parsed) -> Parsed:
    """The flags of a replay -> with the groups by which batch runs and streams know them."""
    flags, sink = parsed.get(ReplayOptions), parsed.get(SinkOptions)
    messages = StreamSourceOptions(
        message_format=flags.message_format,
        avro_schema=flags.avro_schema,
        max_message_bytes=flags.max_message_bytes,
        id_column=flags.id_column,
        window_seconds=flags.window_seconds,
    )
    others = {
        SourceOptions: SourceOptions(input_table=flags.input_table),
        StreamSourceOptions: messages,
        StreamSinkOptions: StreamSinkOptions(output_schema=sink.output_schema),
    }
    return replace(parsed, groups=parsed.groups | others)


def _make_cloud(parsed: Parsed, options: PipelineOptions, endpoints: Endpoints) -> Cloud | None:
    """Flags -> the Cloud, None where none is needed. For Pub/Sub alone nobody pays here."""
    flags, cloud = parsed.get(ReplayOptions), parsed.get(CloudOptions)
    if flags.input_table is not None or writes_bigquery(parsed):
        return make_cloud(parsed, options, endpoints)
    names = (flags.input_subscription, flags.output_topic, flags.dead_letter_topic)
    own = next((name.split("/")[1] for name in names if name is not None), None)
    if own is None:
        return None
    project = cloud.billing_project or options.view_as(GoogleCloudOptions).project or own
    return Cloud(project, endpoints, float(cloud.retry_seconds))


def _replay(
    parsed: Parsed,
    found: Replay,
    first: Letter,
    options: PipelineOptions,
    endpoints: Endpoints,
    cloud: Cloud | None,
) -> None:
    """What is replayed, and its first letter -> a finished run. Raises TooManyDeadLetters."""
    own = replace(parsed.get(RunOptions), run_id=found.run_id)
    parsed = replace(parsed, groups=parsed.groups | {RunOptions: own})
    topics = _topics(parsed.get(ReplayOptions), cloud)
    model = read_model(parsed)
    manifest = model.choose(parsed.get(ModelOptions).score_output).without_rows()
    if first.of_stream:
        name, fields = STREAM_REPLAY, stream_fields(parsed, manifest)
        read, schema = message_format(parsed, manifest, fields), None
    else:
        name, fields = BATCH_REPLAY, fields_of(parsed, manifest)
        read = _row_format(parsed, manifest, fields)
        schema = _passed_on(parsed, manifest, fields, cloud)

    def source_of(provenance: Provenance) -> Source:
        rows = parsed.get(ModelOptions).rows()
        chosen = (found.letters, found.selection, first.of_stream)
        source = ReadLetters(*chosen, read, provenance, rows)
        return Source(source, schema, found.names, _lineage(parsed, found))

    handler = make_handler(parsed, model, fields, options, endpoints)
    graph = score_rows(name, parsed, handler, manifest, fields, options, cloud, source_of)
    run(replace(graph, topics=topics, cloud=cloud), options, parsed)


def _lineage(parsed: Parsed, found: Replay) -> Lineage | None:
    """What is replayed into a table -> its lineage; None where nothing replaces what it wrote.

    Letters of a subscription are gone from there when they are replayed.
    """
    if parsed.get(ReplayOptions).input_subscription is not None or not writes_bigquery(parsed):
        return None
    return lineage_of(found.run_id, selected(found.letters, found.selection))


def _topics(flags: ReplayOptions, cloud: Cloud | None) -> dict[str, str]:
    """Flags -> the topics by part, each there. Raises OutputError."""
    given = {SCORES: flags.output_topic, DEAD_LETTERS: flags.dead_letter_topic}
    topics = {part: topic for part, topic in given.items() if topic is not None}
    for topic in topics.values():
        if cloud is not None:
            with told_as(OutputError, f"topic {topic} cannot be published to"):
                cloud.publisher().get_topic(topic=topic, retry=retry(cloud.retry_seconds))
    return topics


def _row_format(parsed: Parsed, manifest: Manifest, fields: OutputFields) -> MessageFormat:
    """Flags, of letters of batch runs -> how their rows are read. Raises UsageError."""
    flags = parsed.get(ReplayOptions)
    for field in dataclasses.fields(flags):
        if field.name in _OF_MESSAGES and getattr(flags, field.name) != field.default:
            raise UsageError(
                f"--{field.name} is for dead letters of streams; these are of batch runs"
            )
    row_format = RowFormat(manifest, flags.id_column, fields.source)
    return MessageFormat(row_format, max_bytes=sys.maxsize)


def _passed_on(
    parsed: Parsed, manifest: Manifest, fields: OutputFields, cloud: Cloud | None
) -> pa.Schema | None:
    """The types of source columns that are passed on to a table: its own, None without one.

    JSON does not say what they were.
    """
    name = parsed.get(SinkOptions).output_table
    if name is None or cloud is None:
        return None
    with told_as(OutputError, f"table {name} cannot be written"):
        parsed_name = TableName.parse(name, "output_table", cloud.project)
        table = find_table(cloud.bigquery(), parsed_name, cloud)
    present = arrow_schema(() if table is None else table.schema)
    read = output_schema(fields, manifest, Provenance.of(manifest), None)
    return pa.schema([(present if n in present.names else read).field(n) for n in fields.source])
