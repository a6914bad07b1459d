"""Where the time of a message goes, from the times in its row.

The parts follow each other, so they add up to the latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# The moments of a message in their order, and the part that ends at each of them.
MOMENTS = (
    ("due", ""),
    ("sent", "sender"),
    ("event_time", "publish"),
    ("received_at", "queue"),
    ("scored_at", "pipeline"),
    ("arrived", "delivery"),
)
# Those of a request to an endpoint.
OF_REQUESTS = (("due", ""), ("sent", "sender"), ("arrived", "endpoint"))


@dataclass(frozen=True)
class Part:
    """A part of the latency.

    Attributes:
        name: The name of the part, or of several, such as `queue + pipeline`, if the moment
            between them is not known.
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


def breakdown(
    moments: Mapping[str, Floats], order: Sequence[tuple[str, str]] = MOMENTS
) -> tuple[Part, ...]:
    """Return the parts of the latency, in the order in which a message goes through them.

    Args:
        moments: [n] seconds since 1970 of each message, by its name. A moment may be
            absent. Messages for which one is NaN do not count.
        order: The names of the moments, and of the parts that end at them.

    Raises:
        ValueError: A name is unknown.
    """
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
            parts.append(_part(" + ".join(names), now - before))
        before, names = now, []
    return tuple(parts)


def refine(
    parts: Sequence[Part], name: str, finer: Mapping[str, float], rest: str = "other"
) -> tuple[Part, ...]:
    """Return the parts with one of them split by the means that the pipeline's counters give.

    Args:
        parts: The parts.
        name: The part to split, such as `pipeline`.
        finer: Mean milliseconds by the name of the finer part, such as `decode` or `predict`.
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


def _part(name: str, seconds: Floats) -> Part:
    ms = seconds * 1e3
    return Part(
        name=name,
        mean_ms=float(ms.mean()),
        p99_ms=float(np.percentile(ms, 99)),
        count=len(ms),
        clock_ms=max(0.0, -float(ms.min())),
    )
