"""The contestant Millrace: runs `python -m pipelines.batch_local` on raw columns."""

from __future__ import annotations

from benchmarks.contestant import Task
from benchmarks.files.millrace import RUN_ID, score_with
from benchmarks.raw.churn import ID_COLUMN


def command_line(task: Task) -> list[str]:
    """Return the flags of the pipeline."""
    return [
        *("--input_files", str(task.input), "--id_column", ID_COLUMN),
        *("--output_files", str(task.output), "--output_format", "parquet"),
        *("--model", str(task.model), "--output_fields", "outcome,decision", "--run_id", RUN_ID),
    ]


if __name__ == "__main__":
    score_with(command_line)
