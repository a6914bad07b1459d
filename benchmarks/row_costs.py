"""Compares the cost of a row, in microseconds of CPU, of contestants that take turns."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contestant import Clock, Report
from benchmarks.machine import describe_machine, versions
from benchmarks.measure import ENVIRONMENT, SAMPLE_SECONDS, ContestantError, Measured, measure
from benchmarks.summary import Record, as_record, spread

# A round that shares more than this part of the machine with others is marked in the output.
NOISE = 0.05
PEAK_MEMORY = (
    "resident memory of the process plus unshared memory of its descendants, sampled every "
    f"{SAMPLE_SECONDS * 1000:.0f} ms, 10^6 bytes."
)
METHOD = {
    "us_per_row": "user and system time of the contestant's process with all its threads, without "
    "imports and preparation, divided by the rows; minimum, median and maximum of the rounds",
    "ratios": "ratios of the medians of us_per_row in this run",
    "peak_mb": f"{PEAK_MEMORY} It includes what is replayed or written.",
}


def report_rows(rows: int, clock: Clock) -> None:
    """Print the report of a contestant as a line of JSON."""
    print(json.dumps(asdict(Report(rows, clock.seconds, clock.cpu_seconds))), flush=True)


def take_turns(
    commands: Mapping[str, Sequence[str]], rows: Mapping[str, int], rounds: int
) -> dict[str, list[Measured]]:
    """Run every contestant once per round, and return the runs of each.

    Raises:
        ContestantError: A contestant failed or processed the wrong number of rows.
    """
    measured: dict[str, list[Measured]] = {name: [] for name in commands}
    for turn in range(rounds):
        for name, command in commands.items():
            run = measure(command)
            if run.report.rows != rows[name]:
                raise ContestantError(f"{name} processed {run.report.rows} rows of {rows[name]}")
            measured[name].append(run)
            _print_round(turn, name, run)
    return measured


def _print_round(turn: int, name: str, run: Measured) -> None:
    cost = run.report.run_cpu_seconds / run.report.rows * 1e6
    line = (
        f"round {turn + 1} {name:>32}: {cost:10.3f} us of CPU per row, {run.report.rows:>9,} rows"
    )
    if run.other_cpu_share > NOISE:
        line += f"  (others used {run.other_cpu_share:.0%} of the machine)"
    print(line, flush=True)


def costs(rounds: Mapping[str, Sequence[Measured]]) -> dict[str, Record]:
    """Return the cost of a row of each contestant, and its single rounds."""
    found: dict[str, Record] = {}
    for name, runs in rounds.items():
        found[name] = {
            "rows": runs[0].report.rows,
            "us_per_row": spread([r.report.run_cpu_seconds / r.report.rows * 1e6 for r in runs]),
            "rounds": [as_record(run) for run in runs],
        }
    return found


def ratio(contestants: Mapping[str, Record], expensive: Sequence[str], cheap: str) -> float:
    """Return the cost of the cheapest of the expensive contestants, as a multiple of the cheap."""
    best = min(contestants[name]["us_per_row"]["median"] for name in expensive)
    return float(f"{best / contestants[cheap]['us_per_row']['median']:.4g}")


def write_results(
    path: Path, settings: Mapping[str, Any], results: Mapping[str, Any], rounds: int
) -> None:
    """Write the results with their settings, versions and machine to a JSON file."""
    whole = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "machine": describe_machine(),
        "rounds": rounds,
        "environment": ENVIRONMENT,
        **settings,
        **results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"wrote {path}")
