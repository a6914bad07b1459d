"""How many CPUs the workers of a run have together, as far as its flags say."""

from __future__ import annotations

import os
import re

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, WorkerOptions

from pipelines.beam_args import runs_in_process, runs_on_dataflow

# How many workers a Dataflow job is expected to have if no flag names a number.
UNKNOWN_WORKERS = 10
_CUSTOM = re.compile(r"custom-(\d+)-")
_LAST_NUMBER = re.compile(r"-(\d+)(?:-[a-z]+)?$")


def worker_cpus(options: PipelineOptions) -> int:
    """Return about how many CPUs the workers of a run have together.

    Args:
        options: Beam's options: the runner, the numbers of workers, and the machine type.
    """
    if runs_in_process(options):
        return options.view_as(DirectOptions).direct_num_workers or os.cpu_count() or 1
    if not runs_on_dataflow(options):
        return os.cpu_count() or 1
    workers = options.view_as(WorkerOptions)
    count = workers.max_num_workers or workers.num_workers or UNKNOWN_WORKERS
    return count * machine_cpus(workers.machine_type)


def machine_cpus(machine_type: str | None) -> int:
    """Return the number of vCPUs in the name of a machine type, such as 4 of `n1-standard-4`.

    Args:
        machine_type: The name, or None for Dataflow's default.

    Returns:
        The number; 1 if the name does not say it, as in `e2-medium`.
    """
    name = machine_type or ""
    found = _CUSTOM.search(name) or _LAST_NUMBER.search(name)
    return int(found[1]) if found else 1
