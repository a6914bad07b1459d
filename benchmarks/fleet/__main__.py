"""Models batch jobs, and compares the model with runs on this machine.

python -m benchmarks.fleet
python -m benchmarks.fleet --check 1000000 10000000 100000000 --output benchmarks/results
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from benchmarks.cost import usd
from benchmarks.fleet.check import check
from benchmarks.fleet.scenarios import jobs
from benchmarks.fleet.simulate import simulate
from benchmarks.machine import describe_machine, versions


def table() -> list[str]:
    """Return the lines of a Markdown table of all jobs."""
    lines = [
        "| job | rows | vCPUs | start | work | commit | USD | limits |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for job in jobs():
        outcome = simulate(job)
        seconds = [duration(outcome.seconds[phase]) for phase in ("start", "work", "commit")]
        walls = "; ".join(outcome.walls) or "none"
        cells = [job.name, f"{job.rows:.0e}", f"{job.fleet.slots:,}", *seconds]
        lines.append(f"| {' | '.join([*cells, usd(outcome.dollars), walls])} |")
    return lines


def duration(seconds: float) -> str:
    """Return seconds in a unit that fits: s, min, h or days."""
    for unit, length in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"


def main(argv: list[str] | None = None) -> None:
    """Print the table, or run the check and write fleet.json."""
    parser = argparse.ArgumentParser(description="Model batch jobs of any size.")
    parser.add_argument("--check", type=int, nargs="+", help="sizes to run on this machine")
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if not args.check:
        print("\n".join(table()))
        return
    args.workdir.mkdir(parents=True, exist_ok=True)
    runs = []
    for run in check(args.check, args.workdir):
        print(json.dumps(run), flush=True)
        runs.append(run)
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "machine": describe_machine(),
        "method": "seconds: from the construction of the pipeline to its end, the model loaded in "
        "this time. predicted: from the figures of files.json. The largest file is read under "
        "several names.",
        "runs": runs,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "fleet.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
