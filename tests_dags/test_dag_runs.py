"""The DAGs in a real Airflow: parsed without this project, and run against local servers."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from local_google import PIPELINE_PYTHON, PROJECT, REGION, ROOT, World

Run = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    command = [PIPELINE_PYTHON, "-m", "examples.transactions.build", "--output", str(folder)]
    subprocess.run(
        [*command, "--rows", "2000", "--train_rows", "3000"], check=True, cwd=ROOT, env=os.environ
    )
    return folder


@pytest.fixture
def settings(
    example: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The settings in the Variable. A test that changes them must set the Variable again."""
    name = request.node.name.replace("_", "-")[:30].rstrip("-")
    found = {
        "project": PROJECT,
        "region": REGION,
        "template": "gs://bucket/templates/batch_local.json",
        "name": name,
        "parameters": {
            "input_files": str(example / "transactions.parquet"),
            "model": str(example / "model"),
            "id_column": "transaction_id",
            "score_output": "normalized_MAE",
            "output_table": f"{PROJECT}.dags.{name.replace('-', '_')}",
        },
        "environment": {"tempLocation": "gs://bucket/tmp"},
        "limits": {"max_dead_letter_share": 0.02},
        "alert_topic": f"projects/{PROJECT}/topics/alerts",
    }
    monkeypatch.setenv("AIRFLOW_VAR_MILLRACE_SCORING", json.dumps(found))
    return found


@pytest.fixture
def day(request: pytest.FixtureRequest) -> datetime:
    """A logical date later than those of earlier tests, because Airflow keeps their runs."""
    return datetime(2026, 3, 1, 5, tzinfo=UTC) + timedelta(
        days=2 * request.session.items.index(request.node)
    )


def rows(world: World, settings: dict[str, Any]) -> int:
    table = settings["parameters"]["output_table"]
    answer = world.emulators.cloud.bigquery().query_and_wait(f"SELECT COUNT(*) FROM `{table}`")
    return int(next(iter(answer))[0])


def alerts(world: World) -> list[str]:
    return [base64.b64decode(m["data"]).decode() for m in world.alerts.published]


def test_the_dags_folder_is_enough_to_parse_the_dags(tmp_path: Path) -> None:
    # Composer has only the dags folder. The project is not installed there.
    shutil.copytree(ROOT / "dags", tmp_path / "dags")
    code = (
        "import sys; sys.path.insert(0, 'dags')\n"
        "try:\n"
        "    from airflow.dag_processing.dagbag import DagBag\n"
        "except ImportError:\n"
        "    from airflow.models import DagBag\n"
        "bag = DagBag('dags')\n"
        "assert not bag.import_errors, bag.import_errors\n"
        "assert not {'torch', 'pipelines', 'resources'} & set(sys.modules)\n"
        "print(sorted(bag.dags))\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['millrace_scoring', 'millrace_streams']"


def test_tasks_follow_each_other_as_documented(dag_bag: Any) -> None:
    assert dag_bag.import_errors == {}
    scoring, streams = dag_bag.dags["millrace_scoring"], dag_bag.dags["millrace_streams"]
    assert {task.task_id: task.downstream_task_ids for task in scoring.tasks} == {
        "plan": {"score", "gate", "is_followed", "alert"},
        "score": {"gate", "alert"},
        "gate": {"is_followed", "alert"},
        "is_followed": {"follow"},
        "follow": set(),
        "alert": set(),
    }
    assert {task.task_id: task.downstream_task_ids for task in streams.tasks} == {
        "check": {"alert"},
        "alert": set(),
    }
    for dag in (scoring, streams):
        assert (dag.catchup, dag.max_active_runs) == (False, 1)
    score = scoring.get_task("score")
    assert (score.deferrable, score.retries) == (True, 2)


@pytest.mark.usefixtures("settings")
def test_repeated_runs_of_a_day_score_its_rows_once(
    world: World,
    settings: dict[str, Any],
    run_dag: Run,
    day: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    follower = {**settings, "downstream_dag": "millrace_streams"}
    monkeypatch.setenv("AIRFLOW_VAR_MILLRACE_SCORING", json.dumps(follower))
    expected = {
        "plan": "success",
        "score": "success",
        "gate": "success",
        "is_followed": "success",
        "follow": "success",
        "alert": "skipped",
        "run": "success",
    }
    assert run_dag("millrace_scoring", day) == expected
    assert run_dag("millrace_scoring", day) == expected
    first, second = world.launched()
    assert first["parameters"]["run_id"] == f"{settings['name']}-{day:%Y%m%dT%H%M%SZ}"
    assert first["parameters"] == second["parameters"]
    # 20 of the 2,000 rows of the example are faulty.
    assert rows(world, settings) == 1_980
    assert alerts(world) == []


def test_the_gate_stops_a_run_with_too_many_dead_letters(
    world: World, settings: dict[str, Any], run_dag: Run, day: datetime
) -> None:
    states = run_dag("millrace_scoring", day, limits={"max_dead_letter_share": 0.001})
    assert states == {
        "plan": "success",
        "score": "success",
        "gate": "failed",
        "is_followed": "upstream_failed",
        "follow": "upstream_failed",
        "alert": "success",
        "run": "failed",
    }
    (message,) = alerts(world)
    assert message.startswith("expected at most 0.10% dead letters, got 1.00% (20 of 2,000;")
    # The scores are in the table, but no DAG was triggered.
    assert rows(world, settings) == 1_980


def test_the_gate_stops_scores_that_shifted_since_the_last_good_run(
    world: World, settings: dict[str, Any], run_dag: Run, day: datetime
) -> None:
    assert run_dag("millrace_scoring", day)["run"] == "success"
    states = run_dag(
        "millrace_scoring",
        day + timedelta(days=1),
        parameters={"score_output": "denormalized_MAE"},
    )
    assert (states["score"], states["gate"]) == ("success", "failed")
    (message,) = alerts(world)
    name = f"{settings['name']}-{day:%Y%m%dT%H%M%SZ}"
    assert message.startswith(
        f"expected a mean score within 0.5 standard deviations of that of run {name} (mean "
    )


def test_a_job_that_fails_is_retried_and_reported_with_dataflows_message(
    world: World, settings: dict[str, Any], run_dag: Run, day: datetime
) -> None:
    states = run_dag("millrace_scoring", day, parameters={"model": "gs://bucket/nowhere/"})
    assert (states["score"], states["gate"], states["alert"], states["run"]) == (
        "failed",
        "upstream_failed",
        "success",
        "failed",
    )
    names = [launch["jobName"] for launch in world.launched()]
    stem = f"pytorch-batch-{settings['name']}-{day:%Y%m%dt%H%M%S}"
    assert names == [f"{stem}-1", f"{stem}-2", f"{stem}-3"]
    (message,) = alerts(world)
    assert "expected JOB_STATE_DONE, got JOB_STATE_FAILED: " in message
    assert "gs://bucket/nowhere/" in message


def test_the_job_of_an_earlier_try_is_used_again(
    world: World, settings: dict[str, Any], run_dag: Run, day: datetime
) -> None:
    # The task of the first job lost its machine right after the launch.
    assert run_dag("millrace_scoring", day)["run"] == "success"
    world.templates._last = "DONE"
    stem = f"pytorch-batch-{settings['name']}-{day:%Y%m%dt%H%M%S}"
    world.templates.add(f"{stem}-7", PROJECT, REGION)
    assert run_dag("millrace_scoring", day)["run"] == "success"
    assert len(world.launched()) == 1


def test_a_cancelled_job_is_not_started_again(
    world: World, settings: dict[str, Any], run_dag: Run, day: datetime
) -> None:
    world.templates.runs = False
    world.templates._last = "CANCELLED"
    assert run_dag("millrace_scoring", day)["score"] == "failed"
    assert len(world.launched()) == 1
    assert "got JOB_STATE_CANCELLED" in alerts(world)[0]


def test_wrong_settings_are_reported_before_anything_is_launched(
    world: World,
    settings: dict[str, Any],
    run_dag: Run,
    day: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_MILLRACE_SCORING", json.dumps({**settings, "limit": {}}))
    assert run_dag("millrace_scoring", day)["plan"] == "failed"
    assert world.launched() == []


STREAM = "pytorch-streaming-fraud"


@pytest.fixture
def stream(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A healthy streaming job, and the Variable that names it."""
    variable = {
        "project": PROJECT,
        "region": REGION,
        "jobs": [{"name": STREAM, "subscription": f"projects/{PROJECT}/subscriptions/in"}],
        "alert_topic": f"projects/{PROJECT}/topics/alerts",
    }
    monkeypatch.setenv("AIRFLOW_VAR_MILLRACE_STREAMS", json.dumps(variable))
    job = world.templates.add(
        STREAM, PROJECT, REGION, type="JOB_TYPE_STREAMING", currentState="JOB_STATE_RUNNING"
    )
    count(world, job, received=1_000, dead=1)
    world.metrics.values_by_metric = {
        "dataflow.googleapis.com/job/system_lag": {STREAM: 3},
        "pubsub.googleapis.com/subscription/num_undelivered_messages": {"in": 10},
        "pubsub.googleapis.com/subscription/oldest_unacked_message_age": {"in": 2},
    }
    return job


def count(world: World, job: dict[str, Any], received: int, dead: int) -> None:
    world.templates.metrics[job["id"]] = [
        {"name": {"origin": "user", "name": name, "context": {"step": "s"}}, "scalar": value}
        for name, value in (("rows_received", received), ("rows_dead_lettered", dead))
    ]


def test_a_healthy_stream_sends_no_alert(
    world: World, stream: dict[str, Any], run_dag: Run, day: datetime
) -> None:
    assert run_dag("millrace_streams", day)["run"] == "success"
    assert alerts(world) == []


def test_a_stream_that_lags_sends_an_alert(
    world: World, stream: dict[str, Any], run_dag: Run, day: datetime
) -> None:
    world.metrics.values_by_metric["dataflow.googleapis.com/job/system_lag"][STREAM] = 500
    assert run_dag("millrace_streams", day)["run"] == "failed"
    (message,) = alerts(world)
    assert message.startswith(f"{STREAM}: the system lag in seconds is 500, expected at most 120:")


def test_a_stream_that_ended_sends_an_alert(
    world: World, stream: dict[str, Any], run_dag: Run, day: datetime
) -> None:
    stream["currentState"] = "JOB_STATE_FAILED"
    assert run_dag("millrace_streams", day)["run"] == "failed"
    assert alerts(world)[0].startswith(f"{STREAM}: expected a running job, found none")


def test_dead_letters_are_counted_since_the_last_check(
    world: World, stream: dict[str, Any], run_dag: Run, day: datetime
) -> None:
    assert run_dag("millrace_streams", day)["run"] == "success"
    count(world, stream, received=1_100, dead=51)
    assert run_dag("millrace_streams", day + timedelta(hours=1))["run"] == "failed"
    assert "got 50.00% (50 of 100)" in alerts(world)[0]
