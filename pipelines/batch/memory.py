"""Check before a batch run that its workers have the memory that they need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import torch
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    PipelineOptions,
    WorkerOptions,
)

from common.errors import UsageError
from common.machine_memory import machine_memory
from common.record_batch import row_bytes
from common.terminal import is_terminal
from model_handlers.manifests.manifest import Manifest
from pipelines.beam_args import runs_in_process, runs_on_dataflow
from pipelines.command import say
from pipelines.config import ModelConfig
from pipelines.dataflow.machine_types import ONE_PROCESS, MachineType, larger_types, machine_type
from pipelines.worker_memory import (
    CUDA_BYTES,
    LOADED_TIMES,
    PROCESS_BYTES,
    RESERVED_BYTES,
    Need,
    Work,
    in_gb,
    memory_needed,
)
from transforms.encode import read_type
from transforms.files.ranges import RANGE_ROWS
from transforms.output_fields import OutputFields

_LESS = "lower --batch_rows or --batch_bytes"


def work_of(
    model: ModelConfig,
    manifest: Manifest,
    fields: OutputFields,
    *,
    package_bytes: int,
    source: pa.Schema | None,
    written: pa.Schema,
    writers: int,
    remote: bool,
) -> Work:
    """Return what one thread of a batch run holds in memory.

    Args:
        model: The configuration of the model.
        manifest: The manifest of the model.
        fields: The fields that are written of each row.
        package_bytes: The size of the model package, or 0 if an endpoint runs the model.
        source: The columns of the source, or None if each row names its own.
        written: The columns that are written.
        writers: How many places receive the rows.
        remote: Whether the source is files in a bucket, of which a row group is fetched ahead.
    """
    read = dict.fromkeys((name for spec in manifest.inputs for name in spec.sources), None)
    names = (*read, *(name for name in fields.source if name not in read))
    known = {} if source is None else dict(zip(source.names, source.types, strict=True))
    kinds = (known.get(name) or read_type(name, manifest) for name in names)
    return Work(
        package_bytes=package_bytes,
        loaded_times=LOADED_TIMES[manifest.format],
        batch_rows=model.batch_rows,
        batch_bytes=model.batch_bytes,
        source_row=sum(map(row_bytes, kinds)),
        input_row=sum(row_bytes(spec.arrow_type) for spec in manifest.inputs),
        output_row=sum(map(row_bytes, written.types)),
        ahead_rows=RANGE_ROWS if remote else 0,
        writers=writers,
    )


def check_memory_needed(work: Work, options: PipelineOptions) -> None:
    """Compare the memory that a run needs with that of its workers, and print it.

    On a terminal, and for a Dataflow job with a known machine type, the estimate is printed. If
    a Dataflow worker has enough memory for one process but not for one on each vCPU, this
    function requests one process with threads.

    Args:
        work: What one thread does.
        options: Beam's options of the run, which may be changed.

    Raises:
        UsageError: This machine has too little memory for the model, or the machine type of a
            Dataflow job for the work of a worker.
    """
    if runs_in_process(options):
        _check_here(_spread(work, options), machine_memory())
    elif runs_on_dataflow(options):
        # Beam's option has the name `machine_type`.
        machine = machine_type(str(options.view_as(WorkerOptions).machine_type))
        if machine is not None:
            _check_machine(work, machine, options)


def _spread(work: Work, options: PipelineOptions) -> Work:
    """Return the work of all workers in this process and in its child processes."""
    direct = options.view_as(DirectOptions)
    count = max(direct.direct_num_workers, 1)
    many = direct.direct_running_mode == "multi_processing"
    own = PROCESS_BYTES + (CUDA_BYTES if torch.version.cuda else 0)
    return _with(replace(work, process_bytes=own), count if many else 1, 1 if many else count)


def _check_here(work: Work, memory: int) -> None:
    need = memory_needed(work)
    certain = need.processes + need.models
    if certain > memory:
        raise UsageError(
            f"the model does not fit: loading it needs about {in_gb(certain)} "
            f"({work.processes} x {work.loaded_times} x {in_gb(work.package_bytes)}), but this "
            f"machine or its container has {in_gb(memory)}: use a smaller model or a larger machine"
            f"{', or fewer processes' if work.processes > 1 else ''}"
        )
    text = f"memory: about {need} of {in_gb(memory)}"
    if need.total > memory:
        say(f"warning: {text}: it may not be enough; {_LESS}")
    elif is_terminal(sys.stderr):
        say(text)


def _check_machine(work: Work, machine: MachineType, options: PipelineOptions) -> None:
    experiments: Sequence[str] = options.view_as(DebugOptions).experiments or ()
    alone = _with(work, 1, machine.vcpus)
    spread = alone if ONE_PROCESS in experiments else _with(work, machine.vcpus, 1)
    for chosen in (spread, alone):
        need = memory_needed(chosen)
        if need.total + RESERVED_BYTES <= machine.memory:
            say(f"memory: about {need} of {in_gb(machine.memory)} on each {machine.name}")
            if chosen.processes < spread.processes:
                options.view_as(DebugOptions).add_experiment(ONE_PROCESS)
                say(
                    f"each worker runs one process with {machine.vcpus} threads "
                    f"(--experiments={ONE_PROCESS}): a copy of the model for each vCPU does not fit"
                )
            return
    raise UsageError(_too_large(work, memory_needed(alone), machine))


def _too_large(work: Work, need: Need, machine: MachineType) -> str:
    fitting = (
        larger.name
        for larger in larger_types(machine)
        if memory_needed(_with(work, 1, larger.vcpus)).total + RESERVED_BYTES <= larger.memory
    )
    advice = next(fitting, None)
    other = f"use --machine_type {advice}" if advice else "use a machine type with more memory"
    return (
        f"a worker needs about {need} and {in_gb(RESERVED_BYTES)} for the system, but "
        f"--machine_type {machine.name} has {in_gb(machine.memory)}: {other}, or {_LESS}"
    )


def _with(work: Work, processes: int, threads: int) -> Work:
    return replace(work, processes=processes, threads=threads)
