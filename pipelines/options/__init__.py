"""Every flag of every pipeline, once: a frozen dataclass per concern, a field per flag.

A field's metadata holds what the command line's help and a Flex Template's parameter
need (pipelines/options/flag.py).
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
    """Nothing -> every flag of every options class, those of a launch too."""
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
