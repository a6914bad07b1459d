"""Score a day's rows: a batch job on Dataflow, a gate on its report, then whoever uses the scores.

The Variable `millrace_scoring` says what and where (docs/runbook.md has an example), the params
`parameters` and `limits` change it for one run. The run id follows from the logical date: a
retry, a cleared task and a run that is repeated write the same run again.
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
    """The Variable, params and dates -> the run. A manual run may have no logical date."""
    moment = logical_date or dag_run.run_after
    settings = Variable.get(VARIABLE, deserialize_json=True)
    try:
        return plan_run(settings, params, moment, data_interval_start or moment)
    except SettingsError as error:
        raise AirflowFailException(str(error)) from error


@task(task_id="gate")
def check_quality(plan: dict[str, Any], ti: Any = None) -> dict[str, Any]:
    """The run -> its figures, if it is fit to be used; nobody tries again if it is not."""
    report = google.read_json(plan["report"])
    if report is None:
        raise AirflowException(
            f"expected the report of run {plan['run_id']} at {plan['report']}, found none: look "
            "whether the template is of this version, and at the job's log"
        )
    previous = pull_last(ti, "gate")
    found = judge_run(plan["run_id"], report, previous, plan["limits"])
    if found:
        ti.xcom_push(key="failure", value="\n".join(found))
        raise AirflowFailException("\n".join(found))
    return figures_of(report)


@task.short_circuit(task_id="is_followed")
def is_followed(plan: dict[str, Any]) -> bool:
    """The run -> whether another DAG uses its scores."""
    return plan["downstream_dag"] is not None


@task(task_id="alert", trigger_rule="one_failed")
def alert(plan: dict[str, Any] | None = None, ti: Any = None) -> None:
    """Whatever failed -> a message to the alert topic, or an error in the log."""
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
        "parameters": Param({}, type="object", description="of the template, for this run alone"),
        "limits": Param({}, type="object", description="of the gate, for this run alone"),
    },
    doc_md=__doc__,
    tags=["millrace"],
)
def millrace_scoring() -> None:
    """plan -> score -> gate -> the DAG that follows; alert if any fails."""
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
        # One run of the other DAG for one run of this, however often it is repeated.
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
