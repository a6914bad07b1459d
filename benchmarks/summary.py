"""Summarises rounds as statistics and ratios for the results."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure import Measured

Record = dict[str, Any]

OURS = "millrace"
OPPONENTS = ("stock_beam", "plain_loop", "pandas_loop", "daft_frame")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the minimum, median and maximum of at least one value."""
    return {
        "min": _rounded(min(values)),
        "median": _rounded(statistics.median(values)),
        "max": _rounded(max(values)),
    }


def as_record(measured: Measured) -> Record:
    """Return the figures of a run, including derived rates."""
    rows, report = measured.report.rows, measured.report
    return {
        "rows": rows,
        "run_seconds": _rounded(report.run_seconds),
        "process_seconds": _rounded(measured.process_seconds),
        "rows_per_second": _rounded(rows / report.run_seconds),
        "cpu_seconds": _rounded(measured.cpu_seconds),
        "run_cpu_seconds_per_million_rows": _rounded(report.run_cpu_seconds / rows * 1e6),
        "cpu_seconds_per_million_rows": _rounded(measured.cpu_seconds / rows * 1e6),
        "peak_mb": _rounded(measured.peak_bytes / 1e6),
        "other_cpu_share": _rounded(measured.other_cpu_share),
    }


def summarise(rounds: Mapping[str, Sequence[Measured]]) -> Record:
    """Summarise the runs of each contestant. All runs of one contestant have the same rows."""
    contestants = {}
    for name, runs in rounds.items():
        records = [as_record(run) for run in runs]
        (rows,) = {record["rows"] for record in records}
        figures = {
            key: spread([record[key] for record in records]) for key in records[0] if key != "rows"
        }
        contestants[name] = {"rows": rows, **figures, "rounds": records}
    return {"contestants": contestants, "ratios": ratios(contestants)}


def ratios(contestants: Mapping[str, Record]) -> dict[str, float]:
    """Return the ratio of Millrace's median rate to the median rate of each opponent."""
    if OURS not in contestants:
        return {}
    ours = contestants[OURS]["rows_per_second"]["median"]
    return {
        f"{OURS}/{name}": _rounded(ours / contestants[name]["rows_per_second"]["median"])
        for name in OPPONENTS
        if name in contestants
    }


def _rounded(value: float) -> float:
    """Round a number to four significant digits, and from 10,000 on to a whole number."""
    return float(round(value)) if abs(value) >= 10_000 else float(f"{value:.4g}")
