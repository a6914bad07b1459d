"""What all contestants share: the flags, the columns, the clock and the report."""

import argparse
import json
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ID_COLUMN = "transaction_id"
SCORE_OUTPUT = "normalized_MAE"
LATENT_OUTPUT = "encoded"
LATENT = 4


@dataclass(frozen=True)
class Task:
    """The task of a contestant: a Parquet file, a folder for the results, and a model package."""

    input: Path
    output: Path
    model: Path

    @property
    def torchscript(self) -> Path:
        """The TorchScript file in the package."""
        return self.model / "model.pt"


@dataclass(frozen=True)
class Report:
    """What a contestant reports about itself.

    Attributes:
        rows: The number of rows that it wrote.
        run_seconds: The time from its first read to its last write, without imports and start-up.
        run_cpu_seconds: User and system time in this period, of the process and of its children
            that have ended.
    """

    rows: int
    run_seconds: float
    run_cpu_seconds: float


@dataclass
class Clock:
    """The wall and CPU seconds of a `timed` block."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


def read_task(description: str, argv: Sequence[str] | None = None) -> Task:
    """Parse the command line, create the output folder and return the task."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--input", type=Path, required=True, help="Parquet file of transactions")
    parser.add_argument("--output", type=Path, required=True, help="folder for the scores")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model package")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    return Task(args.input, args.output, args.model)


@contextmanager
def timed() -> Iterator[Clock]:
    """Measure a block. The clock is filled in when the block ends without an error."""
    clock = Clock()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - wall
    clock.cpu_seconds = _cpu_seconds() - cpu


def print_scores_at(output: Path, clock: Clock) -> None:
    """Print the report about the written files and the clock as a line of JSON."""
    report = Report(written_rows(output), clock.seconds, clock.cpu_seconds)
    print(json.dumps(asdict(report)), flush=True)


def read_report(stdout: str) -> Report:
    """Return the report in the last line that a contestant printed.

    Raises:
        ValueError: The last line is not a report.
    """
    lines = stdout.strip().splitlines()
    try:
        return Report(**json.loads(lines[-1]))
    except (IndexError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a report as the last line, got {lines[-1:]}") from error


def score_files(output: Path) -> list[Path]:
    """Return the Parquet files of scores in an output folder, in order."""
    from transforms.files.sink.listing import superseded

    found = {str(path) for path in output.rglob("part-*.parquet")}
    return sorted(map(Path, found - superseded(found)))


def written_rows(output: Path) -> int:
    """Return the number of rows in an output folder, from the footers of the files."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in score_files(output))


def _cpu_seconds() -> float:
    """Return the user and system seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
