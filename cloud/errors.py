"""Explains the errors of Google's clients in one line, and decides which are worth a retry."""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import google.auth.exceptions
import requests.exceptions
from google.api_core import exceptions
from google.api_core.retry import Retry

from cloud.refusals import QUOTA, advice_on_refusal
from common.addresses import host_of
from common.errors import CredentialsError, MillraceError, one_line
from common.memory import mentions_memory, out_of_memory
from common.retry_notices import Retried

# What the calls of this thread do, for people.
_doing = ContextVar("doing", default="a request to Google Cloud")
# How long transient errors of one call or one job are retried.
RETRY_SECONDS = 120.0

# Source: the documentation of error codes of BigQuery and Cloud Storage. An exceeded rate is
# transient. An exceeded quota (quotaExceeded) of the day or of the project is not.
_PASSING_REASONS = {
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "jobRateLimitExceeded",
    "backendError",
    "jobBackendError",
    "internalError",
    "jobInternalError",
    "tableUnavailable",
}
# Vertex AI reports an exceeded quota with the status of an exceeded rate.
_QUOTA = re.compile(r"quota metrics exceed|quotas? (is|are) exceeded", re.IGNORECASE)
_PERMISSION = re.compile(r"\b(?P<service>[a-z]+)\.[a-zA-Z]+\.[a-zA-Z]+\b")
_PROXY = "check https_proxy, http_proxy and no_proxy: expected an HTTP proxy"
# The smallest of Google's roles with the permissions that Millrace needs for a service.
_ROLES = {
    "aiplatform": "roles/aiplatform.user",
    "artifactregistry": "roles/artifactregistry.reader",
    "bigquery": "roles/bigquery.user",
    "iam": "roles/iam.serviceAccountUser",
    "pubsub": "roles/pubsub.editor",
    "storage": "roles/storage.objectUser",
}
# The words with which BigQuery reports that a value cannot be converted. The value follows them.
_CONVERSION = (
    r"(?P<what>\b(?:bad \w+ value|invalid (?:\w+ (?:value|string|literal)|date|time|datetime|"
    r"timestamp|numeric|bignumeric|interval|number)|failed to parse(?: input)?(?: string)?|"
    r"(?:could not|cannot|unable to) (?:parse|cast|convert)(?: literal| value| string)?|overflow|"
    r"division by zero|[,;:.] value)"
)
_QUOTED_VALUE = re.compile(
    _CONVERSION + r":?\s*)(?P<quote>['\"])(?:(?!(?P=quote)).)*(?P=quote)", re.IGNORECASE | re.DOTALL
)
_BARE_VALUE = re.compile(_CONVERSION + r":\s*+)(?!['\".])[^;]+?(?=;|\. |$)", re.IGNORECASE)
_IMAGE = re.compile(r"\bimage\b.*(not found|does not exist|pull|access)", re.IGNORECASE)
# Proxies in front of a service raise these, so the reason code beside them means nothing.
_GATEWAYS = (exceptions.BadGateway, exceptions.ServiceUnavailable, exceptions.GatewayTimeout)
_PASSING = (
    *_GATEWAYS,
    ConnectionError,
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    google.auth.exceptions.TransportError,
    exceptions.TooManyRequests,
    exceptions.InternalServerError,
    # gRPC raises it if a connection breaks.
    exceptions.Unknown,
    exceptions.Aborted,
)
# Errors of a connection, and errors that gRPC raises itself.
_OF_THIS_MACHINE = (
    ConnectionError,
    requests.exceptions.ConnectionError,
    google.auth.exceptions.TransportError,
    exceptions.ResourceExhausted,
)
_FOREIGN = (
    exceptions.GoogleAPIError,
    google.auth.exceptions.GoogleAuthError,
    requests.exceptions.RequestException,
    ConnectionError,
)


def is_passing(error: BaseException) -> bool:
    """Return whether an error of a client or of a job is transient."""
    if isinstance(error, requests.exceptions.SSLError):
        # A bad certificate is permanent, but an interrupted connection is also an SSLError.
        return "EOF" in str(error)
    reason = reason_of(error)
    if reason and not isinstance(error, _GATEWAYS):
        return reason in _PASSING_REASONS
    return isinstance(error, _PASSING) and not _QUOTA.search(str(error))


class _ShownRetry(Retry):  # type: ignore[misc]
    """A retry policy that notes what it retries, so that a command can print it."""

    def __call__(
        self, func: Callable[..., Any], on_error: Callable[[Exception], Any] | None = None
    ) -> Callable[..., Any]:
        @functools.wraps(func)
        def call(*args: Any, **named: Any) -> Any:
            end = time.monotonic() + (self.timeout or math.inf)
            with Retried(current_call()) as retried:

                def failed(error: Exception) -> None:
                    retried.failed(short_reason(error), end - time.monotonic())
                    if on_error is not None:
                        on_error(error)

                again = super(_ShownRetry, self).__call__(func, failed)
                return again(*args, **named)

        return call


def retry(seconds: float = RETRY_SECONDS, *also: type[Exception]) -> Retry:
    """Return the retry policy of all calls to Google's services: backoff with jitter.

    Args:
        seconds: How long to retry.
        *also: Errors that are transient in this call, in addition to those of `is_passing`.
    """
    return _ShownRetry(
        lambda error: isinstance(error, also) or is_passing(error),
        initial=0.5,
        maximum=20.0,
        multiplier=2.0,
        timeout=seconds,
    )


def current_call() -> str:
    """Return what the calls of this thread do, as the enclosing `translate_errors` names it."""
    return _doing.get()


def reason_of(error: BaseException) -> str:
    """Return the reason code of a REST client's error, or an empty text if it has none."""
    details: Any = getattr(error, "errors", None) or []
    first = details[0] if details else {}
    return str(first.get("reason", "")) if isinstance(first, dict) else ""


@contextmanager
def translate_errors(
    kind: type[MillraceError], what: str, role: str | None = None
) -> Iterator[None]:
    """Raise the errors of Google's clients in the block as an error of Millrace.

    Args:
        kind: The error to raise.
        what: What failed, the start of the message.
        role: The role that the calls in the block need. If the account lacks a permission, the
            message says to grant this role; if None, the message guesses the role.

    Raises:
        MillraceError: `kind`, for any error that has no better class.
        CredentialsError: The credentials are missing or invalid.
        OutOfMemory: This machine has too little memory.
    """
    before = _doing.get()
    _doing.set(what)
    try:
        yield
    except _FOREIGN as error:
        _check_memory(error, what)
        cause = cause_of(error)
        lacks = isinstance(cause, google.auth.exceptions.GoogleAuthError)
        translated = CredentialsError if lacks and not is_passing(cause) else kind
        text = explain(error)
        if role is not None and lacks_role(error):
            text = f"{text.partition('; ')[0]}; grant the account the role {role}"
        raise translated(f"{what}: {text}") from error
    finally:
        # Not `reset`, because a generator with this block may end in another thread.
        _doing.set(before)


def lacks_role(error: BaseException) -> bool:
    """Return whether an error means that the account lacks a permission.

    Google refuses a call with the same status for other causes, such as a quota, an API that is
    disabled, or a perimeter of VPC Service Controls. Those errors do not count.
    """
    return (
        isinstance(error, exceptions.Forbidden)
        and not is_passing(error)
        and not is_disabled(error)
        and not _other_cause(error)
    )


def _other_cause(error: exceptions.Forbidden) -> str:
    """Return the advice on a refusal that has another cause than a missing role, or ""."""
    return advice_on_refusal((reason_of(error), error.reason or ""), str(error))


def is_disabled(error: BaseException) -> bool:
    """Return whether an error says that an API is not enabled."""
    reason = getattr(error, "reason", None)
    text = str(error)
    return reason == "SERVICE_DISABLED" or "it is disabled" in text or "accessNotConf" in text


def _check_memory(error: BaseException, what: str) -> None:
    """Raise OutOfMemory if this machine had too little memory, not if the service had."""
    cause = cause_of(error)
    here = isinstance(cause, _OF_THIS_MACHINE)
    if here and mentions_memory(text := _bottom(cause)):
        raise out_of_memory(f"{what}: {text}") from error


def explain(error: BaseException) -> str:
    """Return the message of a client's error and what to do about it, in one line."""
    cause = cause_of(error)
    text, advice = _text(cause), _advice(cause)
    if cause is not error:
        text, advice = f"failed after repeated attempts: {text}", advice or "try again later"
    if not advice:
        return text
    return f"{text if text.endswith('...') else text.removesuffix('.')}; {advice}"


def short_reason(error: BaseException) -> str:
    """Return the message of a client's error in one line, without what to do about it."""
    text = _text(cause_of(error)).partition("; ")[0]
    return text if text.endswith("...") else text.removesuffix(".")


def cause_of(error: BaseException) -> BaseException:
    """Return the last error that was retried in vain, or the error itself if it was not retried."""
    return (error.cause or error) if isinstance(error, exceptions.RetryError) else error


def _text(error: BaseException) -> str:
    """Return the message of an error without the parts that only a program can read."""
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        if isinstance(error, google.auth.exceptions.TransportError):
            below = error.args[0] if error.args else None
            if isinstance(below, requests.exceptions.RequestException):
                return f"cannot fetch credentials: {_text(below)}"
            return f"cannot fetch credentials: {one_line(error, 150)}"
        return f"no usable Google Cloud credentials ({one_line(error, 150).split('. ')[0]})"
    request = getattr(error, "request", None)
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy of the environment cannot be reached: {_bottom(error)}"
    if isinstance(error, requests.exceptions.RequestException) and request is not None:
        # The error wraps others. The innermost says what happened.
        return f"{host_of(request.url)} cannot be reached: {_bottom(error)}"
    message = getattr(error, "message", None)
    if not isinstance(message, str):
        return one_line(error)
    if message.startswith(("GET ", "POST ", "PUT ", "PATCH ", "DELETE ", "BATCH ")):
        # REST clients put the URL before the message.
        message = message.split(": ", 1)[-1]
    # For a job, the text ends with its location, or with a list that repeats the first error.
    message = message.split("\n\nLocation:")[0].split("; reason: ")[0]
    return one_line(Exception(without_quotes(message) or type(error).__name__))


def without_quotes(text: str) -> str:
    """Return a message of BigQuery without the value that BigQuery could not convert."""
    text = _QUOTED_VALUE.sub(r"\g<what>\g<quote>...\g<quote>", text)
    return _BARE_VALUE.sub(r"\g<what>...", text)


def _bottom(error: BaseException) -> str:
    """Return the system's message in an error of a connection, or else the innermost message."""
    texts = [type(error).__name__]
    below: BaseException | None = error
    while below is not None:
        texts.append(str(getattr(below, "strerror", None) or below))
        # requests wraps urllib3's error. Its context may be a retry that gave up.
        reason = getattr(below.args[0], "reason", None) if below.args else None
        below = reason if isinstance(reason, Exception) else below.__cause__ or below.__context__
    return one_line(Exception([text for text in texts if text][-1]), 150)


def _advice(error: BaseException) -> str:
    reason = reason_of(error)
    if isinstance(error, requests.exceptions.ProxyError) or "SOCKS support" in str(error):
        return _PROXY
    if isinstance(error, google.auth.exceptions.TransportError):
        return _PROXY if "ProxyError" in str(error) else "check the network"
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
    if isinstance(error, (requests.exceptions.RequestException, ConnectionError)):
        return "check the network and --api_endpoints"
    if reason == "quotaExceeded" or _QUOTA.search(str(error)):
        return QUOTA
    if is_passing(error):
        return "this error is usually transient: try again later"
    if _IMAGE.search(str(error)):
        return (
            "check the image's name, and grant the service agents of Vertex AI "
            "roles/artifactregistry.reader"
        )
    if isinstance(error, exceptions.Forbidden):
        return _forbidden(error)
    if isinstance(error, exceptions.Unauthorized):
        return "the credentials were rejected: log in again"
    if isinstance(error, exceptions.NotFound):
        return "check the project, the name and the location"
    return ""


def _forbidden(error: exceptions.Forbidden) -> str:
    """Return what to do about an answer with the status 403."""
    service = (error.metadata or {}).get("service") if error.reason == "SERVICE_DISABLED" else None
    if service:
        return f"run `gcloud services enable {service}` for the project, and wait a minute"
    if other := _other_cause(error):
        return other
    named = _PERMISSION.search(_text(error))
    role = _ROLES.get(named["service"]) if named else None
    # Only BigQuery gives this reason for a refusal. The commands without --billing_project do not
    # use BigQuery, or pass their own role to `translate_errors`.
    bills = role == _ROLES["bigquery"] if role else reason_of(error) == "accessDenied"
    other = ", or use another --billing_project" if bills else ""
    return f"grant the account the {f'role {role}' if role else 'missing role'}{other}"
