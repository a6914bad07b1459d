"""Reads values of metrics from Cloud Monitoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from cloud.clients import Cloud
from cloud.discovered import execute

# Metrics arrive up to a few minutes late.
_BACK = timedelta(minutes=10)


@dataclass(frozen=True)
class Value:
    """The latest value of one time series.

    Attributes:
        number: The value.
        resource: The labels of the resource that was measured.
    """

    number: float
    resource: Mapping[str, str]


class Point(NamedTuple):
    """A value of a gauge, and its moment in seconds since 1970."""

    at: float
    value: float


def latest(
    cloud: Cloud, project: str, metric: str, labels: Mapping[str, str] | None = None
) -> list[Value]:
    """Return the latest value of each time series of a metric, for example of each stage of a job.

    Args:
        cloud: Where and how to call Cloud Monitoring.
        project: The project that holds the metric.
        metric: The type of the metric, for example `dataflow.googleapis.com/job/system_lag`.
        labels: The value that each label must have, for example of `metric.labels.job_id`.

    Raises:
        GoogleAPIError: The request failed.
        CredentialsError: There are no usable credentials.
        ModuleNotFoundError: google-api-python-client is not installed.
    """
    now = datetime.now(UTC)
    return [
        Value(_number(found["points"][0]), found["resource"].get("labels", {}))
        # The first point of a series is the newest.
        for found in _list(cloud, project, metric, labels, (now - _BACK, now))
    ]


def over_time(
    cloud: Cloud,
    project: str,
    metric: str,
    labels: Mapping[str, str],
    between: tuple[datetime, datetime],
) -> list[list[Point]]:
    """Return the points of each time series of a gauge between two moments, the oldest first.

    Args:
        cloud: Where and how to call Cloud Monitoring.
        project: The project that holds the metric.
        metric: The type of the metric.
        labels: The value that each label must have.
        between: The two moments, with a time zone. Points of the last minutes may be missing yet.

    Raises:
        GoogleAPIError: The request failed.
        CredentialsError: There are no usable credentials.
        ModuleNotFoundError: google-api-python-client is not installed.
    """
    return [
        [
            Point(datetime.fromisoformat(one["interval"]["endTime"]).timestamp(), _number(one))
            for one in reversed(found["points"])
        ]
        for found in _list(cloud, project, metric, labels, between)
    ]


def _list(
    cloud: Cloud,
    project: str,
    metric: str,
    labels: Mapping[str, str] | None,
    between: tuple[datetime, datetime],
) -> list[Mapping[str, Any]]:
    """Return the time series of a metric between two moments."""
    conditions = [f'metric.type = "{metric}"', *(f'{k} = "{v}"' for k, v in (labels or {}).items())]
    series = cloud.discovered("monitoring", "v3").projects().timeSeries()
    request: Any = series.list(
        name=f"projects/{project}",
        filter=" AND ".join(conditions),
        interval_startTime=_text(between[0]),
        interval_endTime=_text(between[1]),
        view="FULL",
    )
    found: list[Mapping[str, Any]] = []
    while request is not None:
        answer = execute(request, cloud.retry_seconds)
        found += answer.get("timeSeries", [])
        request = series.list_next(request, answer)
    return found


def _number(point: Mapping[str, Any]) -> float:
    """Return the value of a point, which has the field of its type."""
    (number,) = point["value"].values()
    return float(number)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
