"""A level of a test: its accounts, its figures, and whether the system sustained it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from scale_tests.load.plan import Objective, Sender
from scale_tests.measures.accounts import Fate, Ledger
from scale_tests.measures.backlog import Growth, growth
from scale_tests.measures.latency import Latencies
from scale_tests.measures.stamps import Part

# A backlog that grows by less than this share of the rate does not count as growing: even a queue
# that keeps up with Poisson arrivals changes by that much in a minute.
GROWTH = 0.01
# How many of 100 messages may be later than the limit of the sender.
LATE_PERCENTILE = 99.0


def rows_text(count: int) -> str:
    """Return a number of rows with its unit."""
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


class Verdict(StrEnum):
    """Whether a level counts, and what it says about the system."""

    SUSTAINED = "sustained"
    FAILED = "not sustained"
    INVALID = "invalid"
    INCOMPLETE = "incomplete"
    INSUFFICIENT = "insufficient data"


@dataclass(frozen=True, kw_only=True)
class Level:
    """What was measured at one rate.

    Attributes:
        name: The name of the phase, or of the probe.
        start: When the first message could be due, in seconds since 1970.
        seconds: How long messages were sent; 0 for a burst, which has no rate.
        ledger: The accounts.
        cpu: The share of a core that the busiest sender process used.
        rows: The rows of a request to an endpoint.
        idle_seconds: How long nothing was sent before.
        parts: Where the time goes.
        errors: How many requests to an endpoint got no prediction, by the kind of the failure.
        refused_by_limit: How many requests were not sent because `sender.in_flight` of them waited.
        interrupted: Whether the test was interrupted during the level.
        item: What is sent: a `message` or a `request`.
    """

    name: str
    start: float
    seconds: float
    ledger: Ledger
    cpu: float
    rows: int = 1
    idle_seconds: float = 0.0
    parts: tuple[Part, ...] = ()
    errors: Mapping[str, int] = field(default_factory=dict)
    refused_by_limit: int = 0
    interrupted: bool = False
    item: str = "message"

    @property
    def rate(self) -> float:
        """Messages per second that were due; NaN for a burst."""
        return self.ledger.planned / self.seconds if self.seconds else math.nan

    @property
    def throughput(self) -> float:
        """Results per second that arrived while messages were sent; NaN for a burst."""
        in_time = self.ledger.arrived <= self.start + self.seconds
        return float(in_time.sum()) / self.seconds if self.seconds else math.nan

    @property
    def in_flight(self) -> float:
        """The mean number of messages without a result, by Little's law; NaN for a burst."""
        latency = self.ledger.arrived - self.ledger.sent.at
        known = latency[~np.isnan(latency)]
        return self.throughput * float(known.mean()) if len(known) else math.nan

    @property
    def growth(self) -> Growth | None:
        """How fast the backlog grew; None for a burst."""
        if not self.seconds:
            return None
        return growth(self.ledger.sent.due, self.ledger.arrived, self.start, self.seconds)

    def latencies(self) -> Latencies | None:
        """Return the latencies; None as long as a message has no final fate."""
        if self.interrupted or not self.ledger.complete or _early(self.ledger):
            return None
        found = Latencies()
        found.record(self.ledger.latencies)
        return found

    def sent_late_ms(self) -> float:
        """Return how late messages were sent, at LATE_PERCENTILE, in milliseconds."""
        late = (self.ledger.sent.at - self.ledger.sent.due)[~np.isnan(self.ledger.sent.at)]
        return float(np.percentile(late, LATE_PERCENTILE) * 1e3) if len(late) else 0.0


@dataclass(frozen=True)
class Judgement:
    """The verdict about a level.

    Attributes:
        verdict: The verdict.
        reasons: The reasons for it.
        overloaded: Whether an invalid level shows nevertheless that the rate is too high.
    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    overloaded: bool = False

    @property
    def failed(self) -> bool:
        """Whether the rate is too high for the system."""
        return self.verdict is Verdict.FAILED or self.overloaded


def judge(level: Level, objective: Objective, sender: Sender) -> Judgement:
    """Return whether a level reached its objective, if it can be judged.

    A level whose load was not what the plan says is invalid, and is not judged. The others are
    judged only if every message has its final fate.
    """
    if level.interrupted:
        return Judgement(Verdict.INCOMPLETE, ("the test ended during this level",))
    if invalid := tuple(_faults_of_the_load(level, sender)):
        alone = len(invalid) == 1 and _is_overloaded(level, objective, sender)
        return Judgement(Verdict.INVALID, invalid, alone)
    latencies = level.latencies()
    if latencies is None:
        pending = level.ledger.count(Fate.PENDING)
        return Judgement(
            Verdict.INCOMPLETE, (f"{pending:,} {level.item}s had no result when the test ended",)
        )
    if failed := tuple(_failures(level, latencies, objective)):
        return Judgement(Verdict.FAILED, failed)
    found = latencies.quantile(objective.percentile)
    if found.ms is None:
        return Judgement(
            Verdict.INSUFFICIENT,
            (f"{found.count:,} {level.item}s are too few for p{objective.percentile:g}",),
        )
    return Judgement(Verdict.SUSTAINED)


def _is_overloaded(level: Level, objective: Objective, sender: Sender) -> bool:
    """Return whether the limit of requests in flight could be reached only by slow answers.

    By Little's law, so many requests wait for longer than the objective at this rate.
    """
    waiting = level.rate * objective.latency_ms / 1e3
    return level.refused_by_limit > 0 and sender.in_flight > waiting


def _faults_of_the_load(level: Level, sender: Sender) -> Iterator[str]:
    if unsent := level.ledger.count(Fate.UNSENT):
        limit = f", because {sender.in_flight:,} waited for answers" * bool(level.refused_by_limit)
        yield f"{unsent:,} of {level.ledger.planned:,} {level.item}s were not sent{limit}"
    if (late := level.sent_late_ms()) > sender.late_ms:
        yield (
            f"p{LATE_PERCENTILE:g} of the {level.item}s was sent {late:,.0f} ms late, "
            f"expected at most {sender.late_ms:g} ms"
        )
    if level.cpu > sender.cpu:
        yield f"a sender used {level.cpu:.0%} of a core, expected at most {sender.cpu:.0%}"
    if early := _early(level.ledger):
        yield (
            f"{early:,} results arrived before their {level.item}s were due: "
            "the clocks of sender and collector differ"
        )


def _early(ledger: Ledger) -> int:
    return int((ledger.latencies < 0).sum())


def _failures(level: Level, latencies: Latencies, objective: Objective) -> Iterator[str]:
    if lost := level.ledger.count(Fate.LOST):
        yield f"{lost:,} {level.item}s were lost"
    found = latencies.quantile(objective.percentile)
    if found.ms is not None and found.ms > objective.latency_ms:
        yield (
            f"p{objective.percentile:g} is {found.ms:,.0f} ms, "
            f"expected at most {objective.latency_ms:,g} ms"
        )
    good = level.ledger.goodput(objective.latency_ms)
    if good < objective.goodput:
        yield f"{good:.2%} were answered rightly in time, expected {objective.goodput:.2%}"
    grown = level.growth
    if grown and grown.low > GROWTH * level.rate:
        yield f"the backlog grew by {grown.per_second:,.1f} {level.item}s/s"
