"""Compare cells with an oracle in plain Python that checks each cell independently."""

import math
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.cells import FINE, INFINITE, NAN, NULL, WRONG, decoded, limits, read_cells

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")

TEXTS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats(width=64).map(str),
    st.sampled_from(
        [
            "",
            " ",
            " 7 ",
            "+5",
            "1e400",
            "-1e400",
            "nan",
            "NaN",
            "nan(ind)",
            "-NaN()",
            "nan(a b)",
            "inf",
            "Infinity",
            "1_000",
            "abc",
            "5.0",
            "0.5",
            "1e2",
            "0x10",
            "1e999999999",
            "9007199254740993",
            "true",
            "NA",
            "null",
        ]
    ),
    st.text(max_size=4),
)
COLUMNS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.float64(), st.floats(width=64)),
    (pa.float32(), st.floats(width=32)),
    (pa.float16(), st.floats(width=16).map(np.float16)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int8(), st.integers(-128, 127)),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(38, 2), st.decimals(-(10**30), 10**30, places=2)),
    (pa.null(), st.none()),
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
]


def judge(value: Any, dtype: str) -> tuple[int, Any]:
    """Return the state of a cell's Python value, and its number if the state is FINE."""
    if isinstance(value, str):
        value = value.strip()
    if value is None or value == "":
        return NULL, None
    try:
        if isinstance(value, str):
            if value.lower() in ("nan(ind)", "-nan()"):
                return NAN, None
            if "_" in value:
                raise ValueError
            number = float(value)
        else:
            number = float(value)
    except ValueError:
        return (FINE, value.lower() == "true") if is_truth(value, dtype) else (WRONG, None)
    if math.isnan(number):
        return NAN, None
    if dtype in FLOATS:
        with np.errstate(over="ignore"):
            cast = np.dtype(dtype).type(number)
        return (INFINITE, None) if np.isinf(cast) else (FINE, cast)
    if math.isinf(number) and not is_finite_text(value):
        return INFINITE, None
    low, high = limits(dtype)
    if math.isinf(number) or abs(number) > 2**70:
        return WRONG, None
    exact = Fraction(value if isinstance(value, (str, Decimal, int)) else number)
    fits = exact.denominator == 1 and low <= exact <= high
    return (FINE, int(exact)) if fits else (WRONG, None)


def is_truth(value: Any, dtype: str) -> bool:
    return dtype == "bool" and value.lower() in ("true", "false")


def is_finite_text(value: Any) -> bool:
    """Return whether a value is a string of a finite number: 1e400 is, although not as a float."""
    try:
        return isinstance(value, str) and Decimal(value).is_finite()
    except InvalidOperation:
        return False


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.Array, list[Any]]:
    kind, values = draw(st.sampled_from(COLUMNS))
    cells = draw(st.lists(st.none() | values, min_size=1, max_size=8))
    return pa.array(cells, kind), cells


@given(columns(), st.sampled_from(FLOATS + INTEGERS), st.integers(0, 3))
@example((pa.array(["abc", "9007199254740993"]), ["abc", "9007199254740993"]), "int64", 0)
@example((pa.array(["1_000", "1"]), ["1_000", "1"]), "float32", 0)
@example((pa.array(["1_000", "1"]), ["1_000", "1"]), "int64", 0)
@example((pa.array(["nan(ind)", "abc"]), ["nan(ind)", "abc"]), "float64", 0)
@example((pa.array([2.0**63]), [2.0**63]), "int64", 0)
@example((pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]), "int64", 0)
@example((pa.array([2**53 + 1, None]), [2**53 + 1, None]), "int64", 0)
def test_each_cell_is_checked_independently(
    column: tuple[pa.Array, list[Any]], dtype: str, start: int
) -> None:
    array, cells = column[0].slice(start), column[1][start:]
    numbers, state = read_cells(array, dtype)
    assert numbers.dtype == dtype
    assert len(numbers) == len(cells)
    expected = [judge(cell, dtype) for cell in cells]
    found = [FINE] * len(cells) if state is None else state.tolist()
    assert found == [code for code, _ in expected]
    assert state is None or state.any()
    for number, (code, value) in zip(numbers, expected, strict=True):
        if code == FINE and dtype in FLOATS:
            # Arrow and NumPy may round decimals and long integers twice.
            rtol = {"float64": 1e-15, "float32": 1e-7, "float16": 1e-3}[dtype]
            np.testing.assert_allclose(float(number), float(value), rtol=rtol)
        elif code == FINE:
            assert int(number) == value


@given(st.lists(st.floats(width=64), min_size=1), st.sampled_from(FLOATS))
def test_floats_are_cast_as_numpy_casts_them(values: list[float], dtype: str) -> None:
    with np.errstate(over="ignore"):
        expected = np.array(values).astype(dtype)
    np.testing.assert_array_equal(read_cells(pa.array(values), dtype)[0], expected)


@given(st.lists(TEXTS | st.text("+-naif()_0.eE xX1", max_size=8), min_size=1, max_size=4))
@example(["nan(ind)", "abc"])
@example(["nan(0_1)", "1_0", "inf(1)"])
def test_a_text_means_the_same_alone_and_among_others(texts: list[str]) -> None:
    for dtype in ("float64", "int64"):
        numbers, state = read_cells(pa.array(texts), dtype)
        for row, text in enumerate(texts):
            alone, of_alone = read_cells(pa.array([text]), dtype)
            found = FINE if of_alone is None else of_alone[0]
            assert (FINE if state is None else state[row]) == found, text
            assert found != FINE or numbers[row] == alone[0], text


@pytest.mark.parametrize("text", ["1e999999999999999999999", "sNaN", "١٢", "1" * 5000])
def test_odd_texts_neither_raise_nor_take_long(text: str) -> None:
    for dtype in ("int64", "float32"):
        _, state = read_cells(pa.array([text, "1"]), dtype)
        assert state is None or state[1] == FINE


def test_a_dictionary_of_views_is_decoded() -> None:
    places = pa.array([1, None, 0])
    for kind in (pa.string_view(), pa.binary_view(), pa.string()):
        column = pa.DictionaryArray.from_arrays(places, pa.array(["a", "b"]).cast(kind))
        assert [str(v.cast(pa.string())) for v in decoded(column)] == ["b", "None", "a"]


def test_an_empty_column_has_no_cells() -> None:
    for kind in (pa.float64(), pa.int64(), pa.string(), pa.null(), pa.bool_()):
        for dtype in ("float32", "int64", "bool"):
            numbers, state = read_cells(pa.array([], kind), dtype)
            assert (len(numbers), state) == (0, None)
