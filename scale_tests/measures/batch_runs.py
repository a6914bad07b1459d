"""What runs of a batch did: the accounts of their rows, their figures, and the verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

import numpy as np
from numpy.typing import NDArray

from scale_tests.load.batch_plan import Batch, BatchPlan
from scale_tests.measures.accounts import Fate, Results, Sent, settle

Ints = NDArray[np.int64]
# So many ranges of rows name what was affected.
RANGES = 5


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """What became of the rows of a run, or of several, by their ids.

    Attributes:
        planned: The rows that the batch had to read.
        scored: Those whose result is a scored row.
        dead_lettered: Those whose result is a dead letter.
        lost: Those without a result after the run.
        pending: Those without a result when the test was interrupted.
        duplicates: The results that came once more.
        wrong: The results that contradict their row: a scored fault, or a dead letter without one.
        strays: The results whose id belongs to no row of the run.
    """

    planned: int = 0
    scored: int = 0
    dead_lettered: int = 0
    lost: int = 0
    pending: int = 0
    duplicates: int = 0
    wrong: int = 0
    strays: int = 0

    @property
    def right(self) -> bool:
        """Whether each row has exactly one result, the right one."""
        return not (self.lost or self.pending or self.duplicates or self.wrong or self.strays)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the command.

    Attributes:
        round: The number of the run among those of its level, from 1.
        started: When the command was started, in seconds since 1970.
        seconds: How long the command took.
        accounts: What became of the rows.
        affected: Which rows have no result or a wrong one, one line for each kind.
        faults: What else went wrong: the error of the command, or a report that contradicts the
            results.
        interrupted: Whether the test was interrupted during the run.
        start_seconds: The seconds until the first batch was scored; None if it is not known.
        finish_seconds: The seconds from the last scored batch to the end; None if not known.
        cpu_seconds: The CPU time of all processes on this machine; None if the work was elsewhere.
        peak_bytes: The largest sum of the resident memory of these processes; None likewise.
        read_bytes: The size of the rows where they were read.
        written_bytes: The size of the results; None if it is not known.
    """

    round: int
    started: float
    seconds: float
    accounts: Accounts
    affected: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    interrupted: bool = False
    start_seconds: float | None = None
    finish_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None

    @property
    def complete(self) -> bool:
        """Whether every row has the right result, and nothing else went wrong."""
        return self.accounts.right and not self.faults and not self.interrupted

    @property
    def rows_per_second(self) -> float:
        """The rows divided by the seconds of the whole command."""
        return self.accounts.planned / self.seconds


class BatchVerdict(StrEnum):
    """What the runs of a level say."""

    PASSED = "passed"
    FAILED = "failed"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, kw_only=True)
class BatchLevel:
    """The runs with one number of rows."""

    name: str
    rows: int
    runs: tuple[Run, ...]

    @property
    def complete(self) -> tuple[Run, ...]:
        """The runs whose figures count."""
        return tuple(run for run in self.runs if run.complete)

    def values(self, field: str) -> list[float]:
        """Return a figure of each run whose figures count, if it is known."""
        found = (getattr(run, field) for run in self.complete)
        return [value for value in found if value is not None]

    def median(self, field: str) -> float | None:
        """Return the median of a figure; None if no run has it."""
        values = self.values(field)
        return statistics.median(values) if values else None

    def totals(self) -> dict[str, int]:
        """Return the sums of the accounts of all runs."""
        names = Accounts.__dataclass_fields__
        return {name: sum(getattr(run.accounts, name) for run in self.runs) for name in names}


@dataclass(frozen=True, kw_only=True)
class BatchOutcome:
    """What a test of a batch showed.

    Attributes:
        test_id: The first part of the ids of its rows.
        plan: The plan.
        levels: The levels in their order.
        ended: Why the test ended before its plan; empty if it did not.
        interrupted: Whether it was interrupted.
    """

    test_id: str
    plan: BatchPlan
    levels: tuple[BatchLevel, ...]
    ended: str = ""
    interrupted: bool = False


def account(
    first: int, faulty: NDArray[np.bool_], scored: Ints, dead: Ints, *, over: bool
) -> tuple[Accounts, tuple[str, ...]]:
    """Return what became of the rows of a run, and lines that name the affected rows.

    Args:
        first: The number of the first row.
        faulty: [n] Whether each row has a fault.
        scored: The numbers of the scored rows, in any order.
        dead: Those of the dead letters.
        over: Whether the run has ended. A row without a result is lost then, and pending before.
    """
    # A result has no time of its own: it is there after the run, or it is not.
    zeros = np.zeros(len(faulty))
    sequence = np.concatenate([scored, dead])
    results = Results(
        sequence=sequence,
        at=np.zeros(len(sequence)),
        dead=np.repeat([False, True], [len(scored), len(dead)]),
    )
    sent = Sent(first=first, due=zeros, at=zeros, faulty=faulty)
    ledger = settle(sent, results, closed=inf if over else -inf, wait_seconds=1.0)
    own = sequence[(sequence >= first) & (sequence < first + len(faulty))] - first
    copies = np.bincount(own, minlength=len(faulty))
    accounts = Accounts(
        planned=ledger.planned,
        scored=ledger.count(Fate.SCORED),
        dead_lettered=ledger.count(Fate.DEAD_LETTERED),
        lost=ledger.count(Fate.LOST),
        pending=ledger.count(Fate.PENDING),
        duplicates=ledger.duplicates,
        wrong=ledger.wrong,
        strays=len(sequence) - len(own),
    )
    kinds = {
        "lost": ledger.fate == Fate.LOST,
        "duplicated": copies > 1,
        "dead-lettered without a fault": ledger.judged & ledger.dead & ~faulty,
        "scored with a fault": ledger.judged & ~ledger.dead & faulty,
    }
    lines = (f"{name}: {_ranges(np.flatnonzero(which))}" for name, which in kinds.items())
    return accounts, tuple(
        line for line, which in zip(lines, kinds.values(), strict=True) if which.any()
    )


def _ranges(rows: Ints) -> str:
    """Return which rows there are, such as `rows 4 to 9, 17 (7 rows)`."""
    if not len(rows):
        return ""
    cuts = np.flatnonzero(np.diff(rows) > 1) + 1
    parts = np.split(rows, cuts[:RANGES])[:RANGES]
    shown = ", ".join(
        f"{part[0]:,}" if len(part) == 1 else f"{part[0]:,} to {part[-1]:,}" for part in parts
    )
    left = len(cuts) + 1 - len(parts)
    more = f" and {left:,} more ranges" if left else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more} ({len(rows):,})"


def judge_batch(level: BatchLevel, batch: Batch) -> tuple[BatchVerdict, tuple[str, ...]]:
    """Return whether a level passed, and the reasons if it did not.

    It passes if every row of every run has the right result, no run failed, and the medians of its
    runs are within the limits of the plan.
    """
    reasons = tuple(_reasons(level.runs))
    if any(run.interrupted for run in level.runs):
        return BatchVerdict.INCOMPLETE, (*reasons, "the test ended during this level")
    seconds, rate = level.median("seconds"), level.median("rows_per_second")
    if not reasons and seconds is not None and rate is not None:
        reasons = tuple(_limits(seconds, rate, batch))
    return (BatchVerdict.FAILED if reasons else BatchVerdict.PASSED), reasons


def _reasons(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        where = f"run {run.round}: " if len(runs) > 1 else ""
        for line in (*run.faults, *run.affected):
            yield f"{where}{line}"
        if run.accounts.strays:
            yield f"{where}{run.accounts.strays:,} results belong to no row of the run"


def _limits(seconds: float, rate: float, batch: Batch) -> Iterator[str]:
    if batch.max_seconds is not None and seconds > batch.max_seconds:
        yield f"it took {seconds:,.4g} s, expected at most {batch.max_seconds:,.10g} s"
    least = batch.min_rows_per_second
    if least is not None and rate < least:
        yield f"it scored {rate:,.1f} rows/s, expected at least {least:,.10g} rows/s"
