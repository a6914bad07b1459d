"""Writes what a test showed: result.json, samples.parquet, and an .hlog for each level."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import OutputError, one_line
from scale_tests.load.plan import Plan
from scale_tests.measures.conclusions import conclude
from scale_tests.measures.level import Judgement, Level
from scale_tests.measures.outcome import Outcome


def write(outcome: Outcome, plan: Plan, folder: Path) -> None:
    """Write the result of a test into a folder that exists.

    Raises:
        OutputError: The folder cannot be written, for example because the disk is full.
    """
    with writing(folder):
        pq.write_table(samples(outcome), folder / "samples.parquet")
        for number, (level, _) in enumerate(outcome.levels):
            _write_hlog(level, folder / f"level-{number:02d}.hlog")
        text = json.dumps(result(outcome, plan), indent=1, allow_nan=False)
        (folder / "result.json").write_text(text + "\n")


@contextmanager
def prepared(folder: Path) -> Iterator[None]:
    """Create the folder for the result of the test in the block.

    A folder that the block leaves empty, because the test was refused, is removed.

    Raises:
        OutputError: The folder cannot be created or written, or has files.
    """
    existed = folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise OutputError(f"{folder} has files: name a new folder with --output")
        with tempfile.TemporaryFile(dir=folder):
            pass
    try:
        yield
    finally:
        if not existed:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise OutputError if a file in a folder cannot be written in the block."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {one_line(error)}") from error


def result(outcome: Outcome, plan: Plan) -> dict[str, Any]:
    """Return the content of result.json."""
    return {
        "test_id": outcome.test_id,
        "interrupted": outcome.interrupted,
        "ended": outcome.ended,
        "environment": environment(),
        "plan": msgspec.to_builtins(plan),
        "strays": outcome.strays,
        "levels": [describe(level, judgement) for level, judgement in outcome.levels],
        "findings": [dataclasses.asdict(finding) for finding in conclude(outcome, plan)],
    }


def environment() -> dict[str, str]:
    """Return what ran the test: versions, and the machine without its name."""
    return {
        "millrace": metadata.version("millrace"),
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe(level: Level, judgement: Judgement) -> dict[str, Any]:
    """Return the figures of a level. Its latencies are absent if its accounts are incomplete."""
    latencies, grown = level.latencies(), level.growth
    return {
        "name": level.name,
        "verdict": judgement.verdict,
        "reasons": judgement.reasons,
        "interrupted": level.interrupted,
        "rate": _known(level.rate),
        "throughput": _known(level.throughput),
        "in_flight": _known(level.in_flight),
        "start": level.start,
        "seconds": level.seconds,
        "rows": level.rows,
        "accounts": level.ledger.totals(),
        "errors": level.errors,
        "wrong_results": level.ledger.wrong,
        "sent_late_ms": level.sent_late_ms(),
        "sender_cpu": level.cpu,
        "backlog_growth": dataclasses.asdict(grown) if grown else None,
        "latencies": [dataclasses.asdict(one) for one in latencies.quantiles()]
        if latencies
        else [],
        "max_ms": latencies.max_ms() if latencies else None,
        "parts": [dataclasses.asdict(part) for part in level.parts],
    }


def samples(outcome: Outcome) -> pa.Table:
    """Return a row for each message, with its times in seconds since 1970 and its fate."""
    tables = [
        pa.table(
            {
                "level": pa.repeat(level.name, level.ledger.planned),
                "sequence": np.arange(level.ledger.planned) + level.ledger.sent.first,
                "due": level.ledger.sent.due,
                "sent": pa.array(level.ledger.sent.at, from_pandas=True),
                "arrived": pa.array(level.ledger.arrived, from_pandas=True),
                "fate": level.ledger.fate,
                "faulty": level.ledger.sent.faulty,
            }
        )
        for level, _ in outcome.levels
    ]
    return pa.concat_tables(tables) if tables else pa.table({})


def _write_hlog(level: Level, path: Path) -> None:
    from hdrh.log import HistogramLogWriter

    latencies = level.latencies()
    if latencies is None:
        return
    latencies.histogram.set_start_time_stamp(level.start * 1e3)
    latencies.histogram.set_end_time_stamp((level.start + level.seconds) * 1e3)
    with path.open("w") as file:
        log = HistogramLogWriter(file)
        log.output_log_format_version()
        log.output_legend()
        # The unit of the histogram is a microsecond.
        log.output_interval_histogram(latencies.histogram, max_value_unit_ratio=1_000.0)


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number
