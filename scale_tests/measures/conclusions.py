"""All findings of a test."""

from __future__ import annotations

from collections.abc import Iterator

from scale_tests.load.plan import Plan
from scale_tests.measures.findings import Finding, bottleneck, sustainable_rate
from scale_tests.measures.level import Verdict, rows_text
from scale_tests.measures.outcome import Outcome
from scale_tests.measures.sizing import best_request, cold_start, recommend, workers_per_replica


def conclude(outcome: Outcome, plan: Plan) -> list[Finding]:
    """Return the findings of a test."""
    of_endpoint = plan.target == "endpoint"
    found = [*_rates(outcome, of_endpoint)]
    return [*found, *(_of_endpoint(outcome, plan) if of_endpoint else _of_stream(outcome, plan))]


def _rates(outcome: Outcome, of_endpoint: bool) -> Iterator[Finding]:
    """Yield the largest sustained rate of each search, named by its rows if there are several."""
    several = len({knee.rows for knee in outcome.knees}) > 1
    for knee in outcome.knees:
        size = f", {rows_text(knee.rows)}" if several else ""
        yield sustainable_rate(knee, size, "requests/s" if of_endpoint else "messages/s")


def _of_stream(outcome: Outcome, plan: Plan) -> Iterator[Finding]:
    judged = (Verdict.SUSTAINED, Verdict.FAILED)
    levels = [level for level, one in outcome.levels if level.seconds and one.verdict in judged]
    if len(levels) > 1:
        levels.sort(key=lambda level: level.rate)
        yield bottleneck(levels[0], levels[-1])
    for knee in outcome.knees[-1:]:
        if plan.goal:
            yield from recommend("workers", knee.sustained, plan.goal)
        if plan.goal and plan.goal.replica_rows:
            yield workers_per_replica(knee, plan.goal)


def _of_endpoint(outcome: Outcome, plan: Plan) -> Iterator[Finding]:
    levels = [one for one in outcome.levels if one[0].seconds]
    if levels:
        yield best_request(levels)
    if (cold := cold_start(level for level, _ in outcome.levels)) is not None:
        yield cold
    if plan.goal:
        rates = [knee.sustained * knee.rows for knee in outcome.knees if knee.sustained]
        yield from recommend("replicas", max(rates, default=None), plan.goal)
