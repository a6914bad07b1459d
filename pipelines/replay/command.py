"""Score dead letters once more, with attempts + 1, into the sinks they were meant for.

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
    about="Score dead letters of batch runs or of streams once more: a row that succeeds goes to "
    "the sinks, one that fails is a dead letter again, with one attempt more.",
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
    """A command line -> the process ends with the command's exit code."""
    run_and_exit(COMMAND, argv)
