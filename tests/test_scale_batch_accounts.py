"""Every row of a batch has one fate, and the findings follow from the runs."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import need_library

from scale_tests.load.batch_plan import Batch, BatchGoal, BatchPlan, Offline
from scale_tests.measures.batch_findings import conclude_batch, fit
from scale_tests.measures.batch_runs import (
    Accounts,
    BatchLevel,
    BatchOutcome,
    BatchVerdict,
    Run,
    account,
    judge_batch,
)
from scale_tests.measures.findings import Finding

PLAN = BatchPlan(
    target="batch",
    send_to="./out",
    batch=Batch(),
    phases=(Offline(rows=(1_000, 10_000, 100_000)),),
)


def of(rows: int, *, first: int = 0, faulty: tuple[int, ...] = (), **found: list[int]) -> Any:
    """Return the accounts of a run from the numbers of the rows that were found."""
    faults = np.isin(np.arange(rows), faulty)
    scored, dead = (np.array(found.get(name, []), np.int64) for name in ("scored", "dead"))
    return account(first, faults, scored, dead, over=True)


def test_a_run_in_which_each_row_has_the_right_result_is_right() -> None:
    accounts, affected = of(5, first=100, faulty=(2,), scored=[104, 100, 103, 101], dead=[102])
    assert accounts == Accounts(planned=5, scored=4, dead_lettered=1)
    assert accounts.right
    assert affected == ()


def test_lost_duplicated_wrong_and_stray_rows_are_named() -> None:
    accounts, affected = of(10, faulty=(0, 1), scored=[0, 2, 3, 3, 3, -1, 10], dead=[1, 4, 2])
    assert accounts == Accounts(
        planned=10, scored=3, dead_lettered=2, lost=5, duplicates=3, wrong=2, strays=2
    )
    assert affected == (
        "lost: rows 5 to 9 (5)",
        "duplicated: rows 2 to 3 (2)",
        "dead-lettered without a fault: row 4 (1)",
        "scored with a fault: row 0 (1)",
    )


def test_many_gaps_are_named_by_the_first_ones() -> None:
    _, affected = of(20, scored=[*range(0, 20, 2)])
    assert affected == ("lost: rows 1, 3, 5, 7, 9 and 5 more ranges (10)",)


def test_rows_without_a_result_are_pending_as_long_as_a_run_has_not_ended() -> None:
    none = np.zeros(0, np.int64)
    accounts, _ = account(0, np.zeros(3, bool), none, none, over=False)
    assert accounts == Accounts(planned=3, pending=3)


@given(st.lists(st.integers(-1, 12)), st.lists(st.integers(-1, 12)), st.sets(st.integers(0, 9)))
def test_the_fates_add_up_to_the_rows_and_the_results(
    scored: list[int], dead: list[int], faulty: set[int]
) -> None:
    found, _ = of(10, faulty=tuple(faulty), scored=scored, dead=dead)
    assert found.scored + found.dead_lettered + found.lost == found.planned == 10
    results = found.scored + found.dead_lettered + found.duplicates + found.strays
    assert results == len(scored) + len(dead)
    exact = sorted(scored) == sorted({*range(10)} - faulty) and sorted(dead) == sorted(faulty)
    assert found.right is exact


def run(rows: int, seconds: float, number: int = 1, **fields: Any) -> Run:
    accounts = Accounts(planned=rows, scored=rows)
    given: dict[str, Any] = {"round": number, "started": 0.0, "accounts": accounts}
    return Run(seconds=seconds, **given | fields)


def level(rows: int, *seconds: float, **fields: Any) -> BatchLevel:
    runs = tuple(run(rows, s, number, **fields) for number, s in enumerate(seconds, 1))
    return BatchLevel(name=f"1 offline, {rows:,} rows", rows=rows, runs=runs)


def findings(
    *levels: BatchLevel, goal: BatchGoal | None = None, **batch: Any
) -> dict[str, Finding]:
    need_library("scipy")
    plan = BatchPlan(
        target="batch", send_to="./out", batch=Batch(**batch), goal=goal, phases=PLAN.phases
    )
    found = conclude_batch(BatchOutcome(test_id="t", plan=plan, levels=levels))
    return {one.name: one for one in found}


def test_a_level_passes_within_the_limits_of_the_plan() -> None:
    one = level(1_000, 2.0, 3.0, 4.0)
    passed = (BatchVerdict.PASSED, ())
    assert judge_batch(one, Batch()) == passed
    assert judge_batch(one, Batch(max_seconds=3, min_rows_per_second=333)) == passed
    slow, reasons = judge_batch(one, Batch(max_seconds=2.9, min_rows_per_second=334))
    assert slow is BatchVerdict.FAILED
    assert reasons == (
        "it took 3 s, expected at most 2.9 s",
        "it scored 333.3 rows/s, expected at least 334 rows/s",
    )


def test_a_level_fails_if_one_run_has_a_fault_whatever_the_others_say() -> None:
    lost = run(10, 1.0, 2, accounts=Accounts(planned=10, scored=9, lost=1), affected=("lost: 3",))
    one = replace(level(10, 1.0), runs=(run(10, 1.0), lost, run(10, 1.0, 3, faults=("killed",))))
    assert judge_batch(one, Batch()) == (
        BatchVerdict.FAILED,
        ("run 2: lost: 3", "run 3: killed"),
    )
    assert one.values("seconds") == [1.0]


def test_an_interrupted_level_is_incomplete() -> None:
    verdict, reasons = judge_batch(level(10, 1.0, interrupted=True), Batch())
    assert verdict is BatchVerdict.INCOMPLETE
    assert reasons == ("the test ended during this level",)


def linear(fixed: float, rate: float, repeat: int = 3, noise: float = 0.0) -> list[BatchLevel]:
    random = np.random.default_rng(1)
    return [
        level(rows, *((fixed + rows / rate) * random.normal(1, noise, repeat)))
        for rows in (1_000, 10_000, 100_000)
    ]


def test_the_fixed_time_and_the_rate_are_recovered() -> None:
    found = findings(*linear(5.0, 2_000.0))
    assert found["fixed time"].value == pytest.approx(5.0)
    assert found["rate beyond the fixed time"].value == pytest.approx(2_000.0)
    assert found["growth of the time"].value == "linear"
    assert {one.confidence for name, one in found.items() if "time" in name} == {"high"}


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_the_bounds_contain_the_truth_although_the_times_vary(noise: float) -> None:
    need_library("scipy")
    line = fit(linear(5.0, 2_000.0, noise=noise))
    assert line is not None
    assert abs(line.fixed - 5.0) <= line.fixed_bound < 1.0
    assert abs(line.per_row - 1 / 2_000) <= line.per_row_bound < 0.2 / 2_000


def test_two_sizes_give_a_line_of_low_confidence_and_one_size_none() -> None:
    found = findings(level(1_000, 5.5, 5.5), level(10_000, 10.0, 10.0))
    assert found["rate beyond the fixed time"].value == pytest.approx(2_000)
    assert found["rate beyond the fixed time"].confidence == "low"
    assert found["growth of the time"].confidence == "insufficient data"
    assert findings(level(1_000, 5.5))["fixed time"].value is None
    assert findings()["peak memory"].value is None


def test_two_runs_do_not_show_that_the_time_grows() -> None:
    found = findings(level(1, 51.8), level(2, 75.5), goal=BatchGoal(rows=100))
    assert found["fixed time"].evidence[0] == "no bounds: two runs"
    assert found["rate beyond the fixed time"].value is None
    assert "repeat the sizes" in found["rate beyond the fixed time"].evidence[0]
    assert found["time of 100 rows"].value is None


def test_a_time_that_grows_faster_than_the_rows_is_not_linear() -> None:
    levels = [level(rows, *[1 + (rows / 10_000) ** 1.6] * 3) for rows in (1_000, 10_000, 100_000)]
    found = findings(*levels, goal=BatchGoal(rows=50_000, usd_per_hour=1))
    assert found["growth of the time"].value == "not linear"
    assert found["time of 50,000 rows"].confidence == "low"


def test_runs_that_differ_too_much_do_not_say_how_the_time_grows() -> None:
    noisy = [level(1_000, 3.6, 4.5), level(10_000, 6.9, 8.4), level(50_000, 16.4, 20.5)]
    found = findings(*noisy)["growth of the time"]
    assert found.value is None
    assert "repeat them" in found.evidence[0]
    once = [level(1_000, 5.5), level(10_000, 10.0), level(100_000, 55.0)]
    assert findings(*once)["growth of the time"].confidence == "low"


def test_sizes_whose_times_do_not_differ_give_no_rate() -> None:
    levels = [level(rows, 5.0, 5.2, 4.9) for rows in (10, 20, 30)]
    found = findings(*levels, goal=BatchGoal(rows=1_000_000, usd_per_hour=1))
    assert found["rate beyond the fixed time"].value is None
    assert "use larger sizes" in found["rate beyond the fixed time"].evidence[0]
    assert not any("linear" in text for one in found.values() for text in one.evidence)
    assert found["time of 1,000,000 rows"].value is None
    assert found["time of 1,000,000 rows"].evidence[0].endswith("larger sizes or more runs")


@pytest.mark.parametrize(
    ("rows", "confidence"), [(100_000, "high"), (1_000_000, "medium"), (100_000_000, "low")]
)
def test_the_confidence_of_a_large_run_falls_with_its_distance(rows: int, confidence: str) -> None:
    goal = BatchGoal(rows=rows, count=2, usd_per_hour=3.6)
    found = findings(*linear(5.0, 2_000.0), goal=goal)
    time, cost = found[f"time of {rows:,} rows"], found[f"cost of {rows:,} rows"]
    assert time.value == pytest.approx(5 + rows / 2_000)
    assert cost.value == pytest.approx(2 * 0.001 * (5 + rows / 2_000), rel=1e-3)
    assert time.confidence == cost.confidence == confidence


@pytest.mark.parametrize(
    ("rows", "reach"),
    [
        (10, "below the smallest size that was measured, 1,000 rows"),
        (50_000, "within the sizes that were measured"),
        (200_000, "2 times the largest size that was measured"),
    ],
)
def test_a_finding_says_how_far_the_goal_is_from_the_sizes(rows: int, reach: str) -> None:
    found = findings(*linear(5.0, 2_000.0), goal=BatchGoal(rows=rows))
    assert reach in found[f"time of {rows:,} rows"].evidence


def test_workers_of_dataflow_have_list_prices_and_other_machines_need_one() -> None:
    goal = BatchGoal(rows=1_000)
    own = findings(*linear(5.0, 2_000.0), goal=goal)["cost of 1,000 rows"]
    assert own.value is None
    assert own.evidence == ("needs goal.usd_per_hour, the price of the machine",)
    flags = ("--runner", "DataflowRunner")
    job = findings(*linear(5.0, 2_000.0), goal=goal, flags=flags)["cost of 1,000 rows"]
    assert isinstance(job.value, float)
    assert 0 < job.value < 0.01


def test_memory_and_cores_are_those_of_the_runs() -> None:
    levels = [
        level(rows, 10.0, cpu_seconds=15.0, peak_bytes=peak)
        for rows, peak in ((1_000, 400e6), (10_000, 500e6), (100_000, 1_400e6))
    ]
    found = findings(*levels)
    assert found["cores used"].value == 1.5
    assert found["peak memory"].value == 1_400
    assert found["growth of the memory"].value == "10,000 bytes per row"
    steady = [replace(one, runs=levels[0].runs) for one in levels]
    assert findings(*steady)["growth of the memory"].value == "none"
    # On Dataflow the work is done elsewhere.
    assert findings(*linear(5, 2_000))["cores used"].confidence == "insufficient data"


def test_a_run_that_lost_rows_counts_in_no_finding() -> None:
    levels = linear(5.0, 2_000.0)
    bad = run(100_000, 1.0, 4, accounts=Accounts(planned=100_000, scored=99_999, lost=1))
    levels[2] = replace(levels[2], runs=(*levels[2].runs, bad))
    assert findings(*levels)["fixed time"].value == pytest.approx(5.0)
    assert not math.isnan(levels[2].median("seconds") or math.nan)
