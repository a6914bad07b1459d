"""Searches the largest rate that a system sustains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scale_tests.load.plan import Bisection
from scale_tests.measures.level import Judgement, Verdict

# How often a rate is tried if the load was not as planned, or the messages were too few.
ATTEMPTS = 2


@dataclass(frozen=True)
class Probe:
    """A rate that was tried, in messages per second, and the judgement about it."""

    rate: float
    judgement: Judgement

    @property
    def sustained(self) -> bool:
        """Whether the system sustained the rate."""
        return self.judgement.verdict is Verdict.SUSTAINED


@dataclass(frozen=True)
class Knee:
    """The result of a search.

    Attributes:
        sustained: The largest rate that was sustained each time; None if there was none.
        failed: The smallest rate above it that was not sustained; None if every rate was.
        probes: The rates in the order in which they were tried.
        reason: Empty, or why a rate above the sustained one could not be judged.
        rows: The rows of each message.
    """

    sustained: float | None
    failed: float | None
    probes: tuple[Probe, ...]
    reason: str = ""
    rows: int = 1


def find_knee(measure: Callable[[float], Judgement], search: Bisection) -> Knee:
    """Return the largest sustained rate by bisection.

    The rates are divided in the middle of their logarithms, because the precision is a share. At
    the end, the largest sustained rate is tried once more. If it is not sustained then, the search
    goes on below it. It also goes on below a rate that cannot be judged, but then the limit of the
    system is not known.

    Args:
        measure: Tries a rate and judges it.
        search: The lowest and highest rates, and the precision.
    """
    probes: list[Probe] = []

    def is_sustained(rate: float) -> bool | None:
        """Return None if the rate could not be judged."""
        for _ in range(ATTEMPTS):
            probes.append(Probe(rate, measure(rate)))
            if probes[-1].sustained or probes[-1].judgement.failed:
                return probes[-1].sustained
            if probes[-1].judgement.verdict is Verdict.INCOMPLETE:
                break
        return None

    low: float | None = None
    high: float | None = None
    rate: float | None = search.lowest
    confirmed, reason = False, ""
    while rate is not None and not confirmed:
        sustained = is_sustained(rate)
        if sustained is None:
            reason = _ended(probes[-1])
            if low in (None, rate) or probes[-1].judgement.verdict is Verdict.INCOMPLETE:
                break
            # Perhaps the sender cannot send at this rate. It can at lower ones.
            high = rate
        elif sustained:
            confirmed, low = rate == low, rate
        else:
            low, high, reason = _largest(probes, below=rate), rate, ""
        rate = _next(low, high, search)
    return Knee(low, None if reason else high, tuple(probes), reason)


def _next(low: float | None, high: float | None, search: Bisection) -> float | None:
    """Return the rate to try next; None at the end of the search."""
    if low is None:
        return None
    if high is None:
        return search.highest
    if high <= low * (1 + search.precision):
        return low
    return math.sqrt(low * high)


def _largest(probes: list[Probe], below: float) -> float | None:
    """Return the largest rate below another that was sustained each time it was tried."""
    failed = {p.rate for p in probes if p.judgement.failed}
    rates = [p.rate for p in probes if p.sustained and p.rate < below and p.rate not in failed]
    return max(rates, default=None)


def _ended(last: Probe) -> str:
    return f"{last.rate:,.4g}/s is {last.judgement.verdict}: {'; '.join(last.judgement.reasons)}"
