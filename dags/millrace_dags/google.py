"""The DAGs' calls to Google Cloud over REST, with the credentials of Airflow's connection.

The operator makes the calls that start and wait for the job.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError

CONNECTION = "google_cloud_default"
_RETRIES = 5
# Metrics arrive up to a few minutes late.
_BACK = timedelta(minutes=10)


def connect(service: str, version: str) -> Any:
    """Return the client of a Google service, with the credentials of Airflow's connection.

    Args:
        service: The name of the service, such as `dataflow`.
        version: The version of its API, such as `v1b3`.
    """
    credentials = GoogleBaseHook(gcp_conn_id=CONNECTION).get_credentials()
    return build(service, version, credentials=credentials, cache_discovery=False)


def execute(request: Any) -> Any:
    """Send a request, retry transient errors, and return the response."""
    return request.execute(num_retries=_RETRIES)


def read_json(path: str) -> Any | None:
    """Return the JSON value in `gs://BUCKET/FILE`, or None if the file does not exist."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    try:
        request = connect("storage", "v1").objects().get_media(bucket=bucket, object=name)
        return json.loads(execute(request))
    except HttpError as error:
        if error.resp.status == 404:
            return None
        raise


def active_jobs(project: str, region: str) -> list[dict[str, Any]]:
    """Return the jobs of a region that have not ended.

    Args:
        project: The id of the project.
        region: The region.

    Returns:
        The jobs, as Dataflow's API returns them.
    """
    jobs = connect("dataflow", "v1b3").projects().locations().jobs()
    request = jobs.list(projectId=project, location=region, filter="ACTIVE")
    found: list[dict[str, Any]] = []
    while request is not None:
        answer = execute(request)
        found += answer.get("jobs", [])
        request = jobs.list_next(request, answer)
    return found


def find_try(jobs: list[dict[str, Any]], stem: str) -> dict[str, Any] | None:
    """Return the job that an earlier try of a run started, or None.

    Args:
        jobs: The active jobs.
        stem: The name of the run's jobs, without the number of the try.
    """
    pattern = re.compile(re.escape(stem) + r"-\d+")
    return next((job for job in jobs if pattern.fullmatch(job["name"])), None)


def get_job(project: str, region: str, job_id: str) -> dict[str, Any]:
    """Return the job with an id, as Dataflow's API returns it.

    Args:
        project: The id of the project.
        region: The region of the job.
        job_id: The id of the job.
    """
    jobs = connect("dataflow", "v1b3").projects().locations().jobs()
    return dict(execute(jobs.get(projectId=project, location=region, jobId=job_id)))


def job_errors(project: str, region: str, job_id: str) -> list[str]:
    """Return the last three error messages that Dataflow logged for a job.

    Args:
        project: The id of the project.
        region: The region of the job.
        job_id: The id of the job.
    """
    messages = connect("dataflow", "v1b3").projects().locations().jobs().messages()
    request = messages.list(
        projectId=project, location=region, jobId=job_id, minimumImportance="JOB_MESSAGE_ERROR"
    )
    found: list[str] = []
    while request is not None:
        answer = execute(request)
        found += [message["messageText"] for message in answer.get("jobMessages", [])]
        request = messages.list_next(request, answer)
    return found[-3:]


def job_metrics(project: str, region: str, job_id: str) -> list[dict[str, Any]]:
    """Return the metrics of a job, as MetricUpdates.

    Args:
        project: The id of the project.
        region: The region of the job.
        job_id: The id of the job.
    """
    jobs = connect("dataflow", "v1b3").projects().locations().jobs()
    request = jobs.getMetrics(projectId=project, location=region, jobId=job_id)
    return list(execute(request).get("metrics", []))


def last_value(project: str, metric: str, label: str, value: str) -> int | None:
    """Return the latest value of a metric in Cloud Monitoring, or None if it has no recent value.

    Args:
        project: The project that holds the metric.
        metric: The type of the metric.
        label: A label of the measured resource.
        value: The value that the label must have.

    Returns:
        The highest of the latest values of the matching series.
    """
    now = datetime.now(UTC)
    series = connect("monitoring", "v3").projects().timeSeries()
    request = series.list(
        name=f"projects/{project}",
        filter=f'metric.type = "{metric}" AND resource.labels.{label} = "{value}"',
        interval_startTime=_time(now - _BACK),
        interval_endTime=_time(now),
        view="FULL",
    )
    values = [
        # The first point is the newest.
        int(one["points"][0]["value"]["int64Value"])
        for one in execute(request).get("timeSeries", [])
    ]
    return max(values, default=None)


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def publish(topic: str, text: str, attributes: Mapping[str, str]) -> None:
    """Publish a message.

    Args:
        topic: The topic, as `projects/P/topics/T`.
        text: The text of the message, sent as UTF-8.
        attributes: The attributes of the message.
    """
    message = {"data": base64.b64encode(text.encode()).decode(), "attributes": dict(attributes)}
    topics = connect("pubsub", "v1").projects().topics()
    execute(topics.publish(topic=topic, body={"messages": [message]}))
