"""The charts of a scale test, from its samples: Vega-Lite specifications with their data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scale_tests.measures.accounts import Fate
from scale_tests.measures.backlog import backlog
from scale_tests.measures.stamps import PIPELINE

Floats = NDArray[np.float64]
Spec = dict[str, Any]
# The most points in time of a chart, and the rows of the heat map.
POINTS = 240
BUCKETS = 28
# Percentiles of a curve, evenly spaced in log(1 / (1 - p)).
CURVE = 60
_LOG_MS: Spec = {
    "scale": {"type": "log", "nice": False},
    "axis": {"title": "latency, ms", "tickCount": 6},
}


def timeline(samples: pa.Table, item: str) -> list[Spec]:
    """Return three charts over the time of a test: rates, the backlog, and latencies.

    Args:
        samples: The samples.
        item: What was sent: a `message` or a `request`.
    """
    due, arrived, times = _moments(samples)
    if not len(times):
        return []
    span, start = float(times[1] - times[0]), float(times[0])
    rates = {"due": _counts(due, times) / span, "results": _counts(arrived, times) / span}
    # What was never sent waits nowhere.
    sent = due[np.asarray(samples.column("fate").to_numpy()) != Fate.UNSENT]
    waiting = {"waiting": backlog(sent, arrived, times[1:]).astype(np.float64)}
    middle = (times[:-1] + times[1:]) / 2 - start
    return [
        over_time(middle, rates, f"{item}s/s"),
        over_time(middle, waiting, f"{item}s waiting"),
        over_time(middle, _latency_over_time(due, arrived, times), "latency, ms"),
    ]


def over_time(seconds: Floats, lines: Mapping[str, Floats], title: str) -> Spec:
    """Return lines over the seconds of a test."""
    rows = [
        {"s": round(float(s), 3), "what": what, "value": round(float(value), 2)}
        for what, values in lines.items()
        for s, value in zip(seconds, values, strict=True)
        if np.isfinite(value)
    ]
    return {
        "width": "container",
        "height": 150,
        "data": {"values": rows},
        "mark": {"type": "line", "tooltip": True, "strokeWidth": 1.5},
        "encoding": {
            "x": {"field": "s", "type": "quantitative", "title": "seconds of the test"},
            "y": {"field": "value", "type": "quantitative", "title": title},
            "color": {"field": "what", "type": "nominal", "title": None, "sort": [*lines]},
        },
    }


def heat_map(samples: pa.Table, item: str) -> Spec:
    """Return how many messages had which latency at which time: a mean would hide two groups.

    Args:
        samples: The samples.
        item: As for `timeline`.
    """
    due, arrived, times = _moments(samples)
    latency = (arrived - due) * 1e3
    here = np.isfinite(latency) & (latency > 0)
    if not here.any():
        return {}
    edges = np.geomspace(latency[here].min() * 0.999, latency[here].max() * 1.001, BUCKETS + 1)
    times = times[:: max(1, len(times) // 120)]
    counts, _, _ = np.histogram2d(due[here], latency[here], bins=[times, edges])
    start = float(times[0])
    rows = [
        {
            "s": round(float(times[i] - start), 2),
            "until": round(float(times[i + 1] - start), 2),
            "ms": round(float(edges[j]), 3),
            "to": round(float(edges[j + 1]), 3),
            f"{item}s": int(counts[i, j]),
        }
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]
    return {
        "width": "container",
        "height": 240,
        "data": {"values": rows},
        "mark": {"type": "rect", "tooltip": True},
        "encoding": {
            "x": {"field": "s", "type": "quantitative", "title": "seconds of the test"},
            "x2": {"field": "until"},
            "y": {"field": "ms", "type": "quantitative", **_LOG_MS},
            "y2": {"field": "to"},
            "color": {
                "field": f"{item}s",
                "type": "quantitative",
                "scale": {"type": "log", "scheme": "viridis"},
            },
        },
    }


def curves(parts: Mapping[str, pa.Table]) -> Spec:
    """Return the latencies of some samples by percentile; missing results are the slowest.

    Args:
        parts: The samples of each curve by its name.
    """
    rows = [
        {"curve": name, "tail": round(1 / (1 - share), 4), "p": f"p{share * 100:.4g}", "ms": ms}
        for name, part in parts.items()
        for share, ms in _curve(part)
    ]
    return {
        "width": "container",
        "height": 260,
        "data": {"values": rows},
        "mark": {"type": "line", "interpolate": "step-before"},
        "encoding": {
            "x": {
                "field": "tail",
                "type": "quantitative",
                "scale": {"type": "log"},
                "axis": {
                    "values": [1, 2, 10, 100, 1_000, 10_000],
                    "labelExpr": "'p' + format(100 - 100 / datum.value, '.4~f')",
                },
                "title": "percentile",
            },
            "y": {"field": "ms", "type": "quantitative", **_LOG_MS},
            "color": {"field": "curve", "type": "nominal", "title": None},
            "tooltip": [{"field": "curve"}, {"field": "p"}, {"field": "ms"}],
        },
    }


def compared_curves(results: Mapping[str, pa.Table]) -> Iterator[tuple[str, Spec]]:
    """Yield the name of each level that all results have, and its curves in one chart.

    Args:
        results: The samples of each result by its name.
    """
    levels = {name: dict(by_level(samples)) for name, samples in results.items()}
    first = next(iter(levels.values()))
    for level in first:
        if all(level in found for found in levels.values()):
            parts = {name: found[level] for name, found in levels.items()}
            yield level, curves(parts)


def _curve(level: pa.Table) -> Iterator[tuple[float, float]]:
    """Yield shares below 1 and the latency in milliseconds at each of them."""
    latency = np.sort(_column(level, "arrived") - _column(level, "due")) * 1e3
    if not len(latency):
        return
    for share in 1 - np.geomspace(1, 1 / len(latency), CURVE):
        ms = latency[min(int(np.ceil(share * len(latency))), len(latency) - 1)]
        # NaN is sorted to the end: the messages without a result.
        if np.isfinite(ms) and ms > 0:
            yield float(share), round(float(ms), 3)


def throughput(levels: Sequence[Mapping[str, Any]], objective_ms: float) -> Spec:
    """Return the latencies of the levels over their throughput, with the objective."""
    rows = [
        {
            "level": level["name"],
            "rate": level["throughput"],
            "percentile": f"p{one['percentile']:g}",
            **{name: one[name] for name in ("ms", "low_ms", "high_ms")},
            "verdict": level["verdict"],
        }
        for level in levels
        for one in level["latencies"]
        if one["ms"] is not None
        and level["throughput"] is not None
        and one["percentile"] in (50, 99)
    ]
    x = {"field": "rate", "type": "quantitative", "title": "results/s"}
    y = {"type": "quantitative", **_LOG_MS}
    color = {"field": "percentile", "type": "nominal", "title": None}
    shape = {"field": "verdict", "type": "nominal", "title": None}
    bounds = {"x": x, "y": {"field": "low_ms", **y}, "y2": {"field": "high_ms"}, "color": color}
    points = {"x": x, "y": {"field": "ms", **y}, "color": color, "shape": shape}
    point = {"type": "point", "filled": True, "size": 60, "tooltip": {"content": "data"}}
    return {
        "width": "container",
        "height": 260,
        "data": {"values": rows},
        "layer": [
            {"mark": "rule", "encoding": bounds},
            {"mark": point, "encoding": points},
            {
                "data": {"values": [{"ms": objective_ms}]},
                "mark": {"type": "rule", "strokeDash": [4, 4]},
                "encoding": {"y": {"field": "ms", **y}},
            },
        ],
    }


def breakdown(levels: Sequence[Mapping[str, Any]]) -> Spec:
    """Return the mean time in each part, stacked, for each level."""
    rows = [
        {"level": level["name"], "part": part["name"], "ms": part["mean_ms"], "order": order}
        for level in levels
        for order, part in enumerate(level["parts"])
    ]
    names = [*dict.fromkeys(row["part"] for row in rows)]
    return {
        "width": "container",
        # Vega warns about a width that fits if the height follows from a step.
        "height": 26 * max(len({row["level"] for row in rows}), 1),
        "data": {"values": rows},
        "mark": {"type": "bar", "tooltip": {"content": "data"}},
        "encoding": {
            "y": {"field": "level", "type": "nominal", "title": None, "sort": None},
            "x": {"field": "ms", "type": "quantitative", "title": "mean, ms", "stack": True},
            "color": {"field": "part", "type": "nominal", "title": None, "sort": names},
            "order": {"field": "order"},
        },
    }


def of_parts(levels: Sequence[Mapping[str, Any]], item: str) -> str:
    """Return what the chart of `breakdown` shows, and how it shows more."""
    names = {part["name"] for level in levels for part in level["parts"]}
    more = " A stream with --row_timings splits the pipeline into its steps."
    return f"The mean time of a {item} in each part." + more * (PIPELINE in names)


def by_level(samples: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield the name and the samples of each level, in their order."""
    names = np.asarray(samples.column("level").to_pylist())
    for name in dict.fromkeys(names.tolist()):
        yield name, samples.filter(pa.array(names == name))


def _moments(samples: pa.Table) -> tuple[Floats, Floats, Floats]:
    """Return when messages were due and answered, and the points in time of a chart."""
    due, arrived = _column(samples, "due"), _column(samples, "arrived")
    if not len(due):
        return due, arrived, due
    last = float(np.nanmax(np.concatenate([due, arrived])))
    step = max(0.5, (last - float(due.min())) / POINTS)
    return due, arrived, np.arange(due.min(), last + step * 1.001, step)


def _latency_over_time(due: Floats, arrived: Floats, times: Floats) -> dict[str, Floats]:
    """Return percentiles of the messages that were due between the points in time."""
    order = np.argsort(due)
    latency = ((arrived - due) * 1e3)[order]
    cuts = np.searchsorted(due[order], times)
    found = {"p50": np.full(len(times) - 1, np.nan), "p99": np.full(len(times) - 1, np.nan)}
    for i, (start, stop) in enumerate(itertools.pairwise(cuts)):
        part = latency[start:stop][np.isfinite(latency[start:stop])]
        if len(part):
            found["p50"][i], found["p99"][i] = np.percentile(part, [50, 99])
    return found


def _counts(moments: Floats, times: Floats) -> Floats:
    return np.histogram(moments[np.isfinite(moments)], bins=times)[0].astype(np.float64)


def _column(samples: pa.Table, name: str) -> Floats:
    return np.asarray(samples.column(name).to_numpy(), np.float64)


def fates(samples: pa.Table) -> dict[str, int]:
    """Return how many messages of a test have each fate."""
    codes = np.asarray(samples.column("fate").to_numpy())
    return {fate.name.lower(): int((codes == fate).sum()) for fate in Fate}
