"""The task that scores: it starts a job of a Flex Template, or finds the job of an earlier try."""

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
    """An operator that starts the job of a launch request, and waits until it is done.

    Each try starts a job with a new name, unless the job of an earlier try is still running. The
    operator uses the trigger of Airflow's job sensor, because its own trigger never ends if the job
    is cancelled. A separate sensor could not start the job again.
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
        """Start the job or find it, then wait without occupying a worker."""
        place = (self.project_id, self.location)
        stem = self.body["launchParameter"]["jobName"]
        job = google.find_try(google.active_jobs(*place), stem)
        if job is None:
            # A copy, because the next try starts from the rendered request.
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
        """Return the job, or raise an error with Dataflow's reason if it is not done.

        Raises:
            AirflowException: The job failed or cannot be watched, and another try may help.
            AirflowFailException: Someone cancelled the job.
        """
        place = (self.project_id, self.location)
        job_id = context["ti"].xcom_pull(task_ids=self.task_id, key="job_id")
        if event["status"] == "success":
            return {"id": job_id, "project": self.project_id, "region": self.location}
        state = google.get_job(*place, job_id)["currentState"]
        if state not in _ENDED:
            raise AirflowException(
                f"job {job_id} could not be watched ({event['message']}); it is still running, and "
                "the next try will find it"
            )
        why = "; ".join(google.job_errors(*place, job_id)) or event["message"]
        text = (
            f"job {job_id}: expected {_DONE}, got {state}: {why}. A new try starts a new job for "
            "the same run, and writes nothing twice"
        )
        context["ti"].xcom_push(key="failure", value=text)
        # After a cancellation, the task must not start another job.
        raise (AirflowFailException if state == _CANCELLED else AirflowException)(text)
