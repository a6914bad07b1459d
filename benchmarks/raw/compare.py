"""Compares ways to score raw rows: categories, times and lists in, labels and decisions out.

python -m benchmarks.raw.compare --rows 1000000 --rounds 3

The contestants score the same Parquet file of customers with the model of the churn example. First,
each must score a small file like a loop over rows in Python. Then they take turns, each run in a
separate process. Daft and pandas are no dependencies of Millrace: a contestant whose library is not
installed is left out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from apache_beam.ml.inference.base import PredictionResult

from benchmarks.bench import GATE_ROWS, SEED, fresh
from benchmarks.contestant import score_files
from benchmarks.files.compare import print_round, warm
from benchmarks.machine import describe_machine, versions
from benchmarks.measure import ContestantError, Measured, measure
from benchmarks.raw.churn import ID_COLUMN, RESULT, load_model, read_fitted
from benchmarks.raw.stock_beam import preprocess, to_row
from benchmarks.summary import summarise
from examples.churn.build import build
from examples.churn.data import generate
from model_handlers.manifests.tolerance import TOLERANCE

LIBRARIES = {
    "millrace": "torch",
    "stock_beam": "apache_beam",
    "pandas_loop": "pandas",
    "daft_frame": "daft",
}
STOCK_ROWS = 100_000
# A label may differ where two probabilities are nearly equal.
MOST_LABELS = 1e-4


@dataclass(frozen=True)
class RawBench:
    """A folder for customers, the model and the output of the contestants."""

    folder: Path

    def data(self, rows: int) -> Path:
        """Return a Parquet file with that many customers, none faulty."""
        path = self.folder / f"customers-{rows}.parquet"
        if not path.exists():
            table = generate(rows, seed=SEED, faulty=0.0).drop(["outcome"])
            pq.write_table(table, path, row_group_size=131_072)
        return path

    def package(self) -> Path:
        """Return the folder of the model package."""
        example = self.folder / "churn"
        if not (example / "package" / "model.json").exists():
            print("training and packaging the model", flush=True)
            build(example, rows=1_000, train_rows=40_000, seed=SEED)
        return example / "package"

    def run(self, name: str, rows: int) -> Measured:
        """Measure one run of a contestant.

        Raises:
            ContestantError: The contestant failed or wrote the wrong number of rows.
        """
        command = [sys.executable, "-m", f"benchmarks.raw.{name}", "--input", str(self.data(rows))]
        command += ["--output", str(fresh(self.folder / "out" / name))]
        measured = measure([*command, "--model", str(self.package())])
        if measured.report.rows != rows:
            raise ContestantError(f"{name} wrote {measured.report.rows} rows of {rows}")
        return measured


def reference(data: Path, package: Path) -> dict[str, dict[str, Any]]:
    """Return the results by id, from a loop over the rows in Python."""
    prepare, model = preprocess(read_fitted(package)), load_model(package)
    found = {}
    for row in pq.read_table(data).to_pylist():
        key, inputs = prepare((row[ID_COLUMN], row))
        with torch.inference_mode():
            logits = model(**{name: value[None] for name, value in inputs.items()})[0]
        found[key] = to_row((key, PredictionResult(None, logits)))
    return found


def find_faults(output: Path, expected: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each kind of fault of the results that a contestant wrote."""
    rows = [row for path in score_files(output) for row in pq.read_table(path).to_pylist()]
    if sorted(row["row_id"] for row in rows) != sorted(expected):
        return [f"expected each of {len(expected)} ids once, got {len(rows)} rows with others"]
    faults = []
    pairs = [(row, expected[row["row_id"]]) for row in rows]
    scores = np.array([[one["score"], other["score"]] for one, other in pairs])
    if not TOLERANCE.agree(scores[:, 0], scores[:, 1]).all():
        faults.append("a score differs")
    for name in RESULT.names[2:]:
        wrong = sum(one[name] != other[name] for one, other in pairs)
        if wrong > MOST_LABELS * len(pairs):
            faults.append(f"{name} differs in {wrong} rows")
    return faults


def gate(bench: RawBench, contestants: Sequence[str]) -> list[str]:
    """Let each contestant score a small file, and return a line for each fault."""
    expected = reference(bench.data(GATE_ROWS), bench.package())
    faults = []
    for name in contestants:
        try:
            bench.run(name, GATE_ROWS)
            found = find_faults(bench.folder / "out" / name, expected)
        except ContestantError as error:
            found = [str(error)]
        print(f"gate {name}: {'FAIL' if found else 'ok'}", flush=True)
        faults += [f"{name}: {fault}" for fault in found]
    return faults


def compete(
    bench: RawBench, contestants: Sequence[str], rows: int, rounds: int
) -> dict[str, list[Measured]]:
    """Run every contestant once per round. Stock Beam scores at most STOCK_ROWS."""
    measured: dict[str, list[Measured]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in contestants:
            own = min(rows, STOCK_ROWS) if name == "stock_beam" else rows
            warm(bench.data(own))
            run = bench.run(name, own)
            measured[name].append(run)
            print_round(name, turn, run)
    return measured


def main(argv: Sequence[str] | None = None) -> int:
    """Write raw.json to the output folder. Return 1 if the gate fails."""
    parser = argparse.ArgumentParser(description="Compare the scoring of raw rows.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    bench = RawBench(args.workdir)
    contestants = [name for name, library in LIBRARIES.items() if importlib.util.find_spec(library)]
    faults = gate(bench, contestants)
    for fault in faults:
        print(f"FAIL {fault}", file=sys.stderr)
    if faults:
        return 1
    found = summarise(compete(bench, contestants, args.rows, args.rounds))
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(["pandas", "daft"]),
        "machine": describe_machine(),
        "rounds": args.rounds,
        "gate": {"rows": GATE_ROWS, "passed": True},
        **found,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "raw.json").write_text(json.dumps(results, indent=1) + "\n")
    print(", ".join(f"{pair} {ratio:.3g}x" for pair, ratio in found["ratios"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
