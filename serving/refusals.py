"""Error answers to requests: a status and `{"error": {...}}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.responses import Response

# Google's names of status codes. Source: google.rpc.Code.
_STATUS = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    431: "INVALID_ARGUMENT",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


@dataclass
class Refusal(Exception):
    """An error answer to a request.

    Attributes:
        status: The HTTP status.
        message: The message for the client.
        details: Other fields of the `error` object.
        headers: Additional HTTP headers.
    """

    status: int
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """Return the answer `{"error": {...}}`."""
        error = {
            "code": self.status,
            "status": _STATUS.get(self.status, "UNKNOWN"),
            "message": self.message,
            **self.details,
        }
        return json_response(orjson.dumps({"error": error}), self.status, self.headers)


class Disconnected(Exception):
    """The client has left, or has already got an error answer, so no answer is needed."""


def json_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with a JSON body."""
    return Response(body, status, headers, media_type="application/json")
