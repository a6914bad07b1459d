"""The commands with two pipelines: one runs the model in the worker, one behind an endpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NoReturn

from pipelines import batch_local, batch_vertex, stream_local, stream_vertex
from pipelines.command import Command, run_and_exit
from pipelines.options import DeviceOptions, EndpointOptions

_OF_ENDPOINT = {f"--{field.name}" for field in dataclasses.fields(EndpointOptions)}
_WHERE = (
    "With --endpoint or --endpoint_url, the model runs behind a Vertex AI endpoint. Without them, "
    "it runs in the worker."
)


def score(argv: Sequence[str]) -> NoReturn:
    """Run `millrace score` with these arguments, and exit the process with its exit code."""
    run_and_exit(choose(argv, batch_local.COMMAND, batch_vertex.COMMAND), argv)


def stream(argv: Sequence[str]) -> NoReturn:
    """Run `millrace stream` with these arguments, and exit the process with its exit code."""
    run_and_exit(choose(argv, stream_local.COMMAND, stream_vertex.COMMAND), argv)


def choose(argv: Sequence[str], local: Command, vertex: Command) -> Command:
    """Return the pipeline whose flags a command line has.

    Args:
        argv: The command line.
        local: The pipeline with the model in the worker.
        vertex: The pipeline with the model behind an endpoint.

    Returns:
        One of the two pipelines, or for `--help` a command with the flags of both.
    """
    if not {"-h", "--help"}.isdisjoint(argv):
        return _either(local)
    given = {argument.partition("=")[0] for argument in argv}
    return local if given.isdisjoint(_OF_ENDPOINT) else vertex


def _either(local: Command) -> Command:
    """Return the pipeline with the model in the worker, with the flags of an endpoint added."""
    at = local.options.index(DeviceOptions) + 1
    return dataclasses.replace(
        local,
        about=f"{local.about.replace(' in the worker', '')} {_WHERE}",
        options=(*local.options[:at], EndpointOptions, *local.options[at:]),
    )
