"""Every flag of every pipeline: one frozen dataclass for each concern, one field for each flag.

The metadata of a field holds what `--help` and the parameters of a Flex Template need
(pipelines/options/flag.py).
"""

from __future__ import annotations

import dataclasses

from pipelines.options.batch import FailureOptions, SinkOptions, SourceOptions
from pipelines.options.launch import LaunchOptions
from pipelines.options.model import DeviceOptions, EndpointOptions, ModelOptions
from pipelines.options.replay import ReplayOptions
from pipelines.options.run import CloudOptions, RunOptions
from pipelines.options.stream import (
    StreamFailureOptions,
    StreamRunOptions,
    StreamSinkOptions,
    StreamSourceOptions,
)

__all__ = [
    "CloudOptions",
    "DeviceOptions",
    "EndpointOptions",
    "FailureOptions",
    "LaunchOptions",
    "ModelOptions",
    "ReplayOptions",
    "RunOptions",
    "SinkOptions",
    "SourceOptions",
    "StreamFailureOptions",
    "StreamRunOptions",
    "StreamSinkOptions",
    "StreamSourceOptions",
    "all_flags",
]


def all_flags() -> set[str]:
    """Return every flag of the pipelines, of replay and of launch, as `--name`."""
    kinds = (
        ModelOptions,
        DeviceOptions,
        EndpointOptions,
        SourceOptions,
        SinkOptions,
        FailureOptions,
        StreamSourceOptions,
        StreamSinkOptions,
        StreamFailureOptions,
        StreamRunOptions,
        ReplayOptions,
        CloudOptions,
        RunOptions,
        LaunchOptions,
    )
    return {f"--{f.name}" for kind in kinds for f in dataclasses.fields(kind)}
