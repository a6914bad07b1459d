"""Compares the levels of two results of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from scale_tests.pages.charts import Spec
from scale_tests.pages.differences import Change, Difference

# With fewer runs on each side, one is slower than all others by chance too often.
RUNS = 3
# The accounts that should be 0.
_FAULTS = ("lost", "duplicates", "wrong", "strays")


def compare_batches(
    before: Mapping[str, Any], after: Mapping[str, Any], limit: float
) -> Iterator[Difference]:
    """Yield the differences between two levels of one name, as result.json has them.

    A figure is worse if its median is worse by more than the limit and no run of the second result
    is as good as a run of the first one. With three runs each, chance does so once in 20 times.

    Args:
        before: The level of the first result.
        after: That of the second one.
        limit: The share by which a figure may be worse.
    """
    for name in _FAULTS:
        one, other = before["accounts"][name], after["accounts"][name]
        # One of the results may have more runs.
        if other * before["accounts"]["planned"] > one * after["accounts"]["planned"]:
            yield Difference(
                name=before["name"],
                unit=f"{name} rows",
                before=one,
                after=other,
                change=Change.WRONG,
            )
    complete = [sum(run["complete"] for run in level["runs"]) for level in (before, after)]
    if complete[0] and not complete[1]:
        yield Difference(
            name=before["name"],
            unit="complete runs",
            before=complete[0],
            after=complete[1],
            change=Change.WRONG,
        )
    yield _difference(before, after, limit, RATE)
    yield _difference(before, after, limit, MEMORY)


@dataclass(frozen=True)
class Figure:
    """A figure of a run.

    Attributes:
        name: What it is.
        field: Its name in result.json.
        unit: The unit in which it is shown.
        factor: From its unit in result.json to this one.
        less: What a smaller figure means.
        more: What a larger one means.
    """

    name: str
    field: str
    unit: str
    factor: float
    less: Change
    more: Change


RATE = Figure("rate", "rows_per_second", "rows/s", 1.0, Change.SLOWER, Change.FASTER)
MEMORY = Figure("memory", "peak_bytes", "MB", 1e-6, Change.SMALLER, Change.LARGER)


def _difference(
    before: Mapping[str, Any], after: Mapping[str, Any], limit: float, figure: Figure
) -> Difference:
    medians = [level[figure.field] for level in (before, after)]
    one, other = (
        [run[figure.field] for run in level["runs"] if run["complete"] and run[figure.field]]
        for level in (before, after)
    )
    change = Change.UNKNOWN
    if min(len(one), len(other)) >= RUNS:
        grown = medians[1] > medians[0] * (1 + limit) and min(other) > max(one)
        shrunk = medians[1] * (1 + limit) < medians[0] and max(other) < min(one)
        change = figure.more if grown else figure.less if shrunk else Change.SAME
    return Difference(
        name=f"{before['name']}, {figure.name}",
        unit=figure.unit,
        before=medians[0] and medians[0] * figure.factor,
        after=medians[1] and medians[1] * figure.factor,
        change=change,
    )


def compared_seconds(results: Mapping[str, pa.Table]) -> Spec:
    """Return the seconds of the complete runs of several results by their rows.

    Args:
        results: The samples of each result by its name.
    """
    rows = [
        {"result": name, "rows": run["planned"], "seconds": round(run["seconds"], 3)}
        for name, samples in results.items()
        for run in samples.to_pylist()
        if run["complete"]
    ]
    log = {"type": "quantitative", "scale": {"type": "log"}}
    return {
        "width": "container",
        "height": 240,
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "size": 60, "tooltip": {"content": "data"}},
        "encoding": {
            "x": {"field": "rows", "title": "rows of a run", "axis": {"format": "~s"}, **log},
            "y": {"field": "seconds", "title": "seconds of a run", **log},
            "color": {"field": "result", "type": "nominal", "title": None, "sort": [*results]},
        },
    }
