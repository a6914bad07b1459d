"""The times at which messages are due. They are fixed before a test and depend only on its plan.

The load is an open loop: a message is due at its time, however long the answers to the messages
before it take. A sender that waits for answers sends nothing while the system stalls, and so hides
the stall ("coordinated omission", Gil Tene, https://github.com/giltene/wrk2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scale_tests.load.plan import Bisection, Burst, Constant, PhaseKind, Ramp, Spike

Floats = NDArray[np.float64]
# The last message of rate times seconds is not lost to the rounding of the product.
_ROUNDING = 1e-9


class Stretch(NamedTuple):
    """Seconds in which the rate changes linearly, from one rate to another."""

    seconds: float
    start: float
    end: float


def stretches(phase: PhaseKind) -> tuple[Stretch, ...]:
    """Return the rate of a phase over time, in messages per second.

    Raises:
        ValueError: The phase has no rate: a burst, or a search, which has one per probe.
    """
    match phase:
        case Ramp():
            return (Stretch(phase.seconds, phase.from_rate, phase.to_rate),)
        case Spike():
            side = Stretch((phase.seconds - phase.peak_seconds) / 2, phase.rate, phase.rate)
            return (side, Stretch(phase.peak_seconds, phase.peak_rate, phase.peak_rate), side)
        case Burst() | Bisection():
            raise ValueError(f"a phase of kind {phase.__struct_config__.tag!r} has no rate")
        case _:
            return (Stretch(phase.seconds, phase.rate, phase.rate),)


def due_times(
    phase: PhaseKind, arrivals: Literal["constant", "poisson"], seed: Sequence[int]
) -> Floats:
    """Return when each message of a phase is due, in seconds from its start, ascending.

    Args:
        phase: The phase.
        arrivals: `constant` sends the k-th message when the rate's integral reaches k. `poisson`
            sends a random number of messages at random times, with that integral as their mean.
        seed: Numbers from which random times follow.

    Returns:
        n times from 0 up to the seconds of the phase.
    """
    if isinstance(phase, Burst):
        return np.zeros(phase.messages)
    parts = stretches(phase)
    total = sum(part.seconds * (part.start + part.end) / 2 for part in parts)
    if arrivals == "constant":
        return _when(parts, np.arange(math.ceil(total - _ROUNDING), dtype=np.float64))
    random = np.random.default_rng(list(seed))
    # Given their number, the arrivals of a Poisson process are independent of each other.
    return _when(parts, np.sort(random.uniform(0, total, random.poisson(total))))


def probe(phase: Bisection, rate: float) -> Constant:
    """Return the phase that tries one rate of a search."""
    return Constant(rate=rate, seconds=phase.seconds, idle_seconds=phase.idle_seconds)


def _when(parts: Sequence[Stretch], counts: Floats) -> Floats:
    """Return the times at which the integral of the rate reaches each count, ascending."""
    sizes = [part.seconds * (part.start + part.end) / 2 for part in parts]
    starts = np.concatenate(([0.0], np.cumsum([part.seconds for part in parts])))
    before = np.concatenate(([0.0], np.cumsum(sizes)))
    which = np.clip(np.searchsorted(before, counts, "right") - 1, 0, len(parts) - 1)
    rest = np.maximum(counts - before[which], 0.0)
    first = np.array([part.start for part in parts])[which]
    slope = np.array([(part.end - part.start) / part.seconds for part in parts])[which]
    # The root of first * t + slope * t**2 / 2 = rest that is exact for a slope of 0 too.
    divisor = first + np.sqrt(np.maximum(first**2 + 2 * slope * rest, 0.0))
    within = np.divide(2 * rest, divisor, out=np.zeros_like(rest), where=divisor > 0)
    limit = np.array([part.seconds for part in parts])[which]
    return starts[which] + np.minimum(within, limit)
