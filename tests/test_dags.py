"""The decisions of the DAGs, without Airflow. `make test-dags` runs the DAGs in Airflow."""

import ast
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dags.millrace_dags.health import LIMITS as STREAM_LIMITS
from dags.millrace_dags.health import counters, judge_stream, read_settings
from dags.millrace_dags.quality import figures_of, judge_run
from dags.millrace_dags.runs import LIMITS, SettingsError, plan_run

ROOT = Path(__file__).parent.parent
MOMENT = datetime(2026, 11, 20, 5, tzinfo=UTC)
SETTINGS: dict[str, Any] = {
    "project": "p",
    "region": "us-central1",
    "template": "gs://b/templates/batch_local.json",
    "parameters": {"input_table": "p.d.rows", "model": "gs://b/m/", "output_table": "p.d.scores"},
    "environment": {"tempLocation": "gs://b/tmp"},
}


def plan(overrides: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    return plan_run({**SETTINGS, **settings}, overrides or {}, MOMENT, MOMENT)


def parameters(**changes: Any) -> dict[str, Any]:
    return {"parameters": SETTINGS["parameters"] | changes}


def report(rows: int = 1_000, dead: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "run_id": "r",
        "balanced": True,
        "rows_in": rows,
        "rows_scored": rows - dead,
        "rows_dead_lettered": dead,
        "dead_letters": [{"stage": "validate", "reason": "null", "column": "V1", "rows": dead}],
        "dead_letter_output": ["p.d.letters"],
        "input": ["p.d.rows"],
        "scores": {"mean": 1.0, "std": 2.0, "min": 0.0, "max": 9.0},
        **changes,
    }


def judged(
    run_report: dict[str, Any],
    previous: dict[str, Any] | None = None,
    **limits: Any,
) -> list[str]:
    return judge_run("r", run_report, previous, LIMITS | limits)


def test_the_folder_of_dags_imports_only_airflow_googles_client_and_itself() -> None:
    allowed = {"airflow", "googleapiclient", "millrace_dags", *sys.stdlib_module_names}
    paths = list((ROOT / "dags").rglob("*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert {name.split(".")[0] for name in names} <= allowed, path.name


def test_the_run_id_depends_only_on_the_logical_date() -> None:
    first, again = plan(), plan({"parameters": {"batch_rows": 10}})
    assert first["run_id"] == again["run_id"] == "scheduled-20261120T050000Z"
    assert first["request"]["launchParameter"]["parameters"]["run_id"] == first["run_id"]


def test_parameters_are_texts_with_the_date_filled_in() -> None:
    texts = plan(
        **parameters(
            row_restriction="day = '{date}'",
            batch_rows=10,
            compile=True,
            output_fields=["a", "b"],
            trusted_modules=["nets", "layers"],
        )
    )["request"]["launchParameter"]["parameters"]
    assert texts["row_restriction"] == "day = '2026-11-20'"
    assert (texts["batch_rows"], texts["compile"], texts["output_fields"]) == ("10", "true", "a,b")
    assert texts["trusted_modules"] == "nets,layers"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({}, "gs://b/tmp/millrace/RUN/report.json"),
        ({"output_files": "gs://b/out/"}, "gs://b/out/RUN/report.json"),
        ({"dead_letter_files": "gs://b/dead"}, "gs://b/dead/RUN/report.json"),
    ],
)
def test_the_report_is_read_from_where_the_pipeline_writes_it(
    changes: dict[str, str], path: str
) -> None:
    found = plan(**parameters(**changes))
    assert found["report"] == path.replace("RUN", found["run_id"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"project": "", "template": None}, "missing project, template: see the example"),
        ({"limit": {}}, "unknown key 'limit' (did you mean 'limits'?)"),
        ({"limits": {"min_row": 1}}, "did you mean 'min_rows'?"),
        ({"pipeline": "stream_local"}, "streams are not scheduled"),
        ({"name": "Daily"}, "expected lowercase letters"),
        ({"template": "templates/x.json"}, "expected gs://BUCKET/FILE"),
        ({"environment": {}}, "tempLocation is missing"),
        (parameters(run_id="x"), "parameters.run_id: the DAG chooses the run id"),
        (parameters(output_table=None), "output_table or output_files is missing"),
    ],
)
def test_errors_in_settings_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        plan(**changes)
    assert message in str(caught.value)


def test_the_gate_is_open_for_a_good_run() -> None:
    assert judged(report(dead=10), {"rows": 990, "mean": 1.0, "std": 0.5}) == []


@given(rows=st.integers(1, 10**9), share=st.floats(0, 1))
def test_the_gate_applies_the_limit_of_dead_letters_exactly(rows: int, share: float) -> None:
    dead = int(rows * share)
    found = judged(report(rows, dead), max_dead_letter_share=0.25)
    assert bool(found) == (dead > 0.25 * rows)


@pytest.mark.parametrize(
    ("run_report", "expected"),
    [
        (report(run_id="other"), "expected the report of run r, found one of run other"),
        (report(rows_scored=999), "expected rows in = scored + dead letters, got 1,000 and 999"),
        (report(balanced=None), "expected rows in = scored + dead letters"),
        (report(0), "expected at least 1 rows, got 0"),
        (report(dead=11), "expected at most 1.00% dead letters, got 1.10% (11 of 1,000; null at"),
    ],
)
def test_the_gate_states_what_it_expected(run_report: dict[str, Any], expected: str) -> None:
    (found,) = judged(run_report)
    assert found.startswith(expected)


def test_scores_may_shift_within_the_spread_of_the_last_good_run() -> None:
    def now(mean: float) -> dict[str, Any]:
        return report(scores={"mean": mean, "std": 9.0})

    previous = figures_of(report(run_id="q"))
    assert judged(now(1.9), previous) == []
    (found,) = judged(now(-0.2), previous)
    assert "run q (mean 1, standard deviation 2); got -0.2, which is 0.60 away" in found
    assert judged(now(-0.2), previous, max_score_shift=None) == []
    (found,) = judged(now(5.0), score_mean=[0, 4])
    assert found.startswith("expected a mean score from 0 to 4, got 5")


def test_a_run_without_scores_passes_the_limits_of_scores() -> None:
    assert judged(report(scores=None), figures_of(report()), score_mean=[2, 3]) == []
    assert judged(report(), figures_of(report(scores=None))) == []


def seen(**changes: Any) -> dict[str, Any]:
    well = {"id": "j", "state": "JOB_STATE_RUNNING", "lag": 1, "waiting": 1, "oldest": 1}
    return well | {"received": 1_000, "dead": 0} | changes


JOB = {"name": "s", "subscription": "in", "limits": STREAM_LIMITS}


@pytest.mark.parametrize(
    ("now", "problem"),
    [
        (None, "s: expected a running job, found none"),
        (
            seen(state="JOB_STATE_DRAINING"),
            "s: expected JOB_STATE_RUNNING, got JOB_STATE_DRAINING: follow the job with python -m "
            "pipelines.launch --attach ",
        ),
        (
            seen(lag=121),
            "s: the system lag in seconds is 121, expected at most 120: follow the job with python "
            "-m pipelines.launch --attach ",
        ),
        (
            seen(waiting=100_001),
            "s: the number of waiting messages is 100,001, expected at most 100,000: ",
        ),
        (
            seen(oldest=601),
            "s: the age of the oldest message in seconds is 601, expected at most 600: ",
        ),
        (seen(dead=11), "s: expected at most 1.00% dead letters since the last check, got 1.10%"),
    ],
)
def test_a_problem_of_a_stream_is_reported(now: dict[str, Any] | None, problem: str) -> None:
    (found,) = judge_stream(JOB, now, None, "--project p --region r")
    assert found.startswith(problem)


def test_dead_letters_before_the_last_check_are_not_reported_again() -> None:
    place, before = "--project p --region r", seen(dead=500)
    assert judge_stream(JOB, seen(received=2_000, dead=500), before, place) == []
    assert judge_stream(JOB, seen(lag=None, waiting=None, oldest=None), None, place) == []
    # The counters of another job start at 0.
    (found,) = judge_stream(JOB, seen(id="k", received=100, dead=50), before, place)
    assert "50.00% (50 of 100)" in found


def test_tentative_counters_are_ignored() -> None:
    def update(step: str, value: int, **context: str) -> dict[str, Any]:
        name = {"origin": "user", "name": "rows_received", "context": {"step": step, **context}}
        return {"name": name, "scalar": value}

    updates = [update("a", 5), update("b", 2), update("a", 9, tentative="true")]
    assert counters(updates) == {"rows_received": 7}


def test_settings_of_streams_are_completed_and_checked() -> None:
    job = {"name": "s", "subscription": "projects/p/subscriptions/in", "limits": {}}
    given = {"project": "p", "region": "r", "jobs": [job]}
    (found,) = read_settings(given)["jobs"]
    assert found == JOB
    with pytest.raises(SettingsError, match="unknown key 'job'"):
        read_settings({"project": "p", "region": "r", "job": []})
    with pytest.raises(SettingsError, match="missing name"):
        read_settings(given | {"jobs": [{"subscription": "in"}]})
