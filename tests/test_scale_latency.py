"""Percentiles with the bounds that their count allows, and what a closed loop would hide."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import need_library
from virtual_server import closed_loop, open_loop, stalled

from scale_tests.load.plan import Constant
from scale_tests.load.schedule import due_times
from scale_tests.measures.latency import INSUFFICIENT, PERCENTILES, Latencies, ranks

# HdrHistogram keeps three digits.
PRECISION = 1e-3


@pytest.fixture(autouse=True)
def _libraries() -> None:
    need_library("hdrh")
    need_library("scipy")


def recorded(seconds: np.ndarray) -> Latencies:
    found = Latencies()
    found.record(seconds)
    return found


@given(st.lists(st.floats(1e-4, 1e3), min_size=40, max_size=400), st.floats(20, 80))
def test_a_percentile_is_that_of_the_sorted_values(values: list[float], percentile: float) -> None:
    found = recorded(np.array(values)).quantile(percentile)
    rank = math.ceil(len(values) * percentile / 100)
    assert found.ms == pytest.approx(sorted(values)[rank - 1] * 1e3, rel=PRECISION, abs=0.001)
    assert found.ms is not None
    assert found.low_ms is not None
    assert found.high_ms is not None
    assert found.low_ms <= found.ms <= found.high_ms


def test_the_latencies_of_a_known_server_are_recovered() -> None:
    random = np.random.default_rng(5)
    due = due_times(Constant(rate=10, seconds=2_000), "constant", ())
    # Faster than the gap between messages, so latency is the time of the service.
    service = np.minimum(random.lognormal(-4, 0.5, len(due)), 0.1)
    found = recorded(open_loop(due, service) - due)
    for quantile in found.quantiles():
        rank = math.ceil(len(due) * quantile.percentile / 100)
        wanted = np.sort(service)[rank - 1] * 1e3
        assert quantile.ms == pytest.approx(wanted, rel=PRECISION)
        assert quantile.count == len(due)
    assert found.max_ms() == pytest.approx(service.max() * 1e3, rel=PRECISION)


def test_a_closed_loop_hides_what_the_open_loop_shows() -> None:
    due = due_times(Constant(rate=100, seconds=100), "constant", ())
    shown = recorded(stalled(due, np.full(len(due), 0.001), 50, 10) - due)
    hidden = recorded(closed_loop(gap=0.01, seconds=100, service=0.001, stall=(50, 10)))
    assert hidden.max_ms() == pytest.approx(10_001, rel=PRECISION)
    assert hidden.quantile(99).ms == pytest.approx(1, rel=PRECISION)
    # A tenth of the messages fall into the stall, and wait up to 10 s.
    ninety_nine = shown.quantile(99).ms
    assert ninety_nine is not None
    assert ninety_nine > 8_900


def test_parts_of_several_processes_merge_without_loss() -> None:
    values = np.random.default_rng(1).exponential(0.2, 3_000)
    parts = [recorded(part) for part in np.split(values, 3)]
    parts[1].missing = 4
    merged = Latencies()
    merged.merge(Latencies.decode(*part.encode()) for part in parts)
    whole = recorded(np.append(values, [np.nan] * 4))
    assert merged.quantiles() == whole.quantiles()
    assert merged.max_ms() == whole.max_ms()
    assert merged.count == 3_004


@pytest.mark.parametrize(("percentile", "few"), [(50, 5), (90, 35), (99, 367), (99.9, 3_687)])
def test_a_count_that_does_not_carry_a_percentile_is_insufficient(
    percentile: float, few: int
) -> None:
    """All of `few` messages are below the percentile with a probability of at least 2.5 %."""
    assert (percentile / 100) ** few >= 0.025 > (percentile / 100) ** (few + 1)
    values = np.linspace(0.1, 1, few + 1)
    found = recorded(values[:few]).quantile(percentile)
    assert (found.ms, found.reason, found.count) == (None, INSUFFICIENT, few)
    assert recorded(values).quantile(percentile).ms is not None


def test_without_messages_nothing_is_known() -> None:
    found = Latencies()
    assert found.max_ms() is None
    assert {one.reason for one in found.quantiles()} == {INSUFFICIENT}


@pytest.mark.parametrize("percentile", PERCENTILES)
def test_the_bounds_contain_the_true_percentile_as_often_as_they_claim(percentile: float) -> None:
    share, count = percentile / 100, 5_000
    low, high = ranks(count, share, 0.95)
    # The number of values below the percentile decides whether the values at the ranks enclose it.
    below = np.random.default_rng(2).binomial(count, share, 20_000)
    enclosed = ((low <= below) & (below < high)).mean()
    assert 0.945 <= enclosed <= 0.999


def test_messages_without_a_result_are_slower_than_all_others() -> None:
    found = recorded(np.append(np.linspace(0.1, 1, 980), [np.nan] * 20))
    median, *_, last, _ = found.quantiles()
    assert median.ms == pytest.approx(sorted(np.linspace(100, 1_000, 980))[499], rel=PRECISION)
    assert (last.ms, last.high_ms) == (None, None)
    assert last.reason == "20 of 1,000 have no result"


def test_a_negative_latency_is_refused_and_a_huge_one_is_kept_as_the_largest() -> None:
    with pytest.raises(ValueError, match="expected latencies of at least 0 s, got -1"):
        recorded(np.array([-1.0]))
    assert recorded(np.array([1e9])).answered == 1
