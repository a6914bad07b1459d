"""Batch runs: options to a graph, the graph to a report, the report to the user."""

from __future__ import annotations

import ctypes
import io
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import PipelineOptions

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from common.addresses import without_secrets
from common.errors import TooManyDeadLetters
from model_handlers.manifest import Manifest
from pipelines.batch.config import RunConfig, Table, batch_config
from pipelines.batch.destinations import (
    RowsToWrite,
    new_attempt,
    open_destinations,
    report_folder,
)
from pipelines.batch.graph import ScoreRows
from pipelines.batch.progress import progress_line
from pipelines.batch.report_text import summarise
from pipelines.batch.sources import Source, open_source
from pipelines.beam_args import beam_options, is_dry_run, runs_in_process, runs_on_dataflow
from pipelines.cloud_access import make_cloud
from pipelines.config import ModelConfig
from pipelines.dataflow.facts import JobFacts
from pipelines.dataflow.start import ask_for_accelerator, carry, describe_pipeline, reach, start
from pipelines.handlers import Handler, make_handler, read_model
from pipelines.options.flag import Parsed
from transforms.encode import OutputFields, choose_fields, output_schema, reference_fields
from transforms.files.commit import abandon, is_in_place
from transforms.files.destination import Destination
from transforms.files.listing import read_report
from transforms.files.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.files.staging import discard
from transforms.provenance import Provenance, utc_now
from transforms.run_report import too_many

# Of glibc's malloc.h.
M_ARENA_MAX = -8


def run_local(parsed: Parsed) -> None:
    """The flags of batch_local -> a finished run and its summary."""
    run_batch("batch_local", parsed)


def run_vertex(parsed: Parsed) -> None:
    """The flags of batch_vertex -> a finished run and its summary."""
    run_batch("batch_vertex", parsed)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is scored with what: a run's name, its configuration, its model and what is written."""

    name: str
    config: RunConfig
    handler: Handler
    manifest: Manifest
    fields: OutputFields


def run_batch(name: str, parsed: Parsed) -> None:
    """A pipeline's name and its flags -> a finished run, or a job that is started."""
    options = beam_options(parsed.beam_args, name=name)
    config = batch_config(name, parsed)
    endpoints = reach(parsed, options)
    cloud = None
    if config.tables or config.reads_bigquery:
        source = [config.source.name] if isinstance(config.source, Table) else []
        cloud = make_cloud(config.cloud, options, endpoints, (*config.tables, *source))
    model = read_model(config.model)
    manifest = model.choose(config.model.score_output).without_rows()
    fields = fields_of(config.model, manifest)
    handler = make_handler(config, model, fields, options, endpoints)

    def open_it(provenance: Provenance, temp: RunFolder | None) -> Source:
        return open_source(
            config, manifest, fields, provenance=provenance, cloud=cloud, folder=temp
        )

    scoring = Scoring(name=name, config=config, handler=handler, manifest=manifest, fields=fields)
    run(score_rows(scoring, options, cloud, open_it), options, config, endpoints)


def fields_of(model: ModelConfig, manifest: Manifest) -> OutputFields:
    """What is asked for and a manifest -> what is written of each row. Raises UsageError."""
    if model.output_schema == "reference":
        return reference_fields(manifest)
    return choose_fields(manifest, model.output_fields)


def score_rows(
    scoring: Scoring,
    options: PipelineOptions,
    cloud: Cloud | None,
    open_it: Callable[[Provenance, RunFolder | None], Source],
) -> ScoreRows:
    """What is scored, and how its source is opened -> the graph, source and sinks looked at first.

    cloud: given where BigQuery is read or written. open_it: the run's provenance and its folder in
    the temp location -> the source. Raises InputError, UsageError, OutputError: whatever would fail
    the run is reported before it starts.
    """
    config, manifest, fields = scoring.config, scoring.manifest, scoring.fields
    started = utc_now()
    token = uuid.uuid4().hex[:8]
    # Of two runs that start in one second, neither may take the other for its first attempt.
    run_id = config.run.run_id or f"{started:%Y%m%dT%H%M%SZ}-{token}"
    attempt = new_attempt(run_id, token, options)
    provenance = Provenance.of(manifest, run_id, scoring.name)
    source = open_it(provenance, attempt.temp)
    schema = output_schema(fields, manifest, provenance, source.schema)
    rows = RowsToWrite(schema, fields.time_column, provenance)
    destinations = open_destinations(config, attempt, rows, cloud, source.lineage)
    for destination in () if is_dry_run(options) else destinations:
        destination.prepare()
    facts = _facts(scoring, provenance, source, destinations)
    return ScoreRows(
        source=source.transform,
        handler=scoring.handler,
        manifest=manifest,
        fields=fields,
        provenance=provenance,
        destinations=destinations,
        report_folder=report_folder(destinations),
        facts=facts | {"started_at": started},
        show_progress=sys.stderr.isatty() and runs_in_process(options),
        temporary=(attempt.temp,) if attempt.temp and source.exports else (),
        launcher=os.getpid() if runs_in_process(options) else None,
    )


def _facts(
    scoring: Scoring,
    provenance: Provenance,
    source: Source,
    destinations: list[Destination],
) -> dict[str, Any]:
    """What a report says besides its counts."""
    return {
        "run_id": provenance.run_id,
        "pipeline": provenance.pipeline,
        "model": {
            "name": provenance.model_name,
            "version": provenance.model_version,
            "digest": provenance.model_digest,
            "batch_dependence": scoring.manifest.batch_dependence,
        },
        "score_output": scoring.fields.score,
        "input": [without_secrets(name) for name in source.names],
        "output": [d.place for d in destinations if d.part == SCORES],
        "dead_letter_output": [d.place for d in destinations if d.part == DEAD_LETTERS],
        "report": report_folder(destinations).report,
        "max_dead_letter_share": scoring.config.max_dead_letter_share,
    }


def run(
    graph: ScoreRows, options: PipelineOptions, config: RunConfig, endpoints: Endpoints
) -> None:
    """A graph -> run to its end, its report printed; or a job of Dataflow, started and left.

    What an aborted run staged is removed; for a job, whoever follows it does that.
    """
    facts = _job_facts(graph, config.max_dead_letter_share)
    if runs_on_dataflow(options):
        carry(options, facts)
        ask_for_accelerator(config.predictor, options)
    pipeline = beam.Pipeline(options=options)
    pipeline | "ScoreRows" >> graph
    if is_dry_run(options):
        print(describe_pipeline(pipeline, facts))
        return
    as_json = config.run.json_summary
    begin = time.monotonic()
    try:
        if runs_on_dataflow(options):
            start(pipeline, facts, endpoints, as_json=as_json)
            return
        _run_to_end(pipeline, graph, options, debug=config.run.debug)
    except BaseException as error:
        abandon(graph.destinations, graph.report_folder)
        for folder in graph.temporary:
            discard(folder)
        if isinstance(error, KeyboardInterrupt) and is_in_place(graph.report_folder):
            raise KeyboardInterrupt(
                f"the run was complete already, see {graph.report_folder.report}"
            ) from error
        raise
    report = read_report(graph.report_folder.report)
    if as_json:
        print(orjson.dumps(report).decode())
    else:
        print(summarise(report, time.monotonic() - begin))
    check_dead_letters(report, config.max_dead_letter_share)


def _run_to_end(
    pipeline: beam.Pipeline, graph: ScoreRows, options: PipelineOptions, *, debug: bool
) -> None:
    """A pipeline that runs in this process, or that this process waits for -> its end."""
    if runs_in_process(options):
        from common.private_beam.in_process import keep_buffers_whole

        keep_buffers_whole()
        share_memory()
    with (
        progress_line(sys.stderr) if graph.show_progress else nullcontext(),
        nullcontext() if debug else quiet_workers(),
    ):
        pipeline.run().wait_until_finish()


def _job_facts(graph: ScoreRows, max_dead_letter_share: float) -> JobFacts:
    """A graph, and the share of dead letters that is allowed -> what its job says of itself."""
    report = graph.report_folder
    folders = (report, *graph.temporary, *(d.folder for d in graph.destinations))
    return JobFacts.of(
        graph.provenance,
        report=report.report,
        staging=tuple(sorted({folder.staging for folder in folders})),
        attempt=report.token,
        max_dead_letter_share=max_dead_letter_share,
    )


def check_dead_letters(report: Mapping[str, Any], limit: float) -> None:
    """A finished run's report -> nothing, or TooManyDeadLetters. The output stays in place.

    limit: the largest share of the rows. A run that scored nothing fails whatever the limit:
    its input is not the model's.
    """
    rows, dead = report["rows_in"], report["rows_dead_lettered"]
    if not too_many(dead, rows, limit):
        return
    kind, places = report["dead_letters"][0], " or ".join(report["dead_letter_output"])
    why = f"more than --max_dead_letter_share {limit * 100:g} %"
    if dead <= limit * rows:
        why = "and a run that scores no row fails"
    todo = f"fix the source or the model, and run again with --run_id {report['run_id']}"
    if report["pipeline"].endswith("_replay"):
        todo = (
            "fix the model or the sender, and type the same command again: the letters that were "
            "replayed are still there"
        )
    raise TooManyDeadLetters(
        f"{dead:,} of {rows:,} rows, {dead / rows * 100:.2f} % are dead letters, {why}; mostly "
        f"{kind['reason']} at {kind['stage']}: they are in {places}, with the reasons; {todo}"
    )


def share_memory() -> None:
    """Lets the threads of this process take memory from two pools, where the C library is glibc.

    It has eight a core by default, and each keeps what its threads have freed: hundreds of
    megabytes in a run of large batches.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, 2)


@contextmanager
def quiet_workers() -> Iterator[None]:
    """A run in this process -> what its workers print on standard error, told only if it ends well.

    Beam prints the traceback of each failing bundle, several times; the error itself
    is told once, at the end. Logging is not held back.
    """
    held = io.StringIO()
    with redirect_stderr(held):
        yield
    sys.stderr.write(held.getvalue())
