"""Writes what a test of a batch showed: result.json, and samples.parquet with a row per run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from scale_tests.load.batch_plan import Batch
from scale_tests.measures.batch_findings import conclude_batch, fit
from scale_tests.measures.batch_runs import BatchLevel, BatchOutcome, Run, judge_batch
from scale_tests.pages.record import environment, writing

# The figures of a level, each the median of its complete runs.
FIGURES = (
    "seconds",
    "rows_per_second",
    "start_seconds",
    "finish_seconds",
    "cpu_seconds",
    "peak_bytes",
    "read_bytes",
    "written_bytes",
)


def write_batch(outcome: BatchOutcome, folder: Path) -> None:
    """Write the result of a test into a folder that exists.

    Raises:
        OutputError: The folder cannot be written, for example because the disk is full.
    """
    with writing(folder):
        pq.write_table(batch_samples(outcome), folder / "samples.parquet")
        text = json.dumps(batch_result(outcome), indent=1, allow_nan=False)
        (folder / "result.json").write_text(text + "\n")


def batch_result(outcome: BatchOutcome) -> dict[str, Any]:
    """Return the content of result.json."""
    line = fit(outcome.levels)
    return {
        "test_id": outcome.test_id,
        "interrupted": outcome.interrupted,
        "ended": outcome.ended,
        "environment": environment(),
        "plan": msgspec.to_builtins(outcome.plan),
        "levels": [_describe(level, outcome.plan.batch) for level in outcome.levels],
        "line": {"fixed": line.fixed, "per_row": line.per_row} if line else None,
        "findings": [dataclasses.asdict(finding) for finding in conclude_batch(outcome)],
    }


def _describe(level: BatchLevel, batch: Batch) -> dict[str, Any]:
    verdict, reasons = judge_batch(level, batch)
    return {
        "name": level.name,
        "verdict": verdict,
        "reasons": reasons,
        "rows": level.rows,
        "accounts": level.totals(),
        **{name: level.median(name) for name in FIGURES},
        "runs": [_describe_run(run) for run in level.runs],
    }


def _describe_run(run: Run) -> dict[str, Any]:
    return {
        **dataclasses.asdict(run),
        "complete": run.complete,
        "rows_per_second": run.rows_per_second,
    }


def batch_samples(outcome: BatchOutcome) -> pa.Table:
    """Return a row for each run, with its accounts and figures."""
    rows = [
        {
            "level": level.name,
            "round": run.round,
            "started": run.started,
            "complete": run.complete,
            **dataclasses.asdict(run.accounts),
            **{name: getattr(run, name) for name in FIGURES},
        }
        for level in outcome.levels
        for run in level.runs
    ]
    return pa.Table.from_pylist(rows) if rows else pa.table({})
