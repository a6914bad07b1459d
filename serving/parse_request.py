"""Parse the body of a prediction request: `{"instances": [...], "parameters": {...}}`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serving.instances import unique_instances
from serving.refusals import Refusal
from transforms.json_rows.values import json_type, load_json

# Every gzip file starts with it, and no JSON text does.
_GZIP_START = b"\x1f\x8b"


@dataclass(frozen=True)
class Parameters:
    """The parameters of a request.

    Attributes:
        outputs: The fields of the answer, or None for those of the server.
        prepared: Whether the instances are tensors by the names of the model's inputs, although
            the server could prepare raw rows.
    """

    outputs: str | list[str] | None = None
    prepared: bool = False


def parse_request(body: bytes) -> tuple[list[Any], Parameters]:
    """Parse the body of a prediction request.

    Returns:
        The instances, and the parameters. An instance with a duplicate key is replaced by its
        Fault.

    Raises:
        Refusal: If the body is not a prediction request.
    """
    try:
        request = load_json(body)
    except ValueError as error:
        if body.startswith(_GZIP_START):
            message = "the body is compressed by gzip: send it with Content-Encoding: gzip"
            raise Refusal(400, message) from error
        raise Refusal(400, f"the body is {error}") from error
    if not isinstance(request, dict) or not isinstance(request.get("instances"), list):
        raise Refusal(
            400, 'expected an object with a list of rows as "instances": {"instances": [...]}'
        )
    try:
        instances = unique_instances(request, body)
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    parameters = request.get("parameters")
    if parameters is None:
        return instances, Parameters()
    if not isinstance(parameters, dict):
        raise Refusal(400, f"parameters: expected an object, got {json_type(parameters)}")
    for name in parameters:
        if name not in ("outputs", "prepared"):
            raise Refusal(
                400, f"unknown parameter {name[:40]!r}: the parameters are outputs and prepared"
            )
    prepared = parameters.get("prepared", False)
    if not isinstance(prepared, bool):
        raise Refusal(400, f"parameters.prepared: expected a boolean, got {json_type(prepared)}")
    outputs = parameters.get("outputs")
    names = outputs if isinstance(outputs, list) else [outputs]
    if outputs is not None and not all(isinstance(name, str) for name in names):
        raise Refusal(400, "parameters.outputs: expected all, score, or a list of names")
    return instances, Parameters(outputs, prepared)
