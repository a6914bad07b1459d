"""Answers that refuse a request: their status, and `{"error": {...}}`."""

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
    431: "INVALID_ARGUMENT",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


@dataclass
class Refusal(Exception):
    """A request that gets an error: its status, message, further members and headers."""

    status: int
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """The answer `{"error": {...}}`."""
        error = {
            "code": self.status,
            "status": _STATUS.get(self.status, "UNKNOWN"),
            "message": self.message,
            **self.details,
        }
        return json_response(orjson.dumps({"error": error}), self.status, self.headers)


class Disconnected(Exception):
    """The client is gone, or was refused already: nobody reads an answer."""


def json_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON text, its status and headers -> the response."""
    return Response(body, status, headers, media_type="application/json")
