"""What a job's metrics say: rows, rates and latencies, as numbers and as a line. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.units import in_bytes

# Of transforms, handlers and pipelines: the namespace of our own metrics.
NAMESPACE = "millrace"
# Dataflow tells a distribution as four numbers as well, for its own pages.
_PARTS = ("_MIN", "_MAX", "_MEAN", "_COUNT")


@dataclass(frozen=True)
class Distribution:
    """How many values there were, their sum, and the largest."""

    count: float = 0.0
    total: float = 0.0
    largest: float = 0.0

    def __add__(self, other: Distribution) -> Distribution:
        """Of two steps, one."""
        return Distribution(
            self.count + other.count, self.total + other.total, max(self.largest, other.largest)
        )

    def since(self, before: Distribution) -> float | None:
        """An earlier one -> the mean of what came after it, None where nothing did."""
        count = self.count - before.count
        return (self.total - before.total) / count if count > 0 else None


@dataclass(frozen=True)
class JobMetrics:
    """Counters and distributions of all steps together, by name; those of the service apart."""

    counters: Mapping[str, float] = field(default_factory=dict)
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    service: Mapping[str, float] = field(default_factory=dict)

    def rows(self) -> int:
        """Rows that came in; the model's, where nothing else was counted."""
        received = self.counters.get("rows_received", 0)
        return int(received or self.counters.get("rows_inferred", 0))

    def dead_letters(self) -> int:
        """Rows that became dead letters."""
        return int(self.counters.get("rows_dead_lettered", 0))


def read_metrics(updates: Iterable[Mapping[str, Any]]) -> JobMetrics:
    """MetricUpdates of a job, as dicts -> Metrics.

    A metric is told twice, as what was attempted (tentative) and as what is certain; the latter
    counts where it is there. Metrics of one name are summed over the steps that have them.
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
    """A job as it was at one moment. seconds: since its start. workers: None if not known.

    backlog: by what it is of, as `messages`, `bytes`, `seconds`; lag: seconds.
    """

    state: str
    seconds: float
    metrics: JobMetrics = field(default_factory=JobMetrics)
    workers: int | None = None
    backlog: Mapping[str, float] = field(default_factory=dict)


def rate(now: Look, before: Look | None) -> float | None:
    """A look and an earlier one -> rows a second between them, None where it cannot be told."""
    if before is None or now.seconds <= before.seconds:
        return None
    return max(0.0, (now.metrics.rows() - before.metrics.rows()) / (now.seconds - before.seconds))


def batch_line(now: Look, before: Look | None) -> str:
    """A look at a batch job and the one before -> a line."""
    return _line(now, before, "rows", ())


def stream_line(now: Look, before: Look | None) -> str:
    """A look at a stream and the one before -> a line, with mean latency, lag and backlog."""
    return _line(now, before, "messages", (*_latency(now, before), *_backlog(now.backlog)))


def _line(now: Look, before: Look | None, unit: str, more: Iterable[str]) -> str:
    parts = [f"{now.state:<10} {elapsed(now.seconds)}"]
    if now.workers is not None:
        parts.append(f"{now.workers} worker{'s' if now.workers != 1 else ''}")
    if rows := now.metrics.rows():
        parts.append(f"{rows:,} {unit}")
        speed = rate(now, before)
        if speed is not None:
            parts[-1] += f", {speed:,.{0 if speed >= 10 or not speed else 1}f}/s"
    if dead := now.metrics.dead_letters():
        parts.append(f"{dead:,} dead letters")
    return "  ".join([*parts, *more])


def _latency(now: Look, before: Look | None) -> Iterable[str]:
    found = now.metrics.distributions.get("total_ms")
    if found is not None:
        earlier = before.metrics.distributions.get("total_ms") if before else None
        mean = found.since(earlier or Distribution())
        if mean is not None:
            yield f"latency {mean:,.0f} ms"


def _backlog(backlog: Mapping[str, float]) -> Iterable[str]:
    if "lag" in backlog:
        yield f"lag {backlog['lag']:,.0f} s"
    told = []
    if "messages" in backlog:
        told.append(f"{backlog['messages']:,.0f} messages")
    if "bytes" in backlog:
        told.append(in_bytes(backlog["bytes"]))
    if "seconds" in backlog:
        told.append(f"{backlog['seconds']:,.0f} s")
    if told:
        yield f"backlog {', '.join(told)}"


def elapsed(seconds: float) -> str:
    """Seconds -> hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
