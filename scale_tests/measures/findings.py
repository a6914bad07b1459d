"""What follows from the levels of a test. A finding has its evidence, or says what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cloud.prices import STREAMING, Workers
from scale_tests.measures.knee import Knee
from scale_tests.measures.latency import INSUFFICIENT
from scale_tests.measures.level import Judgement, Level, Verdict

Confidence = Literal["high", "medium", "low", "insufficient data"]
HOURS_PER_MONTH = 730
# Workers are planned for this share of the rate that they sustain.
HEADROOM = 0.7
# A quotient that is a whole number but for its rounding needs no further worker.
ROUNDING = 1e-9
# A part whose share of the waiting is smaller than this does not explain it.
EXPLAINS = 0.5
# Less waiting than this share of all messages in flight is noise.
NOISE = 0.1
# The resource that a part waits for. A message that waits in the queue waits for the pipeline.
RESOURCES = {
    "publish": "source",
    "queue": "pipeline",
    "decode": "pipeline",
    "batch wait": "pipeline",
    "encode": "pipeline",
    "predict": "pipeline",
    "pipeline": "pipeline",
    "endpoint": "endpoint",
    "sink": "sink",
    "delivery": "sink",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A conclusion.

    Attributes:
        name: What it is about.
        value: The conclusion: a number, or a name; None if the data is insufficient.
        unit: The unit of the value.
        evidence: Facts from which it follows, or what is missing, one sentence each.
        confidence: How sure it is.
    """

    name: str
    value: float | str | None
    unit: str = ""
    evidence: tuple[str, ...]
    confidence: Confidence


def _missing(name: str, *evidence: str) -> Finding:
    return Finding(name=name, value=None, evidence=evidence, confidence=INSUFFICIENT)


def sustainable_rate(knee: Knee) -> Finding:
    """Return the largest sustained rate, in messages per second.

    The confidence is high if a rate above it failed, and medium if the search ended before.
    """
    name = "largest sustained rate"
    tried = tuple(
        f"{probe.rate:,.4g}/s: {'; '.join((probe.judgement.verdict, *probe.judgement.reasons))}"
        for probe in knee.probes
    )
    early = (knee.reason,) if knee.reason else ()
    if knee.sustained is None:
        return _missing(name, *early, *tried)
    confidence: Confidence = "high" if knee.failed and not knee.reason else "medium"
    return Finding(
        name=name,
        value=knee.sustained,
        unit="messages/s",
        evidence=(*early, *tried),
        confidence=confidence,
    )


def bottleneck(quiet: Level, busy: Level) -> Finding:
    """Return the resource that messages wait for at a high rate.

    By Little's law, the messages in a part are its throughput times its mean time. In a part that
    is not the bottleneck, they grow as the rate does. The part in which they grow most beyond that
    is where messages wait.

    Args:
        quiet: A level at a rate that the system sustains easily.
        busy: A level at a rate near its limit, or above.
    """
    name = "bottleneck"
    if not (quiet.parts and busy.parts) or busy.rate <= quiet.rate:
        return _missing(name, "needs two rates with the times of their parts")
    skewed = [part for level in (quiet, busy) for part in level.parts if _skewed(part.clock_ms)]
    if skewed:
        return _missing(name, f"the clocks differ by {max(p.clock_ms for p in skewed):,.0f} ms")
    before = {part.name: quiet.throughput * part.mean_ms / 1e3 for part in quiet.parts}
    after = {part.name: busy.throughput * part.mean_ms / 1e3 for part in busy.parts}
    if set(before) != set(after):
        return _missing(name, "the two levels have different parts")
    ratio = busy.throughput / quiet.throughput
    waiting = {part: max(0.0, after[part] - ratio * before[part]) for part in after}
    total = sum(waiting.values())
    if total <= NOISE * sum(after.values()):
        return _missing(name, f"no part waits more at {busy.rate:,.4g}/s than its rate explains")
    most = max(waiting, key=waiting.__getitem__)
    share = waiting[most] / total
    evidence = tuple(
        f"{part}: {before[part]:,.1f} messages in flight at {quiet.rate:,.4g}/s, "
        f"{after[part]:,.1f} at {busy.rate:,.4g}/s"
        for part in after
    )
    return Finding(
        name=name,
        value=RESOURCES.get(most, most),
        evidence=(f"{most} has {share:.0%} of the messages that wait", *evidence),
        confidence="medium" if share >= EXPLAINS else "low",
    )


def _skewed(clock_ms: float) -> bool:
    # Times are kept in microseconds, and those of Pub/Sub in milliseconds.
    return clock_ms > 1.0


def confirm(found: Finding, moved: Mapping[str, tuple[Knee, Knee]], precision: float) -> Finding:
    """Return the bottleneck after tests in which one resource each was doubled.

    Args:
        found: What `bottleneck` returned.
        moved: The knees before and after, by the resource that was moved.
        precision: The precision of the searches. A smaller gain does not count.
    """
    gains = {
        resource: after.sustained / before.sustained - 1
        for resource, (before, after) in moved.items()
        if before.sustained and after.sustained
    }
    if found.value not in gains:
        return found
    evidence = tuple(
        f"with more of {resource}, the largest sustained rate changed by {gain:+.0%}"
        for resource, gain in gains.items()
    )
    most = max(gains, key=gains.__getitem__)
    if gains[most] <= precision or most != found.value:
        return replace(found, evidence=(*found.evidence, *evidence), confidence="low")
    return replace(found, evidence=(*found.evidence, *evidence), confidence="high")


def best_request(levels: Sequence[tuple[Level, Judgement]]) -> Finding:
    """Return the rows of a request, and the concurrency, with the most rows per second.

    Args:
        levels: Levels of an endpoint and the judgements about them.
    """
    name = "best request"
    good = [level for level, judgement in levels if judgement.verdict is Verdict.SUSTAINED]
    if not good:
        return _missing(name, "no level reached the objective")
    best = max(good, key=_rows_per_second)
    sizes = sorted({level.rows for level, _ in levels})
    inside = len(sizes) > 2 and sizes[0] < best.rows < sizes[-1]
    at_once = f", {best.concurrency} at once" if best.concurrency else ""
    return Finding(
        name=name,
        value=f"{best.rows:,} rows{at_once}",
        evidence=tuple(
            f"{level.rows:,} rows, {level.concurrency} at once: {_rows_per_second(level):,.0f} "
            f"rows/s, {judgement.verdict}"
            for level, judgement in levels
        ),
        confidence="high" if inside else "medium",
    )


def _rows_per_second(level: Level) -> float:
    return level.throughput * level.rows


def workers_per_replica(worker: Knee, replica_rows_per_second: float | None) -> Finding:
    """Return how many workers one replica of an endpoint can answer.

    Args:
        worker: The knee of one worker against an endpoint that is not the limit.
        replica_rows_per_second: What one replica sustains; None if that was not measured.
    """
    name = "workers per replica"
    if not worker.sustained or not replica_rows_per_second:
        return _missing(name, "needs the knees of one worker and of one replica")
    return Finding(
        name=name,
        value=replica_rows_per_second / worker.sustained,
        unit="workers",
        evidence=(
            f"a worker sustains {worker.sustained:,.4g} rows/s",
            f"a replica sustains {replica_rows_per_second:,.4g} rows/s",
        ),
        confidence="medium",
    )


def recommend(knee: Knee, tested: Workers, rate: float) -> tuple[Finding, Finding]:
    """Return the workers for a target rate, and their cost in USD per month.

    The rate of the workers is assumed to grow with their number, so the confidence falls with the
    distance from what was tested.

    Args:
        knee: The knee of the tested workers.
        tested: The workers of the test.
        rate: The target rate, in messages per second.
    """
    names = ("workers", "cost of the workers")
    if not knee.sustained:
        missing = "needs a rate that was sustained"
        return _missing(names[0], missing), _missing(names[1], missing)
    count = math.ceil(rate * tested.count / (HEADROOM * knee.sustained) - ROUNDING)
    beyond = count / tested.count
    confidence: Confidence = "high" if beyond <= 1 else "medium" if beyond <= 4 else "low"
    evidence = (
        f"{tested.count} workers with {tested.vcpu} vCPUs sustained {knee.sustained:,.4g}/s",
        f"{HEADROOM:.0%} of that is planned for {rate:,.4g}/s",
    )
    dollars = replace(tested, count=count).dollars(STREAMING, HOURS_PER_MONTH * 3600)
    return (
        Finding(
            name=names[0], value=count, unit="workers", evidence=evidence, confidence=confidence
        ),
        Finding(
            name=names[1],
            value=round(dollars, 2),
            unit="USD/month",
            evidence=(*evidence, "list prices of us-central1, without Streaming Engine's data"),
            confidence=confidence,
        ),
    )
