"""Read a job's metrics, and show its rows, rates and latencies in one line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.units import in_bytes

# The namespace of the metrics of transforms, model handlers and pipelines.
NAMESPACE = "millrace"
# For its own pages, Dataflow also reports each distribution as four counters with these endings.
_PARTS = ("_MIN", "_MAX", "_MEAN", "_COUNT")


@dataclass(frozen=True)
class Distribution:
    """The number of some values, their sum, and the largest of them."""

    count: float = 0.0
    total: float = 0.0
    largest: float = 0.0

    def __add__(self, other: Distribution) -> Distribution:
        """Combine the distributions of two steps."""
        return Distribution(
            self.count + other.count, self.total + other.total, max(self.largest, other.largest)
        )

    def since(self, before: Distribution) -> float | None:
        """Return the mean of the values added since `before`; None if there are none."""
        count = self.count - before.count
        return (self.total - before.total) / count if count > 0 else None


@dataclass(frozen=True)
class JobMetrics:
    """The metrics of a job by name, summed over its steps.

    Attributes:
        counters: The pipeline's own counters.
        distributions: The pipeline's own distributions.
        service: The metrics of the Dataflow service.
    """

    counters: Mapping[str, float] = field(default_factory=dict)
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    service: Mapping[str, float] = field(default_factory=dict)

    def rows(self) -> int:
        """Return how many rows were received, or else how many rows the model processed."""
        received = self.counters.get("rows_received", 0)
        return int(received or self.counters.get("rows_inferred", 0))

    def dead_letters(self) -> int:
        """Return how many rows became dead letters."""
        return int(self.counters.get("rows_dead_lettered", 0))


def read_metrics(updates: Iterable[Mapping[str, Any]]) -> JobMetrics:
    """Read the metrics of a job.

    Dataflow reports a metric twice: a tentative value, and a committed value. The committed one
    counts if both are there. Metrics of one name are summed over the steps that have them.

    Args:
        updates: MetricUpdates of Dataflow, as dicts.
    """
    chosen: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for update in updates:
        name = update["name"]
        context = name.get("context") or {}
        key = (name.get("origin", ""), context.get("step", ""), name["name"])
        if key not in chosen or context.get("tentative") != "true":
            chosen[key] = update
    counters: dict[str, float] = defaultdict(float)
    distributions: dict[str, Distribution] = defaultdict(Distribution)
    service: dict[str, float] = {}
    for (origin, _, name), update in chosen.items():
        scalar, value = update.get("scalar"), update.get("distribution")
        if origin != "user":
            if isinstance(scalar, (int, float)):
                service[name] = float(scalar)
        elif value:
            read = [float(value.get(part) or 0) for part in ("count", "sum", "max")]
            distributions[name] += Distribution(*read)
        elif isinstance(scalar, (int, float)) and not name.endswith(_PARTS):
            counters[name] += float(scalar)
    return JobMetrics(dict(counters), dict(distributions), service)


@dataclass(frozen=True, kw_only=True)
class Look:
    """The progress of a job at one moment.

    Attributes:
        seconds: Time since the job was created.
        workers: How many workers the job has; None if that is not known.
        backlog: As `Jobs.backlog` returns it: `lag`, `messages`, `bytes` and `seconds`.
    """

    state: str
    seconds: float
    metrics: JobMetrics = field(default_factory=JobMetrics)
    workers: int | None = None
    backlog: Mapping[str, float] = field(default_factory=dict)


def rate(now: Look, before: Look | None) -> float | None:
    """Return the rows per second between two looks; None if they cannot be computed.

    Args:
        now: The later look.
        before: The earlier look, None if there was none.
    """
    if before is None or now.seconds <= before.seconds:
        return None
    return max(0.0, (now.metrics.rows() - before.metrics.rows()) / (now.seconds - before.seconds))


def batch_line(now: Look, before: Look | None) -> str:
    """Return the progress line of a batch job.

    Args:
        now: The current look.
        before: The previous look, for the rate; None if there was none.
    """
    return _line(now, before, ())


def stream_line(now: Look, before: Look | None) -> str:
    """Return the progress line of a stream, with the sizes of bundles, latency, lag and backlog.

    Args:
        now: The current look.
        before: The previous look, for rate and latency; None if there was none.
    """
    more = (*_bundles(now, before), *_latency(now, before), *_backlog(now.backlog))
    return _line(now, before, more)


def _line(now: Look, before: Look | None, more: Iterable[str]) -> str:
    parts = [f"{now.state:<10} {elapsed(now.seconds)}"]
    if now.workers is not None:
        parts.append(f"{now.workers} worker{'s' if now.workers != 1 else ''}")
    if rows := now.metrics.rows():
        parts.append(f"{rows:,} rows")
        speed = rate(now, before)
        if speed is not None:
            parts[-1] += f", {speed:,.{0 if speed >= 10 or not speed else 1}f}/s"
    if dead := now.metrics.dead_letters():
        parts.append(f"{dead:,} dead letters")
    return "  ".join([*parts, *more])


def _mean(name: str, now: Look, before: Look | None) -> float | None:
    """Return the mean of what a distribution got since a look; None if that is nothing."""
    found = now.metrics.distributions.get(name, Distribution())
    earlier = before.metrics.distributions.get(name) if before else None
    return found.since(earlier or Distribution())


def _bundles(now: Look, before: Look | None) -> Iterable[str]:
    if (mean := _mean("messages_a_bundle", now, before)) is not None:
        yield f"{mean:,.1f} messages a bundle"


def _latency(now: Look, before: Look | None) -> Iterable[str]:
    if (mean := _mean("total_ms", now, before)) is not None:
        yield f"mean latency {mean:,.0f} ms"


def _backlog(backlog: Mapping[str, float]) -> Iterable[str]:
    if "lag" in backlog:
        yield f"system lag {backlog['lag']:,.0f} s"
    parts = []
    if "messages" in backlog:
        parts.append(f"{backlog['messages']:,.0f} messages")
    if "bytes" in backlog:
        parts.append(in_bytes(backlog["bytes"]))
    if "seconds" in backlog:
        parts.append(f"about {backlog['seconds']:,.0f} s to process")
    if parts:
        yield f"backlog {', '.join(parts)}"


def elapsed(seconds: float) -> str:
    """Return seconds as `H:MM:SS`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
