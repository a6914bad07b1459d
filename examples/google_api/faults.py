"""Faults that a service can have: what Google answers, and how."""

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
    """One request that the documents know: its number from 0, method id, values and body."""

    number: int
    method: str
    values: Mapping[str, str]
    body: Any

    @property
    def name(self) -> str:
        """The resource in the path: `name`, `parent` or what else the method calls it."""
        return next(iter(self.values.values()), "")


@dataclass
class Refusal(Exception):
    """An answer that is an error, as Google words it. status: of HTTP. kind: of google.rpc."""

    status: int
    message: str
    kind: str = ""
    details: Sequence[Mapping[str, Any]] = ()

    def answer(self) -> dict[str, Any]:
        """The body."""
        error = {
            "code": self.status,
            "message": self.message,
            "status": self.kind or _STATUS.get(self.status, "UNKNOWN"),
            **({"details": list(self.details)} if self.details else {}),
        }
        return {"error": error}


@dataclass(frozen=True)
class Later:
    """A call that is taken, and whose operation ends with the error."""

    refusal: Refusal


@dataclass(frozen=True)
class HangUp:
    """The connection ends without an answer. done: after the call was carried out."""

    done: bool = False


Fault = Refusal | Later | HangUp | None
Faults = Callable[[Call], Fault]


def permission_denied(permission: str, resource: str) -> Refusal:
    """A permission and a resource -> how Google says that it is missing."""
    return Refusal(
        403,
        f"Permission '{permission}' denied on resource '{resource}' (or it may not exist).",
        details=[_info("IAM_PERMISSION_DENIED", permission=permission)],
    )


def api_disabled(service: str, project: str) -> Refusal:
    """A service's host and a project -> how Google says that it was not enabled."""
    return Refusal(
        403,
        f"{service} has not been used in project {project} before or it is disabled. Enable it by "
        f"visiting https://console.developers.google.com/apis/api/{service}/overview?project="
        f"{project} then retry.",
        details=[_info("SERVICE_DISABLED", service=service, consumer=f"projects/{project}")],
    )


def quota_exceeded(quota: str) -> Refusal:
    """A quota's name -> how Google says that it is used up."""
    return Refusal(429, f"The following quota metrics exceed quota limits: {quota}")


def throttled() -> Refusal:
    """Too many requests at once."""
    return Refusal(429, "Quota exceeded for requests per minute.")


def _info(reason: str, **metadata: str) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": metadata,
    }
