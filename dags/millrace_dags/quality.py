"""The quality gate of a run. It makes no calls to Google Cloud or Airflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def figures_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a report with which the gate compares later runs."""
    rows, dead, scores = report["rows_in"], report["rows_dead_lettered"], report.get("scores") or {}
    return {
        "run_id": report["run_id"],
        "rows": rows,
        "dead_letter_share": dead / rows if rows else 0.0,
        "score_mean": scores.get("mean"),
        "score_std": scores.get("std"),
    }


def judge_run(
    run_id: str,
    report: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
    limits: Mapping[str, Any],
) -> list[str]:
    """Return what is wrong with a run, one sentence per problem.

    Each problem states what was expected, what was found and what to do. The gate is open if there
    are no problems.

    Args:
        run_id: The run.
        report: The report of the run.
        previous: The figures of the last good run, or None.
        limits: `max_dead_letter_share`, from 0 to 1; `min_rows`; `score_mean`, as (least, most) or
            None; `max_score_shift`, in standard deviations of the last good run's scores, or None.
    """
    if report.get("run_id") != run_id:
        return [
            f"expected the report of run {run_id}, found one of run {report.get('run_id')}: two "
            "pipelines write to the same folder; use a separate folder for each"
        ]
    return [
        *_balance(report),
        *_size(report, limits),
        *_letters(report, limits),
        *_drift(report.get("scores"), previous, limits),
    ]


def _balance(report: Mapping[str, Any]) -> Iterator[str]:
    rows, scored, dead = (
        report["rows_in"],
        report["rows_scored"],
        report["rows_dead_lettered"],
    )
    if rows != scored + dead or report.get("balanced") is not True:
        yield (
            f"expected rows in = scored + dead letters, got {rows:,} and {scored:,} + {dead:,}: "
            "rows are missing or duplicated; do not use this run, and report the problem"
        )


def _size(report: Mapping[str, Any], limits: Mapping[str, Any]) -> Iterator[str]:
    if report["rows_in"] < limits["min_rows"]:
        yield (
            f"expected at least {limits['min_rows']:,} rows, got {report['rows_in']:,}: check that "
            f"the source is complete ({', '.join(report['input'])}), then clear `score`"
        )


def _letters(report: Mapping[str, Any], limits: Mapping[str, Any]) -> Iterator[str]:
    rows, dead = report["rows_in"], report["rows_dead_lettered"]
    limit = limits["max_dead_letter_share"]
    if dead and (dead == rows or dead > limit * rows):
        worst = ", ".join(
            f"{kind['reason']} at {kind['stage']}"
            f"{' in ' + kind['column'] if kind['column'] else ''} {kind['rows']:,}"
            for kind in report["dead_letters"][:3]
        )
        yield (
            f"expected at most {limit:.2%} dead letters, got {dead / rows:.2%} ({dead:,} of "
            f"{rows:,}; {worst}): look at {' or '.join(report['dead_letter_output'])}, then fix "
            "the source and clear `score`, or replay them"
        )


def _drift(
    scores: Mapping[str, Any] | None,
    previous: Mapping[str, Any] | None,
    limits: Mapping[str, Any],
) -> Iterator[str]:
    if scores is None:
        return
    mean, todo = scores["mean"], "check the source and the model before you use the scores"
    if limits["score_mean"] is not None:
        least, most = limits["score_mean"]
        if not least <= mean <= most:
            yield f"expected a mean score from {least:g} to {most:g}, got {mean:g}: {todo}"
    allowed, spread = limits["max_score_shift"], (previous or {}).get("score_std")
    if allowed is not None and previous is not None and spread:
        shift = abs(mean - previous["score_mean"]) / spread
        if shift > allowed:
            yield (
                f"expected a mean score within {allowed:g} standard deviations of that of run "
                f"{previous['run_id']} (mean {previous['score_mean']:g}, standard deviation "
                f"{spread:g}); got {mean:g}, which is {shift:.2f} away: {todo}"
            )
