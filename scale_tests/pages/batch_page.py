"""The page of a scale test of a batch: what became of the rows, and how its figures grow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from common.html_pages.page import Cell, Chart, Code, Section, Table, Text, Tone, number
from scale_tests.measures.batch_runs import BatchVerdict
from scale_tests.pages.charts import Spec
from scale_tests.pages.findings import findings_table

_TONES: Mapping[str, Tone] = {
    BatchVerdict.PASSED: "good",
    BatchVerdict.FAILED: "bad",
    BatchVerdict.INCOMPLETE: "odd",
}
# Points of the fitted line, which is curved where the axes are logarithmic.
POINTS = 60
_ROWS: Spec = {
    "field": "rows",
    "type": "quantitative",
    "title": "rows of a run",
    "scale": {"type": "log"},
    "axis": {"format": "~s", "tickCount": 6},
}


def batch_sections(result: Mapping[str, Any], more: Iterable[Section] = ()) -> Iterator[Section]:
    """Yield the sections of the page.

    Args:
        result: The content of result.json.
        more: Sections that follow those of the result.
    """
    levels = result["levels"]
    yield Section("", [*_lead(result)])
    if levels:
        yield Section("Levels", [_accounts(levels), _figures(levels)])
    if result["findings"]:
        yield Section("Findings", [findings_table(result["findings"])])
    yield from _charts(result)
    yield from more
    yield Section("How it was measured", [*_method(result)])


def _lead(result: Mapping[str, Any]) -> Iterator[Text]:
    batch = result["plan"]["batch"]
    limits = [
        f"{text} {number(batch[name])} {unit}"
        for name, text, unit in (
            ("min_rows_per_second", "at least", "rows/s"),
            ("max_seconds", "at most", "s"),
        )
        if batch[name] is not None
    ]
    wanted = "each row has exactly one result, the right one"
    yield Text(f"Objective: {', '.join([wanted, *limits])}.", "lead")
    if result["ended"]:
        yield Text(f"This page is partial: {result['ended']}.", "notice")
    sums: dict[str, int] = {}
    for level in result["levels"]:
        for name, count in level["accounts"].items():
            sums[name] = sums.get(name, 0) + count
    planned = sums.pop("planned", 0)
    named = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in sums.items() if count
    )
    yield Text(f"{planned:,} rows: {named}." if planned else "No run was measured.")


def _accounts(levels: Sequence[Mapping[str, Any]]) -> Table:
    # These are rarely needed, and make the table wide.
    rare = {
        name
        for name in ("pending", "strays")
        if not any(level["accounts"][name] for level in levels)
    }
    names = [name for name in levels[0]["accounts"] if name not in rare]
    return Table(
        head=[
            "level",
            "verdict",
            "complete runs",
            *(name.replace("_", " ") for name in names),
            "reasons",
        ],
        rows=[
            [
                level["name"],
                Cell(level["verdict"], _TONES.get(level["verdict"], "")),
                f"{sum(run['complete'] for run in level['runs'])} of {len(level['runs'])}",
                *(level["accounts"][name] for name in names),
                tuple(level["reasons"]),
            ]
            for level in levels
        ],
        caption="What became of the rows of all runs, by their ids. Duplicates are results that "
        "came once more, and wrong ones contradict their row.",
    )


def _figures(levels: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        head=[
            *("level", "seconds", "rows/s", "start, s", "finish, s"),
            *("CPU, s", "cores", "peak MB", "MB read", "MB written"),
        ],
        rows=[[*_row(level)] for level in levels],
        caption="Medians of the complete runs, and the seconds of the fastest and the slowest one.",
    )


def _row(level: Mapping[str, Any]) -> Iterator[str | float | None]:
    seconds = [run["seconds"] for run in level["runs"] if run["complete"]]
    spread = f" ({number(min(seconds))} to {number(max(seconds))})" if len(seconds) > 1 else ""
    cpu, took = level["cpu_seconds"], level["seconds"]
    yield level["name"]
    yield f"{number(took)}{spread}" if took is not None else "-"
    yield from (level[name] for name in ("rows_per_second", "start_seconds", "finish_seconds"))
    yield cpu
    yield cpu / took if cpu is not None and took else None
    for name in ("peak_bytes", "read_bytes", "written_bytes"):
        yield level[name] / 1e6 if level[name] is not None else None


def _charts(result: Mapping[str, Any]) -> Iterator[Section]:
    runs = [
        {
            "rows": level["rows"],
            "run": run["round"],
            "seconds": round(run["seconds"], 3),
            "rate": round(run["rows_per_second"], 1),
            "mb": run["peak_bytes"] and round(run["peak_bytes"] / 1e6, 1),
        }
        for level in result["levels"]
        for run in level["runs"]
        if run["complete"]
    ]
    if not runs:
        return
    line = result["line"]
    drawn = [
        (
            "Seconds",
            _points(runs, "seconds", "seconds of a run", _line(line, runs)),
            "The seconds of each complete run by its rows, and the line of the fixed time and the "
            "time for each row. Both axes are logarithmic.",
        ),
        (
            "Rows per second",
            _points(runs, "rate", "rows/s", _line(line, runs, rate=True)),
            "The rows divided by the seconds of the whole command. Short runs are slow because "
            "of the fixed time.",
        ),
    ]
    if any(run["mb"] is not None for run in runs):
        known = [run for run in runs if run["mb"] is not None]
        caption = "The largest resident memory of the processes of each run."
        drawn.append(("Memory", _points(known, "mb", "peak memory, MB", []), caption))
    for heading, spec, caption in drawn:
        yield Section(heading, [Chart(spec=spec, caption=caption)])
    if parts := [*_parts(result["levels"])]:
        caption = (
            "The median seconds of the parts: start ends when the first batch is scored, score "
            "with the last one, and finish with the command."
        )
        yield Section("Where the time goes", [Chart(spec=_stacked(parts), caption=caption)])


def _line(
    line: Mapping[str, float] | None, runs: Sequence[Mapping[str, Any]], *, rate: bool = False
) -> list[dict[str, float]]:
    """Return points of the fitted line, from the smallest to the largest size."""
    if line is None:
        return []
    sizes = [run["rows"] for run in runs]
    low, ratio = min(sizes), max(sizes) / min(sizes)
    found = []
    for step in range(POINTS + 1):
        rows = low * ratio ** (step / POINTS)
        seconds = line["fixed"] + line["per_row"] * rows
        if seconds > 0:
            found.append({"rows": rows, "value": rows / seconds if rate else seconds})
    return found


def _points(
    runs: Sequence[Mapping[str, Any]], field: str, title: str, line: Sequence[Mapping[str, float]]
) -> Spec:
    """Return a chart of a figure of each run by its rows, with a line."""
    scale: Spec = {"type": "linear", "zero": True} if field == "mb" else {"type": "log"}
    y = {"type": "quantitative", "title": title, "scale": scale, "axis": {"tickCount": 6}}
    point = {"type": "point", "filled": True, "size": 60, "tooltip": {"content": "data"}}
    drawn: list[Spec] = [{"mark": point, "encoding": {"x": _ROWS, "y": {"field": field, **y}}}]
    if line:
        drawn.append(
            {
                "data": {"values": list(line)},
                "mark": {"type": "line", "strokeDash": [4, 4], "strokeWidth": 1.5},
                "encoding": {"x": _ROWS, "y": {"field": "value", **y}},
            }
        )
    return {
        "width": "container",
        "height": 240,
        "data": {"values": list(runs)},
        "layer": drawn,
    }


def _parts(levels: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for level in levels:
        seconds, start, finish = (
            level[name] for name in ("seconds", "start_seconds", "finish_seconds")
        )
        if seconds is None or start is None or finish is None:
            continue
        parts = {"start": start, "score": max(seconds - start - finish, 0.0), "finish": finish}
        for order, (part, value) in enumerate(parts.items()):
            yield {
                "level": level["name"],
                "part": part,
                "seconds": round(value, 3),
                "order": order,
            }


def _stacked(parts: Sequence[Mapping[str, Any]]) -> Spec:
    names = [*dict.fromkeys(part["part"] for part in parts)]
    return {
        "width": "container",
        "height": 26 * len({part["level"] for part in parts}),
        "data": {"values": list(parts)},
        "mark": {"type": "bar", "tooltip": {"content": "data"}},
        "encoding": {
            "y": {"field": "level", "type": "nominal", "title": None, "sort": None},
            "x": {"field": "seconds", "type": "quantitative", "stack": True},
            "color": {"field": "part", "type": "nominal", "title": None, "sort": names},
            "order": {"field": "order"},
        },
    }


def _method(result: Mapping[str, Any]) -> Iterator[Text | Table | Code]:
    yield Text(
        "Each run is a command of its own, as a user types it, and its seconds are those of the "
        "whole command. Each row has an id of the test. The ids were counted in the results, "
        "independent of the report of the command, which must agree."
    )
    facts = {"test": result["test_id"], **result["environment"]}
    yield Table(head=["", ""], rows=[[name, str(value)] for name, value in facts.items()])
    yield Code(msgspec.json.format(json.dumps(result["plan"])))
