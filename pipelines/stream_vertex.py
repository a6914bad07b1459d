"""Score messages of a Pub/Sub subscription as they arrive, with a model behind an endpoint.

python -m pipelines.stream_vertex --input_subscription projects/P/subscriptions/S \
    --model package/ --endpoint projects/P/locations/L/endpoints/ID \
    --output_topic projects/P/topics/T --dead_letter_topic projects/P/topics/D
"""

from __future__ import annotations

import sys

from pipelines.command import Command, run_and_exit
from pipelines.options import (
    CloudOptions,
    EndpointOptions,
    ModelOptions,
    StreamFailureOptions,
    StreamRunOptions,
    StreamSinkOptions,
    StreamSourceOptions,
)

COMMAND = Command(
    name="stream_vertex",
    title="Millrace: stream, model behind a Vertex AI endpoint",
    about="Score Pub/Sub messages as they arrive, with a model behind a Vertex AI endpoint. Every "
    "message is scored or becomes a dead letter.",
    options=(
        StreamSourceOptions,
        ModelOptions,
        EndpointOptions,
        StreamSinkOptions,
        StreamFailureOptions,
        CloudOptions,
        StreamRunOptions,
    ),
    run="pipelines.stream.run:run_vertex",
)

if __name__ == "__main__":
    run_and_exit(COMMAND, sys.argv[1:])
