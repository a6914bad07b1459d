"""What a row costs each of several contestants that take turns, in microseconds of CPU."""

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

# A share of the machine that others may use while a contestant runs, before it is told.
NOISE = 0.05
PEAK_MEMORY = (
    "resident memory of the process plus unshared memory of its descendants, sampled every "
    f"{SAMPLE_SECONDS * 1000:.0f} ms, 10^6 bytes."
)
METHOD = {
    "us_per_row": "user and system time of the contestant's process and all its threads, imports "
    "and preparation left out, by the rows; minimum, median and maximum of the rounds",
    "ratios": "of the medians of us_per_row within this run",
    "peak_mb": f"{PEAK_MEMORY} What is replayed or written is part of it.",
}


def report_rows(rows: int, clock: Clock) -> None:
    """A contestant's rows and clock -> its report as a line of JSON on standard output."""
    print(json.dumps(asdict(Report(rows, clock.seconds, clock.cpu_seconds))), flush=True)


def take_turns(
    commands: Mapping[str, Sequence[str]], rows: Mapping[str, int], rounds: int
) -> dict[str, list[Measured]]:
    """Contestants' commands and rows -> the runs of each; in each round each has one turn.

    Raises:
        ContestantError: One failed, or did another number of rows than it should.
    """
    measured: dict[str, list[Measured]] = {name: [] for name in commands}
    for turn in range(rounds):
        for name, command in commands.items():
            run = measure(command)
            if run.report.rows != rows[name]:
                raise ContestantError(f"{name} did {run.report.rows} rows of {rows[name]}")
            measured[name].append(run)
            _tell(turn, name, run)
    return measured


def _tell(turn: int, name: str, run: Measured) -> None:
    cost = run.report.run_cpu_seconds / run.report.rows * 1e6
    line = f"round {turn + 1} {name:>32}: {cost:10.3f} us of CPU a row, {run.report.rows:>9,} rows"
    if run.other_cpu_share > NOISE:
        line += f"  (others used {run.other_cpu_share:.0%} of the machine)"
    print(line, flush=True)


def costs(rounds: Mapping[str, Sequence[Measured]]) -> dict[str, Record]:
    """Contestants' runs -> what a row costs each, and its rounds one by one."""
    found: dict[str, Record] = {}
    for name, runs in rounds.items():
        found[name] = {
            "rows": runs[0].report.rows,
            "us_per_row": spread([r.report.run_cpu_seconds / r.report.rows * 1e6 for r in runs]),
            "rounds": [as_record(run) for run in runs],
        }
    return found


def ratio(contestants: Mapping[str, Record], expensive: Sequence[str], cheap: str) -> float:
    """Some opponents, and ours -> how many times ours the cheapest of the opponents costs."""
    best = min(contestants[name]["us_per_row"]["median"] for name in expensive)
    return float(f"{best / contestants[cheap]['us_per_row']['median']:.4g}")


def write_results(
    path: Path, settings: Mapping[str, Any], results: Mapping[str, Any], rounds: int
) -> None:
    """What was measured, and how -> a JSON file like those of the other benchmarks."""
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
