"""The task that scores: a job of a Flex Template, found again by whatever tries to start it."""

from __future__ import annotations

from typing import Any

from airflow.providers.google.cloud.operators.dataflow import DataflowStartFlexTemplateOperator
from airflow.providers.google.cloud.triggers.dataflow import DataflowJobStatusTrigger

from . import google
from .airflow_names import AirflowException, AirflowFailException

_DONE, _CANCELLED = "JOB_STATE_DONE", "JOB_STATE_CANCELLED"
_POLL_SECONDS = 30
_ENDED = (_DONE, _CANCELLED, "JOB_STATE_FAILED", "JOB_STATE_STOPPED", "JOB_STATE_DRAINED")


class ScoreOperator(DataflowStartFlexTemplateOperator):
    """A launch request whose jobName is the run's -> the job, once it is done.

    Each try names its job anew, and takes the job of an earlier try that still goes on. It
    waits by the trigger of Airflow's job sensor: the operator's own waits for ever for a job
    that was cancelled, and a sensor beside it could not start the job again.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            deferrable=True,
            append_job_name=False,
            gcp_conn_id=google.CONNECTION,
            poll_sleep=_POLL_SECONDS,
            **kwargs,
        )

    def execute(self, context: Any) -> None:
        """Starts the job, or finds it; then waits without a worker."""
        place = (self.project_id, self.location)
        stem = self.body["launchParameter"]["jobName"]
        job = google.find_try(google.active_jobs(*place), stem)
        if job is None:
            # A copy, so that what was rendered stays what the next try starts from.
            launch = {
                **self.body["launchParameter"],
                "jobName": f"{stem}-{context['ti'].try_number}",
            }
            job = self.hook.launch_job_with_flex_template(
                body={"launchParameter": launch},
                project_id=self.project_id,
                location=self.location,
            )
        context["ti"].xcom_push(key="job_id", value=job["id"])
        self.log.info(
            "https://console.cloud.google.com/dataflow/jobs/%s/%s?project=%s",
            self.location,
            job["id"],
            self.project_id,
        )
        self.defer(
            trigger=DataflowJobStatusTrigger(
                job_id=job["id"],
                expected_statuses={_DONE},
                project_id=self.project_id,
                location=self.location,
                gcp_conn_id=self.gcp_conn_id,
                poll_sleep=self.poll_sleep,
                impersonation_chain=self.impersonation_chain,
            ),
            method_name="finish",
        )

    def finish(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """What the trigger saw -> the job. Raises AirflowException with Dataflow's reason."""
        place = (self.project_id, self.location)
        job_id = context["ti"].xcom_pull(task_ids=self.task_id, key="job_id")
        if event["status"] == "success":
            return {"id": job_id, "project": self.project_id, "region": self.location}
        state = google.get_job(*place, job_id)["currentState"]
        if state not in _ENDED:
            raise AirflowException(
                f"job {job_id} could not be watched ({event['message']}); it goes on, and the next "
                "try finds it"
            )
        why = "; ".join(google.job_errors(*place, job_id)) or event["message"]
        text = (
            f"job {job_id}: expected {_DONE}, got {state}: {why}. A new try starts a new job of "
            "the same run, nothing is written twice"
        )
        context["ti"].xcom_push(key="failure", value=text)
        # Who cancelled a job wants no other.
        raise (AirflowFailException if state == _CANCELLED else AirflowException)(text)
