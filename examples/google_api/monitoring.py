"""The stand-in for Cloud Monitoring: the latest metrics of subscriptions and Dataflow jobs."""

from __future__ import annotations

import re
from typing import Any

from examples.google_api.faults import Call, Refusal
from examples.google_api.server import Service
from examples.google_api.store import listed

_FILTER = re.compile(r'metric\.type = "([\w./]+)"(?: AND ([\w.]+) = "([^"]+)")?')
_SUBSCRIPTION, _JOB = "resource.labels.subscription_id", "metric.labels.job_id"


class Monitoring(Service):
    """The stand-in for Cloud Monitoring.

    Attributes:
        values_by_metric: The values, which tests set, by metric and by the id of a subscription or
            job.
    """

    document = "monitoring.v3"

    def __init__(self) -> None:
        super().__init__()
        self.values_by_metric: dict[str, dict[str, int]] = {}

    def time_series_list(self, call: Call) -> dict[str, Any]:
        """List time series of one point each, for all resources or for the one of the filter."""
        found = _FILTER.fullmatch(call.values["filter"])
        if found is None:
            raise Refusal(400, f"Invalid filter: {call.values['filter']}")
        metric, label, wanted = found.groups()
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
