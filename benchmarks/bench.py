"""The folder of a benchmark, with its rows, its model and the output of the contestants."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ContestantError, Measured, measure
from examples.transactions.build import build
from examples.transactions.data import write_parquet

SEED = 11
GATE_ROWS = 20_000


@dataclass(frozen=True)
class Bench:
    """A folder for data, model and outputs, and the names of the contestants."""

    folder: Path
    contestants: tuple[str, ...]

    def data(self, rows: int) -> Path:
        """Return a Parquet file with that many transactions. Create it if it is missing."""
        path = self.folder / f"transactions-{rows}.parquet"
        if not path.exists():
            print(f"generating {rows:,} transactions", flush=True)
            unfinished = path.with_suffix(".unfinished")
            write_parquet(unfinished, rows, seed=SEED)
            unfinished.rename(path)
        return path

    def model(self) -> Path:
        """Return the folder of the model package. Create it if it is missing."""
        example = self.folder / "example"
        package = example / "model"
        if not (package / "model.json").exists():
            print("training and packaging the model", flush=True)
            build(example, rows=1_000, train_rows=100_000, seed=SEED)
        return package

    def output(self, name: str) -> Path:
        """Return a path for the output of a contestant, where nothing exists."""
        return fresh(self.folder / "out" / name)

    def run(self, name: str, rows: int) -> Measured:
        """Measure one run of a contestant.

        Raises:
            ContestantError: The contestant failed or wrote the wrong number of rows.
        """
        command = [sys.executable, "-m", f"benchmarks.files.{name}"]
        command += ["--input", str(self.data(rows)), "--output", str(self.output(name))]
        measured = measure([*command, "--model", str(self.model())])
        if measured.report.rows != rows:
            raise ContestantError(f"{name} wrote {measured.report.rows} rows of {rows}")
        return measured


def fresh(folder: Path) -> Path:
    """Remove a folder if it exists, and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
