"""Compares how Millrace and Beam turn output rows into files to load or requests to append.

python -m benchmarks.bigquery.write --rows 2000000 --rounds 3

First, each contestant must write a small number of rows in a form from which the table would hold
them exactly. Then they take turns, each in a separate process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bigquery.sinks import (
    BATCH_ROWS,
    CONTESTANTS,
    PROVENANCE,
    WRITTEN,
    output_rows,
    table_rows,
)
from benchmarks.measure import measure
from benchmarks.row_costs import METHOD, costs, ratio, take_turns, write_results

GATE_ROWS = 2_000
US_PER_ROW = 1.0
# The share of the rows that slow contestants write. They need no more for a figure.
SHARES = {
    "beam_file_loads": 1 / 20,
    "beam_file_loads_avro": 1 / 20,
    "beam_streaming_inserts": 1 / 1_000,
    "beam_streaming_inserts_no_torch": 1 / 1_000,
}
FILE_LOADS = ("beam_file_loads", "beam_file_loads_avro")
STREAMING_INSERTS = ("beam_streaming_inserts",)


def command(name: str, rows: int, *more: str) -> list[str]:
    """Return the command line for a contestant."""
    program = [sys.executable, "-m", "benchmarks.bigquery.sinks", name]
    return [*program, "--rows", str(rows), *more]


def find_faults(found: pa.Table, expected: pa.Table) -> list[str]:
    """Compare the rows of a contestant with the expected ones, and return the first fault."""
    if found.num_rows != expected.num_rows:
        return [f"expected {expected.num_rows} rows, got {found.num_rows}"]
    if not found.schema.equals(expected.schema):
        return [f"expected the columns {expected.schema}, got {found.schema}"]
    differing = [name for name in expected.schema.names if not found[name].equals(expected[name])]
    return [f"columns differ: {', '.join(differing)}"] if differing else []


def gate(rows: int) -> bool:
    """Return whether every contestant writes the rows exactly."""
    expected, passed = table_rows(output_rows(rows)), True
    for name in CONTESTANTS:
        with tempfile.TemporaryDirectory() as output:
            measure(command(name, rows, "--output", output))
            faults = find_faults(pq.read_table(Path(output) / WRITTEN), expected)
        print(f"gate {name}: {'FAIL ' + '; '.join(faults) if faults else 'ok'}", flush=True)
        passed = passed and not faults
    return passed


def compete(rows: int, rounds: int) -> dict[str, object]:
    """Return the cost of a row for every contestant, the ratios, and the targets."""
    counts = {name: max(1, int(rows * SHARES.get(name, 1))) for name in CONTESTANTS}
    commands = {name: command(name, count) for name, count in counts.items()}
    contestants = costs(take_turns(commands, counts, rounds))
    targets = {
        f"us_per_row of {name}": {
            "at_most": US_PER_ROW,
            "measured": contestants[name]["us_per_row"]["median"],
        }
        for name in ("millrace_parquet", "millrace_append")
    }
    ratios = {
        "beam FILE_LOADS/millrace_parquet": ratio(contestants, FILE_LOADS, "millrace_parquet"),
        "beam STREAMING_INSERTS/millrace_append": ratio(
            contestants, STREAMING_INSERTS, "millrace_append"
        ),
    }
    return {"contestants": contestants, "ratios": ratios, "targets": targets}


def main(argv: Sequence[str] | None = None) -> int:
    """Write bigquery_write.json to the output folder. Return 1 if the gate fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if not gate(GATE_ROWS):
        return 1
    results = compete(args.rows, args.rounds)
    settings = {
        "row": {
            "columns": output_rows(1)[0].schema.names,
            "model": f"{PROVENANCE.model_name} {PROVENANCE.model_version}",
            "rows_of_a_batch": BATCH_ROWS,
        },
        "gate": {"rows": GATE_ROWS, "passed": True},
        "method": METHOD,
    }
    write_results(args.output / "bigquery_write.json", settings, results, args.rounds)
    print(f"ratios {results['ratios']}\ntargets {results['targets']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
