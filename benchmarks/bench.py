"""The folder of a benchmark: its rows, its model, and what the contestants write."""

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
    """A folder for data, model and outputs, and who takes part."""

    folder: Path
    contestants: tuple[str, ...]

    def data(self, rows: int) -> Path:
        """Row count -> a Parquet file of as many transactions, made if it is missing."""
        path = self.folder / f"transactions-{rows}.parquet"
        if not path.exists():
            print(f"making {rows:,} transactions", flush=True)
            unfinished = path.with_suffix(".unfinished")
            write_parquet(unfinished, rows, seed=SEED)
            unfinished.rename(path)
        return path

    def model(self) -> Path:
        """-> the folder of the model package, made if it is missing."""
        example = self.folder / "example"
        package = example / "model"
        if not (package / "model.json").exists():
            print("training and packaging the model", flush=True)
            build(example, rows=1_000, train_rows=100_000, seed=SEED)
        return package

    def output(self, name: str) -> Path:
        """Contestant -> an empty place for what it writes."""
        folder = self.folder / "out" / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def run(self, name: str, rows: int) -> Measured:
        """Contestant and row count -> one measured run.

        Raises:
            ContestantError: It failed, or wrote another number of rows.
        """
        command = [sys.executable, "-m", f"benchmarks.files.{name}"]
        command += ["--input", str(self.data(rows)), "--output", str(self.output(name))]
        measured = measure([*command, "--model", str(self.model())])
        if measured.report.rows != rows:
            raise ContestantError(f"{name} wrote {measured.report.rows} rows of {rows}")
        return measured
