"""What follows from the runs of a batch: its fixed time, its rate, its memory, and a large run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cloud.prices import BATCH, PRICES_AS_OF, Workers
from scale_tests.load.batch_plan import BatchGoal, BatchPlan
from scale_tests.measures.batch_runs import BatchLevel, BatchOutcome
from scale_tests.measures.findings import Confidence, Finding, missing

Floats = NDArray[np.float64]
# The time grows linearly if the line is within this share of the median of each size.
LINEAR = 0.1
# Memory that grows by less than this share from one size to the next does not grow.
GROWTH = 0.1
# The size before the largest one must be smaller by this factor, to show growth.
APART = 2.0
# The bounds of a figure contain the true one with this probability.
PROBABILITY = 0.95
_SURE = f", with a probability of {PROBABILITY:.0%}"
_ORDER: Sequence[Confidence] = ("insufficient data", "low", "medium", "high")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A fixed time and a time for each row, fitted to the runs.

    Attributes:
        fixed: The seconds of a run without rows.
        per_row: The seconds that each row adds.
        fixed_bound: How far the true fixed time may be from it; NaN if the runs are too few.
        per_row_bound: The same of the time for each row.
        off: The largest distance of the line from the median of a size, as a share of the median.
        where: The size with this distance.
        chance: How probable such distances are if the time grows linearly, by the differences
            between runs of one size; NaN if no size was repeated, or there are fewer than three.
        sizes: The different numbers of rows, ascending.
        runs: How many runs there are.
    """

    fixed: float
    per_row: float
    fixed_bound: float
    per_row_bound: float
    off: float
    where: int
    chance: float
    sizes: tuple[int, ...]
    runs: int

    @property
    def shape(self) -> Literal["linear", "not linear"] | None:
        """How the time grows; None if the runs of one size differ too much to say."""
        if self.off <= LINEAR:
            return "linear"
        return None if self.chance > 1 - PROBABILITY else "not linear"

    @property
    def repeats(self) -> bool:
        """Whether each size ran three times, as far as their number says."""
        return self.runs >= 3 * len(self.sizes)

    @property
    def grows(self) -> bool:
        """Whether the runs show that more rows take more time. Two runs alone never do."""
        return self.per_row > self.per_row_bound

    @property
    def confidence(self) -> Confidence:
        """How sure the line is: it needs three sizes, and three runs of each for more."""
        if len(self.sizes) < 3 or self.shape != "linear":
            return "low"
        return "high" if self.repeats else "medium"

    def seconds(self, rows: float) -> float:
        """Return the seconds of a run with so many rows."""
        return max(self.fixed, 0.0) + self.per_row * rows


def fit(levels: Sequence[BatchLevel]) -> Line | None:
    """Return the line through the runs of all sizes; None with fewer than two sizes.

    The distances count as shares of the time, because a long run varies by more seconds.
    """
    from scipy import stats

    points = [(level.rows, s) for level in levels for s in level.values("seconds")]
    sizes = tuple(sorted({rows for rows, _ in points}))
    if len(sizes) < 2:
        return None
    rows, seconds = np.array(points, np.float64).T
    parts = np.stack([np.ones(len(rows)), rows], 1) / seconds[:, None]
    # The columns differ by many orders of magnitude.
    scale = np.linalg.norm(parts, axis=0)
    found, *_ = np.linalg.lstsq(parts / scale, np.ones(len(rows)), rcond=None)
    free = len(rows) - 2
    bounds = np.full(2, math.nan)
    if free:
        variance = float(((parts / scale) @ found - 1) @ ((parts / scale) @ found - 1)) / free
        inverse = np.linalg.inv((parts / scale).T @ (parts / scale))
        bounds = stats.t.ppf((1 + PROBABILITY) / 2, free) * np.sqrt(variance * inverse.diagonal())
    fixed, per_row = found / scale
    medians = {size: float(np.median(seconds[rows == size])) for size in sizes}
    off = {size: abs((fixed + per_row * size) / of - 1) for size, of in medians.items()}
    where = max(off, key=off.__getitem__)
    return Line(
        fixed=float(fixed),
        per_row=float(per_row),
        fixed_bound=float(bounds[0] / scale[0]),
        per_row_bound=float(bounds[1] / scale[1]),
        off=float(off[where]),
        where=where,
        chance=_chance(rows, (parts @ np.array([fixed, per_row]))),
        sizes=sizes,
        runs=len(points),
    )


def _chance(rows: Floats, predicted: Floats) -> float:
    """Return how probable the distances from a line are, by the F-test for lack of fit.

    Args:
        rows: [runs] The rows of each run.
        predicted: [runs] The seconds of the line, as shares of those of the run.
    """
    from scipy import stats

    groups = [predicted[rows == size] - 1 for size in np.unique(rows)]
    free = len(groups) - 2, len(rows) - len(groups)
    if min(free) < 1:
        return math.nan
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    between = sum(len(group) * float(group.mean()) ** 2 for group in groups)
    if not within:
        return 0.0 if between else 1.0
    return float(stats.f.sf((between / free[0]) / (within / free[1]), *free))


def conclude_batch(outcome: BatchOutcome) -> list[Finding]:
    """Return the findings of a test."""
    plan, line = outcome.plan, fit(outcome.levels)
    levels = sorted((one for one in outcome.levels if one.complete), key=lambda one: one.rows)
    return [
        *_times(line),
        *_cores(levels),
        *_memory(levels),
        *(_of_goal(line, plan, plan.goal) if plan.goal else ()),
    ]


def _times(line: Line | None) -> Iterator[Finding]:
    names = ("fixed time", "rate beyond the fixed time", "growth of the time")
    if line is None:
        for name in names:
            yield missing(name, "needs complete runs of two sizes, and better of three")
        return
    evidence = (_measured(line), *_shape(line)) if line.grows else (_measured(line),)
    yield Finding(
        name=names[0],
        value=max(line.fixed, 0.0),
        unit="s",
        evidence=(_bounds(line.fixed, line.fixed_bound, "s"), *evidence),
        confidence=line.confidence,
    )
    if not line.grows:
        reason = "the times of the sizes differ by no more than by chance: use larger sizes"
        if math.isnan(line.per_row_bound):
            reason = "two runs do not show how much times differ by chance: repeat the sizes"
        yield missing(names[1], reason, *evidence)
        yield missing(names[2], reason)
        return
    low, high = (line.per_row + sign * line.per_row_bound for sign in (1, -1))
    yield Finding(
        name=names[1],
        value=1 / line.per_row,
        unit="rows/s",
        evidence=(f"{1 / low:,.0f} to {1 / high:,.0f} rows/s{_SURE}", *evidence),
        confidence=line.confidence,
    )
    if len(line.sizes) < 3:
        yield missing(names[2], "needs three sizes")
        return
    if line.shape is None:
        yield missing(names[2], "the runs of one size differ too much: repeat them", *_shape(line))
        return
    sure: Confidence = "high" if line.repeats else "low" if math.isnan(line.chance) else "medium"
    yield Finding(name=names[2], value=line.shape, evidence=_shape(line), confidence=sure)


def _measured(line: Line) -> str:
    sizes = ", ".join(f"{size:,}" for size in line.sizes)
    return f"{line.runs} runs of {sizes} rows"


def _shape(line: Line) -> tuple[str, ...]:
    """Return how far the runs are from the line; nothing if there are too few sizes to say."""
    if len(line.sizes) < 3:
        return ()
    return (
        f"the line is {line.off:.0%} off the median of {line.where:,} rows, where it is farthest "
        f"off; up to {LINEAR:.0%} counts as linear",
    )


def _bounds(value: float, bound: float, unit: str) -> str:
    if math.isnan(bound):
        return "no bounds: two runs"
    return f"{max(value - bound, 0):,.3g} to {max(value + bound, 0):,.3g} {unit}{_SURE}"


def _cores(levels: Sequence[BatchLevel]) -> Iterator[Finding]:
    name = "cores used"
    known = [level for level in levels if level.values("cpu_seconds")]
    if not known:
        yield missing(name, "the work was not done on this machine, or no run is complete")
        return
    used = {one.rows: (one.median("cpu_seconds"), one.median("seconds")) for one in known}
    evidence = tuple(
        f"{rows:,} rows: {cpu:,.1f} s of CPU time in {seconds:,.1f} s"
        for rows, (cpu, seconds) in used.items()
        if cpu is not None and seconds
    )
    cpu, seconds = used[known[-1].rows]
    yield Finding(
        name=name,
        value=(cpu or 0.0) / (seconds or 1.0),
        unit="cores",
        evidence=evidence,
        confidence="high" if len(known[-1].values("seconds")) >= 3 else "medium",
    )


def _memory(levels: Sequence[BatchLevel]) -> Iterator[Finding]:
    names = ("peak memory", "growth of the memory")
    peaks = {one.rows: max(one.values("peak_bytes")) for one in levels if one.values("peak_bytes")}
    if not peaks:
        for name in names:
            yield missing(name, "the work was not done on this machine, or no run is complete")
        return
    evidence = tuple(f"{rows:,} rows: {peak / 1e6:,.0f} MB" for rows, peak in peaks.items())
    yield Finding(
        name=names[0],
        value=max(peaks.values()) / 1e6,
        unit="MB",
        evidence=(*evidence, "memory that processes share counts in each of them"),
        confidence="medium",
    )
    sizes = [*peaks]
    if len(sizes) < 2 or sizes[-1] < APART * sizes[-2]:
        yield missing(names[1], f"needs two sizes of which one is {APART:g} times the other")
        return
    before, after = peaks[sizes[-2]], peaks[sizes[-1]]
    each = (after - before) / (sizes[-1] - sizes[-2])
    grows = after > before * (1 + GROWTH)
    yield Finding(
        name=names[1],
        value=f"{each:,.0f} bytes per row" if grows else "none",
        evidence=(
            f"from {sizes[-2]:,} to {sizes[-1]:,} rows it changed by {after / before - 1:+.0%}; "
            f"up to {GROWTH:.0%} does not count",
        ),
        confidence="medium" if len(sizes) > 2 else "low",
    )


def _of_goal(line: Line | None, plan: BatchPlan, goal: BatchGoal) -> Iterator[Finding]:
    names = (f"time of {goal.rows:,} rows", f"cost of {goal.rows:,} rows")
    if line is None or not line.grows:
        sizes = (
            "larger sizes or more runs"
            if line
            else "complete runs of two sizes, and better of three"
        )
        for name in names:
            yield missing(name, f"the rate beyond the fixed time is not known: it needs {sizes}")
        return
    seconds = line.seconds(goal.rows)
    beyond = goal.rows / line.sizes[-1]
    far: Confidence = "high" if beyond <= 1 else "medium" if beyond <= 10 else "low"
    confidence = min(line.confidence, far, key=_ORDER.index)
    reach = "within the sizes that were measured"
    if beyond > 1:
        reach = f"{beyond:,.4g} times the largest size that was measured"
    elif goal.rows < line.sizes[0]:
        reach = f"below the smallest size that was measured, {line.sizes[0]:,} rows"
    spread = line.fixed_bound + line.per_row_bound * goal.rows
    evidence = (_bounds(seconds, spread, "s"), reach, *_shape(line))
    yield Finding(name=names[0], value=seconds, unit="s", evidence=evidence, confidence=confidence)
    hourly, source = _price(plan, goal)
    if hourly is None:
        yield missing(names[1], source)
        return
    yield Finding(
        name=names[1],
        value=round(goal.count * hourly * seconds / 3_600, 4),
        unit="USD",
        evidence=(f"{goal.count:,} x {hourly:,.4g} USD/h for {seconds:,.0f} s", source, reach),
        confidence=confidence,
    )


def _price(plan: BatchPlan, goal: BatchGoal) -> tuple[float | None, str]:
    """Return the price per hour of one machine, and where it comes from."""
    if goal.usd_per_hour is not None:
        return goal.usd_per_hour, "goal.usd_per_hour of the plan"
    if not plan.batch.on_dataflow:
        return None, "needs goal.usd_per_hour, the price of the machine"
    one = Workers(count=1, vcpu=goal.vcpu, memory_gb=goal.memory_gb)
    return (
        one.dollars(BATCH, 3_600),
        f"list prices of us-central1 of {PRICES_AS_OF}, without data that Dataflow shuffles",
    )
