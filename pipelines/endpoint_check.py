"""Sends a test row to an endpoint, and finds out where rows are prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import orjson

from common.errors import EndpointError, UsageError
from model_handlers.endpoint import Endpoint
from model_handlers.endpoint_handler import Place, VertexEndpointHandler
from model_handlers.manifest import Manifest
from model_handlers.manifest_json import preparation_digest
from pipelines.options import EndpointOptions


@dataclass(frozen=True)
class Way:
    """How rows are sent to an endpoint.

    Attributes:
        place: Where rows are prepared.
        parameters: The `parameters` of each request, as the text of a JSON object, or None.
    """

    place: Place
    parameters: str | None


# Returns a handler that sends rows in a way.
MakeHandler = Callable[[Way], VertexEndpointHandler]


def find_way(flags: EndpointOptions, manifest: Manifest, make: MakeHandler) -> Way:
    """Return the way in which rows are sent, after sending a test row if the flags allow it.

    Args:
        flags: The flags of the endpoint.
        manifest: The manifest of the model, with its known-good rows.
        make: Returns the handler that sends the test row in a way.

    Raises:
        UsageError: If --prepare_at is needed, or has no effect.
        EndpointError: If the endpoint does not respond, serves another model, or does not prepare
            rows although --prepare_at says so.
    """
    asked, parameters = flags.prepare_at, flags.endpoint_parameters
    if asked != "auto" and not manifest.has_steps:
        raise UsageError(
            f"--prepare_at has no effect, because model {manifest.name} has no steps that prepare "
            "rows: leave out --prepare_at"
        )
    if flags.skip_endpoint_check:
        if asked == "auto" and manifest.has_steps:
            raise UsageError(
                "with --skip_endpoint_check, nobody asks the endpoint whether it prepares rows: "
                "add --prepare_at worker or --prepare_at server"
            )
        return Way("server" if asked == "server" else "worker", parameters)
    if asked == "server":
        return _at_server(make, manifest, parameters)
    way = Way("worker", parameters)
    with _connected(make(way)) as endpoint:
        fault, steps = endpoint.find_fault(), endpoint.client.served_preparation
        error = None if fault is None else endpoint.other_model(fault)
        unclear = endpoint.golden is None and endpoint.codec.instance_format == "named"
    if steps is not None:
        if asked == "auto" and steps == preparation_digest(manifest):
            return _at_server(make, manifest, parameters)
        return _checked(make, Way("worker", _with_prepared(parameters)))
    if asked == "worker" or not manifest.has_steps:
        if error is not None:
            raise error
        return way
    if error is not None:
        return _without_header(make, parameters, error)
    if unclear and manifest.columns.keys() == {spec.name for spec in manifest.inputs}:
        raise EndpointError(
            f"endpoint {endpoint.client.name} does not say whether it prepares rows, and model "
            f"{manifest.name} has no known-good rows to find out: add --prepare_at worker or "
            "--prepare_at server"
        )
    return way


def _at_server(make: MakeHandler, manifest: Manifest, parameters: str | None) -> Way:
    """Return the way to a server that prepares rows, after it has answered a raw test row."""
    way = Way("server", parameters)
    with _connected(make(way)) as endpoint:
        fault = endpoint.find_fault()
        if fault is None:
            return way
        if endpoint.client.served_preparation is not None:
            raise endpoint.other_model(fault)
        raise EndpointError(
            f"endpoint {endpoint.client.name} does not prepare rows as model {manifest.name} "
            f"{manifest.version} needs it: {fault}; use --prepare_at worker, or deploy the package "
            "with Millrace's server"
        )


def _without_header(make: MakeHandler, parameters: str | None, error: EndpointError) -> Way:
    """Return the way to an endpoint that refuses tensors, if it answers a raw row correctly.

    Vertex AI does not pass on the header in which the server says that it prepares rows.
    """
    way = Way("server", parameters)
    with _connected(make(way)) as endpoint:
        try:
            fault = endpoint.find_fault()
        except EndpointError:
            fault = str(error)
    if fault is not None:
        raise error
    return way


def _checked(make: MakeHandler, way: Way) -> Way:
    with _connected(make(way)) as endpoint:
        endpoint.check()
    return way


def _with_prepared(parameters: str | None) -> str:
    """Return parameters that make a server that prepares rows accept prepared ones."""
    return orjson.dumps({**orjson.loads(parameters or "{}"), "prepared": True}).decode()


@contextmanager
def _connected(handler: VertexEndpointHandler) -> Iterator[Endpoint]:
    endpoint = handler.load_model()
    try:
        yield endpoint
    finally:
        endpoint.client.close()
