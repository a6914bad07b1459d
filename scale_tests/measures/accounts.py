"""What became of every message of a test, by its sequence number.

A message has exactly one fate. A level whose messages have no final fate yet has no percentiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Fate(IntEnum):
    """What became of a message."""

    UNSENT = 0  # it was not published, and has no result
    SCORED = 1  # its first result is a scored row
    DEAD_LETTERED = 2  # its first result is a dead letter
    LATE = 3  # its first result arrived after the time that the plan allows
    LOST = 4  # it has no result after that time
    PENDING = 5  # it has no result, but the test ended before that time
    ERROR = 6  # an endpoint answered it with an error


@dataclass(frozen=True, kw_only=True)
class Sent:
    """The messages of a level, in the order of their sequence numbers.

    Attributes:
        first: The sequence number of the first message.
        due: [n] When each message was to be sent, in seconds since 1970.
        at: [n] When it was sent; NaN if it was not, or if publishing failed.
        faulty: [n] Whether its row must become a dead letter.
    """

    first: int
    due: Floats
    at: Floats
    faulty: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not len(self.due) == len(self.at) == len(self.faulty):
            raise ValueError(
                f"expected arrays of one length, got {len(self.due)}, {len(self.at)} and "
                f"{len(self.faulty)}"
            )


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a test, in any order.

    Attributes:
        sequence: [m] The sequence number of the message.
        at: [m] When the result could be read, in seconds since 1970.
        dead: [m] Whether it is a dead letter, or the refusal of a request because of its rows.
        error: [m] Whether an endpoint answered with an error, of any kind; None if none did.
    """

    sequence: NDArray[np.int64]
    at: Floats
    dead: NDArray[np.bool_]
    error: NDArray[np.bool_] | None = None

    def of(self, sent: Sent) -> Results:
        """Return the results of the messages of one level, the earliest first."""
        own = (self.sequence >= sent.first) & (self.sequence < sent.first + len(sent.due))
        order = np.flatnonzero(own)[np.argsort(self.at[own], kind="stable")]
        error = np.zeros(len(self.at), bool) if self.error is None else self.error
        return Results(
            sequence=self.sequence[order],
            at=self.at[order],
            dead=self.dead[order],
            error=error[order],
        )


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The accounts of a level.

    Attributes:
        sent: The messages.
        fate: [n] The Fate of each message.
        dead: [n] Whether the first result of each message says that its row has a fault.
        judged: [n] Whether its first result says anything about its row, as other errors do not.
        arrived: [n] When its first result could be read; NaN without a result.
        duplicates: How many results were not the first one of their message.
    """

    sent: Sent
    fate: NDArray[np.int8]
    dead: NDArray[np.bool_]
    judged: NDArray[np.bool_]
    arrived: Floats
    duplicates: int

    def count(self, *fates: Fate) -> int:
        """Return how many messages have one of the fates."""
        return int(np.isin(self.fate, fates).sum())

    @property
    def planned(self) -> int:
        """How many messages were due."""
        return len(self.fate)

    @property
    def complete(self) -> bool:
        """Whether every message has its final fate."""
        return self.count(Fate.PENDING) == 0

    @property
    def wrong(self) -> int:
        """How many results contradict the row: a scored fault, or a dead letter without one."""
        return int((self.judged & (self.dead != self.sent.faulty)).sum())

    @property
    def latencies(self) -> Floats:
        """The seconds from when each message was due to its first result; NaN without a result."""
        return self.arrived - self.sent.due

    def goodput(self, latency_ms: float) -> float:
        """Return the share of the planned messages that got the right result within a time.

        A scored row is right, and a dead letter or a refusal if the row had a fault.
        """
        if not self.planned:
            return 0.0
        # A comparison with NaN is false.
        in_time = self.latencies * 1e3 <= latency_ms
        right = self.judged & (self.dead == self.sent.faulty)
        return float((in_time & right).mean())

    def totals(self) -> dict[str, int]:
        """Return the number of messages, of each fate, and of results that came once more."""
        fates = {fate.name.lower(): self.count(fate) for fate in Fate}
        return {"planned": self.planned, **fates, "duplicates": self.duplicates}


def settle(sent: Sent, results: Results, closed: float, wait_seconds: float) -> Ledger:
    """Return the accounts of a level.

    A message that could not be published but has a result counts by its result: only the answer of
    Pub/Sub was lost.

    Args:
        sent: The messages of the level.
        results: The results of the whole test.
        closed: When the reading of results ended, in seconds since 1970.
        wait_seconds: How long after it was sent the result of a message may arrive.
    """
    own, count = results.of(sent), len(sent.due)
    # `unique` returns the first place of each number, here that of the earliest result.
    found, first = np.unique(own.sequence - sent.first, return_index=True)
    arrived = np.full(count, np.nan)
    dead, error = np.zeros((2, count), bool)
    arrived[found], dead[found] = own.at[first], own.dead[first]
    if own.error is not None:
        error[found] = own.error[first]
    answered = ~np.isnan(arrived)
    until = np.where(np.isnan(sent.at), sent.due, sent.at) + wait_seconds
    fate = np.select(
        [
            answered & (arrived > until),
            answered & error,
            answered & dead,
            answered,
            np.isnan(sent.at),
            until <= closed,
        ],
        [Fate.LATE, Fate.ERROR, Fate.DEAD_LETTERED, Fate.SCORED, Fate.UNSENT, Fate.LOST],
        Fate.PENDING,
    ).astype(np.int8)
    return Ledger(
        sent=sent,
        fate=fate,
        dead=dead,
        judged=answered & (dead | ~error),
        arrived=arrived,
        duplicates=len(own.sequence) - len(found),
    )


def strays(results: Results, levels: Iterable[Sent]) -> int:
    """Return how many results belong to no level, although they carry the id of the test."""
    return len(results.sequence) - sum(len(results.of(sent).sequence) for sent in levels)
