"""Errors of Google's clients, in one line that says what to do; and which are worth a retry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import google.auth.exceptions
import requests.exceptions
from google.api_core import exceptions
from google.api_core.retry import Retry

from common.addresses import host_of
from common.errors import CredentialsError, MillraceError, one_line
from common.memory import mentions_memory, out_of_memory

# Of one call or of one job: how long errors that pass by themselves are waited out.
RETRY_SECONDS = 120.0

# Source: BigQuery's and Cloud Storage's documentation of error codes. A rate passes; a quota
# (quotaExceeded) of the day, or of a project, does not.
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
# Of Vertex AI, which says it with the status of a rate.
_QUOTA = re.compile(r"quota metrics exceed|quotas? (is|are) exceeded", re.IGNORECASE)
_PERMISSION = re.compile(r"\b(?P<service>[a-z]+)\.[a-zA-Z]+\.[a-zA-Z]+\b")
# The least of Google's roles that has what this project needs of a service.
_ROLES = {
    "aiplatform": "roles/aiplatform.user",
    "artifactregistry": "roles/artifactregistry.reader",
    "bigquery": "roles/bigquery.user",
    "iam": "roles/iam.serviceAccountUser",
    "pubsub": "roles/pubsub.editor",
    "storage": "roles/storage.objectUser",
}
# How BigQuery says that a value of a row is none of a type; then it quotes the value.
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
# Said by what stands before a service, so that a reason beside it tells nothing.
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
    # What gRPC says of a connection that broke.
    exceptions.Unknown,
    exceptions.Aborted,
)
# A connection's errors, and those that gRPC has of itself.
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
    """Whether an error of a client, or of a job, may be gone at the next attempt."""
    if isinstance(error, requests.exceptions.SSLError):
        # A certificate stays as it is; a connection that was cut is told as an SSLError too.
        return "EOF" in str(error)
    reason = reason_of(error)
    if reason and not isinstance(error, _GATEWAYS):
        return reason in _PASSING_REASONS
    return isinstance(error, _PASSING) and not _QUOTA.search(str(error))


def retry(seconds: float = RETRY_SECONDS, *also: type[Exception]) -> Retry:
    """How long -> the retry of all calls to Google's services: backoff with jitter.

    also: errors that pass in this one call.
    """
    return Retry(
        lambda error: isinstance(error, also) or is_passing(error),
        initial=0.5,
        maximum=20.0,
        multiplier=2.0,
        timeout=seconds,
    )


def reason_of(error: BaseException) -> str:
    """An error of a REST client -> its reason code, empty if it has none."""
    details: Any = getattr(error, "errors", None) or []
    first = details[0] if details else {}
    return str(first.get("reason", "")) if isinstance(first, dict) else ""


@contextmanager
def translate_errors(
    kind: type[MillraceError], what: str, role: str | None = None
) -> Iterator[None]:
    """What cannot be done -> errors of Google's clients in the block raised as one of ours.

    They become CredentialsError where credentials are at fault, else the given kind. role: that
    this takes, advised in place of a guess where the account lacks it.
    """
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


def lacks_role(error: BaseException) -> bool:
    """Whether an error says that the account may not: no quota, no API that is not enabled."""
    return (
        isinstance(error, exceptions.Forbidden)
        and not is_passing(error)
        and not is_disabled(error)
        and "quota" not in str(error).lower()
    )


def is_disabled(error: BaseException) -> bool:
    """Whether an error says that an API is not enabled."""
    reason = getattr(error, "reason", None)
    text = str(error)
    return reason == "SERVICE_DISABLED" or "it is disabled" in text or "accessNotConf" in text


def _check_memory(error: BaseException, what: str) -> None:
    """An error of a client -> nothing. Raises OutOfMemory where this machine lacked memory.

    What a service says of its own memory is its error.
    """
    cause = cause_of(error)
    here = isinstance(cause, _OF_THIS_MACHINE)
    if here and mentions_memory(text := _bottom(cause)):
        raise out_of_memory(f"{what}: {text}") from error


def explain(error: BaseException) -> str:
    """An error of a client -> its message and what to do, in one line."""
    cause = cause_of(error)
    text, advice = _text(cause), _advice(cause)
    if cause is not error:
        text, advice = f"gave up after repeated attempts ({text})", advice or "run it again later"
    if not advice:
        return text
    return f"{text if text.endswith('...') else text.removesuffix('.')}; {advice}"


def cause_of(error: BaseException) -> BaseException:
    """Of an error that was retried in vain the last one, else the error itself."""
    return (error.cause or error) if isinstance(error, exceptions.RetryError) else error


def _text(error: BaseException) -> str:
    """An error -> its message without what only a program can read."""
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        if isinstance(error, google.auth.exceptions.TransportError):
            return f"credentials could not be fetched: {one_line(error, 150)}"
        return f"no usable Google Cloud credentials ({one_line(error, 150).split('. ')[0]})"
    request = getattr(error, "request", None)
    if isinstance(error, requests.exceptions.RequestException) and request is not None:
        # The text is that of an object within an object; what happened is said at the bottom.
        return f"{host_of(request.url)} cannot be reached: {_bottom(error)}"
    message = getattr(error, "message", None)
    if not isinstance(message, str):
        return one_line(error)
    if message.startswith(("GET ", "POST ", "PUT ", "PATCH ", "DELETE ")):
        # REST clients put the URL before the message, and the job behind it.
        message = message.split(": ", 1)[-1]
    # Of a job, its list of errors repeats the first.
    message = message.split("\n\nLocation:")[0].split("; reason: ")[0]
    return one_line(Exception(without_quotes(message) or type(error).__name__))


def without_quotes(text: str) -> str:
    """A message of BigQuery -> it without the value of a row that could not be converted."""
    text = _QUOTED_VALUE.sub(r"\g<what>\g<quote>...\g<quote>", text)
    return _BARE_VALUE.sub(r"\g<what>...", text)


def _bottom(error: BaseException) -> str:
    """An error of a connection -> what the system said, else the innermost that says anything."""
    texts = [type(error).__name__]
    below: BaseException | None = error
    while below is not None:
        texts.append(str(getattr(below, "strerror", None) or below))
        # requests puts urllib3's error into its own; the context may be a retry that is at its end.
        reason = getattr(below.args[0], "reason", None) if below.args else None
        below = reason if isinstance(reason, Exception) else below.__cause__ or below.__context__
    return one_line(Exception([text for text in texts if text][-1]), 150)


def _advice(error: BaseException) -> str:
    reason = reason_of(error)
    if isinstance(error, google.auth.exceptions.TransportError):
        return "check the network"
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
    if isinstance(error, (requests.exceptions.RequestException, ConnectionError)):
        return "check the network and --api_endpoints"
    if reason == "quotaExceeded" or _QUOTA.search(str(error)):
        return "a quota of the project is used up: raise it in the console, or wait"
    if is_passing(error):
        return "this may pass: run it again later"
    if _IMAGE.search(str(error)):
        return (
            "check the image's name, and that the service agents of Vertex AI may read it "
            "(roles/artifactregistry.reader)"
        )
    if isinstance(error, exceptions.Forbidden):
        return _forbidden(error)
    if isinstance(error, exceptions.Unauthorized):
        return "the credentials were refused: log in again"
    if isinstance(error, exceptions.NotFound):
        return "check the project, the dataset, the name and the location"
    return ""


def _forbidden(error: exceptions.Forbidden) -> str:
    """What to do where Google says no."""
    service = (error.metadata or {}).get("service") if error.reason == "SERVICE_DISABLED" else None
    if service:
        return f"run `gcloud services enable {service}` for the project, and wait a minute"
    named = _PERMISSION.search(_text(error))
    if named and (role := _ROLES.get(named["service"])):
        other = ", or use another --billing_project" if named["service"] == "bigquery" else ""
        return f"grant the account the role {role}{other}"
    return "grant the account the role that is missing, or use another --billing_project"
