"""Computes the phases of a job, its cost, and the limits that it meets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.fleet.job import GB, HOUR, Job, Limits
from cloud.prices import BATCH, READ_GB

# A worker keeps about this much of its memory for the system, Beam and its own processes.
USABLE = 0.8
# What a process needs without rows: Python, Beam, PyTorch and a small model.
PROCESS_GB = 0.5
# A Reshuffle writes, sorts and reads each batch once: microseconds of CPU per MB.
SHUFFLE_US_PER_MB = 4_000.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job takes.

    Attributes:
        seconds: The seconds of each phase: `start`, `work` and `commit`.
        dollars: The price.
        units: How many units of work there are.
        files: How many files the result has.
        walls: The limits that the job meets, one sentence each.
    """

    seconds: dict[str, float]
    dollars: float
    units: int
    files: int
    walls: tuple[str, ...]

    @property
    def total(self) -> float:
        """The seconds of all phases."""
        return sum(self.seconds.values())


def simulate(job: Job, limits: Limits | None = None) -> Outcome:
    """Return what a job takes."""
    limits = limits or Limits()
    units = _units(job, limits)
    files = math.ceil(job.rows / job.result_rows)
    seconds = {
        "start": job.fleet.start_seconds,
        "work": _work(job, units),
        "commit": _commit(job, files, limits),
    }
    workers = job.fleet.workers.dollars(BATCH, sum(seconds.values()))
    workers += (
        job.fleet.workers.count
        * job.fleet.gpus
        * job.fleet.gpu_dollars
        * (sum(seconds.values()) / HOUR)
    )
    data = job.rows * job.row.memory_bytes / 2**30 * BATCH.data if job.spread else 0.0
    read = job.rows * job.row.memory_bytes / 2**30 * READ_GB if job.source == "table" else 0.0
    replicas = job.endpoint.replicas * job.endpoint.dollars_per_hour if job.endpoint else 0.0
    dollars = workers + data + read + replicas * sum(seconds.values()) / HOUR
    walls = tuple(_walls(job, units, files, seconds, limits))
    return Outcome(seconds=seconds, dollars=dollars, units=units, files=files, walls=walls)


def _units(job: Job, limits: Limits) -> int:
    """Return how many pieces of work can be given to workers one by one."""
    if job.spread:
        return math.ceil(job.rows * job.row.memory_bytes / 4e6)
    if job.source == "table":
        return min(limits.streams, math.ceil(job.rows / job.range_rows))
    return math.ceil(job.rows / job.range_rows)


def _work(job: Job, units: int) -> float:
    """Return the seconds of reading, predicting and writing."""
    fleet, row = job.fleet, job.row
    cpu_us = row.read_us * fleet.slower
    if job.spread:
        cpu_us += row.memory_bytes / 1e6 * SHUFFLE_US_PER_MB * fleet.slower
    device = 0.0
    if job.endpoint is not None:
        device = job.rows / (job.endpoint.replicas * job.endpoint.rows_per_second)
    elif fleet.gpus:
        device = job.rows * row.model_us * 1e-6 / (fleet.gpus * fleet.workers.count)
    else:
        cpu_us += row.model_us * fleet.slower
    busy = min(fleet.slots, units) * fleet.shared
    # The last units end when the first workers have nothing left to do: half a unit on average.
    of_unit = job.rows / units * cpu_us * 1e-6
    cpu = job.rows * cpu_us * 1e-6 / busy + of_unit / 2
    return max(cpu, device)


def _commit(job: Job, files: int, limits: Limits) -> float:
    """Return the seconds of the commit."""
    moves = files * limits.commit_seconds_a_file
    if job.sink == "files":
        return moves
    loads = math.ceil(files / limits.load_files)
    return max(10.0, job.rows / (limits.load_rows_per_second * loads)) + moves


def _walls(
    job: Job, units: int, files: int, seconds: dict[str, float], limits: Limits
) -> Iterator[str]:
    fleet = job.fleet
    if job.source == "table" and not job.spread and seconds["work"] > limits.session_seconds:
        rows = job.rows * limits.session_seconds / seconds["work"]
        yield (
            f"the read session expires after 6 h, with {rows:.1e} rows read: use "
            "--spread_batches yes or --read_method export"
        )
    if job.spread and job.source == "table":
        reading = job.rows * job.row.read_us * 1e-6 * fleet.slower / (fleet.slots * fleet.shared)
        if reading > limits.session_seconds:
            yield "reading alone takes longer than 6 h: use more workers or --read_method export"
    if units < fleet.slots:
        few = "use --spread_batches yes, or fewer workers"
        yield f"{units} units of work for {fleet.slots} vCPUs: {few}"
    of_unit = seconds["work"] * min(fleet.slots, units) / units
    if of_unit > HOUR:
        yield f"one unit of work takes {of_unit / HOUR:.1f} h, all of it lost if a worker stops"
    if seconds["commit"] > HOUR:
        what = "load jobs and the commit" if job.sink == "table" else "commit"
        yield f"the {what} of {files:,} files take{'' if job.sink == 'table' else 's'} " + (
            f"{seconds['commit'] / HOUR:.1f} h"
        )
    if job.sink == "table" and files > limits.load_files * limits.load_jobs_a_day:
        yield f"{files:,} files need more load jobs than a table may have in a day"
    batch = 32_768 * (job.row.memory_bytes + job.row.output_bytes)
    memory = fleet.workers.vcpu * (PROCESS_GB + 4 * batch / GB)
    if memory > fleet.workers.memory_gb * USABLE:
        yield f"{memory:.0f} GB needed of {fleet.workers.memory_gb:.0f} GB: lower --batch_rows"
    if job.endpoint is not None and seconds["work"] > 24 * HOUR:
        yield (
            f"the endpoint needs {seconds['work'] / HOUR / 24:.0f} days with "
            f"{job.endpoint.replicas} replicas"
        )
