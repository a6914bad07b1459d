"""Score messages of a Pub/Sub subscription as they arrive, with a model in the worker.

python -m pipelines.stream_local --input_subscription projects/P/subscriptions/S \
    --model package/ --output_topic projects/P/topics/T --dead_letter_topic projects/P/topics/D
"""

from __future__ import annotations

import sys

from pipelines.command import Command, run_and_exit
from pipelines.options import (
    CloudOptions,
    DeviceOptions,
    ModelOptions,
    StreamFailureOptions,
    StreamRunOptions,
    StreamSinkOptions,
    StreamSourceOptions,
)

COMMAND = Command(
    name="stream_local",
    title="Millrace: stream, model in the worker",
    about="Score Pub/Sub messages as they arrive, with a PyTorch model that runs in the worker. "
    "Every message is scored or becomes a dead letter.",
    options=(
        StreamSourceOptions,
        ModelOptions,
        DeviceOptions,
        StreamSinkOptions,
        StreamFailureOptions,
        CloudOptions,
        StreamRunOptions,
    ),
    run="pipelines.stream.run:run_local",
)

if __name__ == "__main__":
    run_and_exit(COMMAND, sys.argv[1:])
