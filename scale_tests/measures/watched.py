"""What Google Cloud says about the tested system: workers, replicas, their CPU, and the backlog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cloud.clients import Cloud
from cloud.errors import translate_errors
from cloud.monitoring import Point, over_time
from cloud.prices import STREAMING, Workers
from common.errors import InputError
from scale_tests.measures.findings import Finding, missing

Floats = NDArray[np.float64]
Resource = Literal["job_id", "subscription", "endpoint_id"]
RESOURCES: tuple[Resource, ...] = ("job_id", "subscription", "endpoint_id")
WORKERS, REPLICAS = "vCPUs of workers", "replicas"
# Google samples these gauges once a minute. A job still works after the last message was sent.
SAMPLED = timedelta(seconds=60)
# The memory of a worker, by its vCPUs: that of the machines n1-standard.
GB_PER_VCPU = 3.75


@dataclass(frozen=True)
class Gauge:
    """A metric of a resource.

    Attributes:
        name: What it shows.
        metric: Its type.
        label: The label with the id of the resource.
        together: How the values of several time series become one.
        unit: The unit of the values that are shown.
        scale: What a value is multiplied by to have that unit.
    """

    name: str
    metric: str
    label: str
    together: Literal["sum", "mean", "max"] = "sum"
    unit: str = ""
    scale: float = 1.0


GAUGES: Mapping[Resource, Sequence[Gauge]] = {
    "job_id": (
        Gauge(WORKERS, "dataflow.googleapis.com/job/current_num_vcpus", "metric.labels.job_id"),
    ),
    "subscription": (
        Gauge(
            "backlog",
            "pubsub.googleapis.com/subscription/num_undelivered_messages",
            "resource.labels.subscription_id",
            unit="messages",
        ),
        Gauge(
            "age of the oldest message",
            "pubsub.googleapis.com/subscription/oldest_unacked_message_age",
            "resource.labels.subscription_id",
            together="max",
            unit="s",
        ),
    ),
    "endpoint_id": (
        Gauge(
            REPLICAS,
            "aiplatform.googleapis.com/prediction/online/replicas",
            "resource.labels.endpoint_id",
        ),
        # The unit of the metric is 10^2.%: 1 is 100 %.
        Gauge(
            "CPU of a replica",
            "aiplatform.googleapis.com/prediction/online/cpu/utilization",
            "resource.labels.endpoint_id",
            together="mean",
            unit="%",
            scale=100.0,
        ),
    ),
}


@dataclass(frozen=True)
class Line:
    """The values of a gauge over time.

    Attributes:
        gauge: The gauge.
        at: [n] Seconds since 1970, ascending.
        values: [n] The values in the unit of the gauge.
    """

    gauge: Gauge
    at: Floats
    values: Floats


def watch(cloud: Cloud, ids: Mapping[Resource, str], start: float, end: float) -> tuple[Line, ...]:
    """Return what Cloud Monitoring says about some resources during a test.

    Args:
        cloud: The project, and the address of Cloud Monitoring.
        ids: The ids of the resources.
        start: When the test started, in seconds since 1970.
        end: When it ended.

    Raises:
        InputError: Cloud Monitoring cannot be read.
        CredentialsError: There are no usable credentials.
    """
    first = datetime.fromtimestamp(start, UTC) - SAMPLED
    last = datetime.fromtimestamp(end, UTC) + SAMPLED
    lines = []
    for resource, ident in ids.items():
        for gauge in GAUGES[resource]:
            with translate_errors(
                InputError, "Cloud Monitoring cannot be read", "roles/monitoring.viewer"
            ):
                series = over_time(
                    cloud, cloud.project, gauge.metric, {gauge.label: ident}, (first, last)
                )
            lines.append(together(gauge, series))
    return tuple(lines)


def together(gauge: Gauge, series: Sequence[Sequence[Point]]) -> Line:
    """Return one line for several time series, by minutes."""
    points = [point for one in series for point in one]
    at = np.array([point.at for point in points], np.float64)
    values = np.array([point.value for point in points], np.float64)
    minutes, place = np.unique(np.floor(at / 60), return_inverse=True)
    if gauge.together == "max":
        found = np.full(len(minutes), -np.inf)
        np.maximum.at(found, place, values)
    else:
        found = np.bincount(place, values, len(minutes)).astype(np.float64)
        if gauge.together == "mean":
            found = found / np.bincount(place, minlength=len(minutes))
    return Line(gauge, minutes * 60, found * gauge.scale)


def scale_out(line: Line, start: float) -> Finding:
    """Return how long it took until the first worker or replica was added.

    Args:
        line: The number of workers or replicas.
        start: When the test started, in seconds since 1970.
    """
    name = f"time to scale out: {line.gauge.name}"
    before, after = line.values[line.at <= start], line.at > start
    if not len(before):
        return missing(name, "no value from before the test")
    grown = line.at[after & (line.values > before[-1])]
    if not len(grown):
        return missing(name, f"they never were more than {before[-1]:g}")
    return Finding(
        name=name,
        value=float(grown[0] - start),
        unit="s",
        evidence=(
            f"{before[-1]:g} at the start, and up to {line.values[after].max():g}",
            "the values are sampled once a minute",
        ),
        confidence="medium",
    )


def cost_of_levels(
    lines: Sequence[Line], levels: Sequence[Mapping[str, Any]], usd_per_hour: float | None
) -> Iterator[Finding]:
    """Yield what the workers or replicas cost while each level was measured.

    Args:
        lines: What was watched.
        levels: The levels of result.json.
        usd_per_hour: The price of a replica, or None.
    """
    one = Workers(count=1, vcpu=1, memory_gb=GB_PER_VCPU, disk_gb=0).dollars(STREAMING, 3_600)
    prices = {WORKERS: one, REPLICAS: usd_per_hour}
    for line in lines:
        price = prices.get(line.gauge.name)
        if price is None:
            continue
        for level in levels:
            name = f"cost of {level['name']}: {line.gauge.name}"
            start, seconds = level["start"], level["seconds"]
            inside = (line.at >= start - 60) & (line.at <= start + seconds)
            if not seconds or not inside.any():
                yield missing(name, "no value during the level")
                continue
            mean = float(line.values[inside].mean())
            yield Finding(
                name=name,
                value=round(mean * price * seconds / 3_600, 4),
                unit="USD",
                evidence=(f"{mean:,.3g} for {seconds:g} s at {price:,.3g} USD per hour each",),
                confidence="medium",
            )
