"""What determines how long a batch job takes: the rows, the fleet, and Google's limits."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cloud.prices import Workers
from transforms.bigquery.session import MAX_STREAMS
from transforms.files.ranges import RANGE_ROWS

RESULTS = Path(__file__).parents[1] / "results"
GB = 1e9
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a row costs, as the benchmarks measured it on one core.

    Attributes:
        read_us: Microseconds of CPU to read a row, to prepare it and to write its result.
        model_us: Microseconds of CPU of the model. On a GPU, microseconds of the device.
        input_bytes: The size of a row in the source.
        memory_bytes: The size of a row in a record batch.
        output_bytes: The size of a row in the result.
    """

    read_us: float
    model_us: float
    input_bytes: float
    memory_bytes: float
    output_bytes: float


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Replicas of a model behind an endpoint.

    Attributes:
        replicas: How many replicas are deployed.
        rows_per_second: How many rows one replica answers in a second.
        dollars_per_hour: The price of one replica.
    """

    replicas: int = 10
    rows_per_second: float = 1_000.0
    dollars_per_hour: float = 0.22


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The workers of a job.

    Attributes:
        workers: The machines.
        slower: How many times longer a vCPU takes than a core on which the rows were measured.
        start_seconds: From the start of the job to its first row: machines, image, model.
        gpus: GPUs per worker; 0 for a model on CPUs.
        gpu_dollars: The price of a GPU for an hour.
        shared: The share of the cores that work at the same time, 0 to 1. Threads of a process
            wait for each other.
    """

    workers: Workers
    slower: float = 2.0
    start_seconds: float = 180.0
    gpus: int = 0
    gpu_dollars: float = 0.0
    shared: float = 0.9

    @property
    def slots(self) -> int:
        """How many units of work run at the same time."""
        return self.workers.count * self.workers.vcpu


@dataclass(frozen=True, kw_only=True)
class Job:
    """A batch job.

    Attributes:
        name: Its name in tables.
        rows: How many rows it scores.
        row: What a row costs.
        fleet: The workers.
        source: `files`, or `table` with the Storage Read API.
        sink: `files` or `table`.
        spread: Whether batches pass through a Reshuffle between reading and predicting.
        endpoint: The endpoint, or None if the workers have the model.
        range_rows: The rows in one range of a file.
        result_rows: The rows in one file of the result.
    """

    name: str
    rows: float
    row: Rows
    fleet: Fleet
    source: Literal["files", "table"] = "files"
    sink: Literal["files", "table"] = "files"
    spread: bool = False
    endpoint: Endpoint | None = None
    range_rows: float = RANGE_ROWS
    result_rows: float = 2_500_000


def measured_commit() -> float:
    """Return the measured seconds of a commit for each file, with 50 ms for each request."""
    sizes = json.loads((RESULTS / "commit.json").read_text())["sizes"]
    return float(sizes[-1]["seconds"] / sizes[-1]["files"])


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits and speeds that are the same for all jobs.

    Attributes:
        session_seconds: How long a session of the Storage Read API lives.
        streams: The largest number of streams of a session.
        commit_seconds_a_file: How long the commit takes for each file of the result.
        load_files: The largest number of files of one load job.
        load_rows_per_second: How fast a load job reads rows.
        load_jobs_a_day: The largest number of load jobs for one table in a day.
    """

    session_seconds: float = 6 * HOUR
    streams: int = MAX_STREAMS
    commit_seconds_a_file: float = field(default_factory=measured_commit)
    load_files: int = 10_000
    load_rows_per_second: float = 2e6
    load_jobs_a_day: int = 1_500


def measured_files() -> tuple[float, float]:
    """Return the measured CPU microseconds of a row from files to files, and the seconds to start.

    Start-up is what two sizes have in common.
    """
    sizes = json.loads((RESULTS / "files.json").read_text())["sizes"]
    (few, fewer), *_, (many, more) = [
        (size["rows"], size["contestants"]["millrace"]["run_seconds"]["median"]) for size in sizes
    ]
    a_row = (more - fewer) / (many - few)
    cpu = sizes[-1]["contestants"]["millrace"]["run_cpu_seconds_per_million_rows"]["median"]
    return cpu, fewer - few * a_row
