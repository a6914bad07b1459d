"""What every contestant does the same: its flags, its columns, its clock and its one JSON line."""

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
    """What a contestant is to do: a Parquet file, a folder for its results, a model package."""

    input: Path
    output: Path
    model: Path

    @property
    def torchscript(self) -> Path:
        """The package -> its TorchScript file."""
        return self.model / "model.pt"


@dataclass(frozen=True)
class Report:
    """What a contestant says of itself.

    run_seconds: from its first read to its last write; imports and start-up are outside.
    run_cpu_seconds: user and system time of the process and its ended children in that time.
    """

    rows: int
    run_seconds: float
    run_cpu_seconds: float


@dataclass
class Clock:
    """Wall and CPU seconds of the block that `timed` encloses."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


def read_task(description: str, argv: Sequence[str] | None = None) -> Task:
    """Command line -> the task; the output folder is made."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--input", type=Path, required=True, help="Parquet file of transactions")
    parser.add_argument("--output", type=Path, required=True, help="folder for the scores")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model package")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    return Task(args.input, args.output, args.model)


@contextmanager
def timed() -> Iterator[Clock]:
    """A block -> its wall and CPU seconds, filled in when it ends without an error."""
    clock = Clock()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - wall
    clock.cpu_seconds = _cpu_seconds() - cpu


def print_scores_at(output: Path, clock: Clock) -> None:
    """The written files and the clock -> the report as a line of JSON on standard output."""
    report = Report(written_rows(output), clock.seconds, clock.cpu_seconds)
    print(json.dumps(asdict(report)), flush=True)


def read_report(stdout: str) -> Report:
    """What a contestant printed -> the report in its last line.

    Raises:
        ValueError: The last line is not a report.
    """
    lines = stdout.strip().splitlines()
    try:
        return Report(**json.loads(lines[-1]))
    except (IndexError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a report as the last line, got {lines[-1:]}") from error


def score_files(output: Path) -> list[Path]:
    """A contestant's output folder -> its Parquet files of scores, in order."""
    from transforms.files.listing import superseded

    found = {str(path) for path in output.rglob("part-*.parquet")}
    return sorted(map(Path, found - superseded(found)))


def written_rows(output: Path) -> int:
    """A contestant's output folder -> the rows in it, from the footers of its files."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in score_files(output))


def _cpu_seconds() -> float:
    """-> user and system seconds so far of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
