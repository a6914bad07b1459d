"""Cloud Monitoring: the last values of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cloud.clients import Cloud
from cloud.discovered import execute

# Metrics come up to some minutes late.
_BACK = timedelta(minutes=10)


def latest(cloud: Cloud, project: str, metric: str, labels: Mapping[str, str]) -> list[float]:
    """A project, a metric's type, labels such as `metric.labels.job_id` -> its last values.

    One a series, as of each stage of a job. Raises GoogleAPIError; ModuleNotFoundError without
    google-api-python-client.
    """
    now = datetime.now(UTC)
    conditions = [f'metric.type = "{metric}"', *(f'{k} = "{v}"' for k, v in labels.items())]
    series = cloud.discovered("monitoring", "v3").projects().timeSeries()
    request: Any = series.list(
        name=f"projects/{project}",
        filter=" AND ".join(conditions),
        interval_startTime=_text(now - _BACK),
        interval_endTime=_text(now),
        view="FULL",
    )
    found: list[float] = []
    while request is not None:
        answer = execute(request, cloud.retry_seconds)
        # The newest point is the first.
        values = (one["points"][0]["value"] for one in answer.get("timeSeries", []))
        found += [float(next(iter(value.values()))) for value in values]
        request = series.list_next(request, answer)
    return found


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
