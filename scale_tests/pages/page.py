"""The page of a scale test, from the files of its result: what was sent, and what became of it.

The accounts come first. A level without complete accounts has no percentiles on the page either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError, OutputError, one_line
from common.html_pages.page import Cell, Chart, Code, Section, Table, Text, Tone, number, write_page
from scale_tests.measures.level import Verdict
from scale_tests.pages import charts
from scale_tests.pages.batch_page import batch_sections
from scale_tests.pages.findings import findings_table

PAGE = "report.html"
_TONES: Mapping[str, Tone] = {
    Verdict.SUSTAINED: "good",
    Verdict.FAILED: "bad",
    Verdict.INVALID: "odd",
    Verdict.INCOMPLETE: "odd",
    Verdict.INSUFFICIENT: "odd",
}
_OVER_TIME = (
    "The {item}s that were due, and the results, per second.",
    "The {item}s that were due and had no result yet.",
    "The median and the 99th percentile of the latency, by the time at which a {item} was due.",
)
_PERCENTILES = (50, 90, 95, 99, 99.9)


def write_report(folder: Path, more: Iterable[Section] = ()) -> Path:
    """Write the page of a result beside its files, and return its path.

    Args:
        folder: The folder that a test wrote.
        more: Sections that follow those of the result.

    Raises:
        InputError: The folder does not hold the result of a test.
        OutputError: The page cannot be written.
        UsageError: vl-convert is not installed.
    """
    result, samples = read_result(folder)
    write_html(folder / PAGE, page(result, samples, more))
    return folder / PAGE


def write_html(path: Path, text: str) -> None:
    """Write a page.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        path.write_text(text)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {one_line(error)}") from error


def read_result(folder: Path) -> tuple[dict[str, Any], pa.Table]:
    """Return the content of result.json, and the samples.

    Raises:
        InputError: The folder does not hold the result of a test.
    """
    if not (folder / "result.json").exists():
        raise InputError(
            f"{folder} has no result.json: name the folder that millrace scale-test wrote"
        )
    try:
        return json.loads((folder / "result.json").read_bytes()), pq.read_table(
            folder / "samples.parquet"
        )
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise InputError(
            f"{folder} does not hold the result of a scale test: {one_line(error)}"
        ) from error


@contextmanager
def understood(*folders: Path) -> Iterator[None]:
    """Raise InputError if the block finds something unexpected in the results in these folders.

    Their files are valid JSON and Parquet, but may be changed, or of another version.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{' or '.join(map(str, folders))} does not hold the result of a scale test, or it is "
            f"of another version; run the test again ({type(error).__name__}: {one_line(error)})"
        ) from error


def page(result: Mapping[str, Any], samples: pa.Table, more: Iterable[Section] = ()) -> str:
    """Return the HTML of a result, with some more sections."""
    plan = result["plan"]
    tested = plan["send_to"]
    # A URL ends with a path that all servers have.
    name = tested if "://" in tested else tested.rpartition("/")[2]
    if plan["target"] == "batch":
        title = f"Scale test of {plan['batch']['pipeline']}"
        return write_page(title, batch_sections(result, more))
    title = f"Scale test of {name or plan['target']}"
    return write_page(title, _sections(result, samples, more))


def _sections(
    result: Mapping[str, Any], samples: pa.Table, more: Iterable[Section]
) -> Iterator[Section]:
    levels, item = result["levels"], _item(result)
    yield Section("", [*_lead(result, samples)])
    if levels:
        yield Section("Levels", [_accounts(levels, item), _figures(levels, item)])
    if result["findings"]:
        yield Section("Findings", [findings_table(result["findings"])])
    if samples.num_rows:
        yield from _charts(result, samples)
    yield from more
    yield Section("How it was measured", [*_method(result)])


def _item(result: Mapping[str, Any]) -> str:
    """Return what a test sent."""
    return "request" if result["plan"]["target"] == "endpoint" else "message"


def _charts(result: Mapping[str, Any], samples: pa.Table) -> Iterator[Section]:
    levels, objective = result["levels"], result["plan"]["objective"]
    item = _item(result)
    captions = [caption.format(item=item) for caption in _OVER_TIME]
    over_time = zip(charts.timeline(samples, item), captions, strict=True)
    yield Section("Over time", [Chart(spec=spec, caption=caption) for spec, caption in over_time])
    drawn = [
        (
            "Latencies over time",
            charts.heat_map(samples, item),
            f"How many {item}s that were due at a time had a latency. Two bands are two kinds of "
            f"{item}s; a slope is a backlog.",
        ),
        (
            "Percentiles",
            charts.curves(dict(charts.by_level(samples))),
            f"The latency by percentile, for each level. A curve ends at {item}s without a result.",
        ),
        (
            "Throughput and latency",
            charts.throughput(levels, objective["latency_ms"]),
            "The latency of each level over its results per second, with its confidence bounds. "
            "The dashed line is the objective.",
        ),
        (
            "Where the time goes",
            charts.breakdown(levels),
            charts.of_parts(levels, item),
        ),
    ]
    for heading, spec, caption in drawn:
        if spec and spec["data"]["values"]:
            yield Section(heading, [Chart(spec=spec, caption=caption)])


def _lead(result: Mapping[str, Any], samples: pa.Table) -> Iterator[Text]:
    objective = result["plan"]["objective"]
    yield Text(
        f"Objective: p{objective['percentile']:g} at most {number(objective['latency_ms'])} ms, "
        f"and {objective['goodput']:.2%} of the {_item(result)}s answered rightly in that time.",
        "lead",
    )
    if result["ended"]:
        yield Text(f"This page is partial: {result['ended']}.", "notice")
    found = charts.fates(samples) if samples.num_rows else {}
    total = sum(found.values())
    named = ", ".join(
        f"{count:,} {fate.replace('_', ' ')}" for fate, count in found.items() if count
    )
    item = _item(result)
    yield Text(f"{total:,} {item}s: {named}." if total else f"No {item} was measured.")


def _accounts(levels: Sequence[Mapping[str, Any]], item: str) -> Table:
    names = [*levels[0]["accounts"]]
    return Table(
        head=["level", "verdict", *(name.replace("_", " ") for name in names), "reasons"],
        rows=[
            [
                level["name"],
                Cell(level["verdict"], _TONES.get(level["verdict"], "")),
                *(level["accounts"][name] for name in names),
                (*level["reasons"], *_errors(level)),
            ]
            for level in levels
        ],
        caption=f"What became of every {item}. Duplicates are results that came once more.",
    )


def _errors(level: Mapping[str, Any]) -> Iterator[str]:
    """Yield how many requests failed in each way."""
    for kind, count in level.get("errors", {}).items():
        yield f"{count:,} requests failed: {kind}"


def _figures(levels: Sequence[Mapping[str, Any]], item: str) -> Table:
    def quantile(level: Mapping[str, Any], percentile: float) -> str:
        for one in level["latencies"]:
            if one["percentile"] == percentile:
                if one["ms"] is None:
                    return one["reason"]
                # The message at the rank of the upper bound may have no result.
                high = "no result" if one["high_ms"] is None else number(one["high_ms"])
                return f"{number(one['ms'])} ({number(one['low_ms'])} to {high})"
        return "-"

    return Table(
        head=[
            *("level", f"{item}s/s", "results/s", *(f"p{p:g}" for p in _PERCENTILES), "max"),
            *("sent late", "sender CPU"),
        ],
        rows=[
            [
                *(level["name"], level["rate"], level["throughput"]),
                *(quantile(level, percentile) for percentile in _PERCENTILES),
                *(level["max_ms"], level["sent_late_ms"], f"{level['sender_cpu']:.0%}"),
            ]
            for level in levels
        ],
        caption=f"Latencies in milliseconds from the time at which a {item} was due, with bounds "
        "that contain the true percentile with a probability of 95 %.",
    )


def _method(result: Mapping[str, Any]) -> Iterator[Text | Table | Code]:
    yield Text(
        "Send times were fixed before the test, and latency counts from them. So a sender that "
        "is late makes latencies longer, and not shorter."
    )
    facts = {"test": result["test_id"], **result.get("environment", {})}
    yield Table(head=["", ""], rows=[[name, str(value)] for name, value in facts.items()])
    yield Code(msgspec.json.format(json.dumps(result["plan"])))
