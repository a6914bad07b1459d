"""The figures of a soak, from what was sent, what the sinks hold, and the lives of the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.stream.soak.accounts import (
    LATE_SECONDS,
    Copies,
    account,
    first_arrivals,
    latencies,
    numbers_of,
    outcome_counts,
    recovery,
)
from benchmarks.stream.soak.lives import SAMPLE_SECONDS, SETTLED_SECONDS, Life, memory_figures
from benchmarks.stream.soak.traffic import OUTCOMES, expected_outcomes
from benchmarks.summary import Record

# By how much the memory of a process may differ between its first and its last life, in MB.
TREND_MB = 10.0
# These counts must be 0 for every sink.
NONE_ALLOWED = ("lost", "wrong", "not_sent", "again_unexplained")
METHOD = {
    "copies": "rows and dead letters in a sink",
    "lost": "messages of which the sink has neither a row nor a dead letter",
    "wrong": "copies with another outcome than the message must have: a good message must be "
    "scored, and a faulty one must be a dead letter with the reason of its fault",
    "not_sent": "copies whose id is not that of a message that was sent",
    "again": "copies beyond the first one of a message; all copies of a message have its id",
    "again_in_a_later_life": "of `again`, the first copy by each further life of the process: the "
    "message was delivered again, because an earlier life was killed, or failed, before it "
    "had acknowledged the message",
    "again_after_the_outage": "of `again`, copies by one life that lost the table server: it "
    "sends an append again if it does not know whether the server has carried it out",
    "again_unexplained": "of `again`, all others",
    "latency_ms": "p50, p95, p99 and maximum: from the time at which a "
    "message was to be sent until a subscriber receives its first row or dead letter; `minutes` by "
    "the minute in which it was to be sent",
    "recoveries": "seconds from a kill: `on_time` until a message was sent whose result took at "
    f"most {LATE_SECONDS:.0f} s, `backlog_gone` until there was a result of all messages before "
    "that one. Pub/Sub delivers a message that a killed run had received after at most 60 s",
    "longest_backlog_seconds": "the longest `backlog_gone` of the kills that were not during the "
    "outage, or the longest after the kills during it",
    "memory_mb": "resident memory of the pipeline's process, 10^6 bytes, sampled every "
    f"{SAMPLE_SECONDS:.0f} s, without the lives during the outage and the last one; `settled`: the "
    "number of each life and its first sample at the age `settled_seconds`, `trend`: by how much a "
    "line through them grows from the first to the last life, `growth_in_a_life`: median growth "
    "until the end of a life",
}


def report(
    *,
    due: np.ndarray,
    late: np.ndarray,
    ids: np.ndarray,
    held: Mapping[str, Copies],
    arrivals: np.ndarray,
    lives: Sequence[Life],
    outage: tuple[float, float],
    kill_seconds: float,
) -> Record:
    """Return the figures of a soak.

    Args:
        due: When each message was to be sent, in seconds since 1970 and ascending.
        late: How much later it was sent, in seconds.
        ids: The id of each message.
        held: The copies in each sink: `topic`, `table` and `files`.
        arrivals: When each copy in `topic` arrived.
        lives: The lives of the process, of which the last worked off what was left.
        outage: When the server of the tables was killed, and when it was ready again.
        kill_seconds: The time from a kill to the next one.
    """
    expected = expected_outcomes(len(ids))
    # Only the table has a server that was away.
    shaken = {life.number for life in lives if life.overlaps(outage[0] - 1.0, outage[1])}
    sinks = {
        name: account(copies, ids, expected, shaken if name == "table" else ())
        | {"outcomes": outcome_counts(copies, OUTCOMES)}
        for name, copies in held.items()
    }
    first = first_arrivals(len(ids), numbers_of(held["topic"].ids, ids), arrivals)
    settled = min(SETTLED_SECONDS, kill_seconds / 2)
    working = [life for life in lives[:-1] if not life.overlaps(*outage)]
    memory = {"settled_seconds": settled, **memory_figures(working, settled)}
    return {
        "messages": len(ids),
        "faulty": int(np.count_nonzero(expected)),
        "sent_late_ms": np.percentile(late * 1e3, [50, 95, 99, 100]).round(1).tolist(),
        "lives": {
            end: sum(life.end == end for life in lives) for end in ("killed", "failed", "finished")
        },
        "outage": [round(moment - due[0], 1) for moment in outage],
        "sinks": sinks,
        "latency_ms": latencies(due, first, float(due[0])),
        **recoveries(due, first, lives, outage),
        "memory_mb": memory,
        "targets": targets(sinks, memory),
    }


def recoveries(
    due: np.ndarray, first: np.ndarray, lives: Sequence[Life], outage: tuple[float, float]
) -> Record:
    """Return the recovery from each kill, and the longest ones.

    Args:
        due: As for `report`.
        first: When the first result of each message arrived.
        lives: The lives of the process.
        outage: As for `report`.
    """
    found = []
    for life in lives:
        if life.end == "killed":
            during = outage[0] <= life.ended <= outage[1]
            times = {"at": round(life.ended - due[0], 1), **recovery(due, first, life.ended)}
            found.append(times | {"during_outage": during})
    after = recovery(due, first, outage[1])
    longest = {
        "kills": _longest(found, during=False),
        "kills_during_the_outage": _longest(found, during=True),
        "end_of_the_outage": after["backlog_gone"],
    }
    return {"recoveries": found, "longest_backlog_seconds": longest}


def _longest(found: Sequence[Record], *, during: bool) -> float | None:
    """Return the longest time; None without times, or if a message was lost."""
    times = [one["backlog_gone"] for one in found if one["during_outage"] == during]
    return None if not times or None in times else float(max(times))


def targets(sinks: Mapping[str, Record], memory: Record) -> Record:
    """Return the targets, and the measured values for them."""
    found: Record = {
        name: {"at_most": 0, "measured": sum(figures[name] for figures in sinks.values())}
        for name in NONE_ALLOWED
    }
    return found | {"memory trend, MB": {"at_most": TREND_MB, "measured": memory["trend"]}}


def faults(found: Record) -> list[str]:
    """Return a line for each count that must be 0 and is not, and one if the last run failed."""
    last = [] if found["lives"]["finished"] else ["the last run did not end with success"]
    return last + [
        f"{sink}: {name} {figures[name]:,}"
        for sink, figures in found["sinks"].items()
        for name in NONE_ALLOWED
        if figures[name]
    ]


def line(found: Record) -> str:
    """Return a summary in several lines."""
    lives, longest, memory = found["lives"], found["longest_backlog_seconds"], found["memory_mb"]
    lines = [
        f"{found['messages']:,} messages, {found['faulty']:,} faulty; process killed "
        f"{lives['killed']} times, failed {lives['failed']} times; p50, p95, p99, max "
        f"{found['latency_ms']['all']} ms; sent late {found['sent_late_ms']} ms"
    ]
    for sink, figures in found["sinks"].items():
        counts = ", ".join(f"{n} {v:,}" for n, v in figures.items() if n != "outcomes")
        lines.append(f"{sink}: {counts}")
    lines.append(
        f"longest backlog {longest} s; memory of a life from {memory['settled_seconds']:.0f} s on: "
        f"trend {memory['trend']} MB, growth {memory['growth_in_a_life']} MB, peak "
        f"{memory['peak']} MB"
    )
    return "\n".join(lines)
