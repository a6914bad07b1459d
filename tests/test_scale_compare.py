"""Two results of one plan are compared figure by figure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import need_library
from virtual_server import level, open_loop

from common.errors import InputError, UsageError
from scale_tests.__main__ import main
from scale_tests.load.plan import Constant, Objective, Plan, Result
from scale_tests.load.schedule import due_times
from scale_tests.measures.knee import Knee, Probe
from scale_tests.measures.level import Judgement, Verdict, judge
from scale_tests.measures.outcome import Outcome
from scale_tests.measures.stamps import breakdown
from scale_tests.pages.compare import compare, read_share
from scale_tests.pages.differences import Change
from scale_tests.pages.record import result, write

PHASE = Constant(rate=100, seconds=60)
PLAN = Plan(
    target="stream",
    send_to="input",
    objective=Objective(latency_ms=200),
    result=Result(source="topic", name="output", dead_letters="dead"),
    phases=(PHASE,),
)


@pytest.fixture(autouse=True)
def _libraries() -> None:
    for library in ("hdrh", "scipy", "vl_convert"):
        need_library(library)


def outcome(seconds: float, *, seed: int = 1, lost: int = 0, name: str = "1 constant") -> Outcome:
    """Return a test of a server whose answers take this time in the mean."""
    due = due_times(PHASE, "poisson", (seed,))
    answered = open_loop(due, np.random.default_rng(seed).exponential(seconds, len(due)))
    answered[:lost] = np.nan
    one = replace(level(due, answered, PHASE.seconds), name=name)
    judged = ((one, judge(one, PLAN.objective, PLAN.sender)),)
    return Outcome(test_id="a", levels=judged, knees=(), strays=0)


def found(before: Outcome, after: Outcome, limit: float = 0.1) -> dict[str, Change]:
    differences = compare(result(before, PLAN), result(after, PLAN), limit)
    return {one.name: one.change for one in differences}


def test_a_slower_server_is_slower_and_a_faster_one_faster() -> None:
    assert set(found(outcome(0.002), outcome(0.004)).values()) == {Change.SLOWER}
    assert set(found(outcome(0.004), outcome(0.002)).values()) == {Change.FASTER}


@pytest.mark.parametrize("seed", range(2, 12))
def test_the_same_server_is_neither_slower_nor_faster(seed: int) -> None:
    changes = found(outcome(0.002), outcome(0.002, seed=seed))
    assert set(changes.values()) == {Change.SAME}


def test_within_the_limit_a_difference_does_not_count() -> None:
    assert found(outcome(0.002), outcome(0.0022), limit=0.5)["1 constant, p50"] is Change.SAME


def test_lost_messages_are_worse_whatever_the_latencies_are() -> None:
    changes = found(outcome(0.004), outcome(0.002, lost=1))
    assert changes["1 constant"] is Change.LOST
    assert Change.LOST not in found(outcome(0.004, lost=1), outcome(0.004, lost=1)).values()


def knee(rate: float, *, failed: bool) -> Outcome:
    probes = (Probe(rate, Judgement(Verdict.SUSTAINED)),)
    one = Knee(rate, rate * 1.1 if failed else None, probes)
    return replace(outcome(0.002), knees=(one,))


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ((1_000, True), (500, True), Change.SLOWER),
        ((1_000, False), (500, True), Change.SLOWER),
        ((500, True), (1_000, False), Change.FASTER),
        ((1_000, True), (950, True), Change.SAME),
        # A search that ended early has found a lower bound.
        ((1_000, True), (500, False), Change.UNKNOWN),
        ((500, False), (1_000, True), Change.UNKNOWN),
    ],
)
def test_rates_are_compared_as_far_as_they_are_known(
    before: tuple[float, bool], after: tuple[float, bool], change: Change
) -> None:
    one, other = (knee(rate, failed=failed) for rate, failed in (before, after))
    assert found(one, other)["largest sustained rate"] is change


def test_results_of_different_plans_are_refused() -> None:
    with pytest.raises(InputError, match="no level in common"):
        found(outcome(0.002), outcome(0.002, name="2 constant"))


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.25", 0.25), ("0%", 0.0)])
def test_a_share_is_read(text: str, share: float) -> None:
    assert read_share(text) == share


@pytest.mark.parametrize("text", ["", "%", "ten", "-1%", "nan", "inf"])
def test_another_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be a share such as 10%"):
        read_share(text)


def stored(folder: Path, name: str, one: Outcome) -> str:
    (folder / name).mkdir()
    write(one, PLAN, folder / name)
    return str(folder / name)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "code"), [(0.004, 1), (0.002, 0)])
def test_the_command_writes_a_page_and_fails_if_a_figure_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: float, code: int
) -> None:
    folders = [stored(tmp_path, "a", outcome(0.002)), stored(tmp_path, "b", outcome(seconds))]
    assert main(["compare", *folders, "--fail_if_slower", "20%"]) == code
    page = (tmp_path / "b" / "comparison.html").read_text().partition("<script")[0]
    assert ("slower" in page.replace("A latency is slower", "")) == bool(code)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(
        "2 of 2 figures are worse" if code else "no figure is worse; see "
    )
    assert [line.partition(":")[0] for line in printed[:-1]] == (
        ["1 constant, p50", "1 constant, p99"] if code else []
    )


def overloaded(rate: float, limit: float) -> Outcome:
    """Return a test in which the pipeline is the bottleneck, and the search found a limit."""
    levels = []
    for here in (limit / 5, limit * 0.99):
        due = due_times(Constant(rate=here, seconds=60), "poisson", (1,))
        scored = open_loop(due, np.full(len(due), 1 / limit))
        began = scored - 1 / limit
        moments = {"event_time": due, "received_at": began, "scored_at": scored, "arrived": scored}
        one = replace(level(due, scored, 60), name=f"{here / limit:g}", parts=breakdown(moments))
        levels.append((one, Judgement(Verdict.SUSTAINED)))
    return replace(knee(rate, failed=True), levels=tuple(levels))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resource", "after", "confidence"), [("pipeline", 190, "high"), ("pipeline", 100, "low")]
)
def test_a_second_test_with_more_of_a_resource_confirms_the_bottleneck(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    resource: str,
    after: float,
    confidence: str,
) -> None:
    folders = [
        stored(tmp_path, "a", overloaded(100, 100)),
        stored(tmp_path, "b", overloaded(after, 100)),
    ]
    assert main(["compare", *folders, "--moved", resource]) == 0
    printed = capsys.readouterr().out
    assert f"bottleneck: pipeline ({confidence}): with more of pipeline" in printed
    assert "with more of pipeline" in (tmp_path / "b" / "comparison.html").read_text()


@pytest.mark.slow
def test_a_resource_confirms_nothing_without_two_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [stored(tmp_path, "a", outcome(0.002)), stored(tmp_path, "b", outcome(0.002))]
    assert main(["compare", *folders, "--moved", "sink"]) == 0
    assert "bottleneck: insufficient data" in capsys.readouterr().out


def test_a_bound_without_a_result_makes_no_difference() -> None:
    # The message at the rank of the upper bound of p99 is lost.
    assert found(outcome(0.002, lost=45), outcome(0.002, lost=45))["1 constant, p99"] is Change.SAME


@pytest.mark.slow
def test_the_command_writes_the_page_of_a_result_again(tmp_path: Path) -> None:
    folder = stored(tmp_path, "a", outcome(0.002))
    assert main(["report", folder]) == 0
    result: dict[str, Any] = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["levels"][0]["name"] in (tmp_path / "a" / "report.html").read_text()
    assert main(["report", str(tmp_path)]) == 1
