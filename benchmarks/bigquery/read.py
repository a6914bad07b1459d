"""Compares how Millrace and Beam turn responses of the Storage Read API into a matrix.

python -m benchmarks.bigquery.read --rows 200000 --rounds 3

The benchmark records responses of the local BigQuery and then replays them to each contestant in
turn, in a separate process. First, each contestant must find exactly the ids and the matrix of the
file that the table was loaded from.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud.bigquery_storage_v1 import types

from benchmarks.bench import Bench
from benchmarks.bigquery.decoders import read_kept
from benchmarks.bigquery.recording import Recording, cut, record
from benchmarks.contestant import ID_COLUMN
from benchmarks.measure import measure
from benchmarks.row_costs import METHOD, costs, ratio, take_turns, write_results
from cloud.clients import Cloud
from examples.local_cloud import INSTALL_COMMAND, is_installed, local_cloud
from examples.transactions.data import FEATURES
from examples.transactions.demo_bigquery import SOURCE, fill
from transforms.bigquery.schema import TableName
from transforms.row_ids import content_ids

US_PER_ROW = 0.5
TIMES_BEAM = 30
# One megabyte of 31 columns. The emulator's own responses have 25 MB, but the service sends at most
# 10 MB per response.
SMALL_ROWS = 4_096
# How many times a contestant reads its recording. Millrace reads it too fast to measure a single
# pass. In a pipeline, most of the time would be the set-up, which is part of the measurement.
TIMES = {"millrace": 10, "millrace_content_ids": 10, "millrace_pipeline": 10, "beam_pipeline": 3}


class Entrant(NamedTuple):
    """A contestant of `decoders` and the recording that it reads."""

    decoder: str
    recording: str

    @property
    def times(self) -> int:
        """How many times it reads its recording."""
        return TIMES.get(self.decoder, 1)

    @property
    def has_ids(self) -> bool:
        """Whether its rows have an id column."""
        return self.recording != "arrow_without_id"


ENTRANTS = {
    "millrace": Entrant("millrace", "arrow"),
    "millrace_small_lz4": Entrant("millrace", "arrow_small_lz4"),
    "millrace_content_ids": Entrant("millrace_content_ids", "arrow_without_id"),
    "millrace_pipeline": Entrant("millrace_pipeline", "arrow"),
    "beam_arrow": Entrant("beam_rows", "arrow"),
    "beam_arrow_small_lz4": Entrant("beam_rows", "arrow_small_lz4"),
    "beam_avro": Entrant("beam_rows", "avro"),
    "beam_pipeline": Entrant("beam_pipeline", "arrow"),
}


def record_all(cloud: Cloud, table: TableName) -> dict[str, Recording]:
    """Record the rows of a table in every form, and return the recordings by name."""
    every = (ID_COLUMN, *FEATURES)
    arrow, avro = types.DataFormat.ARROW, types.DataFormat.AVRO
    whole = record(cloud, table, every, arrow)
    return {
        "arrow": whole,
        "arrow_small_lz4": cut(whole, SMALL_ROWS),
        "arrow_without_id": record(cloud, table, FEATURES, arrow),
        "avro": record(cloud, table, every, avro),
    }


def expected_rows(data: Path, with_ids: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted ids of a Parquet file of transactions, and their rows of the matrix.

    Without the id column, the ids are derived from the values, which are FLOAT64 in BigQuery.
    """
    table = pq.read_table(data, columns=[ID_COLUMN, *FEATURES]).combine_chunks()
    ids = table[ID_COLUMN]
    if not with_ids:
        ids = content_ids([table[name].chunk(0).cast(pa.float64()) for name in FEATURES])
    matrix = np.stack([table[name].to_numpy() for name in FEATURES], axis=1)
    text = np.asarray(ids).astype(np.str_)
    order = np.argsort(text, kind="stable")
    return text[order], matrix[order]


def find_faults(
    found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]
) -> list[str]:
    """Compare the ids and the matrix of a contestant with the file, and return the first fault."""
    (ids, matrix), (expected_ids, expected_matrix) = found, expected
    if not np.array_equal(ids, expected_ids):
        wrong = np.setxor1d(ids, expected_ids)
        example = wrong[0] if wrong.size else "an id that occurs twice"
        return [f"ids differ: {len(ids)} of {len(expected_ids)} rows, the first is {example}"]
    if matrix.dtype != np.float32:
        return [f"expected a float32 matrix, got {matrix.dtype}"]
    differs = (matrix != expected_matrix).any(axis=1)
    if differs.any():
        return [f"values differ: {differs.sum()} rows, the first is {ids[differs][0]}"]
    return []


def command(entrant: Entrant, folder: Path, model: Path, *more: str) -> list[str]:
    """Return the command line for a contestant."""
    flags = ["--recording", str(folder / entrant.recording), "--model", str(model), *more]
    return [sys.executable, "-m", "benchmarks.bigquery.decoders", entrant.decoder, *flags]


def gate(folder: Path, data: Path, model: Path) -> bool:
    """Return whether every contestant finds the rows of the file in its recording."""
    expected = {with_ids: expected_rows(data, with_ids) for with_ids in (True, False)}
    passed = True
    for name, entrant in ENTRANTS.items():
        with tempfile.TemporaryDirectory(dir=folder) as output:
            measure(command(entrant, folder, model, "--output", output))
            faults = find_faults(read_kept(Path(output)), expected[entrant.has_ids])
        print(f"gate {name}: {'FAIL ' + '; '.join(faults) if faults else 'ok'}", flush=True)
        passed = passed and not faults
    return passed


def describe(recordings: Mapping[str, Recording]) -> dict[str, dict[str, int]]:
    """Describe the recordings for the results."""
    return {
        name: {
            "rows": recording.rows,
            "rows_of_a_response": recording.response_rows,
            "bytes": recording.size,
        }
        for name, recording in recordings.items()
    }


def compete(folder: Path, model: Path, rows: int, rounds: int) -> dict[str, object]:
    """Return the cost of a row for every contestant, the ratios, and the targets."""
    commands = {
        name: command(entrant, folder, model, "--times", str(entrant.times))
        for name, entrant in ENTRANTS.items()
    }
    expected = {name: rows * entrant.times for name, entrant in ENTRANTS.items()}
    contestants = costs(take_turns(commands, expected, rounds))
    ratios = {
        "beam/millrace": ratio(contestants, ("beam_arrow", "beam_avro"), "millrace"),
        "beam/millrace, small LZ4 responses": ratio(
            contestants, ("beam_arrow_small_lz4", "beam_avro"), "millrace_small_lz4"
        ),
        "beam/millrace, as pipelines": ratio(contestants, ("beam_pipeline",), "millrace_pipeline"),
    }
    ours = contestants["millrace"]["us_per_row"]["median"]
    targets = {
        "us_per_row": {"at_most": US_PER_ROW, "measured": ours},
        "times_beam": {"at_least": TIMES_BEAM, "measured": ratios["beam/millrace"]},
    }
    return {"contestants": contestants, "ratios": ratios, "targets": targets}


def main(argv: Sequence[str] | None = None) -> int:
    """Write bigquery_read.json to the output folder. Return 1 if the gate fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if not is_installed():
        print(f"error: the emulators are not installed: {INSTALL_COMMAND}", file=sys.stderr)
        return 1
    args.workdir.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.workdir, ())
    data, model, folder = bench.data(args.rows), bench.model(), args.workdir / "recordings"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"recording {args.rows:,} rows from the local BigQuery", flush=True)
    with tempfile.TemporaryDirectory() as place, local_cloud(Path(place)) as servers:
        fill(servers, data)
        recordings = record_all(servers.cloud, TableName.parse(SOURCE, "source"))
    for name, recording in recordings.items():
        recording.save(folder / name)
    if not gate(folder, data, model):
        return 1
    results = compete(folder, model, args.rows, args.rounds)
    settings = {
        "columns": 1 + len(FEATURES),
        "recordings": describe(recordings),
        "gate": {"rows": args.rows, "passed": True},
        "method": {**METHOD, "as pipelines": "us_per_row includes the set-up of the pipeline"},
    }
    write_results(args.output / "bigquery_read.json", settings, results, args.rounds)
    print(f"ratios {results['ratios']}\ntargets {results['targets']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
