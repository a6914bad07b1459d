"""Score files or tables with a model that runs in the worker.

python -m pipelines.batch_local --input_files rows.parquet --model package/ --output_files out/
python -m pipelines.batch_local --input_table p.d.rows --model package/ --output_table p.d.scores
"""

from __future__ import annotations

import sys

from pipelines.command import Command, run_and_exit
from pipelines.options import (
    CloudOptions,
    DeviceOptions,
    FailureOptions,
    ModelOptions,
    RunOptions,
    SinkOptions,
    SourceOptions,
)

COMMAND = Command(
    name="batch_local",
    title="Millrace: batch, model in the worker",
    about="Score files or tables with a PyTorch model that runs in the worker. Every row is scored "
    "or becomes a dead letter, and a report proves that the counts add up.",
    options=(
        SourceOptions,
        ModelOptions,
        DeviceOptions,
        SinkOptions,
        FailureOptions,
        CloudOptions,
        RunOptions,
    ),
    run="pipelines.batch.run:run_local",
)

if __name__ == "__main__":
    run_and_exit(COMMAND, sys.argv[1:])
