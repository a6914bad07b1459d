"""Histograms count every value once, in bins that do not depend on how the values are split."""

from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transforms.bins import MOST_BINS, Bins, count_one, count_values, merge_bins

FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.lists(FINITE | st.floats(0, 1) | st.sampled_from([0.0, 1e300, -1e-300]), max_size=30)


@given(st.lists(VALUES, max_size=5), st.randoms())
@example([[0.0], [1e-300], [-5e-324]], Random(1))
@example([[1.7e308], [-1.7e308, -1e-320]], Random(1))
def test_merging_parts_in_any_order_gives_the_bins_of_the_whole(
    parts: list[list[float]], any_order: Random
) -> None:
    whole = count_values(np.array([v for part in parts for v in part]))
    found = [count_values(np.array(part)) for part in parts]
    any_order.shuffle(found)
    at = any_order.randint(0, len(found))
    assert merge_bins([merge_bins(found[:at]), merge_bins(found[at:])]) == whole


@given(VALUES.filter(bool))
def test_every_value_is_counted_in_its_bin(values: list[float]) -> None:
    found = count_values(np.array(values))
    assert found is not None
    assert len(found.counts) <= MOST_BINS
    assert found.counts[0]
    assert found.counts[-1]
    lower, upper = found.edges[:-1], found.edges[1:]
    for low, high, count in zip(lower, upper, found.counts, strict=True):
        inside = sum(low <= v < high for v in values)
        # The largest number of all is the edge of the last bin.
        assert count == inside + sum(v == high == np.finfo(float).max for v in values)


@given(FINITE, st.integers(1, 1_000))
def test_a_repeated_value_is_one_bin(value: float, times: int) -> None:
    assert count_one(value, times, -1074) == count_values(np.repeat(value, times))


def test_bins_use_their_number() -> None:
    found = count_values(np.random.default_rng(1).normal(size=10_000))
    assert found is not None
    assert MOST_BINS // 2 <= len(found.counts) <= MOST_BINS
    assert sum(found.counts) == 10_000


@pytest.mark.parametrize(("value", "first"), [(10.3, 41), (10.24, 40), (-0.1, -1)])
def test_the_smallest_width_is_kept(value: float, first: int) -> None:
    assert count_one(value, 3, -2) == Bins(-2, first, (3,))


def test_no_value_has_no_bins() -> None:
    assert count_values(np.array([])) is None
    assert merge_bins([None, None]) is None
