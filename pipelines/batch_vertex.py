"""Score files or tables with a model behind a Vertex AI endpoint.

python -m pipelines.batch_vertex --input_files rows.parquet --output_files out/ \
    --model package/ --endpoint projects/P/locations/L/endpoints/ID
python -m pipelines.batch_vertex --input_table p.d.rows --output_table p.d.scores \
    --model package/ --endpoint fraud --project P --region L
"""

from __future__ import annotations

import sys

from pipelines.command import Command, run_and_exit
from pipelines.options import (
    CloudOptions,
    EndpointOptions,
    FailureOptions,
    ModelOptions,
    RunOptions,
    SinkOptions,
    SourceOptions,
)

COMMAND = Command(
    name="batch_vertex",
    title="Millrace: batch, model behind a Vertex AI endpoint",
    about="Score files or tables with a model behind a Vertex AI endpoint. Every row is scored or "
    "becomes a dead letter, and a report proves that the counts add up.",
    options=(
        SourceOptions,
        ModelOptions,
        EndpointOptions,
        SinkOptions,
        FailureOptions,
        CloudOptions,
        RunOptions,
    ),
    run="pipelines.batch.run:run_vertex",
)

if __name__ == "__main__":
    run_and_exit(COMMAND, sys.argv[1:])
