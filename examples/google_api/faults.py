"""Faults that a stand-in can simulate, worded as Google words them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Google's names of status codes. Source: google.rpc.Code.
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}


@dataclass(frozen=True)
class Call:
    """One request that a document knows.

    Attributes:
        number: The number of the request, from 0.
        method: The id of the method.
        values: The parameters of the path and the query.
        body: The decoded body, or None.
    """

    number: int
    method: str
    values: Mapping[str, str]
    body: Any

    @property
    def name(self) -> str:
        """The resource in the path, whose parameter is `name`, `parent` or similar."""
        return next(iter(self.values.values()), "")


@dataclass
class Refusal(Exception):
    """An error answer.

    Attributes:
        status: The HTTP status.
        message: The message, as Google words it.
        kind: The name of the google.rpc code; by default, the one that belongs to the status.
        details: The details of the error.
    """

    status: int
    message: str
    kind: str = ""
    details: Sequence[Mapping[str, Any]] = ()

    def answer(self) -> dict[str, Any]:
        """Return the body of the answer."""
        error = {
            "code": self.status,
            "message": self.message,
            "status": self.kind or _STATUS.get(self.status, "UNKNOWN"),
            **({"details": list(self.details)} if self.details else {}),
        }
        return {"error": error}


@dataclass(frozen=True)
class Later:
    """A fault that accepts the call, and ends its operation with the error."""

    refusal: Refusal


@dataclass(frozen=True)
class HangUp:
    """A fault that closes the connection without an answer.

    Attributes:
        done: Whether the call is carried out before.
    """

    done: bool = False


Fault = Refusal | Later | HangUp | None
Faults = Callable[[Call], Fault]


def permission_denied(permission: str, resource: str) -> Refusal:
    """Return Google's error for a missing permission on a resource."""
    return Refusal(
        403,
        f"Permission '{permission}' denied on resource '{resource}' (or it may not exist).",
        details=[_info("IAM_PERMISSION_DENIED", permission=permission)],
    )


def api_disabled(service: str, project: str) -> Refusal:
    """Return Google's error for a service that is not enabled in a project."""
    return Refusal(
        403,
        f"{service} has not been used in project {project} before or it is disabled. Enable it by "
        f"visiting https://console.developers.google.com/apis/api/{service}/overview?project="
        f"{project} then retry.",
        details=[_info("SERVICE_DISABLED", service=service, consumer=f"projects/{project}")],
    )


def quota_exceeded(quota: str) -> Refusal:
    """Return Google's error for a quota that is used up."""
    return Refusal(429, f"The following quota metrics exceed quota limits: {quota}")


def throttled() -> Refusal:
    """Return Google's error for too many requests per minute."""
    return Refusal(429, "Quota exceeded for requests per minute.")


def _info(reason: str, **metadata: str) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": metadata,
    }
