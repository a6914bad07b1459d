"""Cloud Monitoring: the last values of metrics, of subscriptions for one."""

from __future__ import annotations

import re
from typing import Any

from examples.google_api.server import Call, Refusal, Service, listed

_FILTER = re.compile(r'metric\.type = "([\w./]+)"')


class Monitoring(Service):
    """values: by metric and the id of a subscription; set by tests."""

    document = "monitoring.v3"

    def __init__(self) -> None:
        super().__init__()
        self.values_by_metric: dict[str, dict[str, int]] = {}

    def time_series_list(self, call: Call) -> dict[str, Any]:
        """One series a subscription, of one point."""
        found = _FILTER.fullmatch(call.values["filter"])
        if found is None:
            raise Refusal(400, f"Invalid filter: {call.values['filter']}")
        metric = found[1]
        series = [
            {
                "metric": {"type": metric},
                "resource": {
                    "type": "pubsub_subscription",
                    "labels": {"subscription_id": ident},
                },
                "points": [{"value": {"int64Value": str(value)}}],
            }
            for ident, value in self.values_by_metric.get(metric.rpartition("/")[2], {}).items()
        ]
        values = {name: value for name, value in call.values.items() if name != "filter"}
        return listed(Call(call.number, call.method, values, None), "timeSeries", series)
