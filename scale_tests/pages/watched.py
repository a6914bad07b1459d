"""Adds what Cloud Monitoring says to the result of a test. It says so minutes after the test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cloud.clients import Cloud
from common.errors import InputError
from common.html_pages.page import Chart, Section, Text
from scale_tests.measures.findings import Finding
from scale_tests.measures.watched import (
    REPLICAS,
    WORKERS,
    Line,
    Resource,
    cost_of_levels,
    scale_out,
    watch,
)
from scale_tests.pages import charts
from scale_tests.pages.findings import findings_table
from scale_tests.pages.page import read_result, write_html

FILE = "monitoring.json"


def write_watched(folder: Path, cloud: Cloud, ids: Mapping[Resource, str]) -> None:
    """Write what Cloud Monitoring says about a test beside its result.

    Args:
        folder: The folder that the test wrote.
        cloud: The project, and the address of Cloud Monitoring.
        ids: The ids of the resources that were tested.

    Raises:
        InputError: The folder does not hold the result of a test, or Cloud Monitoring cannot be
            read.
        CredentialsError: There are no usable credentials.
        OutputError: The file cannot be written.
    """
    result, samples = read_result(folder)
    if result["plan"]["target"] == "batch":
        raise InputError(f"{folder} is the result of a batch, whose page shows no Cloud Monitoring")
    if not samples.num_rows:
        raise InputError(f"{folder}: no message was measured, so there is no time to look at")
    start, end = _times(samples)
    lines = watch(cloud, ids, start, end)
    content = {
        "start": start,
        "lines": [
            {
                "name": line.gauge.name,
                "unit": line.gauge.unit,
                "at": line.at.tolist(),
                "values": line.values.tolist(),
            }
            for line in lines
        ],
        "findings": [dataclasses.asdict(one) for one in _findings(lines, result, start)],
    }
    write_html(folder / FILE, json.dumps(content, indent=1) + "\n")


def _times(samples: pa.Table) -> tuple[float, float]:
    """Return when the first message was due, and when the last thing happened."""
    due, arrived = (np.asarray(samples[name].to_numpy()) for name in ("due", "arrived"))
    return float(due.min()), float(np.nanmax(np.concatenate([due, arrived])))


def _findings(
    lines: tuple[Line, ...], result: Mapping[str, Any], start: float
) -> Iterator[Finding]:
    for line in lines:
        if line.gauge.name in (WORKERS, REPLICAS):
            yield scale_out(line, start)
    goal = result["plan"].get("goal") or {}
    yield from cost_of_levels(lines, result["levels"], goal.get("usd_per_hour"))


def watched_section(folder: Path) -> Iterator[Section]:
    """Yield the section of the page about what Cloud Monitoring said, if that was asked.

    Raises:
        InputError: The file is damaged.
    """
    if not (folder / FILE).exists():
        return
    try:
        found = json.loads((folder / FILE).read_bytes())
        drawn = [_chart(line, found["start"]) for line in found["lines"] if line["at"]]
        table = findings_table(found["findings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / FILE} is damaged: read Cloud Monitoring again") from error
    empty = [line["name"] for line in found["lines"] if not line["at"]]
    texts = [Text(f"Cloud Monitoring has no value of {', '.join(empty)}.")] if empty else []
    yield Section("Cloud Monitoring", [*texts, *drawn, table])


def _chart(line: Mapping[str, Any], start: float) -> Chart:
    title = f"{line['name']}, {line['unit']}" if line["unit"] else line["name"]
    seconds, values = np.array(line["at"]) - start, np.array(line["values"])
    spec = charts.over_time(seconds, {line["name"]: values}, title)
    return Chart(spec=spec, caption=f"{title}, by the minutes of the test.")
