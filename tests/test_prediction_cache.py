"""Tests of the prediction cache: it finds equal rows, and drops the least recently used ones."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_handlers.endpoints.prediction_cache import PredictionCache, row_keys, rows_with_gaps
from model_handlers.manifests.manifest import DType, OutputSpec

OUTPUTS = (OutputSpec("y"), OutputSpec("z", "int64", (2,)))


def outputs_of(numbers: Sequence[int]) -> list[np.ndarray]:
    y = np.array(numbers, np.float32)
    return [y, np.stack([y, -y], axis=1).astype(np.int64)]


def keys_of(numbers: Sequence[int]) -> list[bytes]:
    return row_keys([np.array(numbers, np.float64)])


def found(cache: PredictionCache, numbers: Sequence[int]) -> list[int]:
    """Return the numbers that are in the cache, after checking their outputs."""
    rows, outputs = cache.find(keys_of(numbers))
    here = [numbers[row] for row in rows]
    for got, expected in zip(outputs, outputs_of(here), strict=True):
        np.testing.assert_array_equal(got, expected.reshape(got.shape))
        assert got.dtype == expected.dtype
    return here


def test_only_rows_that_were_kept_are_found() -> None:
    cache = PredictionCache(OUTPUTS, 10)
    assert found(cache, [1, 2]) == []
    cache.keep(keys_of([1, 2, 3]), outputs_of([1, 2, 3]))
    assert found(cache, [4, 3, 1, 3]) == [3, 1, 3]
    assert found(cache, []) == []


def test_the_least_recently_used_rows_are_dropped_first() -> None:
    cache = PredictionCache(OUTPUTS, 3)
    cache.keep(keys_of([1, 2, 3]), outputs_of([1, 2, 3]))
    assert found(cache, [1]) == [1]
    cache.keep(keys_of([4]), outputs_of([4]))
    assert found(cache, [1, 2, 3, 4]) == [1, 3, 4]
    cache.keep(keys_of(range(10, 20)), outputs_of(range(10, 20)))
    assert found(cache, [1, 3, 4, *range(10, 20)]) == [17, 18, 19]


def test_a_row_with_a_gap_is_not_kept() -> None:
    cache = PredictionCache(OUTPUTS, 3)
    outputs = outputs_of([1, 2])
    outputs[0][0] = np.nan
    cache.keep(keys_of([1, 2]), outputs)
    assert found(cache, [1, 2]) == [2]


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8), st.integers(1, 12))
def test_it_agrees_with_a_plain_list_of_the_last_rows(batches: list[list[int]], most: int) -> None:
    cache, last = PredictionCache(OUTPUTS, most), list[int]()
    for numbers in batches:
        here = found(cache, numbers)
        assert here == [number for number in numbers if number in last]
        missing = [number for number in numbers if number not in here]
        cache.keep(keys_of(missing), outputs_of(missing))
        for number in here + missing:
            if number in last:
                last.remove(number)
            last.append(number)
        last = last[-most:]


@pytest.mark.parametrize("dtype", get_args(DType))
def test_outputs_of_every_dtype_and_shape_are_returned(dtype: DType) -> None:
    cache = PredictionCache([OutputSpec("x", dtype, (2, 2)), OutputSpec("y", dtype)], 5)
    array = np.array([[[0, 1], [1, 0]], [[1, 1], [0, 0]]]).astype(dtype)
    cache.keep([b"a", b"b"], [array, array[:, 0, 0]])
    rows, (x, y) = cache.find([b"b", b"a"])
    assert rows.tolist() == [0, 1]
    np.testing.assert_array_equal(x, array[::-1])
    np.testing.assert_array_equal(y, array[::-1, 0, 0])


def test_a_key_contains_all_inputs_of_a_row() -> None:
    x, y = np.array([[1.0, 2], [1, 2], [1, 3]], np.float32), np.array([1, 2, 1])
    assert len({*row_keys([x, y])}) == 3
    assert len({*row_keys([x])}) == 2
    assert row_keys([x.T[:2].T])[0] == row_keys([x])[0]
    assert row_keys([x[:0]]) == []


def test_gaps_are_found_in_any_output() -> None:
    y, z = np.zeros(3, np.float32), np.zeros((3, 2))
    assert rows_with_gaps([y, z, np.zeros(3, np.int64)]).tolist() == []
    y[2] = z[0, 1] = np.nan
    assert rows_with_gaps([y, z]).tolist() == [0, 2]
