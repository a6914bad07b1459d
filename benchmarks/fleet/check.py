"""Runs jobs of several sizes in this process's machine, beside what the model says about them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench import Bench, fresh
from benchmarks.fleet.job import RESULTS, Fleet, Job, measured_files
from benchmarks.fleet.scenarios import example_row
from benchmarks.fleet.simulate import simulate
from benchmarks.measure import Measured, measure
from cloud.prices import Workers

# The largest file; larger jobs read it under several names.
FILE_ROWS = 10_000_000


def predicted(rows: int) -> float:
    """Return the seconds of a run on this machine, from the figures of smaller runs."""
    cpu_us, start = measured_files()
    cores = psutil.cpu_count() or 1
    fleet = Fleet(
        workers=Workers(count=1, vcpu=cores),
        slower=1.0,
        start_seconds=start,
        shared=_shared(cpu_us, start, cores),
    )
    job = Job(name="here", rows=rows, row=example_row(), fleet=fleet)
    return simulate(job).total


def _shared(cpu_us: float, start: float, cores: int) -> float:
    """Return the share of the cores that worked in the measured runs after their start."""
    size = json.loads((RESULTS / "files.json").read_text())["sizes"][-1]
    seconds = size["contestants"]["millrace"]["run_seconds"]["median"]
    return float(size["rows"] * cpu_us * 1e-6 / ((seconds - start) * cores))


def run(bench: Bench, rows: int) -> Measured:
    """Score files with that many rows, and measure the run."""
    folder = fresh(bench.folder / "links")
    folder.mkdir()
    part = bench.data(min(rows, FILE_ROWS))
    for number in range(max(1, rows // FILE_ROWS)):
        os.link(part, folder / f"part-{number:03d}.parquet")
    command = [sys.executable, "-m", "benchmarks.files.millrace"]
    command += ["--input", f"{folder}/*.parquet", "--output", str(bench.output("fleet"))]
    return measure([*command, "--model", str(bench.model())])


def check(sizes: Sequence[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the figures of a run of each size, and what the model says."""
    bench = Bench(folder, ("millrace",))
    for rows in sizes:
        measured, expected = run(bench, rows), predicted(rows)
        seconds = measured.report.run_seconds
        yield {
            "rows": rows,
            "seconds": round(seconds, 2),
            "predicted": round(expected, 2),
            "ratio": round(expected / seconds, 3),
            "rows_per_second": round(rows / seconds),
            "peak_mb": round(measured.peak_bytes / 1e6),
            "scored": measured.report.rows,
        }
