"""Reads the latest values of metrics from Cloud Monitoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

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
    conditions = [f'metric.type = "{metric}"', *(f'{k} = "{v}"' for k, v in (labels or {}).items())]
    series = cloud.discovered("monitoring", "v3").projects().timeSeries()
    request: Any = series.list(
        name=f"projects/{project}",
        filter=" AND ".join(conditions),
        interval_startTime=_text(now - _BACK),
        interval_endTime=_text(now),
        view="FULL",
    )
    found: list[Value] = []
    while request is not None:
        answer = execute(request, cloud.retry_seconds)
        found += map(_newest, answer.get("timeSeries", []))
        request = series.list_next(request, answer)
    return found


def _newest(series: Mapping[str, Any]) -> Value:
    """Return the first point of a series, which is the newest."""
    (number,) = series["points"][0]["value"].values()
    return Value(float(number), series["resource"].get("labels", {}))


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
