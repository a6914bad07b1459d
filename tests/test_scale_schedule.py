"""When messages are due: fixed by the plan and its seed, whatever the system does."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scale_tests.load.plan import (
    Bisection,
    Burst,
    Constant,
    PhaseKind,
    Ramp,
    Spike,
    WarmUp,
)
from scale_tests.load.schedule import due_times, probe, stretches

rates = st.floats(0.1, 2_000)
lengths = st.floats(0.1, 20)


@st.composite
def phases(draw: st.DrawFn) -> PhaseKind:
    rate, seconds = draw(rates), draw(lengths)
    choice = draw(st.sampled_from(["constant", "ramp", "spike"]))
    if choice == "ramp":
        return Ramp(from_rate=draw(st.just(0.0) | rates), to_rate=rate, seconds=seconds)
    if choice == "spike":
        share = draw(st.floats(0.01, 0.99))
        return Spike(
            rate=rate, peak_rate=draw(rates), seconds=seconds, peak_seconds=seconds * share
        )
    return Constant(rate=rate, seconds=seconds)


def expected(phase: PhaseKind, until: float) -> float:
    """Integrate the rate of a phase from its start, step by step."""
    total = 0.0
    for part in stretches(phase):
        here = min(max(until, 0.0), part.seconds)
        total += here * (part.start + (part.end - part.start) * here / part.seconds / 2)
        until -= part.seconds
    return total


@given(phases(), st.sampled_from(["constant", "poisson"]), st.integers(0, 9))
def test_times_ascend_within_the_phase_and_depend_on_the_seed_alone(
    phase: PhaseKind, arrivals: str, seed: int
) -> None:
    times = due_times(phase, arrivals, (seed, 0))  # type: ignore[arg-type]
    assert (np.diff(times) >= 0).all()
    length = sum(part.seconds for part in stretches(phase))
    assert ((times >= 0) & (times <= length * (1 + 1e-12))).all()
    again = due_times(phase, arrivals, (seed, 0))  # type: ignore[arg-type]
    np.testing.assert_array_equal(times, again)


@given(phases(), st.floats(0, 1))
def test_constant_arrivals_follow_the_integral_of_the_rate(phase: PhaseKind, share: float) -> None:
    times = due_times(phase, "constant", ())
    length = sum(part.seconds for part in stretches(phase))
    wanted = expected(phase, length * share)
    assert abs((times <= length * share).sum() - wanted) <= 1 + 1e-6 * wanted


@given(phases(), st.integers(0, 1_000))
def test_poisson_arrivals_are_as_many_as_expected(phase: PhaseKind, seed: int) -> None:
    length = sum(part.seconds for part in stretches(phase))
    for until in (length / 2, length):
        wanted = expected(phase, until)
        found = (due_times(phase, "poisson", (seed,)) <= until).sum()
        assert abs(found - wanted) <= 7 * math.sqrt(wanted) + 10


def test_poisson_arrivals_are_independent_of_each_other() -> None:
    times = due_times(Constant(rate=1_000, seconds=100), "poisson", (3,))
    gaps = np.diff(times) * 1_000
    # An exponential distribution has the same mean and deviation, and no memory.
    assert gaps.mean() == pytest.approx(1, abs=0.02)
    assert gaps.std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.02


def test_a_phase_has_the_messages_that_its_rate_and_seconds_say() -> None:
    assert len(due_times(WarmUp(rate=0.1, seconds=30), "constant", ())) == 3
    assert len(due_times(Constant(rate=100, seconds=0.07), "constant", ())) == 7
    assert due_times(Constant(rate=2, seconds=2), "constant", ()).tolist() == [0, 0.5, 1, 1.5]
    assert len(due_times(Ramp(from_rate=0, to_rate=100, seconds=10), "constant", ())) == 500
    assert due_times(Burst(messages=3), "poisson", (1,)).tolist() == [0, 0, 0]


def test_other_phases_of_a_test_have_other_random_times() -> None:
    phase = Constant(rate=100, seconds=10)
    first, second = (due_times(phase, "poisson", (1, number)) for number in (0, 1))
    assert not np.array_equal(first[:50], second[:50])


def test_a_probe_of_a_search_is_a_constant_rate() -> None:
    search = Bisection(lowest=1, highest=9, seconds=30, rows=5, idle_seconds=2)
    assert probe(search, 4.0) == Constant(rate=4, seconds=30, idle_seconds=2)


@pytest.mark.parametrize("phase", [Burst(messages=1), Bisection(lowest=1, highest=9, seconds=1)])
def test_a_phase_without_a_rate_is_refused(phase: PhaseKind) -> None:
    with pytest.raises(ValueError, match="has no rate"):
        stretches(phase)
