"""What a target rate needs follows from levels and searches, or is said to be unknown."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import need_library
from virtual_server import level, open_loop

from cloud.prices import STREAMING, Workers
from scale_tests.load.plan import Bisection, Constant, Goal, Objective, Plan, Result
from scale_tests.load.schedule import due_times
from scale_tests.measures.conclusions import conclude
from scale_tests.measures.findings import Finding
from scale_tests.measures.knee import Knee
from scale_tests.measures.level import Judgement, Level, Verdict
from scale_tests.measures.outcome import Outcome
from scale_tests.measures.sizing import best_request, cold_start, recommend, workers_per_replica
from scale_tests.phases import Phases, Step

GOOD, BAD = Judgement(Verdict.SUSTAINED), Judgement(Verdict.FAILED, ("slow",))
SIZES = (1, 10, 100, 1_000)
SEARCH = Bisection(lowest=2, highest=500, seconds=200, precision=0.01, rows=SIZES)
PLAN = Plan(
    target="endpoint",
    arrivals="constant",
    objective=Objective(latency_ms=1_000),
    result=Result(source="answer"),
    goal=Goal(rate=5_000, usd_per_hour=0.5),
    phases=(SEARCH,),
)


def seconds_of(rows: int) -> float:
    """Return how long the server takes: 10 ms, 0.1 ms for a row, and more for large requests."""
    return 0.01 + 1e-4 * rows + 2e-7 * rows**2


def measure(step: Step) -> Level:
    answered = open_loop(step.due, np.full(len(step.due), seconds_of(step.rows)))
    made = level(step.due, answered, step.seconds)
    return replace(made, name=step.name, rows=step.rows)


@pytest.mark.slow
def test_the_capacity_of_each_size_and_the_best_size_of_a_known_server_are_found() -> None:
    need_library("hdrh")
    need_library("scipy")
    phases = Phases(PLAN, measure, lambda _: None)
    phases.run()
    for rows, knee in zip(SIZES, phases.knees, strict=True):
        assert knee.rows == rows
        assert knee.sustained == pytest.approx(1 / seconds_of(rows), rel=0.03)
    outcome = Outcome(
        test_id="a",
        levels=tuple(phases.levels),
        knees=tuple(phases.knees),
        strays=0,
    )
    found = {one.name: one for one in conclude(outcome, PLAN)}
    best = found["best request"]
    assert str(best.value).startswith("100 rows, ")
    assert best.confidence == "high"
    assert found["largest sustained rate, 10 rows"].unit == "requests/s"
    capacity = 100 / seconds_of(100)
    assert found["replicas"].value == int(np.ceil(5_000 / (0.7 * capacity)))
    assert found["cost of the replicas"].value == found["replicas"].value * 0.5 * 730  # type: ignore[operator]


def request(rows: int, rate: float, seconds: float = 0.01) -> Level:
    due = due_times(Constant(rate=rate, seconds=10), "constant", ())
    return replace(level(due, due + seconds, 10), rows=rows)


def test_the_best_request_has_the_most_rows_of_those_that_reached_the_objective() -> None:
    levels = [(request(1, 50), GOOD), (request(50, 20, 0.12), GOOD), (request(1_000, 5), BAD)]
    found = best_request([*levels, (request(50, 30), BAD)])
    # By Little's law, 20 requests per second of 0.12 s each are 2.4 at once.
    assert (found.value, found.confidence) == ("50 rows, 3 at once", "high")
    assert found.evidence[1].startswith("50 rows: 990 rows/s with 2.4")
    assert found.evidence[2] == "1,000 rows: no level was sustained"
    # At the edge of what was tried, a larger one may be better.
    assert best_request([*levels[:2], (request(50, 30), BAD)]).confidence == "medium"
    # Without a rate that failed, a higher one may be better.
    assert best_request(levels).confidence == "low"
    assert best_request([(request(1, 50), BAD)]).value is None


def test_a_cold_start_is_the_first_message_after_a_time_without_messages() -> None:
    need_library("hdrh")
    need_library("scipy")
    due = due_times(Constant(rate=10, seconds=10), "constant", ())
    answered = due + 0.01
    answered[0] = due[0] + 3
    cold = replace(level(due, answered, 10), idle_seconds=60.0)
    found = cold_start([replace(cold, idle_seconds=0.0), cold])
    assert found is not None
    assert (found.value, found.unit) == (3_000, "ms")
    assert found.evidence == (
        "the first message after 60 s without load",
        "the median of the level is 10 ms",
    )
    assert cold_start([replace(cold, idle_seconds=0.0)]) is None


def knee(rate: float | None) -> Knee:
    return Knee(rate, None, ())


def test_workers_per_replica_need_both_rates() -> None:
    goal = Goal(rate=1, count=2, replica_rows=1_000)
    assert workers_per_replica(knee(100), goal).value == 20
    assert workers_per_replica(knee(100), Goal(rate=1)).value is None
    assert workers_per_replica(knee(None), goal).confidence == "insufficient data"


def test_a_stream_with_a_goal_gets_its_workers_and_their_replicas() -> None:
    goal = Goal(rate=1_000, count=2, replica_rows=600)
    plan = Plan(
        target="stream",
        send_to="in",
        objective=Objective(latency_ms=1_000),
        result=Result(source="topic", name="out", dead_letters="dead"),
        goal=goal,
        phases=(Bisection(lowest=10, highest=1_000, seconds=60),),
    )
    searched = Outcome(test_id="a", levels=(), knees=(knee(200),), strays=0)
    found = {one.name: one.value for one in conclude(searched, plan)}
    assert found["largest sustained rate"] == 200
    # 100 messages a second of each worker, of which 70 are planned.
    assert found["workers"] == 15
    assert found["workers per replica"] == 6
    assert found["cost of the workers"] is not None


@given(st.floats(1, 1e5), st.floats(1, 1e4), st.integers(1, 10))
def test_the_recommended_workers_sustain_the_rate_with_room(
    rate: float, sustained: float, count: int
) -> None:
    workers, cost = recommend("workers", sustained, Goal(rate=rate, count=count))
    assert isinstance(workers.value, int)
    each = sustained / count
    assert workers.value * each * 0.7 >= rate * (1 - 1e-6)
    assert (workers.value - 1) * each * 0.7 < rate * (1 + 1e-9)
    hourly = Workers(count=workers.value, disk_gb=30.0).dollars(STREAMING, 3_600)
    assert cost.value == pytest.approx(hourly * 730, abs=0.01)
    assert workers.confidence == cost.confidence


def test_without_a_sustained_rate_or_a_price_nothing_is_recommended() -> None:
    found: tuple[Finding, ...] = recommend("workers", None, Goal(rate=100))
    assert {one.confidence for one in found} == {"insufficient data"}
    replicas, cost = recommend("replicas", 100, Goal(rate=50))
    assert (replicas.value, cost.value) == (1, None)
    assert "goal.usd_per_hour" in cost.evidence[0]
