"""Tests that arrays become valid JSON and have the same numbers when read back."""

import json
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_handlers.endpoints.numpy_json import dump_objects, dump_rows, read_array, row_texts
from model_handlers.manifests.manifest import DType

DTYPES = get_args(DType)


def arrays(max_rows: int = 5) -> st.SearchStrategy[np.ndarray]:
    """Draw arrays `[rows, ...]` of finite numbers in any dtype that a model may have."""

    def finite(dtype: str) -> st.SearchStrategy[np.ndarray]:
        shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=max_rows)
        numbers: dict[str, Any] = (
            {"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else {}
        )
        return hnp.arrays(dtype, shapes, elements=hnp.from_dtype(np.dtype(dtype), **numbers))

    return st.sampled_from(DTYPES).flatmap(finite)


@given(arrays())
def test_an_array_survives_a_round_trip(array: np.ndarray) -> None:
    values = json.loads(dump_rows(array))
    again = read_array(values, str(array.dtype), array.shape[1:])
    assert again is not None
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


@given(arrays())
def test_the_texts_of_rows_are_parts_of_the_whole_text(array: np.ndarray) -> None:
    depth = array.ndim - 1
    texts = [json.loads(b"[" * depth + text + b"]" * depth) for text in row_texts(array)]
    assert texts == json.loads(dump_rows(array))


@given(st.dictionaries(st.text(), arrays(), min_size=1, max_size=4))
def test_objects_have_a_member_for_each_key(columns: dict[str, np.ndarray]) -> None:
    rows = min(map(len, columns.values()))
    cut = {key: array[:rows] for key, array in columns.items()}
    objects = json.loads(dump_objects(list(cut), list(cut.values())))
    whole = {key: json.loads(dump_rows(array)) for key, array in cut.items()}
    assert objects == [{key: whole[key][row] for key in cut} for row in range(rows)]


def test_zero_rows_become_an_empty_list() -> None:
    assert dump_objects(["a"], [np.empty((0, 3))]) == b"[]"
    assert dump_rows(np.empty((0, 3))) == b"[]"


def test_a_view_is_written_with_the_values_that_it_shows() -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert json.loads(dump_rows(array[:, ::2])) == [[0, 2], [4, 6], [8, 10]]
    assert json.loads(dump_rows(array.T)) == array.T.tolist()


def test_nan_and_infinity_become_null_and_null_becomes_nan() -> None:
    text = dump_rows(np.array([[1.5, math.nan], [math.inf, -math.inf]], np.float32))
    assert json.loads(text) == [[1.5, None], [None, None]]
    again = read_array(json.loads(text), "float32", (2,))
    np.testing.assert_array_equal(again, np.array([[1.5, math.nan], [math.nan, math.nan]]))


@pytest.mark.parametrize(
    ("values", "dtype", "shape"),
    [
        (["1.5"], "float32", ()),
        ([True], "float32", ()),
        ([True], "int64", ()),
        ([1], "bool", ()),
        ([None], "bool", ()),
        ([None], "int64", ()),
        ([math.nan], "int64", ()),
        ([math.inf], "int64", ()),
        ([1.5], "int64", ()),
        ([128], "int8", ()),
        ([-1], "uint8", ()),
        ([10**400], "float64", ()),
        ([{}], "float32", ()),
        ([[1.0, 2.0]], "float32", ()),
        ([[]], "float32", ()),
        ([[[1.0]]], "float32", ()),
        ([["1"]], "float32", ()),
        ([1.0], "float32", (1,)),
        ([[1.0, 2.0]], "float32", (3,)),
        ([[1.0, 2.0], [1.0]], "float32", (2,)),
        ([[[1.0], 2.0]], "float32", (2, 1)),
        (["ab"], "float32", (2,)),
        ([{"a": 1}], "float32", (1,)),
    ],
)
def test_a_value_of_another_type_or_shape_returns_none(values: Any, dtype: str, shape: Any) -> None:
    assert read_array(values, dtype, shape) is None


def test_numbers_that_fit_the_dtype_are_accepted_in_any_notation() -> None:
    for values, dtype, expected in (
        ([1, 2.0], "float32", [1.0, 2.0]),
        ([[1], 2.0, [0.5]], "float32", [1.0, 2.0, 0.5]),
        ([1.0, 2**53 + 1], "int64", [1, 2**53 + 1]),
        ([0.1], "float64", [0.1]),
        ([1e300], "float32", [math.inf]),
    ):
        array = read_array(values, dtype, ())
        assert array is not None
        assert (array.tolist(), str(array.dtype)) == (expected, dtype)


def test_zero_values_become_an_empty_array_of_the_shape() -> None:
    for dtype in DTYPES:
        array = read_array([], dtype, (2, 3))
        assert array is not None
        assert (array.shape, array.dtype) == ((0, 2, 3), dtype)
