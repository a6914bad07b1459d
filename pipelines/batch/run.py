"""Batch runs: options to a graph, the graph to a report, the report to the user."""

from __future__ import annotations

import ctypes
import io
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import PipelineOptions

from cloud.clients import Cloud
from common.addresses import without_secrets
from common.errors import TooManyDeadLetters, UsageError
from model_handlers.artifact import read_bytes
from model_handlers.manifest import Manifest
from pipelines.batch.destinations import (
    new_attempt,
    open_destinations,
    report_folder,
    writes_bigquery,
)
from pipelines.batch.graph import ScoreRows
from pipelines.batch.progress import progress_line
from pipelines.batch.sources import Source, exports, open_bigquery, open_files, reads_bigquery
from pipelines.batch.summary import summarise
from pipelines.beam_args import beam_options, is_dry_run, runs_in_process, runs_on_dataflow
from pipelines.cloud_access import make_cloud
from pipelines.dataflow.facts import JobFacts
from pipelines.dataflow.start import ask_for_accelerator, carry, describe, reach, start
from pipelines.handlers import make_handler, read_model
from pipelines.options import (
    FailureOptions,
    ModelOptions,
    RunOptions,
    SinkOptions,
)
from pipelines.options.flag import Parsed
from pipelines.required import require_flags
from transforms.encode import OutputFields, choose_fields, output_schema, reference_fields
from transforms.failures import Provenance, utc_now
from transforms.files.commit import abandon, is_in_place
from transforms.files.destination import Destination
from transforms.files.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.files.staging import discard
from transforms.reconcile import too_many

# Of glibc's malloc.h.
M_ARENA_MAX = -8


def run_local(parsed: Parsed) -> None:
    """The flags of batch_local -> a finished run and its summary."""
    run_batch("batch_local", parsed)


def run_vertex(parsed: Parsed) -> None:
    """The flags of batch_vertex -> a finished run and its summary."""
    run_batch("batch_vertex", parsed)


def run_batch(name: str, parsed: Parsed) -> None:
    """A pipeline's name and its flags -> a finished run, or a job that is started."""
    options = beam_options(parsed.beam_args, name=name)
    require_flags(name, parsed)
    endpoints = reach(parsed, options)
    cloud = None
    if reads_bigquery(parsed) or writes_bigquery(parsed):
        cloud = make_cloud(parsed, options, endpoints)
    model = read_model(parsed)
    manifest = model.choose(parsed.get(ModelOptions).score_output).without_rows()
    fields = fields_of(parsed, manifest)
    handler = make_handler(parsed, model, fields, options, endpoints)
    graph = score_rows(name, parsed, handler, manifest, fields, options, cloud)
    run(graph, options, parsed)


def fields_of(parsed: Parsed, manifest: Manifest) -> OutputFields:
    """Flags and a manifest -> what is written of each row. Raises UsageError."""
    names = parsed.get(ModelOptions).output_fields
    if parsed.get(SinkOptions).output_schema == "default":
        return choose_fields(manifest, names)
    if names is not None:
        raise UsageError("--output_schema reference has fields of its own: drop --output_fields")
    return reference_fields(manifest)


def score_rows(
    name: str,
    parsed: Parsed,
    handler: Any,
    manifest: Manifest,
    fields: OutputFields,
    options: PipelineOptions,
    cloud: Cloud | None,
    source_of: Callable[[Provenance], Source] | None = None,
) -> ScoreRows:
    """A pipeline's name, flags, handler and model -> its graph, source and sinks looked at first.

    cloud: given where BigQuery is read or written. source_of: opens another source than
    SourceOptions name. Raises InputError, UsageError, OutputError: whatever would fail
    the run is told before it starts.
    """
    started = utc_now()
    token = uuid.uuid4().hex[:8]
    # Of two runs that start in one second, neither may take the other for its first attempt.
    run_id = parsed.get(RunOptions).run_id or f"{started:%Y%m%dT%H%M%SZ}-{token}"
    attempt = new_attempt(run_id, token, options)
    provenance = Provenance.of(manifest, run_id, name)
    if source_of is not None:
        source = source_of(provenance)
    elif reads_bigquery(parsed) and cloud is not None:
        source = open_bigquery(parsed, manifest, fields, cloud, attempt.temp)
    else:
        source = open_files(parsed, manifest, fields, provenance)
    schema = output_schema(fields, manifest, provenance, source.schema)
    table_cloud = cloud if writes_bigquery(parsed) else None
    destinations = open_destinations(
        parsed, attempt, schema, provenance, fields.time_column, table_cloud, source.lineage
    )
    for destination in () if is_dry_run(options) else destinations:
        destination.prepare()
    report = report_folder(destinations)
    facts = _facts(provenance, manifest, fields.score, source, destinations, report)
    facts["max_dead_letter_share"] = parsed.get(FailureOptions).max_dead_letter_share
    return ScoreRows(
        source.transform,
        handler,
        manifest,
        fields,
        provenance,
        destinations,
        report,
        facts | {"started_at": started},
        show_progress=sys.stderr.isatty() and runs_in_process(options),
        temporary=(attempt.temp,) if attempt.temp and exports(parsed) else (),
        launcher=os.getpid() if runs_in_process(options) else None,
    )


def _facts(
    provenance: Provenance,
    manifest: Manifest,
    score_output: str | None,
    source: Source,
    destinations: Sequence[Destination],
    report: RunFolder,
) -> dict[str, Any]:
    """What a report says besides its counts."""
    return {
        "run_id": provenance.run_id,
        "pipeline": provenance.pipeline,
        "model": {
            "name": provenance.model_name,
            "version": provenance.model_version,
            "digest": provenance.model_digest,
            "batch_dependence": manifest.batch_dependence,
        },
        "score_output": score_output,
        "input": [without_secrets(name) for name in source.names],
        "output": [d.place for d in destinations if d.part == SCORES],
        "dead_letter_output": [d.place for d in destinations if d.part == DEAD_LETTERS],
        "report": report.report,
    }


def run(graph: ScoreRows, options: PipelineOptions, parsed: Parsed) -> None:
    """A graph -> run to its end, its report printed; or a job of Dataflow, started and left.

    What an aborted run staged is removed; for a job, whoever follows it does that.
    """
    facts = _job_facts(graph, parsed)
    if runs_on_dataflow(options):
        carry(options, facts)
        ask_for_accelerator(parsed, options)
    pipeline = beam.Pipeline(options=options)
    pipeline | "ScoreRows" >> graph
    if is_dry_run(options):
        print(describe(pipeline, facts))
        return
    as_json = parsed.get(RunOptions).json_summary
    begin = time.monotonic()
    try:
        if runs_on_dataflow(options):
            start(pipeline, facts, parsed, as_json=as_json)
            return
        _run_to_end(pipeline, graph, options, debug=parsed.get(RunOptions).debug)
    except BaseException as error:
        abandon(graph.destinations, graph.report_folder)
        for folder in graph.temporary:
            discard(folder)
        if isinstance(error, KeyboardInterrupt) and is_in_place(graph.report_folder):
            raise KeyboardInterrupt(
                f"the run was complete already, see {graph.report_folder.report}"
            ) from error
        raise
    report = orjson.loads(read_bytes(graph.report_folder.report))
    if as_json:
        print(orjson.dumps(report).decode())
    else:
        print(summarise(report, time.monotonic() - begin))
    check_dead_letters(report, parsed.get(FailureOptions).max_dead_letter_share)


def _run_to_end(
    pipeline: beam.Pipeline, graph: ScoreRows, options: PipelineOptions, *, debug: bool
) -> None:
    """A pipeline that runs in this process, or that this process waits for -> its end."""
    if runs_in_process(options):
        share_memory()
    with (
        progress_line(sys.stderr) if graph.show_progress else nullcontext(),
        nullcontext() if debug else quiet_workers(),
    ):
        pipeline.run().wait_until_finish()


def _job_facts(graph: ScoreRows, parsed: Parsed) -> JobFacts:
    """A graph and flags -> what its job says of itself."""
    report = graph.report_folder
    folders = (report, *graph.temporary, *(d.folder for d in graph.destinations))
    return JobFacts.of(
        graph.provenance,
        report=report.report,
        staging=tuple(sorted({folder.staging for folder in folders})),
        attempt=report.token,
        max_dead_letter_share=parsed.get(FailureOptions).max_dead_letter_share,
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
