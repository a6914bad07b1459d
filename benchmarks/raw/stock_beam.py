"""The contestant stock Beam: a dict per row, prepared by `with_preprocess_fn`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import apache_beam as beam
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerKeyedTensor
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.contestant import Task, print_scores_at, read_task, timed
from benchmarks.files.stock_beam import MAX_BATCH_ROWS, OPTIONS, TORCH_THREADS
from benchmarks.raw.churn import (
    COLUMNS,
    ID_COLUMN,
    MOST_CALLS,
    MOST_PER_GB,
    RESULT,
    SCALED,
    SECONDS_A_DAY,
    ZONE,
    Fitted,
    load_model,
    read_fitted,
)
from examples.churn.build import DECISIONS, THRESHOLDS
from examples.churn.data import DEVICES, OUTCOMES
from examples.churn.model import MOST_DEVICES, ChurnModel

Keyed = tuple[str, dict[str, Any]]


def preprocess(fitted: Fitted) -> Callable[[Keyed], tuple[str, dict[str, torch.Tensor]]]:
    """Return the function that makes the inputs of the model of a row and its id."""
    plans = {name: position for position, name in enumerate(fitted.plans)}
    regions = {name: position for position, name in enumerate(fitted.regions)}
    devices = {name: position for position, name in enumerate(DEVICES)}
    zone = ZoneInfo(ZONE)

    def prepare(keyed: Keyed) -> tuple[str, dict[str, torch.Tensor]]:
        key, row = keyed
        fee = fitted.median_fee if row["monthly_fee"] is None else row["monthly_fee"]
        seen = row["last_seen"]
        numbers = (
            math.log1p(fee),
            math.log1p(row["usage_gb"]),
            min(fee / row["usage_gb"], MOST_PER_GB),
            min(row["support_calls"], MOST_CALLS),
            float(row["is_company"]),
            row["signed_up"].toordinal() - 719_163,
            seen.timestamp() / SECONDS_A_DAY,
        )
        dense = [
            fitted.scale(name, number) if name in fitted.scales else number
            for name, number in zip(SCALED, numbers, strict=True)
        ]
        angle = 2 * math.pi * seen.astimezone(zone).hour / 24
        owned = [devices[name] for name in row["devices"]]
        missing = MOST_DEVICES - len(owned)
        return key, {
            "dense": torch.tensor([*dense, math.sin(angle), math.cos(angle)]),
            "plan": torch.tensor(plans[row["plan"].lower()]),
            "region": torch.tensor(regions.get(row["region"], len(regions))),
            "devices": torch.tensor(owned + [0] * missing),
            "owned": torch.tensor([1.0] * len(owned) + [0.0] * missing),
        }

    return prepare


def to_row(keyed: tuple[str, PredictionResult]) -> dict[str, Any]:
    """Return an id and its prediction as a row of `RESULT`."""
    row_id, result = keyed
    probabilities = torch.softmax(result.inference, dim=0).tolist()
    risk = probabilities[OUTCOMES.index("leaves")]
    return {
        "row_id": row_id,
        "score": risk,
        "outcome": OUTCOMES[probabilities.index(max(probabilities))],
        "decision": DECISIONS[sum(risk >= threshold for threshold in THRESHOLDS)],
    }


def run(task: Task, weights: Path) -> None:
    """Score a Parquet file of customers with a file of weights."""
    handler: Any = PytorchModelHandlerKeyedTensor(
        state_dict_path=str(weights),
        model_class=ChurnModel,
        model_params={},
        max_batch_size=MAX_BATCH_ROWS,
    )
    keyed = KeyedModelHandler(handler).with_preprocess_fn(preprocess(read_fitted(task.model)))
    with beam.Pipeline(options=PipelineOptions(OPTIONS)) as pipeline:
        (
            pipeline
            | beam.io.ReadFromParquet(str(task.input), columns=list(COLUMNS))
            | "ToKeyed" >> beam.Map(lambda row: (row[ID_COLUMN], row))
            | RunInference(keyed)
            | "ToRow" >> beam.Map(to_row)
            | beam.io.WriteToParquet(str(task.output / "part"), RESULT, file_name_suffix=".parquet")
        )


def main() -> None:
    """Score the file and print the report."""
    task = read_task("Score a Parquet file of customers with stock Beam.")
    torch.set_num_threads(TORCH_THREADS)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        torch.save(load_model(task.model).state_dict(), weights)
        with timed() as clock:
            run(task, weights)
    print_scores_at(task.output, clock)


if __name__ == "__main__":
    main()
