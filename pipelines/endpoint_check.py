"""Sends a test row to an endpoint, and finds out where rows are prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson

from common.errors import EndpointError, UsageError
from model_handlers.endpoints.codec import EndpointCodec
from model_handlers.endpoints.endpoint import Endpoint, NeedsOutputs
from model_handlers.endpoints.handler import Place, VertexEndpointHandler
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.model_json import preparation_digest
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

    If the endpoint returns fewer outputs than are needed, it is asked for these.

    Args:
        flags: The flags of the endpoint.
        manifest: The manifest of the model, with its known-good rows.
        make: Returns the handler that sends the test row in a way.

    Raises:
        UsageError: If --prepare_at is needed, has no effect, or contradicts another flag; or if
            nothing would show that the endpoint prepares rows a second time.
        EndpointError: If the endpoint does not respond, serves another model, or does not prepare
            rows although --prepare_at says so.
    """
    if flags.prepare_at != "auto" and not manifest.has_steps:
        raise UsageError(
            f"--prepare_at has no effect, because model {manifest.name} has no steps that prepare "
            "rows: leave out --prepare_at"
        )
    parameters = flags.endpoint_parameters
    try:
        return _find_way(flags, manifest, make, parameters)
    except NeedsOutputs as error:
        if "outputs" in _read(parameters):
            raise
        # A server of another kind may refuse the parameter, or return what it did before.
        names = [spec.name for spec in make(Way("worker", parameters)).codec.outputs]
        with suppress(EndpointError):
            return _find_way(flags, manifest, make, _with(parameters, outputs=names))
        raise error from None


def _find_way(
    flags: EndpointOptions, manifest: Manifest, make: MakeHandler, parameters: str | None
) -> Way:
    """Do the same as `find_way`, with parameters for each request."""
    asked = flags.prepare_at
    way = Way("worker", parameters)
    handler = make(way)
    says_prepared = _read(parameters).get("prepared")
    if says_prepared is True and manifest.has_steps and asked != "worker":
        raise UsageError(
            '--endpoint_parameters has "prepared": true, so the endpoint takes rows as prepared: '
            "add --prepare_at worker, or leave the parameter out"
        )
    mistakable = says_prepared is None and _is_mistakable(handler.codec)
    if flags.skip_endpoint_check:
        _check_choice(flags, manifest, mistakable)
        return Way("server" if asked == "server" else "worker", parameters)
    if asked == "server":
        return _at_server(make, manifest, parameters)
    with _connected(handler) as endpoint:
        fault, steps = endpoint.find_fault(), endpoint.client.served_preparation
        error = None if fault is None else endpoint.other_model(fault)
        unclear = mistakable and endpoint.golden is None
    if steps is not None:
        if asked == "auto" and steps == preparation_digest(manifest):
            return _at_server(make, manifest, parameters)
        return _checked(make, Way("worker", _with(parameters, prepared=True)))
    if mistakable and _knows_prepared(make, parameters):
        return Way("worker", _with(parameters, prepared=True))
    if asked == "worker" or not manifest.has_steps:
        if error is not None:
            raise error
        return way
    if error is not None:
        return _without_header(make, parameters, error)
    if unclear:
        raise EndpointError(
            f"endpoint {endpoint.client.name} does not say whether it prepares rows, and model "
            f"{manifest.name} has no known-good rows to find out: add --prepare_at worker or "
            "--prepare_at server"
        )
    return way


def _check_choice(flags: EndpointOptions, manifest: Manifest, mistakable: bool) -> None:
    """Raise UsageError unless the flags say all that a test row would show."""
    if flags.prepare_at == "auto" and manifest.has_steps:
        raise UsageError(
            "with --skip_endpoint_check, nobody asks the endpoint whether it prepares rows: add "
            "--prepare_at worker or --prepare_at server"
        )
    if flags.prepare_at == "worker" and mistakable:
        raise UsageError(
            "with --skip_endpoint_check, nobody asks the endpoint whether it would prepare "
            f"prepared rows again, because the inputs of model {manifest.name} have the names of "
            "its columns: leave out --skip_endpoint_check, or add --endpoint_parameters "
            """'{"prepared": true}' for Millrace's server"""
        )


def _at_server(make: MakeHandler, manifest: Manifest, parameters: str | None) -> Way:
    """Return the way to a server that prepares rows, after it has answered a raw test row."""
    way = Way("server", parameters)
    with _connected(make(way)) as endpoint:
        fault = endpoint.find_fault()
        if fault is None:
            return way
        if endpoint.client.served_preparation is not None or endpoint.fewer_outputs:
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
        if fault is not None and endpoint.fewer_outputs:
            raise endpoint.other_model(fault)
    if fault is not None:
        raise error
    return way


def _checked(make: MakeHandler, way: Way) -> Way:
    with _connected(make(way)) as endpoint:
        endpoint.check()
    return way


def _read(parameters: str | None) -> dict[str, Any]:
    """Return the parameters of requests as an object."""
    found: dict[str, Any] = orjson.loads(parameters or "{}")
    return found


def _with(parameters: str | None, **more: object) -> str:
    """Return the parameters of requests with some more, or with other values."""
    return orjson.dumps({**_read(parameters), **more}).decode()


def _is_mistakable(codec: EndpointCodec) -> bool:
    """Return whether a server that prepares rows could take prepared rows for raw ones.

    It refuses lists, and objects with other names than those of its columns.
    """
    manifest = codec.manifest
    if not manifest.has_steps or codec.instance_format == "list":
        return False
    sent = {name for spec in manifest.inputs for name in (spec.columns or (spec.name,))}
    read = set(manifest.features)
    return sent <= read and read - sent <= manifest.optional


def _knows_prepared(make: MakeHandler, parameters: str | None) -> bool:
    """Return whether an endpoint knows the parameter `prepared`, as only Millrace's server does.

    Millrace's server accepts a boolean and refuses anything else. Another server ignores the
    parameter, or refuses it in both cases. It is not sent to such a server later, which may pass
    it to its model. Vertex AI does not pass on the header in which the server says what it is.
    """
    faults = []
    for value in (0, True):
        with _connected(make(Way("worker", _with(parameters, prepared=value)))) as endpoint:
            try:
                faults.append(endpoint.find_fault())
            except EndpointError:
                return False
        if faults[0] is None:
            return False
    return faults[1] is None


@contextmanager
def _connected(handler: VertexEndpointHandler) -> Iterator[Endpoint]:
    endpoint = handler.load_model()
    try:
        yield endpoint
    finally:
        endpoint.client.close()
