"""What follows from the levels of a test. A finding has its evidence, or says what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scale_tests.measures.knee import Knee
from scale_tests.measures.latency import INSUFFICIENT
from scale_tests.measures.level import Level
from scale_tests.measures.stamps import PIPELINE, Part, names_in

Confidence = Literal["high", "medium", "low", "insufficient data"]
# The name of the finding that a search gives.
RATE = "largest sustained rate"
# A part whose share of the waiting is smaller than this does not explain it.
EXPLAINS = 0.5
# Less waiting than this share of all messages in flight is noise.
NOISE = 0.1
# The resource that a part waits for.
RESOURCES = {
    "publish": "source",
    "queue": PIPELINE,
    "decode": PIPELINE,
    "batch wait": PIPELINE,
    "predict": PIPELINE,
    PIPELINE: PIPELINE,
    "endpoint": "endpoint",
    "encode": PIPELINE,
    "sink": "sink",
    "delivery": "sink",
}
# Where a message waits until the pipeline has worked on those before it.
WAITS = ("queue", "batch wait")
# What the pipeline does with a message. Meanwhile, others wait.
WORK = {"decode", "predict", PIPELINE, "endpoint", "encode", "sink"}
# What a finding says if the pipeline is one part.
ONE_PART = "a stream with --row_timings shows what the pipeline spends its time on"


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


def missing(name: str, *evidence: str) -> Finding:
    """Return a finding without a value, and what it would need."""
    return Finding(name=name, value=None, evidence=evidence, confidence=INSUFFICIENT)


def sustainable_rate(knee: Knee, suffix: str = "", unit: str = "messages/s") -> Finding:
    """Return the largest sustained rate.

    The confidence is high if a rate above it failed, and medium if the search ended before.

    Args:
        knee: The result of the search.
        suffix: What the name of the finding ends with.
        unit: The unit of the rate.
    """
    name = f"{RATE}{suffix}"
    tried = tuple(
        f"{probe.rate:,.4g}/s: {'; '.join((probe.judgement.verdict, *probe.judgement.reasons))}"
        for probe in knee.probes
    )
    early = (knee.reason,) if knee.reason else ()
    if knee.sustained is None:
        return missing(name, *early, *tried)
    if not early and not knee.failed:
        early = ("no rate failed: raise highest in the plan",)
    confidence: Confidence = "medium" if early else "high"
    return Finding(
        name=name,
        value=knee.sustained,
        unit=unit,
        evidence=(*early, *tried),
        confidence=confidence,
    )


def bottleneck(quiet: Level, busy: Level) -> Finding:
    """Return the resource that messages wait for at a high rate.

    By Little's law, the messages in a part are its throughput times its mean time. In a part that
    is not the bottleneck, they grow as the rate does. The part in which they grow most beyond that
    is where messages wait. What they wait for in the queue is what the pipeline spends most of its
    time on.

    Args:
        quiet: A level at a rate that the system sustains easily.
        busy: A level at a rate near its limit, or above.
    """
    name = "bottleneck"
    if not (quiet.parts and busy.parts) or busy.rate <= quiet.rate:
        return missing(name, "needs two rates with the times of their parts")
    skewed = [part for level in (quiet, busy) for part in level.parts if _skewed(part.clock_ms)]
    if skewed:
        return missing(name, f"the clocks differ by {max(p.clock_ms for p in skewed):,.0f} ms")
    before = {part.name: quiet.throughput * part.mean_ms / 1e3 for part in quiet.parts}
    after = {part.name: busy.throughput * part.mean_ms / 1e3 for part in busy.parts}
    if set(before) != set(after):
        return missing(name, "the two levels have different parts")
    ratio = busy.throughput / quiet.throughput
    waiting = {part: max(0.0, after[part] - ratio * before[part]) for part in after}
    total = sum(waiting.values())
    if total <= NOISE * sum(after.values()):
        return missing(name, f"no part waits more at {busy.rate:,.4g}/s than its rate explains")
    most = max(waiting, key=waiting.__getitem__)
    share = waiting[most] / total
    evidence = tuple(
        f"{part}: {before[part]:,.1f} {busy.item}s in flight at {quiet.rate:,.4g}/s, "
        f"{after[part]:,.1f} at {busy.rate:,.4g}/s"
        for part in after
    )
    resource, why = _resource(most, busy.parts)
    return Finding(
        name=name,
        value=resource,
        evidence=(
            f"{most} has {share:.0%} of the {busy.item}s beyond what the rate explains",
            *why,
            *evidence,
        ),
        confidence="medium" if share >= EXPLAINS else "low",
    )


def _resource(most: str, parts: Sequence[Part]) -> tuple[str, tuple[str, ...]]:
    """Return the resource that the messages in a part wait for, and the reasons."""
    known = [RESOURCES.get(name, name) for name in names_in(most)]
    resource = " or ".join(dict.fromkeys(known))
    if resource != PIPELINE or not set(WAITS).intersection(names_in(most)):
        return resource, ()
    work = {part.name: part.mean_ms for part in parts if WORK.issuperset(names_in(part.name))}
    whole = sum(work.values())
    longest, ms = max(work.items(), key=lambda one: one[1], default=("", 0.0))
    if ms <= 0 or ms < EXPLAINS * whole:
        return resource, ()
    why = (f"{longest} takes {ms / whole:.0%} of the time that the pipeline needs for a message",)
    return RESOURCES.get(longest, resource), (*why, ONE_PART) if longest == PIPELINE else why


def _skewed(clock_ms: float) -> bool:
    # Times are kept in microseconds, and those of Pub/Sub in milliseconds.
    return clock_ms > 1.0


def confirm(
    found: Finding, resource: str, before: float, after: float, precision: float
) -> Finding:
    """Return the bottleneck after a second test, for which one resource was increased.

    Args:
        found: What `bottleneck` returned for the first test.
        resource: The resource that was increased.
        before: The largest sustained rate of the first test.
        after: That of the second one.
        precision: The precision of the searches. A smaller gain does not count.
    """
    gain = after / before - 1
    named, gained = resource == found.value, gain > precision
    confidence: Confidence = found.confidence
    if found.value is not None and named != gained:
        confidence = "low"
    elif named:
        confidence = "high"
    said = f"with more of {resource}, the largest sustained rate changed by {gain:+.0%}"
    return replace(found, evidence=(said, *found.evidence), confidence=confidence)
