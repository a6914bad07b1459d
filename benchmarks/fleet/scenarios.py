"""Jobs that people have, at several sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.fleet.job import Endpoint, Fleet, Job, Rows, measured_files
from cloud.prices import Workers

SIZES = (1e8, 1e10, 1e12)
# The example: 31 columns, a small autoencoder. The split of its CPU time is that of a profile.
_MODEL_SHARE = 0.2
_SMALL = Workers(count=20)
_LARGE = Workers(count=200)


def example_row() -> Rows:
    """Return a row of the example, as the benchmark of files measured it."""
    cpu_us, _ = measured_files()
    return Rows(
        read_us=cpu_us * (1 - _MODEL_SHARE),
        model_us=cpu_us * _MODEL_SHARE,
        input_bytes=183,
        memory_bytes=254,
        output_bytes=50,
    )


def jobs() -> Iterator[Job]:
    """Yield the jobs, each at all sizes."""
    row = example_row()
    # A text model with 20 rows a second and core, and 2,000 rows a second on a GPU.
    text = replace(row, read_us=20.0, model_us=50_000.0, memory_bytes=1_000, input_bytes=600)
    gpu = Fleet(workers=_SMALL, gpus=1, gpu_dollars=0.70, start_seconds=300.0)
    for rows in SIZES:
        yield Job(name="files to files, small model", rows=rows, row=row, fleet=_fleet(rows))
        yield Job(
            name="table to table, small model",
            rows=rows,
            row=row,
            fleet=_fleet(rows),
            source="table",
            sink="table",
        )
        for spread in (False, True):
            name = "table behind an endpoint" + ", spread" * spread
            yield Job(
                name=name,
                rows=rows,
                row=replace(row, model_us=5.0),
                fleet=_fleet(rows),
                source="table",
                sink="table",
                endpoint=Endpoint(),
                spread=spread,
            )
        yield Job(name="text model on CPUs", rows=rows, row=text, fleet=_fleet(rows))
        yield Job(
            name="text model on GPUs",
            rows=rows,
            row=replace(text, model_us=500.0),
            fleet=gpu,
            spread=True,
        )


def _fleet(rows: float) -> Fleet:
    return Fleet(workers=_SMALL if rows < 1e9 else _LARGE)
