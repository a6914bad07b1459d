"""Estimate the memory that the workers of a run need, before the run starts."""

from __future__ import annotations

from dataclasses import dataclass

from transforms.files.sink.writers import ROW_GROUP_ROWS

# A worker process with Python, Beam, Arrow and the CPU build of torch, without a model and without
# rows; and what the CUDA build of torch adds, also on a machine without a GPU.
PROCESS_BYTES, CUDA_BYTES = 450 << 20, 450 << 20
# How many times the weights are in memory while a model is loaded: in the file, in copies that
# torch makes of it, and in the model. Measured by benchmarks/load_memory.py.
LOADED_TIMES = {"pt2": 2, "safetensors": 3, "state_dict": 3, "torchscript": 4}
# What the runner and the system of a Dataflow worker take.
RESERVED_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the workers on one machine hold in memory.

    Attributes:
        package_bytes: The size of the model package, or 0 if an endpoint runs the model.
        loaded_times: How many times these bytes are in memory while the model is loaded.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The maximum number of bytes of input in a batch.
        source_row: The bytes of a row as the source returns it.
        input_row: The bytes of the input tensors of a row.
        output_row: The bytes of a row that is written.
        ahead_rows: The number of rows that a reader fetches ahead of a batch, or 0.
        writers: How many places receive the rows.
        processes: The number of worker processes on the machine.
        threads: The number of threads in each process that work on a batch.
        process_bytes: The bytes of a process without a model and without rows.
    """

    package_bytes: int
    loaded_times: int
    batch_rows: int
    batch_bytes: int
    source_row: int
    input_row: int
    output_row: int
    ahead_rows: int = 0
    writers: int = 1
    processes: int = 1
    threads: int = 1
    process_bytes: int = PROCESS_BYTES


@dataclass(frozen=True)
class Need:
    """The memory that the workers on one machine need, in bytes.

    Attributes:
        processes: Of the processes themselves.
        models: Of the models while they are loaded.
        batches: Of the batches that are read and scored.
        writers: Of the rows that wait to be written.
    """

    processes: int
    models: int
    batches: int
    writers: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.processes + self.models + self.batches + self.writers

    def __str__(self) -> str:
        return (
            f"{in_gb(self.total)} (processes {in_gb(self.processes)}, model {in_gb(self.models)}, "
            f"batches {in_gb(self.batches)}, writers {in_gb(self.writers)})"
        )


def memory_needed(work: Work) -> Need:
    """Return the memory that the workers on one machine need.

    With rows = min(batch_rows, batch_bytes / source_row):

        processes = processes x process_bytes
        models    = processes x loaded_times x package_bytes
        batches   = processes x threads x (rows x 2 x (source_row + input_row + output_row)
                                           + ahead_rows x source_row)
        writers   = processes x threads x writers x 2 x (131,072 + rows) x output_row

    The bytes of a package are in memory until its weights are loaded. A step holds its input and
    its output, so a batch counts twice; and so do the rows of a row group, which are joined when it
    is written. What a model computes between its inputs and its outputs is not known, and not part
    of the sum.

    Args:
        work: What the workers do.
    """
    rows = min(work.batch_rows, max(work.batch_bytes // max(work.source_row, 1), 1))
    row = work.source_row + work.input_row + work.output_row
    threads = work.processes * work.threads
    return Need(
        processes=work.processes * work.process_bytes,
        models=work.processes * work.loaded_times * work.package_bytes,
        batches=threads * (rows * 2 * row + work.ahead_rows * work.source_row),
        writers=threads * work.writers * 2 * (ROW_GROUP_ROWS + rows) * work.output_row,
    )


def in_gb(size: int) -> str:
    """Return a number of bytes as text, such as `1.5 GB`."""
    return f"{size / (1 << 30):,.1f} GB"
