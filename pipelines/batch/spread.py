"""The choice of --spread_batches: whether a shuffle separates reading from predicting.

The read session of a BigQuery table ends after six hours. Without the shuffle, rows are read at the
pace of the model, so a slow model loses the run. A fast one should not pay for a shuffle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

SpreadFlag = Literal["auto", "yes", "no"]
# Half of the six hours of a session: the number of workers and the pace are estimates.
SLOW_SECONDS = 3 * 3600.0
# A run that is expected to end sooner does not explain why it is not spread.
SHORT_SECONDS = 600.0
# The slowest model for which anyone runs a batch. With less work than this takes, none is measured.
LEAST_PACE = 1.0
# In this process, shuffled batches are in memory.
IN_PROCESS_BYTES = 1 << 30
# A text file below this size, in bytes, is read in a minute or so.
UNSPLIT_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Volume:
    """What is known about a source before it is read.

    Attributes:
        session: Whether it is read in a session of BigQuery's Storage Read API.
        rows: About how many rows it has, or None if that is not known.
        row_bytes: About how many bytes a row takes.
        unsplit: The size in bytes of the largest text file that one worker reads alone, because it
            is compressed or has values with line breaks.
    """

    session: bool = False
    rows: int | None = None
    row_bytes: int = 0
    unsplit: int = 0


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What is known about the scoring of rows before it starts.

    Attributes:
        cpus: About how many CPUs the workers have together.
        in_process: Whether the workers are threads or children of this process.
        slow: What makes scoring slow without a measurement, such as `an endpoint`, or None.
        pace: Measures how many rows a second the model scores on one CPU, or returns None if it
            cannot be measured here.
    """

    cpus: int
    in_process: bool
    slow: str | None
    pace: Callable[[], float | None]


@dataclass(frozen=True)
class Choice:
    """Whether batches are spread.

    Attributes:
        spread: Whether they are.
        why: The reason, for people, or "" if the question did not arise.
    """

    spread: bool
    why: str = ""


def choose(flag: SpreadFlag, volume: Volume, scorer: Scorer) -> Choice:
    """Return whether a shuffle separates reading from predicting.

    Args:
        flag: The value of --spread_batches.
        volume: What is known about the source.
        scorer: What is known about the scoring.
    """
    if flag != "auto":
        return Choice(flag == "yes")
    if not volume.session:
        if scorer.in_process or volume.unsplit < UNSPLIT_BYTES:
            return Choice(False)
        size = volume.unsplit / 1e6
        return Choice(True, f"one worker alone reads a text file of {size:,.0f} MB")
    return _for_session(volume, scorer)


def _for_session(volume: Volume, scorer: Scorer) -> Choice:
    """Return whether rows that are read in a session of BigQuery are spread."""
    rows, in_process = volume.rows, scorer.in_process
    if rows is None and in_process:
        return Choice(False)
    if rows is not None and rows <= LEAST_PACE * SLOW_SECONDS * scorer.cpus:
        return Choice(False)
    reason, slow = _reason(rows, scorer)
    if slow and in_process and (rows or 0) * volume.row_bytes > IN_PROCESS_BYTES:
        return Choice(
            False,
            f"{reason}, but batches that are spread in this process are held in memory; if it "
            "takes longer, use --read_method export or --runner DataflowRunner",
        )
    return Choice(slow, reason)


def _reason(rows: int | None, scorer: Scorer) -> tuple[str, bool]:
    """Return what is known about the time that scoring takes, and whether it is too long."""
    ends = "a read session of BigQuery ends after 6 hours"
    if scorer.slow is not None:
        return f"{scorer.slow} scores the rows, and {ends}", True
    if rows is None:
        return f"the number of rows is not known, and {ends}", True
    pace = scorer.pace()
    if pace is None:
        return f"the pace of the model is not known, and {ends}", True
    seconds = rows / (pace * scorer.cpus)
    if seconds < SHORT_SECONDS:
        return "", False
    return (
        f"about {rows:,} rows at {pace:,.0f} rows a second on {scorer.cpus:,} CPUs take "
        f"{_duration(seconds)}, and {ends}",
        seconds > SLOW_SECONDS,
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.0f} minutes"
