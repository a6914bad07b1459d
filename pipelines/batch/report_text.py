"""The report of a run as text for people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from common.terminal import facts

NO_ROWS = "  no rows were read: check the source; --min_rows 1 makes such a run fail"
STYLES = {"balance": "green", "output": "cyan", "report": "cyan", "page": "cyan"}


def summarise(report: Mapping[str, Any], seconds: float) -> str:
    """Return the summary of a run as text. The arguments are those of `run_facts`."""
    return facts(run_facts(report, seconds))


def run_facts(report: Mapping[str, Any], seconds: float) -> list[tuple[str, str]]:
    """Return the summary of a run, as labels and values.

    Args:
        report: The report of the run.
        seconds: How long the run took.
    """
    model = report["model"]
    rows_in, dead = report["rows_in"], report["rows_dead_lettered"]
    share = f"{dead / rows_in:.2%} of the rows" if rows_in else ""
    return [
        ("run", f"{report['run_id']}  ({report['pipeline']})"),
        ("model", f"{model['name']} {model['version']}  digest {model['digest']}"),
        *(("prepared", f"at the {place}") for place in [report.get("prepared_at")] if place),
        *(("precision", text) for text in _precisions(report.get("precision", {}))),
        ("score", _score(report)),
        *(("thresholds", text) for text in _thresholds(report.get("thresholds", {}))),
        ("rows in", f"{rows_in:>12,}{'' if rows_in else NO_ROWS}"),
        ("scored", f"{report['rows_scored']:>12,}"),
        ("dead letters", f"{dead:>12,}  {share if dead else ''}".rstrip()),
        *(("", f"{rows:>12,}  {text}") for rows, text in _reasons(report["dead_letters"])),
        *decision_facts(report.get("decisions", {})),
        ("balance", "rows in = scored + dead letters, and the outputs hold them all"),
        (
            "time",
            f"{seconds:,.1f} s  {rows_in / seconds:,.0f} rows/s from the start of the pipeline",
        ),
        *(("output", _from_here(place)) for place in report["output"] if report["rows_scored"]),
        *(("dead letters", _from_here(place)) for place in report["dead_letter_output"] if dead),
        ("report", _from_here(report["report"])),
        *(("page", _from_here(place)) for place in [page_place(report)] if place),
    ]


def page_place(report: Mapping[str, Any]) -> str | None:
    """Return the path of the page about a run, or None if it has none."""
    name = report.get("page")
    return None if name is None else f"{report['report'].rpartition('/')[0]}/{name}"


def _from_here(place: str) -> str:
    """Return a place without the current folder in front of it."""
    return place.removeprefix(f"{os.getcwd()}/")


def _score(report: Mapping[str, Any]) -> str:
    """Return the name of the score and the statistics of its values."""
    name, scores = report["score_output"], report.get("scores")
    if name is None:
        return "none: neither --score_output nor the model's manifest names an output"
    if scores is None:
        return str(name)
    mean, std, least, most = (f"{scores[key]:.4g}" for key in ("mean", "std", "min", "max"))
    return f"{name}  mean {mean}, std {std}, from {least} to {most}"


def _precisions(rows: Mapping[str, int]) -> list[str]:
    """Return the precisions that workers have chosen, with their rows if there are several."""
    if len(rows) < 2:
        return [*rows]
    return [", ".join(f"{name} for {count:,} rows" for name, count in sorted(rows.items()))]


def _thresholds(thresholds: Mapping[str, Any]) -> list[str]:
    """Return the thresholds that differ from those of the package."""
    return [
        f"{name}: {_numbers(found['at'])}, in place of {_numbers(found['packaged'])} in the package"
        for name, found in thresholds.items()
        if found["at"] != found["packaged"]
    ]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _reasons(letters: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Return (rows, reason with its most frequent columns) per reason, most rows first."""
    by_reason = sorted(letters, key=lambda letter: (letter["stage"], letter["reason"]))
    result = []
    for (stage, reason), group in groupby(by_reason, key=lambda x: (x["stage"], x["reason"])):
        kinds = sorted(group, key=lambda kind: -kind["rows"])
        columns = [f"{kind['column']} {kind['rows']:,}" for kind in kinds if kind["column"]]
        more = f", {len(columns) - 4} more" if len(columns) > 4 else ""
        shown = f"  ({', '.join(columns[:4])}{more})" if columns else ""
        result.append((sum(kind["rows"] for kind in kinds), f"{reason} at {stage}{shown}"))
    return sorted(result, key=lambda item: -item[0])


def decision_facts(decisions: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the decisions of a report as labels and values, for people.

    Args:
        decisions: The member `decisions` of a report.
    """
    return [("decisions", f"{name}: {_listed(found)}") for name, found in decisions.items()]


def _listed(found: Mapping[str, Any]) -> str:
    rows, others = found["rows"], found["others"]
    total = sum(rows.values()) + others
    parts = [*rows.items(), *([("others", others)] if others else [])]
    return ", ".join(f"{value} {n:,} ({n / total:.1%})" for value, n in parts) or "no rows"
