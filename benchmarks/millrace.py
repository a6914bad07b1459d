"""Millrace: `python -m pipelines.batch_local`, with a clock around it."""

import contextlib
import importlib
import io
import runpy
import sys

from benchmarks.contestant import (
    ID_COLUMN,
    LATENT_OUTPUT,
    SCORE_OUTPUT,
    Task,
    read_task,
    tell,
    timed,
)

PIPELINE = "pipelines.batch_local"
# Imported before the clock starts, as the other contestants' imports are.
HEAVY = ("apache_beam", "pyarrow.parquet", "torch", "pipelines.batch")
RUN_ID = "bench"


def command_line(task: Task) -> list[str]:
    """Task -> the flags of the pipeline."""
    return [
        *("--input_files", str(task.input), "--id_column", ID_COLUMN),
        *("--output_files", str(task.output), "--output_format", "parquet"),
        *("--model", str(task.model), "--score_output", SCORE_OUTPUT),
        *("--output_fields", LATENT_OUTPUT, "--run_id", RUN_ID),
    ]


def run(task: Task) -> None:
    """Task -> scores, as the command line makes them.

    Raises:
        SystemExit: The pipeline failed.
    """
    sys.argv = [PIPELINE, *command_line(task)]
    summary = io.StringIO()
    try:
        with contextlib.redirect_stdout(summary):
            runpy.run_module(PIPELINE, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise


def main() -> None:
    """Command line -> scores and a report."""
    task = read_task("Score a Parquet file with Millrace.")
    for name in HEAVY:
        importlib.import_module(name)
    with timed() as clock:
        run(task)
    tell(task.output / RUN_ID / "scores", clock)


if __name__ == "__main__":
    main()
