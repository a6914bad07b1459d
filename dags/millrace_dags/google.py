"""What the DAGs ask of Google Cloud, beside the job itself: REST, with Airflow's connection."""

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
# Metrics come up to some minutes late.
_BACK = timedelta(minutes=10)


def connect(service: str, version: str) -> Any:
    """A service of Google and its version -> its client, with the connection's credentials."""
    credentials = GoogleBaseHook(gcp_conn_id=CONNECTION).get_credentials()
    return build(service, version, credentials=credentials, cache_discovery=False)


def execute(request: Any) -> Any:
    """A request -> its answer; errors that pass by themselves are waited out."""
    return request.execute(num_retries=_RETRIES)


def read_json(path: str) -> Any | None:
    """`gs://BUCKET/FILE` -> what it holds, None where it is not there."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    try:
        request = connect("storage", "v1").objects().get_media(bucket=bucket, object=name)
        return json.loads(execute(request))
    except HttpError as error:
        if error.resp.status == 404:
            return None
        raise


def active_jobs(project: str, region: str) -> list[dict[str, Any]]:
    """A place -> its jobs that have not ended."""
    jobs = connect("dataflow", "v1b3").projects().locations().jobs()
    request = jobs.list(projectId=project, location=region, filter="ACTIVE")
    found: list[dict[str, Any]] = []
    while request is not None:
        answer = execute(request)
        found += answer.get("jobs", [])
        request = jobs.list_next(request, answer)
    return found


def find_try(jobs: list[dict[str, Any]], stem: str) -> dict[str, Any] | None:
    """Active jobs and what a run's jobs begin with -> the one of an earlier try, if one goes on."""
    pattern = re.compile(re.escape(stem) + r"-\d+")
    return next((job for job in jobs if pattern.fullmatch(job["name"])), None)


def get_job(project: str, region: str, job_id: str) -> dict[str, Any]:
    """A job's id -> the job."""
    jobs = connect("dataflow", "v1b3").projects().locations().jobs()
    return dict(execute(jobs.get(projectId=project, location=region, jobId=job_id)))


def job_errors(project: str, region: str, job_id: str) -> list[str]:
    """A job -> its errors in Dataflow's words, the last ones of them."""
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
    """A job -> its metrics."""
    jobs = connect("dataflow", "v1b3").projects().locations().jobs()
    request = jobs.getMetrics(projectId=project, location=region, jobId=job_id)
    return list(execute(request).get("metrics", []))


def last_value(project: str, metric: str, label: str, value: str) -> int | None:
    """A metric of Cloud Monitoring and a label of its resource -> the last value, None if none."""
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
        # The newest point is the first.
        int(one["points"][0]["value"]["int64Value"])
        for one in execute(request).get("timeSeries", [])
    ]
    return max(values, default=None)


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def publish(topic: str, text: str, attributes: Mapping[str, str]) -> None:
    """`projects/P/topics/T`, a text and attributes -> a message."""
    message = {"data": base64.b64encode(text.encode()).decode(), "attributes": dict(attributes)}
    topics = connect("pubsub", "v1").projects().topics()
    execute(topics.publish(topic=topic, body={"messages": [message]}))
