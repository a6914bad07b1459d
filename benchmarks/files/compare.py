"""Compares how Millrace, stock Beam and a plain loop score the same Parquet files.

python -m benchmarks.files.compare --rows 1000000 10000000 --rounds 3

First, each contestant must score a small file like the eager model. Then they take turns, each run
in a separate process.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bench import GATE_ROWS, Bench
from benchmarks.contestant import LATENT
from benchmarks.files.chart import draw
from benchmarks.gate import find_faults, read_scores, reference
from benchmarks.machine import describe_machine, versions
from benchmarks.measure import ENVIRONMENT, SAMPLE_SECONDS, ContestantError, Measured
from benchmarks.summary import summarise
from model_handlers.manifests.tolerance import TOLERANCE

CONTESTANTS = ("millrace", "stock_beam", "plain_loop")
STOCK = "stock_beam"
NOISE = 0.05
CHART = Path("docs/explanation/files.png")


def gate(bench: Bench, rows: int) -> dict[str, list[str]]:
    """Score a small file, and return the faults of each contestant that has any."""
    expected = reference(bench.data(rows), bench.model() / "model.pt")
    faults: dict[str, list[str]] = {}
    for name in bench.contestants:
        try:
            bench.run(name, rows)
            found = find_faults(read_scores(bench.folder / "out" / name), expected)
        except (ContestantError, ValueError) as error:
            found = [str(error)]
        print(f"gate {name}: {'FAIL' if found else 'ok'}", flush=True)
        if found:
            faults[name] = found
    return faults


def compete(bench: Bench, rows: int, stock_rows: int, rounds: int) -> dict[str, Any]:
    """Run every contestant once per round, and return the summary."""
    measured: dict[str, list[Measured]] = {name: [] for name in bench.contestants}
    for turn in range(rounds):
        for name in bench.contestants:
            own_rows = min(rows, stock_rows) if name == STOCK else rows
            warm(bench.data(own_rows))
            run = bench.run(name, own_rows)
            measured[name].append(run)
            print_round(name, turn, run)
    return {"rows": rows, **summarise(measured)}


def warm(path: Path) -> None:
    """Read a file once, to put it into the page cache for every contestant."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def print_round(name: str, turn: int, run: Measured) -> None:
    """Print a line about a run, with a note if other processes used much of the machine."""
    report = run.report
    line = f"round {turn + 1} {name:>10}: {report.rows:>11,} rows in {report.run_seconds:8.2f} s"
    line += f" {report.rows / report.run_seconds:>12,.0f} rows/s {run.peak_bytes / 1e6:6,.0f} MB"
    if run.other_cpu_share > NOISE:
        line += f"  (others used {run.other_cpu_share:.0%} of the machine)"
    print(line, flush=True)


def describe(args: argparse.Namespace, sizes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results as they are written."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "machine": describe_machine(),
        "rounds": args.rounds,
        "latent": LATENT,
        "environment": ENVIRONMENT,
        "gate": {"rows": GATE_ROWS, "tolerance": asdict(TOLERANCE), "passed": True},
        "method": {
            "run_seconds": "from the first read to the last write; for the two Beam programs, from "
            "the construction of the pipeline on, including the loading of the model",
            "process_seconds": "the whole process, including start-up and imports",
            "cpu_seconds": "user and system time of the process tree, including start-up",
            "run_cpu_seconds_per_million_rows": "user and system time during run_seconds",
            "peak_mb": "resident memory of the process plus unshared memory of its "
            f"descendants, sampled every {SAMPLE_SECONDS * 1000:.0f} ms, 10^6 bytes",
            "ratios": "ratios of the medians of rows_per_second",
        },
        "sizes": list(sizes),
    }


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Compare file-to-file scoring.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--stock_rows", type=int, default=200_000, help="maximum number of rows for stock Beam"
    )
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write files.json to the output folder, and draw the chart. Return 1 if the gate fails."""
    args = read_arguments(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.workdir, tuple(args.contestants))
    faults = gate(bench, GATE_ROWS)
    if faults:
        for name, lines in faults.items():
            print(f"FAIL {name}: {'; '.join(lines)}", file=sys.stderr)
        return 1
    sizes = [compete(bench, rows, args.stock_rows, args.rounds) for rows in args.rows]
    results = describe(args, sizes)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "files.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, CHART)
    for size in sizes:
        text = ", ".join(f"{pair} {ratio:.3g}x" for pair, ratio in size["ratios"].items())
        print(f"{size['rows']:,} rows: {text or 'no ratios'}")
    print(f"wrote {args.output / 'files.json'} and {CHART}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
