"""Where a request spends its time in Millrace's server, from the metrics that the server shows."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from scale_tests.measures.stamps import Part, refine

_SECONDS = 2.0
_NAMES = ("millrace_request_seconds", "millrace_pass_seconds")


@dataclass(frozen=True)
class ServerTimes:
    """What a server has counted since its start.

    Attributes:
        requests: How many requests it has answered.
        request_seconds: Their time from headers to answer, in total.
        passes: How many forward passes its model has made.
        pass_seconds: Their time in total.
    """

    requests: float
    request_seconds: float
    passes: float
    pass_seconds: float


def metrics_url(url: str) -> str | None:
    """Return the address of the metrics of the server that predicts at a URL.

    None if it is not the route of a server itself, as behind Vertex AI.
    """
    parts = urlsplit(url)
    if not parts.path.endswith("/predict"):
        return None
    path = parts.path.removesuffix("/predict") + "/metrics"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def read_times(url: str | None) -> ServerTimes | None:
    """Return what the metrics at a URL say; None if no server of Millrace shows them there."""
    if url is None:
        return None
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as response:
            return parse_times(response.read().decode())
    except (OSError, ValueError):
        return None


def parse_times(text: str) -> ServerTimes | None:
    """Return the times in metrics in Prometheus' text format; None if they are not there."""
    pairs = (line.rpartition(" ") for line in text.splitlines())
    values = {name: value for name, _, value in pairs}
    found = [values.get(f"{name}_{what}") for name in _NAMES for what in ("count", "sum")]
    try:
        return ServerTimes(*(float(value) for value in found if value is not None))
    except (TypeError, ValueError):
        return None


def split_parts(
    parts: Sequence[Part], before: ServerTimes | None, after: ServerTimes | None
) -> tuple[Part, ...]:
    """Return the parts of requests with that of the endpoint split, if the server says how.

    A server that several clients use counts the requests of all of them, so it does not say.

    Args:
        parts: The parts, one of which is `endpoint`.
        before: What the server had counted before the requests.
        after: What it had counted after them.
    """
    if before is None or after is None:
        return tuple(parts)
    requests, passes = after.requests - before.requests, after.passes - before.passes
    count = next((part.count for part in parts if part.name == "endpoint"), 0)
    if not passes or requests != count:
        return tuple(parts)
    predict = (after.pass_seconds - before.pass_seconds) / passes * 1e3
    whole = (after.request_seconds - before.request_seconds) / requests * 1e3
    finer = {"predict": predict, "server": max(0.0, whole - predict)}
    return refine(parts, "endpoint", finer, rest="network")
