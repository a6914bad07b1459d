"""The contestant stock Beam, as documented: row dicts, a tensor per row, keyed `RunInference`."""

import tempfile
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.contestant import (
    ID_COLUMN,
    LATENT_OUTPUT,
    SCORE_OUTPUT,
    Task,
    print_scores_at,
    read_task,
    timed,
)
from benchmarks.two_outputs import load_two_outputs
from examples.transactions.data import FEATURES

# Measured on 2 cores with 200,000 rows, best rate in rows per second:
#   outputs: two 21,700, all 13 15,100;
#   tensor of a row: by np.fromiter 20,800, by torch.tensor 18,800;
#   max_batch_size: 32 19,600; 100 20,400; 256 21,700; 1,000 20,800; Beam's default 20,800;
#   batches of exactly 1,000: 17,500;
#   torch threads: 1 20,800, 2 20,400;
#   multi_threading with 2 workers: 20,900 at nearly twice the CPU time;
#   multi_processing with 2 workers: 15,300, on 500,000 rows 10,900, on a million 5,000.
# The form of Beam's examples (all 13 outputs, torch.tensor, no batch size) reaches 12,300. The rate
# of this configuration does not depend on the number of rows: 20,800 with 500,000 rows.
MAX_BATCH_ROWS = 256
TORCH_THREADS = 1
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("score", pa.float32()),
        ("encoded", pa.list_(pa.float32())),
    ]
)
OPTIONS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1")


def to_keyed_tensor(row: dict[str, Any]) -> tuple[str, torch.Tensor]:
    """Return the id of a row and its features, float32 `[30]`."""
    features = np.fromiter((row[name] for name in FEATURES), np.float32, len(FEATURES))
    return row[ID_COLUMN], torch.from_numpy(features)


def to_row(keyed: tuple[str, PredictionResult]) -> dict[str, Any]:
    """Return an id and its prediction as a row of `SCHEMA`."""
    row_id, result = keyed
    return {
        "row_id": row_id,
        "score": result.inference[SCORE_OUTPUT].item(),
        "encoded": result.inference[LATENT_OUTPUT].tolist(),
    }


def run(task: Task, model: Path) -> None:
    """Score a Parquet file of transactions with a TorchScript file."""
    handler = PytorchModelHandlerTensor(
        torch_script_model_path=str(model), max_batch_size=MAX_BATCH_ROWS
    )
    with beam.Pipeline(options=PipelineOptions(OPTIONS)) as pipeline:
        (
            pipeline
            | beam.io.ReadFromParquet(str(task.input), columns=[ID_COLUMN, *FEATURES])
            | "ToTensor" >> beam.Map(to_keyed_tensor)
            | RunInference(KeyedModelHandler(handler))
            | "ToRow" >> beam.Map(to_row)
            | beam.io.WriteToParquet(str(task.output / "part"), SCHEMA, file_name_suffix=".parquet")
        )


def main() -> None:
    """Score the file and print the report."""
    task = read_task("Score a Parquet file with stock Beam.")
    torch.set_num_threads(TORCH_THREADS)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.pt"
        load_two_outputs(task.torchscript).save(str(model))
        with timed() as clock:
            run(task, model)
    print_scores_at(task.output, clock)


if __name__ == "__main__":
    main()
