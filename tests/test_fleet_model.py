"""The model of batch jobs: what must hold for any job, and the limits that it finds."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fleet.__main__ import duration, table
from benchmarks.fleet.check import predicted
from benchmarks.fleet.job import RESULTS, Endpoint, Fleet, Job, Limits
from benchmarks.fleet.scenarios import example_row
from benchmarks.fleet.simulate import simulate
from cloud.prices import Workers

ROW = example_row()


def a_job(rows: float = 1e9, workers: int = 20, **changes: Any) -> Job:
    fleet = Fleet(workers=Workers(count=workers))
    return Job(name="job", rows=rows, row=ROW, fleet=fleet, **changes)


@given(
    rows=st.floats(1e6, 1e12),
    workers=st.integers(1, 500),
    source=st.sampled_from(["files", "table"]),
    spread=st.booleans(),
)
def test_more_workers_are_never_slower_and_more_rows_never_faster(
    rows: float, workers: int, source: Any, spread: bool
) -> None:
    job = a_job(rows, workers, source=source, spread=spread)
    outcome = simulate(job)
    assert simulate(a_job(rows, workers + 1, source=source, spread=spread)).total <= outcome.total
    assert simulate(replace(job, rows=rows * 2)).total >= outcome.total
    assert simulate(replace(job, rows=rows * 2)).dollars >= outcome.dollars > 0


def test_a_session_that_expires_is_a_limit_unless_batches_are_spread() -> None:
    job = a_job(source="table", endpoint=Endpoint(replicas=1), rows=1e8)
    (wall, *_) = simulate(job).walls
    assert "expires after 6 h, with 2.2e+07 rows read" in wall
    assert not any("expires" in wall for wall in simulate(replace(job, spread=True)).walls)


def test_a_small_job_meets_no_limit_and_takes_what_its_parts_take() -> None:
    outcome = simulate(a_job(1e8), Limits(commit_seconds_a_file=0.5))
    assert outcome.walls == ()
    assert outcome.files == 40
    assert outcome.seconds["commit"] == 20.0
    cpu = 1e8 * (ROW.read_us + ROW.model_us) * 2 * 1e-6
    assert outcome.seconds["work"] == pytest.approx(cpu / (80 * 0.9), rel=0.06)


def test_the_table_has_a_line_for_each_job() -> None:
    lines = table()
    assert len(lines) == 2 + 3 * 6
    assert {line.count("|") for line in lines} == {9}


def test_a_run_here_takes_longer_with_more_rows() -> None:
    assert 0 < predicted(1_000_000) < predicted(10_000_000)


def test_a_run_of_a_measured_size_takes_as_long_as_measured() -> None:
    for size in json.loads((RESULTS / "files.json").read_text())["sizes"]:
        seconds = size["contestants"]["millrace"]["run_seconds"]["median"]
        assert predicted(size["rows"]) == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.0, "1.0 s"), (119.0, "119.0 s"), (120.0, "2.0 min"), (7_200.0, "2.0 h"), (2e5, "2.3 days")],
)
def test_a_duration_has_a_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text
