"""Measures `pipelines.batch_local` between two tables of the local BigQuery.

python -m benchmarks.bigquery.table --rows 5000000

First, the scores of a small table must match the eager model. The servers run on the same machine
as the measured process. Their speed says nothing about the service: what counts are the memory and
the CPU time of the pipeline.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.bench import GATE_ROWS, Bench
from benchmarks.contestant import ID_COLUMN, LATENT, LATENT_OUTPUT, SCORE_OUTPUT
from benchmarks.gate import Scores, find_faults, reference
from benchmarks.measure import ContestantError, Measured, measure
from benchmarks.row_costs import PEAK_MEMORY, write_results
from benchmarks.summary import as_record, spread
from examples.local_cloud import INSTALL_COMMAND, LocalCloud, is_installed, local_cloud
from examples.transactions.demo_bigquery import BUCKET, SCORES, SOURCE, fill
from model_handlers.manifests.tolerance import TOLERANCE
from transforms.provenance import utc_now

PEAK_MB = 1_000
METHOD = {
    "peak_mb": f"{PEAK_MEMORY} The servers are not descendants of the pipeline.",
    "cpu_us_per_row": "user and system time of the pipeline's processes, including start-up, "
    "divided by the rows",
    "seconds": "start-up: until the pipeline has inspected its source and sinks. rest: the time "
    "between jobs, and the end of the process",
}
RUN_ID = "bench"
REPORT = f"tmp/millrace/{RUN_ID}/report.json"


@dataclass(frozen=True)
class Outcome:
    """A run from table to table: its cost, and the seconds of each part, in order."""

    measured: Measured
    seconds: Mapping[str, float]


def command(model: Path) -> list[str]:
    """Return the command that scores the table."""
    flags = {
        "input_table": SOURCE,
        "id_column": ID_COLUMN,
        "model": str(model),
        "score_output": SCORE_OUTPUT,
        "output_fields": LATENT_OUTPUT,
        "output_table": SCORES,
        "temp_location": f"gs://{BUCKET}/tmp",
        "run_id": RUN_ID,
    }
    pairs = [text for name, value in flags.items() for text in (f"--{name}", value)]
    return [sys.executable, "-m", "benchmarks.bigquery.timed_run", *pairs]


def score_table(servers: LocalCloud, data: Path, model: Path) -> Outcome:
    """Load a Parquet file into a table of new servers, and score it into another table.

    Raises:
        ContestantError: The run failed, or the table does not hold each row exactly once.
    """
    rows = fill(servers, data)
    start = utc_now()
    with patch.dict(os.environ, servers.environment):
        measured = measure(command(model))
    end = utc_now()
    sql = f"SELECT COUNT(*) AS n, COUNT(DISTINCT row_id) AS ids FROM `{SCORES}`"
    (found,) = servers.cloud.bigquery().query(sql).result()
    if (found["n"], found["ids"], measured.report.rows) != (rows, rows, rows):
        raise ContestantError(
            f"expected each of {rows} rows once; the run reports {measured.report.rows} rows, the "
            f"table holds {found['n']} rows with {found['ids']} different ids"
        )
    return Outcome(measured, _split(servers, start, end))


def _split(
    servers: LocalCloud, start: datetime.datetime, end: datetime.datetime
) -> dict[str, float]:
    """Return the seconds of each part of a run, given the start and the end of its process."""
    blob = servers.cloud.storage().bucket(BUCKET).blob(REPORT)
    started = datetime.datetime.fromisoformat(json.loads(blob.download_as_bytes())["started_at"])
    jobs = [job for job in servers.cloud.bigquery().list_jobs() if started <= job.created <= end]
    loads = [job for job in jobs if job.job_type == "load"]
    parts = {
        "start-up": (started - start).total_seconds(),
        "read, score, stage": (min(job.created for job in loads) - started).total_seconds(),
        "load jobs": _seconds(loads),
        "commit jobs": _seconds([job for job in jobs if job.job_type != "load"]),
    }
    rest = (end - start).total_seconds() - sum(parts.values())
    return {**parts, "rest": rest}


def _seconds(jobs: Sequence[Any]) -> float:
    """Return the sum of the run times of finished jobs."""
    return float(sum((job.ended - job.started).total_seconds() for job in jobs))


def read_table(servers: LocalCloud) -> Scores:
    """Return the scores in the table."""
    table = servers.cloud.bigquery().list_rows(SCORES).to_arrow(create_bqstorage_client=False)
    latent = table[LATENT_OUTPUT].combine_chunks().flatten().to_numpy()
    return Scores(
        np.asarray(table["row_id"]).astype(np.str_),
        table["score"].to_numpy(),
        latent.reshape(-1, LATENT),
    )


def gate(bench: Bench, rows: int) -> list[str]:
    """Score a small table, and return the faults of the scores."""
    data, model = bench.data(rows), bench.model()
    with tempfile.TemporaryDirectory() as place, local_cloud(Path(place)) as servers:
        score_table(servers, data, model)
        return find_faults(read_table(servers), reference(data, model / "model.pt"))


def run(bench: Bench, rows: int, rounds: int) -> dict[str, Any]:
    """Measure every round on new servers, and return the results."""
    data, model = bench.data(rows), bench.model()
    outcomes = []
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as place, local_cloud(Path(place)) as servers:
            outcome = score_table(servers, data, model)
        outcomes.append(outcome)
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in outcome.seconds.items())
        peak = outcome.measured.peak_bytes / 1e6
        print(f"round {turn + 1}: {rows:,} rows, peak {peak:,.0f} MB; {seconds}", flush=True)
    return summarise(outcomes)


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the figures of the runs, and the targets."""
    records = [
        {**as_record(outcome.measured), "seconds": dict(outcome.seconds)} for outcome in outcomes
    ]
    peaks = spread([record["peak_mb"] for record in records])
    return {
        "rows": records[0]["rows"],
        "peak_mb": peaks,
        "cpu_us_per_row": spread([r["cpu_seconds_per_million_rows"] for r in records]),
        "process_seconds": spread([record["process_seconds"] for record in records]),
        "runs": records,
        "targets": {"peak_mb": {"at_most": PEAK_MB, "measured": peaks["max"]}},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write bigquery_table.json to the output folder. Return 1 if the gate fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if not is_installed():
        print(f"error: the emulators are not installed: {INSTALL_COMMAND}", file=sys.stderr)
        return 1
    args.workdir.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.workdir, ())
    faults = gate(bench, GATE_ROWS)
    print(f"gate: {'FAIL ' + '; '.join(faults) if faults else 'ok'}", flush=True)
    if faults:
        return 1
    results = run(bench, args.rows, args.rounds)
    settings = {
        "gate": {"rows": GATE_ROWS, "tolerance": asdict(TOLERANCE), "passed": True},
        "method": METHOD,
    }
    write_results(args.output / "bigquery_table.json", settings, results, args.rounds)
    print(f"targets {results['targets']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
