"""What a target rate needs: requests of an endpoint, workers, replicas, and their cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from cloud.prices import STREAMING, Workers
from scale_tests.load.plan import Goal
from scale_tests.measures.findings import Confidence, Finding, missing
from scale_tests.measures.knee import Knee
from scale_tests.measures.level import Judgement, Level, Verdict, rows_text

HOURS_PER_MONTH = 730
# Workers and replicas are planned for this share of the rate that they sustain.
HEADROOM = 0.7
# A quotient that is a whole number but for its rounding needs no further worker.
ROUNDING = 1e-9

Judged = Sequence[tuple[Level, Judgement]]


def best_request(levels: Judged) -> Finding:
    """Return the rows of a request, and the requests at once, with the most rows per second.

    By Little's law, a client that waits for its answers needs as many requests at once as were in
    flight at this rate.

    Args:
        levels: The levels of an endpoint that have a rate, and the judgements about them.
    """
    name = "best request"
    best = _best_levels(levels)
    if not best:
        return missing(name, "no level was sustained")
    most = max(best.values(), key=_rows_per_second)
    sizes = sorted({level.rows for level, _ in levels})
    at_once = max(1, math.ceil(most.in_flight - ROUNDING))
    inside = len(sizes) > 2 and sizes[0] < most.rows < sizes[-1]
    # A rate above the best one must have failed, or it was not the limit.
    limited = any(
        level.rows == most.rows and level.rate > most.rate and judgement.failed
        for level, judgement in levels
    )
    return Finding(
        name=name,
        value=f"{rows_text(most.rows)}, {at_once:,} at once",
        evidence=tuple(_of_size(size, best.get(size)) for size in sizes),
        confidence="high" if inside and limited else "medium" if limited else "low",
    )


def _of_size(rows: int, best: Level | None) -> str:
    if best is None:
        return f"{rows_text(rows)}: no level was sustained"
    rate, waiting = _rows_per_second(best), best.in_flight
    return f"{rows_text(rows)}: {rate:,.0f} rows/s with {waiting:,.1f} requests in flight"


def _best_levels(levels: Judged) -> Mapping[int, Level]:
    """Return the sustained level with the most rows per second, for each size of a request."""
    found: dict[int, Level] = {}
    for level, judgement in levels:
        if judgement.verdict is Verdict.SUSTAINED and level.seconds:
            known = found.get(level.rows)
            if known is None or _rows_per_second(level) > _rows_per_second(known):
                found[level.rows] = level
    return found


def _rows_per_second(level: Level) -> float:
    return level.throughput * level.rows


def cold_start(levels: Iterable[Level]) -> Finding | None:
    """Return how long the first message after a time without messages took; None without one."""
    for level in levels:
        if not level.idle_seconds or not level.ledger.planned:
            continue
        name, first = "cold start", float(level.ledger.latencies[0]) * 1e3
        if math.isnan(first):
            return missing(name, f"{level.name}: the first {level.item} has no result")
        latencies = level.latencies()
        median = latencies.quantile(50.0).ms if latencies else None
        rest = () if median is None else (f"the median of the level is {median:,.0f} ms",)
        return Finding(
            name=name,
            value=round(first, 3),
            unit="ms",
            evidence=(f"the first {level.item} after {level.idle_seconds:g} s without load", *rest),
            confidence="low",
        )
    return None


def workers_per_replica(worker: Knee, goal: Goal) -> Finding:
    """Return how many workers of a stream one replica of its endpoint can answer.

    Args:
        worker: The knee of the tested workers.
        goal: How many workers there are, and what a replica sustains.
    """
    name = "workers per replica"
    if not worker.sustained or not goal.replica_rows:
        return missing(name, "needs the sustained rate of the workers and of one replica")
    each = worker.sustained / goal.count
    return Finding(
        name=name,
        value=goal.replica_rows / each,
        unit="workers",
        evidence=(
            f"a worker sustains {each:,.4g} rows/s",
            f"a replica sustains {goal.replica_rows:,.4g} rows/s",
        ),
        confidence="medium",
    )


def recommend(unit: str, sustained: float | None, goal: Goal) -> tuple[Finding, Finding]:
    """Return the workers or replicas for a target rate, and their cost in USD per month.

    Their rate is assumed to grow with their number, so the confidence falls with the distance from
    what was tested.

    Args:
        unit: `workers`, which process messages, or `replicas`, which answer rows.
        sustained: The rate per second that the tested ones sustained; None without one.
        goal: What was tested, and the target rate.
    """
    names = (unit, f"cost of the {unit}")
    if not sustained:
        reason = "needs a rate that was sustained"
        return missing(names[0], reason), missing(names[1], reason)
    count = math.ceil(goal.rate * goal.count / (HEADROOM * sustained) - ROUNDING)
    beyond = count / goal.count
    confidence: Confidence = "high" if beyond <= 1 else "medium" if beyond <= 4 else "low"
    evidence = (
        f"{goal.count} of the {unit} with {goal.vcpu} vCPUs sustained {sustained:,.0f}/s",
        f"{HEADROOM:.0%} of that is planned for {goal.rate:,.0f}/s",
    )
    found = Finding(name=names[0], value=count, unit=unit, evidence=evidence, confidence=confidence)
    hourly, source = _price(unit, goal)
    if hourly is None:
        return found, missing(names[1], source)
    cost = Finding(
        name=names[1],
        value=round(count * hourly * HOURS_PER_MONTH, 2),
        unit="USD/month",
        evidence=(*evidence, source),
        confidence=confidence,
    )
    return found, cost


def _price(unit: str, goal: Goal) -> tuple[float | None, str]:
    """Return the price per hour of one worker or replica, and where it comes from."""
    if goal.usd_per_hour is not None:
        return goal.usd_per_hour, "goal.usd_per_hour of the plan"
    if unit != "workers":
        return None, "needs goal.usd_per_hour, the price of a replica"
    one = Workers(count=1, vcpu=goal.vcpu, memory_gb=goal.memory_gb)
    return one.dollars(STREAMING, 3_600), "list prices of us-central1, without Streaming Engine"
