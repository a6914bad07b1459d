"""Explains responses of an endpoint that are not predictions, and raises the right errors."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import NoReturn
from urllib.parse import urlsplit

import aiohttp
import orjson

from cloud.refusals import advice_on_refusal
from cloud.retry_pacing import parse_retry_after
from common.addresses import host_of
from common.errors import EndpointError, one_line

_OVERLOADED = {408, 425, 429, 503, 504}
# With these statuses, an endpoint may refuse a request because of its rows.
REFUSING = {400, 413, 422}
_ADVICE = {
    401: "the credentials were rejected: log in again, or set the worker's service account",
    403: "grant the account the role roles/aiplatform.user (permission aiplatform.endpoints."
    "predict) in the endpoint's project",
    404: "check {flags}, and that a model is deployed there",
    407: "the proxy of the environment requires a user and a password",
}
_NO_TOKEN = (
    "no token was sent, because tokens go only to https addresses under googleapis.com and "
    "vertexai.goog: use such an address, or let the server accept requests without a token"
)
_PRECONDITION = "FAILED_PRECONDITION"


class RequestRefused(Exception):
    """A request that the endpoint may have refused because of its rows.

    Args:
        status: The HTTP status, or 0 if the request failed too many times or got unusable answers.
        message: What the endpoint said.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BadAnswer(Exception):
    """An answer that cannot be read as predictions. The function that reads answers raises it."""


class Passing(Exception):
    """A transient failure of a request.

    Args:
        message: What failed.
        suspicious: Whether the rows may be the cause.
        unusable: Whether there was an answer, but not one that can be read as predictions.
        overloaded: Whether the server has too many requests.
        retry_after: How many seconds the server asks to wait.
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
    """Raise the error that a response with a status other than 200 means.

    Args:
        name: The name of the endpoint, for messages.
        status: The HTTP status.
        headers: The headers of the response.
        answer: The body of the response.
        has_token: Whether the request had a token.
        flags: The flags that chose the endpoint, for messages.

    Raises:
        Passing: The failure is transient.
        RequestRefused: The rows may be the cause.
        EndpointError: Any other request would fail in the same way.
    """
    text = status_text(status, answer)
    if status in _OVERLOADED or (status >= 500 and status not in (501, 505)):
        raise Passing(
            text,
            # A server with too many requests has not read the rows.
            suspicious=status >= 500,
            overloaded=status in _OVERLOADED,
            retry_after=parse_retry_after(headers.get("Retry-After")),
        )
    advice = _ADVICE.get(status, "check {flags}: expected the URL of an endpoint for predictions")
    if status == 401 and not has_token:
        advice = _NO_TOKEN
    if status == 403:
        advice = refusal_advice(answer) or advice
    if status in REFUSING:
        if _PRECONDITION not in text:
            raise RequestRefused(status, text)
        advice = "check that a model is deployed there and ready"
    raise EndpointError(f"endpoint {name}: {text}; {advice.format(flags=flags)}")


def status_text(status: int, answer: bytes) -> str:
    """Return the status of a response and the error in its body, in one line."""
    try:
        status_line = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        status_line = str(status)
    text = error_text(answer)
    return f"{status_line}: {text}" if text else status_line


def refusal_advice(answer: bytes) -> str:
    """Return what to do about a 403 with this body, or "" if the account may lack a role."""
    try:
        error = orjson.loads(answer)["error"]
        details = [*error.get("details", ()), *error.get("errors", ())]
        reasons = [str(detail["reason"]) for detail in details if "reason" in detail]
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        reasons = []
    return advice_on_refusal(reasons, error_text(answer))


def error_text(answer: bytes) -> str:
    """Return the message in the body of an error, in one line, or an empty text if it has none."""
    try:
        error = orjson.loads(answer)
    except orjson.JSONDecodeError:
        text = answer[:500].decode(errors="replace").strip()
        return "an HTML page" if text[:1] == "<" else _cut(text)
    if isinstance(error, dict):
        error = error.get("error", error.get("message", error.get("detail", error)))
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        status = error.get("status")
        precondition = f"{_PRECONDITION}: " if status == _PRECONDITION else ""
        error = precondition + error["message"]
    return _cut(error if isinstance(error, str) else orjson.dumps(error).decode())


def _cut(text: str) -> str:
    return one_line(Exception(text), 200) if text.strip() else ""


def proxy_text(error: Exception, proxy: str) -> str:
    """Describe an error of a proxy in one line.

    Args:
        error: The error of a request that goes through the proxy.
        proxy: The URL of the proxy.

    Returns:
        The line, or an empty text if the proxy is not the cause.
    """
    name = f"the proxy {host_of(proxy)} of the environment"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"{name} refused the connection: {error.status} {error.message}"
    # The host of such an error is the one to which the connection failed.
    if isinstance(error, aiohttp.ClientConnectorError) and error.host == urlsplit(proxy).hostname:
        return f"{name} cannot be reached: {connection_text(error, proxy)}"
    return ""


def connection_text(error: Exception, url: str) -> str:
    """Describe an error of the connection to a URL in one line."""
    host = host_of(url)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"{host} cannot be found (DNS)"
    if isinstance(error, aiohttp.ClientPayloadError):
        return f"{host} closed the connection in the middle of its response"
    if isinstance(error, aiohttp.ClientConnectorError) and not error.strerror:
        return f"{host} cannot be reached"
    return f"{host}: {one_line(Exception(getattr(error, 'strerror', None) or error), 150)}"
