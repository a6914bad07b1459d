"""What Cloud Monitoring says about a test joins its page."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_one_line_error
from libraries import need_library
from virtual_server import level, open_loop

from cloud.monitoring import Point
from examples.google_api.monitoring import Monitoring
from examples.google_api.server import google_api
from scale_tests.__main__ import main
from scale_tests.load.plan import Constant, Goal, Objective, Plan, Result
from scale_tests.load.schedule import due_times
from scale_tests.measures.level import judge
from scale_tests.measures.outcome import Outcome
from scale_tests.measures.watched import GAUGES, cost_of_levels, scale_out, together
from scale_tests.pages.record import write

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
PHASE = Constant(rate=2, seconds=600)
PLAN = Plan(
    target="endpoint",
    objective=Objective(latency_ms=200),
    result=Result(source="answer"),
    goal=Goal(rate=100, usd_per_hour=0.5),
    phases=(PHASE,),
)
(VCPUS,) = GAUGES["job_id"]
BACKLOG, OLDEST = GAUGES["subscription"]
REPLICAS, CPU = GAUGES["endpoint_id"]


def minutes(*values: float) -> list[tuple[datetime, float]]:
    """Return the values of the minutes from the one before the test."""
    return [(START + timedelta(minutes=n - 1), value) for n, value in enumerate(values)]


def points(*values: float) -> list[Point]:
    return [Point(moment.timestamp(), value) for moment, value in minutes(*values)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for library in ("hdrh", "scipy", "vl_convert", "googleapiclient"):
        need_library(library)
    due = due_times(PHASE, "constant", ()) + START.timestamp()
    one = level(due, open_loop(due, np.full(len(due), 0.01)), PHASE.seconds)
    one = replace(one, name="1 constant", start=START.timestamp())
    judged = ((one, judge(one, PLAN.objective, PLAN.sender)),)
    outcome = Outcome(test_id="a", levels=judged, knees=(), strays=0)
    (tmp_path / "out").mkdir()
    write(outcome, PLAN, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.slow
def test_the_page_has_the_gauges_of_the_time_of_the_test(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitoring = Monitoring()
    monitoring.points = {
        REPLICAS.metric: {"7": [minutes(1, 1, 1, 3, 3)]},
        CPU.metric: {"7": [minutes(0.2, 0.9, 0.9), minutes(0.4, 0.7, 0.7)]},
        VCPUS.metric: {"j": [minutes(4, 4, 8), [(START - timedelta(hours=1), 99.0)]]},
        BACKLOG.metric: {"s": [minutes(0, 50)]},
        OLDEST.metric: {},
    }
    with google_api(monitoring) as google:
        monkeypatch.setenv("MONITORING_EMULATOR_HOST", google.url)
        ids = ["--job_id", "j", "--subscription", "s", "--endpoint_id", "7"]
        assert main(["report", str(folder), "--project", "p-12345", *ids]) == 0
    found = json.loads((folder / "monitoring.json").read_text())
    lines = {line["name"]: line for line in found["lines"]}
    assert lines["replicas"]["values"] == [1, 1, 1, 3, 3]
    assert lines["replicas"]["at"][0] == START.timestamp() - 60
    # The unit of this metric is 10^2.%.
    assert lines["CPU of a replica"]["values"] == pytest.approx([30, 80, 80])
    assert lines["vCPUs of workers"]["values"] == [4, 4, 8]
    assert lines["backlog"]["values"] == [0, 50]
    findings = {one["name"]: one for one in found["findings"]}
    assert findings["time to scale out: replicas"]["value"] == 120
    assert findings["time to scale out: vCPUs of workers"]["value"] == 60
    cost = findings["cost of 1 constant: replicas"]
    assert cost["value"] == pytest.approx(9 / 5 * 0.5 * 600 / 3_600, abs=1e-4)
    page = (folder / "report.html").read_text().partition("<script")[0]
    assert "Cloud Monitoring has no value of age of the oldest message." in page
    assert "time to scale out: replicas" in page
    # The page of the result without the gauges can be written again, and keeps them.
    assert main(["report", str(folder)]) == 0
    assert "time to scale out: replicas" in (folder / "report.html").read_text()


def test_a_project_without_a_resource_and_a_refusal_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["report", str(folder), "--project", "p-12345"])
    assert_one_line_error((code, *capsys.readouterr()), 2, "--project belongs to --job_id")
    monitoring = Monitoring()
    # The stand-in knows this metric by another label only.
    monitoring.points = {}
    with google_api(monitoring) as google:
        monkeypatch.setenv("MONITORING_EMULATOR_HOST", google.url)
        flags = ["--project", "p-12345", "--endpoint_id", "7"]
        code = main(["report", str(folder), *flags])
    assert_one_line_error((code, *capsys.readouterr()), 1, "Cloud Monitoring cannot be read")


def test_several_series_become_one_line() -> None:
    assert together(REPLICAS, [points(1, 2), points(3, 4)]).values.tolist() == [4, 6]
    assert together(CPU, [points(0.25), points(0.75)]).values.tolist() == [50]
    assert together(OLDEST, [points(5, 1), points(2, 8)]).values.tolist() == [5, 8]
    assert together(OLDEST, []).values.tolist() == []


def test_a_system_that_does_not_grow_has_no_time_to_scale_out() -> None:
    start = START.timestamp()
    for values, reason in (
        ((2, 2, 1), "they never were more than 2"),
        ((), "no value from before the test"),
    ):
        found = scale_out(together(REPLICAS, [points(*values)]), start)
        assert (found.value, found.evidence[0]) == (None, reason)


def test_the_cost_of_workers_follows_from_the_list_prices() -> None:
    line = together(VCPUS, [points(4, 4, 4)])
    levels = [
        {"name": "a", "start": START.timestamp(), "seconds": 60.0},
        {"name": "b", "start": START.timestamp() + 3_600, "seconds": 60.0},
    ]
    known, unknown = cost_of_levels([line], levels, None)
    # 4 vCPUs with 15 GB for a minute.
    assert known.value == pytest.approx((4 * 0.069 + 15 * 0.003557) / 60, abs=1e-4)
    assert (unknown.value, unknown.evidence) == (None, ("no value during the level",))
