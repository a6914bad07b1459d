"""The stand-in for Cloud Monitoring: the latest metrics of subscriptions and Dataflow jobs."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from examples.google_api.faults import Call, Refusal
from examples.google_api.server import Service
from examples.google_api.store import listed

# The type, the unit and the label of gauges, from Google's lists of metrics.
GAUGES = {
    "dataflow.googleapis.com/job/current_num_vcpus": ("INT64", "1", "metric.labels.job_id"),
    "pubsub.googleapis.com/subscription/num_undelivered_messages": (
        "INT64",
        "1",
        "resource.labels.subscription_id",
    ),
    "pubsub.googleapis.com/subscription/oldest_unacked_message_age": (
        "INT64",
        "s",
        "resource.labels.subscription_id",
    ),
    "aiplatform.googleapis.com/prediction/online/replicas": (
        "INT64",
        "1",
        "resource.labels.endpoint_id",
    ),
    # 1 is a whole CPU, which is shown as 100 %.
    "aiplatform.googleapis.com/prediction/online/cpu/utilization": (
        "DOUBLE",
        "10^2.%",
        "resource.labels.endpoint_id",
    ),
}
_FILTER = re.compile(r'metric\.type = "([\w./]+)"(?: AND ([\w.]+) = "([^"]+)")?')
_SUBSCRIPTION, _JOB = "resource.labels.subscription_id", "metric.labels.job_id"


class Monitoring(Service):
    """The stand-in for Cloud Monitoring.

    Attributes:
        values_by_metric: The values, which tests set, by metric and by the id of a subscription or
            job.
        points: The points of gauges, which tests set, by metric and by the id of the resource. Each
            list is a time series, and a point is its moment and value.
    """

    document = "monitoring.v3"

    def __init__(self) -> None:
        super().__init__()
        self.values_by_metric: dict[str, dict[str, int]] = {}
        self.points: dict[str, dict[str, list[list[tuple[datetime, float]]]]] = {}

    def time_series_list(self, call: Call) -> dict[str, Any]:
        """List time series of one point each, for all resources or for the one of the filter."""
        found = _FILTER.fullmatch(call.values["filter"])
        if found is None:
            raise Refusal(400, f"Invalid filter: {call.values['filter']}")
        metric, label, wanted = found.groups()
        if metric in self.points:
            return self._gauge(call, metric, label, wanted)
        if label not in (None, _JOB if metric.startswith("dataflow.") else _SUBSCRIPTION):
            raise Refusal(400, f"The metric {metric} has no label {label}.")
        known = self.values_by_metric.get(metric.rpartition("/")[2], {})
        series = [
            _series(metric, ident, value)
            for ident, value in known.items()
            if wanted in (None, ident)
        ]
        values = {name: value for name, value in call.values.items() if name != "filter"}
        return listed(Call(call.number, call.method, values, None), "timeSeries", series)

    def _gauge(self, call: Call, metric: str, label: str | None, ident: str) -> dict[str, Any]:
        """List the points of a gauge in the interval of a call, the newest first."""
        kind, unit, own = GAUGES[metric]
        if label != own:
            raise Refusal(400, f"The metric {metric} has no label {label}.")
        start, end = (
            datetime.fromisoformat(call.values[f"interval.{name}"])
            for name in ("startTime", "endTime")
        )
        series = [
            {
                "metric": {"type": metric},
                "metricKind": "GAUGE",
                "valueType": kind,
                "unit": unit,
                "points": [
                    _point(moment, value, kind)
                    for moment, value in sorted(points, reverse=True)
                    if start <= moment <= end
                ],
            }
            for points in self.points[metric].get(ident, [])
        ]
        return {"timeSeries": [one for one in series if one["points"]]}


def _point(moment: datetime, value: float, kind: str) -> dict[str, Any]:
    text = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    typed = {"int64Value": str(int(value))} if kind == "INT64" else {"doubleValue": value}
    return {"interval": {"startTime": text, "endTime": text}, "value": typed}


def _series(metric: str, ident: str, value: int) -> dict[str, Any]:
    """Return a time series of one point for a resource."""
    if metric.startswith("dataflow."):
        labels = {"metric": {"type": metric, "labels": {"job_id": ident}}}
        resource: dict[str, Any] = {"type": "dataflow_job"}
    else:
        labels = {"metric": {"type": metric}}
        resource = {"type": "pubsub_subscription", "labels": {"subscription_id": ident}}
    points = [{"value": {"int64Value": str(value)}}]
    return {**labels, "resource": resource, "points": points}
