"""What `python -m pipelines.batch_local` does, with a clock around it: its flags in, a report out.

The process does not end as the pipeline's own would, at once, since the report is yet to be told.
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
    """The pipeline's flags -> the rows that it scored.

    Raises:
        SystemExit: The pipeline failed; why is on standard error.
    """
    summary = io.StringIO()
    with contextlib.redirect_stdout(summary):
        code = run_command(COMMAND, [*flags, "--json_summary"])
    if code:
        raise SystemExit(code)
    return int(json.loads(summary.getvalue().splitlines()[-1])["rows_scored"])


def main() -> None:
    """The command line -> a finished run, and its report is told."""
    for name in HEAVY:
        importlib.import_module(name)
    with timed() as clock:
        rows = run(sys.argv[1:])
    report_rows(rows, clock)


if __name__ == "__main__":
    main()
