"""Answers of an endpoint that are no predictions: what each means, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import NoReturn

import aiohttp
import orjson

from cloud.retry_pacing import parse_retry_after
from common.addresses import host_of
from common.errors import EndpointError, one_line

_OVERLOADED = {408, 425, 429, 503, 504}
_REFUSING = {400, 413, 422}
_ADVICE = {
    401: "the credentials were refused: log in again, or give the worker's service account",
    403: "grant the account the role roles/aiplatform.user (permission aiplatform.endpoints."
    "predict) in the endpoint's project",
    404: "check {flags}, and that a model is deployed there",
}
_NO_TOKEN = "no token was sent, since the address is none of Google's over https"
_PRECONDITION = "FAILED_PRECONDITION"


class RequestRefused(Exception):
    """A request that may be refused because of its rows. status: 0 where the answer is unusable."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BadAnswer(Exception):
    """An answer that is none: raised by those who read it."""


class Passing(Exception):
    """What may be gone when it is asked again.

    suspicious: the rows may be why. unusable: there was an answer, of another form.
    """

    def __init__(
        self,
        message: str,
        *,
        suspicious: bool = False,
        unusable: bool = False,
        overloaded: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.suspicious, self.unusable = suspicious, unusable
        self.overloaded, self.retry_after = overloaded, retry_after


def raise_for(
    name: str,
    status: int,
    headers: Mapping[str, str],
    answer: bytes,
    *,
    has_token: bool,
    flags: str,
) -> NoReturn:
    """An endpoint's name and an answer whose status is not 200 -> what it means, raised.

    has_token: whether the request had one. flags: that led to the endpoint.
    Raises Passing, Refused, EndpointError.
    """
    text = status_text(status, answer)
    if status in _OVERLOADED or (status >= 500 and status not in (501, 505)):
        raise Passing(
            text,
            # Whoever is asked too often has not looked at the rows.
            suspicious=status >= 500,
            overloaded=status in _OVERLOADED,
            retry_after=parse_retry_after(headers.get("Retry-After")),
        )
    advice = _ADVICE.get(status, "check that it is the URL of an endpoint for predictions")
    if status == 401 and not has_token:
        advice = _NO_TOKEN
    if status in _REFUSING:
        if _PRECONDITION not in text:
            raise RequestRefused(status, text)
        advice = "see whether a model is deployed there and ready"
    raise EndpointError(f"endpoint {name}: {text}; {advice.format(flags=flags)}")


def status_text(status: int, answer: bytes) -> str:
    """A status and its body -> both in one line, as far as they say anything."""
    try:
        status_line = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        status_line = str(status)
    text = error_text(answer)
    return f"{status_line}: {text}" if text else status_line


def error_text(answer: bytes) -> str:
    """The body of an answer that is an error -> what it says, in one line; empty if nothing."""
    try:
        error = orjson.loads(answer)
    except orjson.JSONDecodeError:
        text = answer[:500].decode(errors="replace").strip()
        return "a page of HTML" if text[:1] == "<" else _cut(text)
    if isinstance(error, dict):
        error = error.get("error", error.get("message", error.get("detail", error)))
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        status = error.get("status")
        precondition = f"{_PRECONDITION}: " if status == _PRECONDITION else ""
        error = precondition + error["message"]
    return _cut(error if isinstance(error, str) else orjson.dumps(error).decode())


def _cut(text: str) -> str:
    return one_line(Exception(text), 200) if text.strip() else ""


def connection_text(error: Exception, url: str) -> str:
    """What went wrong with a connection, and to which URL -> one line."""
    host = host_of(url)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"{host} cannot be found (DNS)"
    if isinstance(error, aiohttp.ClientPayloadError):
        return f"{host} broke off in the middle of its answer"
    if isinstance(error, aiohttp.ClientConnectorError) and not error.strerror:
        return f"{host} cannot be reached"
    return f"{host}: {one_line(Exception(getattr(error, 'strerror', None) or error), 150)}"
