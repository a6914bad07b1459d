"""Measures the cost of Predict without its model: validation, RunInference and splitting.

python -m benchmarks.predict_cost --output benchmarks/results

The same batches pass through a pipeline with Predict and through one without it, alternately. The
difference between the two is the cost. The model is TorchScript that returns one column.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import torch

from benchmarks.machine import describe_machine, versions
from benchmarks.summary import spread
from common.record_batch import BATCH_ROWS, derived_ids, source_batch, typed
from examples.transactions.data import FEATURES
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.torch_model import TorchModelHandler
from model_handlers.write_package import write_package
from transforms.predict import Predict


class _FirstColumn(torch.nn.Module):
    """The cheapest possible model. It maps `[rows, 30]` to `[rows]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the first column."""
        return x[:, 0]


def cheap_model(folder: Path) -> Manifest:
    """Write the package of a model that computes nothing into an empty folder."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(_FirstColumn()), buffer)
    manifest = Manifest(
        name="first-column",
        version="1",
        format="torchscript",
        file="model.pt",
        sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        inputs=(InputSpec("x", FEATURES, shape=(len(FEATURES),)),),
        outputs=(OutputSpec("first"),),
        score_output="first",
    )
    write_package(folder, buffer.getvalue(), manifest)
    return manifest


def batches(start: int, count: int) -> Iterator[pa.RecordBatch]:
    """Yield source batches over the same random columns, which the seed `start` determines."""
    values = np.random.default_rng(start).standard_normal((len(FEATURES), BATCH_ROWS), np.float32)
    columns = pa.record_batch(dict(zip(FEATURES, values, strict=True)))
    ids = derived_ids("r", np.arange(BATCH_ROWS))
    for _ in range(count):
        yield source_batch(ids, columns)


def run(count: int, folder: Path, manifest: Manifest, predict: bool) -> float:
    """Return the seconds that a pipeline takes for the batches, with or without Predict."""
    options = beam.options.pipeline_options.PipelineOptions(["--direct_num_workers=1"])
    start = time.perf_counter()
    with beam.Pipeline("FnApiRunner", options) as pipeline:
        source = typed(pipeline | beam.Create([0]) | beam.FlatMap(batches, count))
        if predict:
            source = (source | Predict(TorchModelHandler(str(folder), manifest), manifest)).good
        source | "Drop" >> beam.Map(lambda _: None)
    return time.perf_counter() - start


def cost(rounds: int, count: int) -> dict[str, float]:
    """Return the microseconds per row that Predict adds, without start-up.

    Each pipeline also runs with a tenth of the batches. What both lengths have in common is
    start-up, so the difference leaves it out.
    """
    found: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        manifest = cheap_model(Path(name))
        for _ in range(rounds):
            seconds = {
                (n, predict): run(n, Path(name), manifest, predict)
                for n in (count, count // 10)
                for predict in (True, False)
            }
            longer = seconds[count, True] - seconds[count // 10, True]
            without = seconds[count, False] - seconds[count // 10, False]
            found.append((longer - without) / ((count - count // 10) * BATCH_ROWS) * 1e6)
    return spread(found)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write predict_cost.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=200)
    args = parser.parse_args(argv)
    figures = cost(args.rounds, args.batches)
    result = {
        "microseconds_per_row": figures,
        "rows_per_round": args.batches * BATCH_ROWS,
        "rounds": args.rounds,
        "versions": versions(),
        "machine": describe_machine(),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "predict_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"Predict without its model: {figures['median']} us per row (limit 0.5)")


if __name__ == "__main__":
    main()
