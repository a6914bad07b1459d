"""Cloud Monitoring: the last values of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cloud.clients import Cloud
from cloud.discovered import execute

# Metrics come up to some minutes late.
_BACK = timedelta(minutes=10)


@dataclass(frozen=True)
class Value:
    """The last value of one series. resource: the labels of what was measured."""

    number: float
    resource: Mapping[str, str]


def latest(
    cloud: Cloud, project: str, metric: str, labels: Mapping[str, str] | None = None
) -> list[Value]:
    """A project, a metric's type, labels such as `metric.labels.job_id` -> its last values.

    One a series, as of each stage of a job. Raises GoogleAPIError; ModuleNotFoundError without
    google-api-python-client.
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
    """A series -> its first point, which is the newest."""
    (number,) = series["points"][0]["value"].values()
    return Value(float(number), series["resource"].get("labels", {}))


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
