"""What became of the messages of a soak: lost, repeated or late ones, as pure functions.

A message has a number from 0 on. A sink holds copies of it: rows or dead letters with its id. Each
copy names the run that wrote it, and each life of the pipeline's process is a run of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.stream.soak.traffic import UNKNOWN
from benchmarks.summary import Record

# A result that takes longer is late: the pipeline has a backlog. Without kills, most results take
# less than a second.
LATE_SECONDS = 2.0
# How a message that was not sent is numbered.
NOT_SENT = -1


@dataclass(frozen=True)
class Copies:
    """The rows and dead letters in a sink.

    Attributes:
        ids: The ids of their messages, as int64.
        lives: The lives of the process that wrote them.
        outcomes: The codes of their outcomes, as in traffic.py.
    """

    ids: np.ndarray
    lives: np.ndarray
    outcomes: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Copies]) -> Copies:
        """Return the copies of several parts of a sink."""
        none = cls(*np.empty((3, 0), np.int64))
        every = [none, *parts]
        return cls(
            np.concatenate([part.ids for part in every]),
            np.concatenate([part.lives for part in every]),
            np.concatenate([part.outcomes for part in every]),
        )


def numbers_of(ids: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Return the number of the message with each id; NOT_SENT if no message has it.

    Args:
        ids: Ids of messages, in any order.
        sent: The id of each message that was sent, by its number. There must be one.
    """
    order = np.argsort(sent)
    places = order[np.searchsorted(sent, ids, sorter=order).clip(max=len(sent) - 1)]
    return np.where(sent[places] == ids, places, NOT_SENT)


def account(
    copies: Copies, sent: np.ndarray, expected: np.ndarray, shaken: Collection[int]
) -> Record:
    """Return the figures of a sink.

    Args:
        copies: What the sink holds.
        sent: The id of each message that was sent, by its number.
        expected: The code of the outcome that each message must have, by its number.
        shaken: The lives that lost the table's server. They may send an append again if they do
            not know whether the server has carried it out.
    """
    found = numbers_of(copies.ids, sent)
    known = found != NOT_SENT
    numbers, lives = found[known], copies.lives[known].astype(np.int64)
    per_message = np.bincount(numbers, minlength=len(sent))
    # Each pair of a message and a life as one number.
    width = int(lives.max(initial=0)) + 1
    pairs, counts = np.unique(numbers * width + lives, return_counts=True)
    again = counts - 1
    again_in_shaken = int(again[np.isin(pairs % width, list(shaken))].sum())
    distinct = int(np.count_nonzero(per_message))
    return {
        "copies": len(found),
        "lost": len(sent) - distinct,
        "wrong": int(np.sum(copies.outcomes[known] != expected[numbers])),
        "not_sent": int(np.sum(~known)),
        "again": len(numbers) - distinct,
        "again_in_a_later_life": len(pairs) - distinct,
        "again_after_the_outage": again_in_shaken,
        "again_unexplained": int(again.sum()) - again_in_shaken,
        "most_copies": int(per_message.max(initial=0)),
    }


def outcome_counts(copies: Copies, outcomes: Sequence[str]) -> dict[str, int]:
    """Return how many copies have each outcome; `other` counts those with an unknown one."""
    counts = {name: int(np.sum(copies.outcomes == code)) for code, name in enumerate(outcomes)}
    return counts | {"other": int(np.sum(copies.outcomes == UNKNOWN))}


def first_arrivals(count: int, numbers: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return when the first result of each message arrived; infinity if none did.

    Args:
        count: The number of messages.
        numbers: The number of the message of each result; results with NOT_SENT do not count.
        times: When each result arrived, in seconds.
    """
    first = np.full(count, np.inf)
    known = numbers != NOT_SENT
    np.minimum.at(first, numbers[known], times[known])
    return first


def latencies(due: np.ndarray, first: np.ndarray, start: float) -> Record:
    """Return the percentiles of the latency in milliseconds, in all and for each minute.

    Args:
        due: When each message was to be sent, in seconds and ascending.
        first: When its first result arrived. Messages without a result do not count.
        start: When the first minute began.
    """
    arrived = np.isfinite(first)
    latency, minutes = (first - due)[arrived] * 1e3, ((due - start)[arrived] // 60).astype(int)
    by_minute = [latency[minutes == minute] for minute in range(minutes.max(initial=-1) + 1)]
    return {
        "all": _percentiles(latency),
        "minutes": [_percentiles(values) for values in by_minute],
    }


def _percentiles(values: np.ndarray) -> list[float] | None:
    """Return the median, the percentiles 95 and 99, and the maximum; None without a value."""
    if not len(values):
        return None
    return [round(float(v), 1) for v in np.percentile(values, [50, 95, 99, 100])]


def recovery(due: np.ndarray, first: np.ndarray, kill: float) -> Record:
    """Return how long the pipeline needed to recover from a kill, in seconds.

    Args:
        due: When each message was to be sent, in seconds and ascending.
        first: When its first result arrived; infinity if none did.
        kill: When the process was killed.

    Returns:
        `on_time`: From the kill until a message was sent whose result was not late; None if there
        was none. `backlog_gone`: until there was a result of each message before that one; None if
        one was lost.
    """
    after = int(np.searchsorted(due, kill))
    on_time = np.flatnonzero(first[after:] - due[after:] <= LATE_SECONDS)
    until = after + int(on_time[0]) if len(on_time) else len(due)
    gone = float(first[:until].max(initial=kill)) - kill
    return {
        "on_time": round(float(due[until]) - kill, 1) if len(on_time) else None,
        "backlog_gone": round(gone, 1) if np.isfinite(gone) else None,
    }
