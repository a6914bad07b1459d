"""Batch runs: builds the graph from the flags, runs it, and prints the report."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import PipelineOptions

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from common.terminal import is_terminal, output_may_close, print_facts, prints_to_stderr
from model_handlers.manifests.thresholds import thresholds_flag, thresholds_of
from pipelines.batch.config import RunConfig, Table, batch_config
from pipelines.batch.destinations import (
    RowsToWrite,
    new_attempt,
    open_destinations,
    report_folder,
)
from pipelines.batch.graph import ScoreRows
from pipelines.batch.in_process import quiet_workers, run_in_process
from pipelines.batch.limits import check_limits
from pipelines.batch.memory import check_memory_needed
from pipelines.batch.pace import scorer_of
from pipelines.batch.progress import progress_line
from pipelines.batch.report_page import RunPage
from pipelines.batch.report_text import STYLES, run_facts
from pipelines.batch.scoring import Scoring, facts_of, fields_of, work_of_thread
from pipelines.batch.sources import Source, open_source
from pipelines.batch.spread import Choice, choose
from pipelines.beam_args import beam_options, is_dry_run, runs_in_process, runs_on_dataflow
from pipelines.cloud_access import make_cloud
from pipelines.command import say
from pipelines.dataflow.facts import JobFacts
from pipelines.dataflow.start import ask_for_accelerator, carry, describe_pipeline, reach, start
from pipelines.handlers import make_handler, read_model, scoring_manifest
from pipelines.options.flag import Parsed
from pipelines.workers import worker_cpus
from transforms.encode import output_schema
from transforms.files.sink.commit import abandon, is_in_place
from transforms.files.sink.listing import read_report
from transforms.files.sink.page_file import check_page
from transforms.files.sink.run_folder import RunFolder
from transforms.files.sink.staging import discard
from transforms.provenance import Provenance, utc_now
from transforms.spread import SpreadBatches


def run_local(parsed: Parsed) -> None:
    """Run batch_local, and print the summary of the run."""
    run_batch("batch_local", parsed)


def run_vertex(parsed: Parsed) -> None:
    """Run batch_vertex, and print the summary of the run."""
    run_batch("batch_vertex", parsed)


def run_batch(name: str, parsed: Parsed) -> None:
    """Run a batch pipeline to its end in this process, or start it as a job.

    Args:
        name: The name of the pipeline, such as `batch_local`.
        parsed: The command line.

    Raises:
        MillraceError: If the run cannot start, fails, or leaves too many dead letters.
    """
    options = beam_options(parsed.beam_args, name=name)
    config = batch_config(name, parsed)
    endpoints = reach(parsed, options)
    cloud = None
    if config.tables or config.reads_bigquery:
        source = [config.source.name] if isinstance(config.source, Table) else []
        cloud = make_cloud(config.cloud, options, endpoints, (*config.tables, *source))
    # Reading a model and making a handler may run code of the user.
    with prints_to_stderr(config.run.json_summary):
        model = read_model(config.model)
        manifest = scoring_manifest(config.model, model)
        fields = fields_of(config.model, manifest)
        handler = make_handler(config, model, fields, options, endpoints)

    def open_it(provenance: Provenance, temp: RunFolder | None) -> Source:
        source = open_source(
            config,
            manifest,
            fields,
            provenance=provenance,
            cloud=cloud,
            folder=temp,
            cpus=worker_cpus(options),
        )
        scorer = scorer_of(config.predictor, handler, options)
        return replace(source, spread=_spread(choose(config.spread, source.volume, scorer)))

    scoring = Scoring(
        name=name,
        config=config,
        handler=handler,
        manifest=manifest,
        packaged=thresholds_of(model),
        fields=fields,
    )
    run(score_rows(scoring, options, cloud, open_it), options, config, endpoints)


def _spread(choice: Choice) -> bool:
    """Return whether batches are spread, and print why."""
    if choice.why:
        answer = "yes" if choice.spread else "no"
        say(f"note: --spread_batches auto chose {answer}: {choice.why}")
    return choice.spread


def score_rows(
    scoring: Scoring,
    options: PipelineOptions,
    cloud: Cloud | None,
    open_it: Callable[[Provenance, RunFolder | None], Source],
) -> ScoreRows:
    """Return the graph of a run, after checking the source and preparing the destinations.

    Args:
        scoring: What the run scores with, and what it writes.
        options: Beam's options. With --dry_run, the destinations are not prepared.
        cloud: The Cloud that reads and writes BigQuery. Needed only for BigQuery.
        open_it: Returns the source for the provenance of the run and its folder in the temp
            location.

    Raises:
        InputError: If the source is missing, unreadable or lacks columns.
        UsageError: If flags do not fit the source, the model or the destinations.
        OutputError: If a destination cannot be written.
    """
    config, manifest, fields = scoring.config, scoring.manifest, scoring.fields
    page = RunPage.make() if config.report_html else None
    started = utc_now()
    token = uuid.uuid4().hex[:8]
    # With the token, two runs that start in the same second do not count as attempts at one run.
    run_id = config.run.run_id or f"{started:%Y%m%dT%H%M%SZ}-{token}"
    attempt = new_attempt(run_id, token, options)
    provenance = Provenance.of(manifest, run_id, scoring.name)
    source = open_it(provenance, attempt.temp)
    schema = output_schema(fields, manifest, provenance, source.schema)
    rows = RowsToWrite(schema, fields.time_column, provenance)
    destinations = open_destinations(config, attempt, rows, cloud, source.lineage)
    check_memory_needed(work_of_thread(scoring, source, schema, destinations), options)
    if page is not None and not is_dry_run(options):
        check_page(report_folder(destinations))
    for destination in destinations:
        (destination.look if is_dry_run(options) else destination.prepare)()
    if source.results is not None and not is_dry_run(options):
        source.results.prepare()
    facts = facts_of(scoring, provenance, source, destinations)
    return ScoreRows(
        source=source.transform,
        handler=scoring.handler,
        manifest=manifest,
        fields=fields,
        provenance=provenance,
        destinations=destinations,
        report_folder=report_folder(destinations),
        facts=facts | {"started_at": started},
        show_progress=is_terminal(sys.stderr) and runs_in_process(options),
        temporary=(attempt.temp,) if attempt.temp and source.exports else (),
        schema=None if source.origins is None else schema,
        origins=source.origins,
        launcher=os.getpid() if runs_in_process(options) else None,
        results=source.results,
        spread=SpreadBatches(config.model.batch_rows) if source.spread else None,
        page=page,
        examples=config.report_examples,
    )


def run(
    graph: ScoreRows, options: PipelineOptions, config: RunConfig, endpoints: Endpoints
) -> None:
    """Run a graph to its end and print its report, or start it as a job on Dataflow.

    If the run is interrupted or fails, its staged files are removed. Those of a job are removed by
    the process that follows the job.

    Args:
        graph: The graph.
        options: Beam's options. With --dry_run, the pipeline is printed and not started.
        config: The configuration of the run.
        endpoints: The service addresses.

    Raises:
        MillraceError: If the run fails or leaves too many dead letters.
    """
    facts = _job_facts(graph, config)
    if runs_on_dataflow(options):
        carry(options, facts)
        ask_for_accelerator(config.predictor, options)
    pipeline = beam.Pipeline(options=options)
    pipeline | "ScoreRows" >> graph
    if is_dry_run(options):
        print(describe_pipeline(pipeline, facts))
        return
    as_json = config.run.json_summary
    started = time.monotonic()
    if runs_on_dataflow(options):
        with _abandoned_on_error(graph):
            start(pipeline, facts, endpoints, as_json=as_json)
        return
    with prints_to_stderr(as_json):
        _run_to_end(pipeline, graph, options, debug=config.run.debug)
    report = read_report(graph.report_folder.report)
    if as_json:
        with output_may_close():
            print(orjson.dumps(report).decode())
    else:
        print_facts(run_facts(report, time.monotonic() - started), STYLES)
    check_limits(report, config.max_dead_letter_share, config.min_rows)


@contextmanager
def _abandoned_on_error(graph: ScoreRows) -> Iterator[None]:
    """Remove what the attempt has staged if the block fails or is interrupted."""
    try:
        yield
    except BaseException as error:
        abandon(graph.destinations, graph.report_folder)
        for folder in graph.temporary:
            discard(folder)
        if graph.results is not None:
            graph.results.discard()
        if isinstance(error, KeyboardInterrupt) and is_in_place(graph.report_folder):
            raise KeyboardInterrupt(
                f"the run was already complete: see {graph.report_folder.report}"
            ) from error
        raise


def _run_to_end(
    pipeline: beam.Pipeline, graph: ScoreRows, options: PipelineOptions, *, debug: bool
) -> None:
    """Run a pipeline in this process, or wait for it on another runner."""
    with (
        progress_line(sys.stderr) if graph.show_progress else nullcontext(),
        nullcontext() if debug else quiet_workers(),
        _abandoned_on_error(graph),
    ):
        if runs_in_process(options):
            run_in_process(pipeline)
        else:
            # Imported only here, because other runs do not need the runners that it imports.
            from pipelines.batch.elsewhere import run_elsewhere

            run_elsewhere(pipeline, options, debug=debug)


def _job_facts(graph: ScoreRows, config: RunConfig) -> JobFacts:
    """Return the facts that the job of a graph carries, for the process that follows it."""
    report = graph.report_folder
    folders = (report, *graph.temporary, *(d.folder for d in graph.destinations))
    return JobFacts.of(
        graph.provenance,
        report=report.report,
        staging=tuple(sorted({folder.staging for folder in folders})),
        attempt=report.token,
        max_dead_letter_share=config.max_dead_letter_share,
        min_rows=config.min_rows,
        thresholds=thresholds_flag(config.model.thresholds),
    )
