"""The commands that have two pipelines: the model in the worker, or behind an endpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NoReturn

from pipelines import batch_local, batch_vertex, stream_local, stream_vertex
from pipelines.command import Command, run_and_exit
from pipelines.options import DeviceOptions, EndpointOptions

_OF_ENDPOINT = {f"--{field.name}" for field in dataclasses.fields(EndpointOptions)}
_WHERE = (
    "With --endpoint or --endpoint_url the model is behind an endpoint of Vertex AI, without them "
    "it runs in the worker."
)


def score(argv: Sequence[str]) -> NoReturn:
    """The command line of `millrace score` -> the end of the process, with the exit code."""
    run_and_exit(choose(argv, batch_local.COMMAND, batch_vertex.COMMAND), argv)


def stream(argv: Sequence[str]) -> NoReturn:
    """The command line of `millrace stream` -> the end of the process, with the exit code."""
    run_and_exit(choose(argv, stream_local.COMMAND, stream_vertex.COMMAND), argv)


def choose(argv: Sequence[str], local: Command, vertex: Command) -> Command:
    """A command line and the two pipelines -> the one whose flags it has.

    For `--help` one with the flags of both.
    """
    if not {"-h", "--help"}.isdisjoint(argv):
        return _either(local)
    given = {argument.partition("=")[0] for argument in argv}
    return local if given.isdisjoint(_OF_ENDPOINT) else vertex


def _either(local: Command) -> Command:
    """The pipeline with the model in the worker -> a command that has an endpoint's flags too."""
    at = local.options.index(DeviceOptions) + 1
    return dataclasses.replace(
        local,
        about=f"{local.about.replace(' in the worker', '')} {_WHERE}",
        options=(*local.options[:at], EndpointOptions, *local.options[at:]),
    )
