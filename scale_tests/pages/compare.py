"""Compares two results of one plan, for example before and after a change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.errors import InputError, UsageError
from common.html_pages.page import Cell, Chart, Section, Table, Text, write_page
from scale_tests.measures.findings import RATE, Finding, confirm, missing
from scale_tests.pages import charts
from scale_tests.pages.batch_compare import compare_batches, compared_seconds
from scale_tests.pages.differences import TONES, Change, Difference
from scale_tests.pages.findings import findings_table
from scale_tests.pages.page import read_result, understood, write_html

PAGE = "comparison.html"
# When a figure is worse, for a load and for a batch.
_RULES = (
    "A latency is slower if it grew by more than {:.0%} and the confidence bounds do not overlap.",
    "A figure is worse if its median is worse by more than {:.0%}, and each run is worse than each "
    "run before. With fewer than three runs of a size in either result, the data is insufficient.",
)


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], limit: float
) -> tuple[Difference, ...]:
    """Return the differences between two results of the same plan.

    A latency is slower if it grew by more than the limit and the confidence bounds do not overlap:
    one figure alone may differ by chance.

    Args:
        before: The content of the first result.json.
        after: The content of the second one.
        limit: The share by which a figure may be worse.

    Raises:
        InputError: The results have no level in common, or are of different targets.
    """
    targets = [result["plan"]["target"] for result in (before, after)]
    if targets[0] != targets[1]:
        raise InputError(
            f"expected two results of one plan, got those of target {targets[0]!r} and "
            f"{targets[1]!r}: they have no figure in common"
        )
    levels = {level["name"]: level for level in after["levels"]}
    both = [(one, levels[one["name"]]) for one in before["levels"] if one["name"] in levels]
    of_batch = targets[0] == "batch"
    rates = () if of_batch else tuple(_rates(before, after, limit))
    if not both and not rates:
        raise InputError("the two results have no level in common: compare results of one plan")
    if of_batch:
        return tuple(one for pair in both for one in compare_batches(*pair, limit))
    percentile = before["plan"]["objective"]["percentile"]
    return (*(one for pair in both for one in _level(*pair, percentile, limit)), *rates)


def _level(
    before: Mapping[str, Any], after: Mapping[str, Any], percentile: float, limit: float
) -> Iterator[Difference]:
    lost = [level["accounts"]["lost"] for level in (before, after)]
    if lost[1] > lost[0]:
        yield Difference(
            name=before["name"],
            unit="lost messages",
            before=lost[0],
            after=lost[1],
            change=Change.LOST,
        )
    for wanted in dict.fromkeys((50, percentile)):
        one, other = (_quantile(level, wanted) for level in (before, after))
        yield Difference(
            name=f"{before['name']}, p{wanted:g}",
            unit="ms",
            before=one["ms"] if one else None,
            after=other["ms"] if other else None,
            change=_latency(one, other, limit),
        )


def _quantile(level: Mapping[str, Any], percentile: float) -> Mapping[str, Any] | None:
    """Return a percentile with its bounds; None if it is not known."""
    found = (one for one in level["latencies"] if one["percentile"] == percentile)
    return next((one for one in found if one["ms"] is not None), None)


def _latency(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, limit: float
) -> Change:
    if before is None or after is None:
        return Change.UNKNOWN
    # The message at the rank of an upper bound may have no result.
    highs = [math.inf if one["high_ms"] is None else one["high_ms"] for one in (before, after)]
    if after["ms"] > before["ms"] * (1 + limit) and after["low_ms"] > highs[0]:
        return Change.SLOWER
    if after["ms"] * (1 + limit) < before["ms"] and highs[1] < before["low_ms"]:
        return Change.FASTER
    return Change.SAME


def _rates(
    before: Mapping[str, Any], after: Mapping[str, Any], limit: float
) -> Iterator[Difference]:
    """Yield the difference of the largest sustained rates, if both results have one."""
    found = [
        {one["name"]: one for one in result["findings"] if isinstance(one["value"], int | float)}
        for result in (before, after)
    ]
    for name in found[0].keys() & found[1].keys():
        unit = found[0][name]["unit"]
        if unit not in ("messages/s", "requests/s"):
            continue
        one, other = found[0][name]["value"], found[1][name]["value"]
        # Without a rate that failed, the true limit may be higher.
        open_one, open_other = (result[name]["confidence"] != "high" for result in found)
        change = Change.SAME
        if other < one * (1 - limit):
            change = Change.UNKNOWN if open_other else Change.SLOWER
        elif other > one * (1 + limit):
            change = Change.UNKNOWN if open_one else Change.FASTER
        yield Difference(name=name, unit=unit, before=one, after=other, change=change)


def confirmed(before: Mapping[str, Any], after: Mapping[str, Any], resource: str) -> Finding:
    """Return the bottleneck of the first result, after one resource was increased.

    Args:
        before: The content of the first result.json.
        after: The content of the second one.
        resource: The resource that the second system has more of.
    """
    name = "bottleneck"
    named, *_ = [one for one in before["findings"] if one["name"] == name] or [None]
    rates = [
        one["value"]
        for result in (before, after)
        for one in result["findings"]
        # Without a rate that failed, the true limit may be higher.
        if one["name"] == RATE and one["confidence"] == "high"
    ]
    if named is None or named["value"] is None or len(rates) != 2:
        return missing(name, "needs a bottleneck, and two searches in which a higher rate failed")
    precision = max(
        (one["precision"] for one in before["plan"]["phases"] if one["kind"] == "bisection"),
        default=0.0,
    )
    found = Finding(**{**named, "evidence": tuple(named["evidence"])})
    return confirm(found, resource, rates[0], rates[1], precision)


@dataclass(frozen=True)
class Comparison:
    """What a comparison shows.

    Attributes:
        differences: The differences between the two results.
        bottleneck: The bottleneck, if a resource was increased.
        alone: The levels that only one of the results has.
    """

    differences: tuple[Difference, ...]
    bottleneck: Finding | None = None
    alone: tuple[str, ...] = ()

    @property
    def worse(self) -> tuple[Difference, ...]:
        """The figures that are worse in the second result."""
        return tuple(one for one in self.differences if one.fails)

    @property
    def said(self) -> str:
        """What it shows, in words: also how much it does not show."""
        worse, total = len(self.worse), len(self.differences)
        unknown = sum(one.change is Change.UNKNOWN for one in self.differences)
        parts = [f"{worse} of {total} figures are worse" if worse else "no figure is worse"]
        if unknown:
            parts.append(f"{unknown} of {total} have insufficient data")
        if self.alone:
            parts.append(f"only one result has {' and '.join(map(repr, self.alone))}")
        return "; ".join(parts)


def alone(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the levels that only one of two results has.

    A search tries other rates in each test, so its levels do not count.
    """
    names = [[level["name"] for level in result["levels"]] for result in (before, after)]
    different = {*names[0]} ^ {*names[1]}
    return tuple(
        name
        for name in dict.fromkeys([*names[0], *names[1]])
        if name in different and " bisection " not in name
    )


def write_comparison(
    before: Path, after: Path, limit: float, path: Path, moved: str | None = None
) -> Comparison:
    """Compare the results in two folders, write a page, and return what it shows.

    Args:
        before: The folder of the first result.
        after: That of the second one.
        limit: The share by which a figure may be worse.
        path: The page to write.
        moved: The resource that the second system has more of, or None.

    Raises:
        InputError: A folder does not hold the result of a test, or they have no level in common.
        OutputError: The page cannot be written.
        UsageError: vl-convert is not installed, or `moved` is given for a batch.
    """
    (one, samples), (other, others) = read_result(before), read_result(after)
    with understood(before, after):
        if moved is not None and one["plan"]["target"] == "batch":
            raise UsageError(
                "--moved confirms the bottleneck of a stream; a batch has none: remove it"
            )
        found = Comparison(
            compare(one, other, limit),
            confirmed(one, other, moved) if moved is not None else None,
            alone(one, other),
        )
        names = (before.resolve().name, after.resolve().name)
        names = names if names[0] != names[1] else ("before", "after")
        text = page(found, dict(zip(names, (samples, others), strict=True)), limit)
    write_html(path, text)
    return found


def page(comparison: Comparison, samples: Mapping[str, pa.Table], limit: float) -> str:
    """Return the HTML of a comparison.

    Args:
        comparison: What differs.
        samples: The samples of the two results by their names.
        limit: The share by which a figure may be worse.
    """
    before, after = samples
    of_batch = "round" in samples[after].column_names
    table = Table(
        head=["figure", before, after, "unit", "change", "verdict"],
        rows=[
            [
                *(one.name, one.before, one.after, one.unit, _share(one)),
                Cell(one.change, TONES[one.change]),
            ]
            for one in comparison.differences
        ],
        caption=_RULES[of_batch].format(limit),
    )
    found = [comparison.bottleneck] if comparison.bottleneck else []
    finding = [findings_table([dataclasses.asdict(one) for one in found])] if found else []
    curves = [*(_batch_charts if of_batch else _curves)(samples)]
    said = f"{comparison.said[0].upper()}{comparison.said[1:]}."
    title = f"{after} compared with {before}"
    lead = Text(said, "lead")
    return write_page(title, [Section("", [lead, table, *finding]), *curves])


def _curves(samples: Mapping[str, pa.Table]) -> Iterator[Section]:
    for name, spec in charts.compared_curves(samples):
        yield Section(name, [Chart(spec=spec, caption="The latency by percentile.")])


def _batch_charts(samples: Mapping[str, pa.Table]) -> Iterator[Section]:
    caption = "The seconds of each complete run by its rows."
    yield Section("Seconds", [Chart(spec=compared_seconds(samples), caption=caption)])


def _share(one: Difference) -> str:
    if not one.before or one.after is None:
        return ""
    # A change that rounds to nothing has no minus sign.
    return f"{round(one.after / one.before - 1, 2) + 0.0:+.0%}"


def read_share(text: str) -> float:
    """Return a share that is written as `10%` or `0.1`.

    Raises:
        UsageError: It is not a number of at least 0.
    """
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise UsageError(f"--fail_if_slower must be a share such as 10%, got {text}")
    return share
