"""Score dead letters again, and write the rows to the sinks for which they were meant.

python -m pipelines.replay --input_files out/RUN_ID/dead_letters --model package/ \
    --output_files out/
python -m pipelines.replay --input_table p.d.scores_dead_letters --reason null --model package/ \
    --output_table p.d.scores --temp_location gs://bucket/tmp
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from pipelines.command import Command, run_and_exit
from pipelines.options import (
    CloudOptions,
    DeviceOptions,
    EndpointOptions,
    FailureOptions,
    ModelOptions,
    ReplayOptions,
    RunOptions,
    SinkOptions,
)

COMMAND = Command(
    name="replay",
    about="Score the dead letters of batch runs or of streams again. A row that is scored goes to "
    "the sinks; a row that fails becomes a dead letter again, with its attempts increased by one.",
    options=(
        ReplayOptions,
        ModelOptions,
        DeviceOptions,
        EndpointOptions,
        SinkOptions,
        FailureOptions,
        CloudOptions,
        RunOptions,
    ),
    run="pipelines.replay.run:run_local",
)


def main(argv: Sequence[str]) -> NoReturn:
    """Run the command and end the process with its exit code."""
    run_and_exit(COMMAND, argv)
