"""Runs `python -m pipelines.batch_local` with a clock around it, and prints a report.

Unlike the process of the pipeline, this one must not exit as soon as the run is complete, because
it still has to print the report.
"""

import contextlib
import importlib
import io
import json
import sys

from benchmarks.contestant import timed
from benchmarks.files.millrace import HEAVY
from benchmarks.row_costs import report_rows
from pipelines.batch_local import COMMAND
from pipelines.command import main as run_command


def run(flags: list[str]) -> int:
    """Run the pipeline with these flags, and return the number of rows that it scored.

    Raises:
        SystemExit: The pipeline failed. It has printed the reason to standard error.
    """
    summary = io.StringIO()
    with contextlib.redirect_stdout(summary):
        code = run_command(COMMAND, [*flags, "--json_summary"])
    if code:
        raise SystemExit(code)
    return int(json.loads(summary.getvalue().splitlines()[-1])["rows_scored"])


def main() -> None:
    """Run the pipeline and print the report."""
    for name in HEAVY:
        importlib.import_module(name)
    with timed() as clock:
        rows = run(sys.argv[1:])
    report_rows(rows, clock)


if __name__ == "__main__":
    main()
