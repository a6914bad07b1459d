"""Score the rows of a day: run a batch job on Dataflow, check its report, then trigger another DAG.

The Variable `millrace_scoring` holds the settings (see the example in
docs/how-to/schedule-with-composer.md). The params `parameters` and `limits` override them for one
run. The run id depends on the logical date, so a retry, a cleared task and a repeated run all write
the same run again.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from millrace_dags import google
from millrace_dags.airflow_names import (
    AirflowException,
    AirflowFailException,
    CronDataIntervalTimetable,
    Param,
    TriggerDagRunOperator,
    Variable,
    dag,
    pull_last,
    task,
)
from millrace_dags.alerts import send_alert
from millrace_dags.quality import figures_of, judge_run
from millrace_dags.runs import SettingsError, plan_run
from millrace_dags.score_operator import ScoreOperator

VARIABLE = "millrace_scoring"
SCHEDULE = os.environ.get("MILLRACE_SCHEDULE", "0 5 * * *")


@task(task_id="plan", retries=0)
def make_plan(
    params: Any = None,
    logical_date: datetime | None = None,
    data_interval_start: datetime | None = None,
    dag_run: Any = None,
) -> dict[str, Any]:
    """Plan the run from the Variable, the params and the dates."""
    # A manual run may have no logical date.
    moment = logical_date or dag_run.run_after
    settings = Variable.get(VARIABLE, deserialize_json=True)
    try:
        return plan_run(settings, params, moment, data_interval_start or moment)
    except SettingsError as error:
        raise AirflowFailException(str(error)) from error


@task(task_id="gate")
def check_quality(plan: dict[str, Any], ti: Any = None) -> dict[str, Any]:
    """Return the figures of the run, or fail without a retry if its scores must not be used."""
    report = google.read_json(plan["report"])
    if report is None:
        raise AirflowException(
            f"expected the report of run {plan['run_id']} at {plan['report']}, found none: check "
            "that the template has the same version as this DAG, and look at the job's log"
        )
    previous = pull_last(ti, "gate")
    found = judge_run(plan["run_id"], report, previous, plan["limits"])
    if found:
        ti.xcom_push(key="failure", value="\n".join(found))
        raise AirflowFailException("\n".join(found))
    return figures_of(report)


@task.short_circuit(task_id="is_followed")
def is_followed(plan: dict[str, Any]) -> bool:
    """Return whether another DAG uses the scores of the run."""
    return plan["downstream_dag"] is not None


@task(task_id="alert", trigger_rule="one_failed")
def alert(plan: dict[str, Any] | None = None, ti: Any = None) -> None:
    """Log what failed, and publish it to the alert topic if there is one."""
    send_alert("millrace_scoring", plan, ti.xcom_pull(task_ids=["score", "gate"], key="failure"))


@dag(
    dag_id="millrace_scoring",
    schedule=CronDataIntervalTimetable(SCHEDULE, timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "retries": 2,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": True,
    },
    params={
        "parameters": Param(
            {}, type="object", description="parameters of the template, only for this run"
        ),
        "limits": Param({}, type="object", description="limits of the gate, only for this run"),
    },
    doc_md=__doc__,
    tags=["millrace"],
)
def millrace_scoring() -> None:
    """Plan, score, check the report and trigger the next DAG; send an alert if a task fails."""
    plan = make_plan()
    score = ScoreOperator(
        task_id="score",
        body=plan["request"],
        project_id=plan["project"],
        location=plan["region"],
    )
    gate = check_quality(plan)
    follow = TriggerDagRunOperator(
        task_id="follow",
        trigger_dag_id="{{ ti.xcom_pull(task_ids='plan')['downstream_dag'] }}",
        # A repeated run of this DAG repeats the same run of the other one.
        trigger_run_id="millrace__{{ ti.xcom_pull(task_ids='plan')['run_id'] }}",
        reset_dag_run=True,
        conf={
            "run_id": "{{ ti.xcom_pull(task_ids='plan')['run_id'] }}",
            "report": "{{ ti.xcom_pull(task_ids='plan')['report'] }}",
        },
    )
    score >> gate >> is_followed(plan) >> follow
    [score, gate] >> alert(plan)


millrace_scoring()
