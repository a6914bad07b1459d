"""Where the time of a message goes, from the times in its row and in the message with its result.

The parts follow each other, so they add up to the latency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Order = Sequence[tuple[str, str]]
# The moments of a message in their order, and the part that ends at each of them. Its row has those
# from `event_time` to `scored_at`; the message with the result was made at `encoded_at`, and taken
# by Pub/Sub at `published_at`.
MOMENTS: Order = (
    ("due", ""),
    ("sent", "sender"),
    ("event_time", "publish"),
    ("received_at", "queue"),
    ("decoded_at", "decode"),
    ("predict_started_at", "batch wait"),
    ("scored_at", "predict"),
    ("encoded_at", "encode"),
    ("published_at", "sink"),
    ("arrived", "delivery"),
)
# Those of a message whose row is predicted by an endpoint.
_AT_ENDPOINT = {
    "predict_started_at": ("requested_at", "batch wait"),
    "scored_at": ("scored_at", "endpoint"),
}
AT_ENDPOINT: Order = tuple(_AT_ENDPOINT.get(name, (name, part)) for name, part in MOMENTS)
# Those of a request to an endpoint.
OF_REQUESTS: Order = (("due", ""), ("sent", "sender"), ("arrived", "endpoint"))
# What a stream without --row_timings does not distinguish.
PIPELINE = "pipeline"
_IN_PIPELINE = ("decode", "batch wait", "predict")


@dataclass(frozen=True)
class Part:
    """A part of the latency.

    Attributes:
        name: The name of the part, or of several, such as `encode + sink`, if the moment between
            them is not known.
        mean_ms: Its mean in milliseconds.
        p99_ms: Its 99th percentile; None if only the mean is known.
        count: The number of messages.
        clock_ms: At least this much the clocks at its two ends differ: no part is negative.
    """

    name: str
    mean_ms: float
    p99_ms: float | None
    count: int
    clock_ms: float = 0.0


def order_of(moments: Iterable[str]) -> Order:
    """Return the order of the moments of messages, by what is known of their predictions."""
    return AT_ENDPOINT if "requested_at" in moments else MOMENTS


def breakdown(moments: Mapping[str, Floats], order: Order | None = None) -> tuple[Part, ...]:
    """Return the parts of the latency, in the order in which a message goes through them.

    Args:
        moments: [n] seconds since 1970 of each message, by its name. A moment may be
            absent. Messages for which one is NaN do not count.
        order: The names of the moments, and of the parts that end at them; None for those of
            messages.

    Raises:
        ValueError: A name is unknown.
    """
    order = order or order_of(moments)
    if unknown := set(moments) - {name for name, _ in order}:
        raise ValueError(
            f"expected {', '.join(name for name, _ in order)}, got {', '.join(sorted(unknown))}"
        )
    whole = ~np.isnan(np.stack(list(moments.values()))).any(axis=0) if moments else np.zeros(0)
    if not whole.any():
        return ()
    parts: list[Part] = []
    names: list[str] = []
    before: Floats | None = None
    for moment, name in order:
        names.append(name)
        if moment not in moments:
            continue
        now = moments[moment][whole]
        if before is not None:
            parts.append(_part(_together(names), now - before))
        before, names = now, []
    return tuple(parts)


def refine(
    parts: Sequence[Part], name: str, finer: Mapping[str, float], rest: str = "other"
) -> tuple[Part, ...]:
    """Return the parts with one of them split by the means that a server's counters give.

    Args:
        parts: The parts.
        name: The part to split, such as `endpoint`.
        finer: Mean milliseconds by the name of the finer part, such as `predict`.
        rest: The name of what the finer parts leave over.
    """
    found: list[Part] = []
    for part in parts:
        if part.name != name or not finer:
            found.append(part)
            continue
        found += [Part(key, mean, None, part.count) for key, mean in finer.items()]
        left = part.mean_ms - sum(finer.values())
        found.append(Part(rest, left, None, part.count, max(part.clock_ms, -left)))
    return tuple(found)


def names_in(part: str) -> list[str]:
    """Return the names of the parts that a name stands for."""
    return part.split(" + ")


def _together(names: Sequence[str]) -> str:
    return " + ".join(names).replace(" + ".join(_IN_PIPELINE), PIPELINE)


def _part(name: str, seconds: Floats) -> Part:
    ms = seconds * 1e3
    return Part(
        name=name,
        mean_ms=float(ms.mean()),
        p99_ms=float(np.percentile(ms, 99)),
        count=len(ms),
        clock_ms=max(0.0, -float(ms.min())),
    )
