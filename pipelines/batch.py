"""Batch runs: options to a graph, the graph to a report, the report to the user."""

from __future__ import annotations

import io
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import PipelineOptions

from model_handlers.artifact import read_bytes
from model_handlers.contract import Manifest
from model_handlers.errors import InputError, TooManyDeadLetters, UsageError, nearest
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from pipelines.beam_args import beam_options, runs_in_process
from pipelines.graph import ScoreFiles
from pipelines.options import (
    FailureOptions,
    ModelOptions,
    Parsed,
    RunOptions,
    SinkOptions,
    SourceOptions,
    require,
)
from pipelines.progress import progress_line
from pipelines.summary import summarise
from transforms.commit_files import DEAD_LETTERS, SCORES, RunFolder, check_writable, discard
from transforms.encode import OutputFields, check_fields, choose_fields
from transforms.failures import Provenance, utc_now
from transforms.file_ranges import FileFormat, format_of, match_files
from transforms.read_files import Columns, ReadFiles, file_schema, has_rows


def run_local(parsed: Parsed) -> None:
    """The flags of batch_local -> a finished run and its summary."""
    options = beam_options(parsed.beam_args)
    source, sink = parsed.get(SourceOptions), parsed.get(SinkOptions)
    model = parsed.get(ModelOptions)
    require(
        "batch_local",
        input_files=source.input_files,
        model=model.model,
        output_files=sink.output_files,
    )
    path = model.model or ""
    manifest = read_manifest(
        path, digest=model.model_digest, feature_columns=model.feature_columns
    ).choose(model.score_output)
    fields = choose_fields(manifest, model.output_fields)
    handler = TorchModelHandler(
        path,
        manifest,
        outputs=fields.needed,
        device=model.device,
        precision=model.precision,  # type: ignore[arg-type]
        compile=model.compile,
        batch_rows=model.batch_rows,
    )
    run(score_files("batch_local", parsed, handler, manifest, fields, options), options, parsed)


def score_files(
    name: str,
    parsed: Parsed,
    handler: Any,
    manifest: Manifest,
    fields: OutputFields,
    options: PipelineOptions,
) -> ScoreFiles:
    """A pipeline's name, flags, handler and model -> its graph, the input looked at first.

    Raises InputError, UsageError, OutputError: whatever would fail the run is told
    before it starts.
    """
    source, sink = parsed.get(SourceOptions), parsed.get(SinkOptions)
    started = utc_now()
    run_id = parsed.get(RunOptions).run_id or started.strftime("%Y%m%dT%H%M%SZ")
    columns = Columns(manifest, source.id_column, fields.source)
    patterns, output = source.input_files or (), sink.output_files or ""
    file_format = None if source.input_format == "auto" else source.input_format
    check_input(patterns, file_format, columns, fields)  # type: ignore[arg-type]
    token = uuid.uuid4().hex[:8]
    scores = RunFolder(output, run_id, token)
    dead_letters = RunFolder(parsed.get(FailureOptions).dead_letter_files or output, run_id, token)
    check_writable(scores)
    check_writable(dead_letters)
    provenance = Provenance.of(manifest, run_id, name)
    return ScoreFiles(
        ReadFiles(
            patterns,
            columns,
            provenance,
            file_format,  # type: ignore[arg-type]
            parsed.get(ModelOptions).batch_rows,
        ),
        handler,
        manifest,
        fields,
        provenance,
        scores,
        dead_letters,
        sink.output_format,  # type: ignore[arg-type]
        _facts(provenance, fields.score, patterns, scores, dead_letters) | {"started_at": started},
        show_progress=sys.stderr.isatty() and runs_in_process(options),
    )


def _facts(
    provenance: Provenance,
    score_output: str | None,
    patterns: tuple[str, ...],
    scores: RunFolder,
    dead_letters: RunFolder,
) -> dict[str, Any]:
    """What a report says besides its counts."""
    return {
        "run_id": provenance.run_id,
        "pipeline": provenance.pipeline,
        "model": {
            "name": provenance.model_name,
            "version": provenance.model_version,
            "digest": provenance.model_digest,
        },
        "score_output": score_output,
        "input": list(patterns),
        "output": scores.part(SCORES),
        "dead_letter_output": dead_letters.part(DEAD_LETTERS),
        "report": scores.report,
    }


def check_input(
    patterns: tuple[str, ...],
    file_format: FileFormat | None,
    columns: Columns,
    fields: OutputFields,
) -> None:
    """Input patterns -> nothing, or an error if they name no rows or lack columns.

    Only the columns of the first file with rows are looked at; each worker looks at
    those of its own files.
    """
    files = [(file.path, file_format or format_of(file.path)) for file in match_files(patterns)]
    found = next((file for file in files if has_rows(*file)), None)
    if found is None:
        raise InputError(f"the input is empty: {files[0][0]} holds no rows, nor does any other")
    schema = file_schema(*found)
    if schema is not None:
        id_column = columns.id_column
        if id_column is not None and id_column not in schema.names:
            raise UsageError(
                f"--id_column: {found[0]} lacks column {id_column!r}"
                f"{nearest(id_column, schema.names)}; it has {', '.join(schema.names[:40])}"
            )
        check_fields(fields, columns.manifest, schema.names)
        columns.names(schema, found[0])


def run(graph: ScoreFiles, options: PipelineOptions, parsed: Parsed) -> None:
    """A graph -> run to its end, its report printed. What an aborted run staged is removed."""
    begin = time.monotonic()
    pipeline = beam.Pipeline(options=options)
    pipeline | "ScoreFiles" >> graph
    try:
        with (
            progress_line(sys.stderr) if graph.show_progress else nullcontext(),
            nullcontext() if parsed.get(RunOptions).debug else quiet_workers(),
        ):
            pipeline.run().wait_until_finish()
    except BaseException:
        discard(graph.scores)
        discard(graph.dead_letters)
        raise
    report = orjson.loads(read_bytes(graph.scores.report))
    if parsed.get(RunOptions).json_summary:
        print(orjson.dumps(report).decode())
    else:
        print(summarise(report, time.monotonic() - begin))
    check_dead_letters(report, parsed.get(FailureOptions).max_dead_letter_share)


def check_dead_letters(report: Mapping[str, Any], limit: float) -> None:
    """A finished run's report -> nothing, or TooManyDeadLetters. The output stays in place.

    A run that scored nothing fails whatever the limit: its input is not the model's.
    """
    rows, dead = report["rows_in"], report["rows_dead_lettered"]
    if dead and (dead == rows or dead > limit * rows):
        kind = report["dead_letters"][0]
        raise TooManyDeadLetters(
            f"{dead:,} of {rows:,} rows are dead letters, mostly {kind['reason']} at "
            f"{kind['stage']}; look at {report['dead_letter_output']}, mend the source, and run "
            "again with the same --run_id"
        )


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
