"""Runs the phases of a plan against any target, and judges each level."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from scale_tests.load.plan import Bisection, Burst, PhaseKind, Plan, WarmUp
from scale_tests.load.schedule import Floats, due_times, probe, stretches
from scale_tests.measures.accounts import Results, Sent, settle
from scale_tests.measures.knee import Knee, find_knee
from scale_tests.measures.level import Judgement, Level, judge, rows_text

# Between the moment a level is planned and its first message.
LEAD_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one level sends.

    Attributes:
        name: The name of the level.
        due: [n] When messages are due, in seconds from the start of the level, ascending.
        seconds: How long messages are sent; 0 for a burst.
        rows: The rows of each message.
        idle_seconds: How long nothing was sent before.
    """

    name: str
    due: Floats
    seconds: float
    rows: int = 1
    idle_seconds: float = 0.0


@dataclass
class Phases:
    """The phases of a plan while they run.

    Attributes:
        plan: The plan.
        measure: Sends what a step says, and returns what became of it.
        report: Gets a line about each level.
        levels: The levels so far, each with its judgement. Warm-ups do not count.
        knees: The results of the searches so far.
        running: The step that is measured now, unless it is a warm-up.
    """

    plan: Plan
    measure: Callable[[Step], Level]
    report: Callable[[str], None]
    levels: list[tuple[Level, Judgement]] = field(default_factory=list)
    knees: list[Knee] = field(default_factory=list)
    running: Step | None = None

    def run(self) -> None:
        """Run all phases. What `measure` raises ends them."""
        for number, phase in enumerate(self.plan.phases):
            for rows in phase.sizes:
                if isinstance(phase, Bisection):
                    self.knees.append(self._search(phase, rows, number))
                else:
                    name = f"{number + 1} {phase.__struct_config__.tag}{_suffix(phase, rows)}"
                    self._measure(phase, name, rows, (number,))

    def _search(self, phase: Bisection, rows: int, number: int) -> Knee:
        count = 0

        def measure(rate: float) -> Judgement:
            nonlocal count
            count += 1
            name = f"{number + 1}.{count} bisection {rate:,.4g}/s{_suffix(phase, rows)}"
            return self._measure(probe(phase, rate), name, rows, (number, count))

        return replace(find_knee(measure, phase), rows=rows)

    def _measure(
        self, phase: PhaseKind, name: str, rows: int, number: tuple[int, ...]
    ) -> Judgement:
        time.sleep(phase.idle_seconds)
        step = Step(
            name=name,
            due=due_times(phase, self.plan.arrivals, (self.plan.seed, *number)),
            seconds=0.0 if isinstance(phase, Burst) else sum(s.seconds for s in stretches(phase)),
            rows=rows,
            idle_seconds=phase.idle_seconds,
        )
        self.running = None if isinstance(phase, WarmUp) else step
        level = self.measure(step)
        judgement = judge(level, self.plan.objective, self.plan.sender)
        if self.running is not None:
            self.levels.append((level, judgement))
        self.running = None
        self.report(line(level, judgement))
        return judgement


def cut_short(step: Step, sent: Sent, results: Results, wait_seconds: float) -> Level:
    """Return a level during which the test was interrupted.

    Of a message that was due by now, nobody knows whether it was sent: its fate is pending.

    Args:
        step: What was sent.
        sent: The messages, as far as their times are known.
        results: The results of the whole test.
        wait_seconds: How long the result of a message may take.
    """
    now = time.time()
    at = np.where(np.isnan(sent.at) & (sent.due <= now), sent.due, sent.at)
    return Level(
        name=step.name,
        start=float(sent.due[0] - step.due[0]) if len(sent.due) else 0.0,
        seconds=step.seconds,
        ledger=settle(replace(sent, at=at), results, now, wait_seconds),
        cpu=0.0,
        rows=step.rows,
        idle_seconds=step.idle_seconds,
        interrupted=True,
    )


def _suffix(phase: PhaseKind, rows: int) -> str:
    return f", {rows_text(rows)}" if isinstance(phase.rows, tuple) else ""


def line(level: Level, judgement: Judgement) -> str:
    """Return a line about a level: its accounts first, then its latencies."""
    totals = level.ledger.totals()
    accounts = ", ".join(
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in totals.items()
        if count or name in ("scored", "lost")
    )
    kinds = ", ".join(f"{kind}: {count:,}" for kind, count in level.errors.items())
    latencies = level.latencies()
    shown = [] if latencies is None else latencies.quantiles()
    figures = ", ".join(f"p{one.percentile:g} {one.ms:,.0f} ms" for one in shown if one.ms)
    reasons = f": {'; '.join(judgement.reasons)}" if judgement.reasons else ""
    rate = f"{level.rate:,.4g}/s" if level.seconds else "at once"
    return (
        f"{level.name}, {rate}: {accounts}{f' ({kinds})' * bool(kinds)}; "
        f"{figures or 'no percentiles'}; {judgement.verdict}{reasons}"
    )
