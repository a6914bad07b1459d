"""Tests of fitting steps on samples that are odd: constants, huge numbers, texts of lists."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_packaging import script
from torch import Tensor, nn

from common.errors import InputError, ManifestError, UsageError
from millrace import column, fit, package, prepare
from model_handlers.packaging.raw_types import choose_types
from model_handlers.packaging.statistics import describe_features
from model_handlers.steps.chain import Chain
from model_handlers.steps.numeric import Add, Scale


def fitted(values: Any, steps: Any) -> Any:
    """Return the last step after it was fitted on a column."""
    return fit({"a": values}, {"x": steps}).tensors["x"].columns[0].steps[-1]


@given(st.floats(-1e9, 1e9, width=32), st.integers(1, 200))
def test_a_constant_is_only_shifted(number: float, count: int) -> None:
    step = fitted([number * 0.1] * count, column("a").scale())
    assert step.std == 1
    assert step.mean == pytest.approx(number * 0.1, rel=1e-12)


def test_a_small_deviation_is_one() -> None:
    numbers = [1e6, 1e6 + 1e-3]
    assert fitted(numbers, column("a").scale()) == Scale(
        float(np.mean(numbers)), float(np.std(numbers))
    )
    assert fitted([0.0, 1e-30], column("a").scale()).std == pytest.approx(5e-31)


@pytest.mark.parametrize(
    ("numbers", "steps"),
    [
        ([1e308, 1.7e308], column("a").scale()),
        ([1e308, 1.7e308], column("a").fill("mean")),
        ([-1.7e308, 1.7e308], column("a").bucket(count=2)),
    ],
)
def test_numbers_that_overflow_are_refused_in_one_line(numbers: list[float], steps: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ManifestError) as raised:
            fit({"a": numbers}, {"x": steps})
    message = str(raised.value)
    assert "inputs.x, column 'a': step " in message
    assert "too large" in message
    assert len(message.splitlines()) == 1


def test_statistics_of_huge_numbers_are_finite() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = describe_features(["a"], np.array([[-1.7e308], [1e308], [1.7e308]]))["a"]
    assert np.isfinite([found.mean, found.std, *found.quantiles.values()]).all()


def test_the_most_frequent_integer_keeps_all_its_digits() -> None:
    number = 2**60 + 1
    steps = column("a").fill("most_frequent").vocabulary()
    inputs = fit({"a": [number, None, number, 5]}, {"x": steps})
    assert inputs.files == {"a.txt": f"{number}\n5\n".encode()}
    assert prepare({"a": [None, 5]}, inputs)["x"].tolist() == [0, 1]


def test_a_fill_that_no_cell_can_hold_is_refused() -> None:
    for value in (10**4000, float("inf"), float("nan"), "inf"):
        with pytest.raises((ManifestError, UsageError), match="value: expected a"):
            fit({"a": [1.0]}, {"x": column("a").fill(value)})
    with pytest.raises(UsageError, match="max: expected a finite number, got inf"):
        column("a").clip(max=float("inf"))


def test_a_boolean_has_no_median() -> None:
    with pytest.raises(ManifestError, match=r"inputs.x, column 'a': .* expected most_frequent, or"):
        fit({"a": [True, None, False]}, {"x": column("a").fill("median")})


@pytest.mark.parametrize("first", ["\ufeffa", "\ufeff\ufeffa", "a"])
def test_a_value_keeps_what_looks_like_a_byte_order_mark(first: str) -> None:
    rows = {"a": [first, first, "\ufeff"]}
    assert prepare(rows, fit(rows, {"x": column("a").vocabulary()}))["x"].tolist() == [0, 0, 1]


def test_texts_that_cannot_be_lines_are_no_vocabulary() -> None:
    for texts in (["", ""], ["a\nb"]):
        with pytest.raises(ManifestError, match="no text of the sample can be a line of a file"):
            fit({"a": texts}, {"x": column("a").vocabulary()})


# Types of columns.


def test_lists_of_a_csv_file_become_lists() -> None:
    table = pa.table(
        {"a": ["[1, 2]", "[3]", ""], "b": ['["x"]', "[]", '["y", "x"]'], "c": ["1"] * 3}
    )
    inputs = fit(
        table,
        {
            "a": column("a").fill(0).pad(2),
            "b": column("b").vocabulary(unknown=0).pad(2),
            "length": column("b").length(2),
            "c": column("c").log1p(),
        },
    )
    assert inputs.columns == {"a": "list<float64>", "b": "list<string>", "c": "float64"}
    found = prepare(table, inputs)
    assert found.rows.tolist() == [0, 1]
    assert found["a"].tolist() == [[1, 2], [3, 0]]
    declared = fit(table, {"a": column("a").pad(2)}, columns={"a": "list<int64>"})
    assert prepare(table, declared)["a"].tolist() == [[1, 2], [3, 0]]


def test_the_types_of_many_columns_are_chosen_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []
    gives = Chain.gives

    def counted(chain: Chain, types: Any) -> pa.DataType:
        tried.append(chain)
        return gives(chain, types)

    monkeypatch.setattr(Chain, "gives", counted)
    names = [f"c{i}" for i in range(6)]
    sample = pa.table({name: ["1.5", "2"] for name in names})
    found = choose_types([Chain("c0", tuple(map(Add, names[1:])))], {}, sample)
    assert found == dict.fromkeys(names, "float64")
    assert len(tried) < 6 * 30


def test_a_column_that_occurs_twice_is_refused() -> None:
    twice = pa.table([pa.array([1.0]), pa.array([2.0]), pa.array([3.0])], names=["a", "a", "b"])
    for steps in (column("a").log1p(), column("a"), column("b").divide("a")):
        with pytest.raises(InputError, match="the sample has several columns 'a': rename"):
            fit(twice, {"x": steps})
    assert prepare(twice, fit(twice, {"x": column("b").log1p()}))["x"].shape == (1,)


# Packages.


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_list_column_may_not_be_missing(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(script(Same()))
    table = pa.table({"a": [[1.0, None], [2.0]], "b": [1.0, None], "c": [1, None]})
    dense: Any = [
        column("a").fill(0).pad(2),
        column("b").log1p().fill(0),
        column("c").one_hot(4).fill(0),
    ]
    made = package(tmp_path / "m.pt", tmp_path / "new", sample=table, inputs={"x": dense})
    assert made.optional == {"b"}
