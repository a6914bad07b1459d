"""The contestant Millrace: runs `python -m pipelines.batch_local` with a clock around it."""

import contextlib
import importlib
import io
from collections.abc import Callable

from benchmarks.contestant import (
    ID_COLUMN,
    LATENT_OUTPUT,
    SCORE_OUTPUT,
    Task,
    print_scores_at,
    read_task,
    timed,
)
from pipelines.batch_local import COMMAND
from pipelines.command import main as run_command

# Imported before the clock starts, like the imports of the other contestants.
HEAVY = ("apache_beam", "pyarrow.parquet", "torch", "pipelines.batch.run")
RUN_ID = "bench"


def command_line(task: Task) -> list[str]:
    """Return the flags of the pipeline."""
    return [
        *("--input_files", str(task.input), "--id_column", ID_COLUMN),
        *("--output_files", str(task.output), "--output_format", "parquet"),
        *("--model", str(task.model), "--score_output", SCORE_OUTPUT),
        *("--output_fields", LATENT_OUTPUT, "--run_id", RUN_ID),
    ]


def score_with(command_line: Callable[[Task], list[str]]) -> None:
    """Score the file of a task like a command line does, and print the report.

    Raises:
        SystemExit: The pipeline failed.
    """
    task = read_task("Score a Parquet file with Millrace.")
    for name in HEAVY:
        importlib.import_module(name)
    with timed() as clock, contextlib.redirect_stdout(io.StringIO()):
        code = run_command(COMMAND, command_line(task))
    if code:
        raise SystemExit(code)
    print_scores_at(task.output / RUN_ID / "scores", clock)


if __name__ == "__main__":
    score_with(command_line)
