"""Watch streaming jobs: check that they run, keep up, and do not reject too many messages.

The Variable `millrace_streams` names the jobs and their limits (see the example in
docs/how-to/schedule-with-composer.md). A run that finds a problem fails, and publishes it to the
alert topic.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from millrace_dags import google
from millrace_dags.airflow_names import AirflowFailException, Variable, dag, pull_last, task
from millrace_dags.alerts import send_alert
from millrace_dags.health import counters, judge_stream, read_settings
from millrace_dags.runs import SettingsError

VARIABLE = "millrace_streams"
SCHEDULE = os.environ.get("MILLRACE_STREAMS_SCHEDULE", "*/10 * * * *")
_PUBSUB = "pubsub.googleapis.com/subscription/"


def look_at(project: str, job: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the current state of a job, as judge_stream takes it.

    Args:
        project: The project of the job.
        job: The job in the Variable.
        found: The job in Dataflow's list.
    """
    metrics = google.job_metrics(project, found["location"], found["id"])
    ours, subscription = counters(metrics), job["subscription"]
    waiting = oldest = None
    if subscription:
        label = ("subscription_id", subscription)
        waiting = google.last_value(project, f"{_PUBSUB}num_undelivered_messages", *label)
        oldest = google.last_value(project, f"{_PUBSUB}oldest_unacked_message_age", *label)
    lag = "dataflow.googleapis.com/job/system_lag"
    return {
        "id": found["id"],
        "state": found["currentState"],
        "lag": google.last_value(project, lag, "job_name", job["name"]),
        "waiting": waiting,
        "oldest": oldest,
        "received": ours.get("rows_received", 0),
        "dead": ours.get("rows_dead_lettered", 0),
    }


@task(task_id="check")
def check(ti: Any = None) -> None:
    """Check the jobs of the Variable, and fail if one has a problem."""
    try:
        settings = read_settings(Variable.get(VARIABLE, deserialize_json=True))
    except SettingsError as error:
        raise AirflowFailException(str(error)) from error
    project, region = settings["project"], settings["region"]
    before = pull_last(ti, "check", "seen") or {}
    active = {job["name"]: job for job in google.active_jobs(project, region)}
    seen, wrong = {}, []
    for job in settings["jobs"]:
        name = job["name"]
        seen[name] = look_at(project, job, active[name]) if name in active else None
        place = f"--project {project} --region {region}"
        wrong += judge_stream(job, seen[name], before.get(name), place)
    ti.xcom_push(key="seen", value=seen)
    if wrong:
        ti.xcom_push(key="failure", value="\n".join(wrong))
        raise AirflowFailException("\n".join(wrong))


@task(task_id="alert", trigger_rule="one_failed")
def alert(ti: Any = None) -> None:
    """Log what is wrong, and publish it to the alert topic if there is one."""
    settings = Variable.get(VARIABLE, deserialize_json=True)
    send_alert("millrace_streams", settings, [ti.xcom_pull(task_ids="check", key="failure")])
    # Without an error, the run would count as a success.
    raise AirflowFailException("a stream has a problem: see the task `check`")


@dag(
    dag_id="millrace_streams",
    schedule=SCHEDULE,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["millrace"],
)
def millrace_streams() -> None:
    """Check the streams, and send an alert if the check fails."""
    check() >> alert()


millrace_streams()
