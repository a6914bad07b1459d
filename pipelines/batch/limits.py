"""The limits of a finished run: the share of dead letters, and the number of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import TooFewRows, TooManyDeadLetters
from transforms.run_report import too_many


def check_limits(
    report: Mapping[str, Any], max_dead_letter_share: float, min_rows: int = 0
) -> None:
    """Raise an error if a finished run is beyond its limits. Its output stays in place.

    A run that scored no row of those that it read fails whatever the limits are: its input does not
    belong to the model.

    Args:
        report: The report of the run.
        max_dead_letter_share: The maximum share of the rows, from 0 to 1.
        min_rows: The minimum number of rows that the run reads.

    Raises:
        TooFewRows: If the run read too few rows.
        TooManyDeadLetters: If too many rows are dead letters, or if no row was scored.
    """
    rows, dead, limit = report["rows_in"], report["rows_dead_lettered"], max_dead_letter_share
    if rows < min_rows:
        raise TooFewRows(
            f"{rows:,} rows were read from {', '.join(report['input'])}, fewer than --min_rows "
            f"{min_rows:,}; the output is in place: check the source, and run again with "
            f"--run_id {report['run_id']}"
        )
    if not too_many(dead, rows, limit):
        return
    largest, places = report["dead_letters"][0], " or ".join(report["dead_letter_output"])
    why = f"more than --max_dead_letter_share {limit:g} allows"
    if dead <= limit * rows:
        why = "and a run fails if it scores no row"
    todo = f"fix the source or the model, and run again with --run_id {report['run_id']}"
    if report["pipeline"].endswith("_replay"):
        todo = (
            "a replay scores the rows as the dead letters hold them: if the model is wrong, fix it "
            "and run the same command again; if the rows are, score them from a corrected source"
        )
    column = f", column {largest['column']}" if largest["column"] else ""
    raise TooManyDeadLetters(
        f"{dead:,} of {rows:,} rows ({dead / rows * 100:.2f} %) are dead letters, {why}; the "
        f"largest group is reason {largest['reason']}, stage {largest['stage']}{column} "
        f"({largest['rows']:,} {'row' if largest['rows'] == 1 else 'rows'}): see {places} for the "
        f"rows and reasons; {todo}"
    )
