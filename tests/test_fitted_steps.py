"""Tests of fitting steps on samples that are odd: constants, huge numbers, texts of lists."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_packaging import export, script
from torch import Tensor, nn

from common.errors import InputError, ManifestError, UsageError
from millrace import column, fit, package, prepare, tensor
from millrace.command_line import run
from model_handlers.package import read_manifest
from model_handlers.packaging.raw_types import choose_types
from model_handlers.packaging.statistics import describe_features
from model_handlers.steps.chain import Chain
from model_handlers.steps.general import Fill
from model_handlers.steps.numeric import Add, Scale


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


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


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_a_csv_file_may_have_a_declared_list_column(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", "clicks,b", '"[1, 2]",1', '"[3]",2', ",3")
    steps = column("clicks").pad(3)
    found = fit(rows, {"x": steps}, columns={"clicks": "list<int64>"})
    assert prepare(rows, found)["x"].tolist() == [[1, 2, 0], [3, 0, 0]]
    (tmp_path / "m.pt").write_bytes(script(Same()))
    spec = write(
        tmp_path / "spec.toml",
        '[columns]\nclicks = "list<int64>"\n[[inputs]]\nname = "x"',
        'from = [[{ column = "clicks" }, { step = "pad", to = 3 }]]',
    )
    arguments = ["--inputs", str(spec), "--sample", str(rows), "--output", str(tmp_path / "p")]
    assert run(["package", str(tmp_path / "m.pt"), *arguments]) == 0
    assert read_manifest(str(tmp_path / "p")).columns == {"clicks": "list<int64>"}


@pytest.mark.parametrize(
    ("steps", "declared", "message"),
    [
        ('{ column = "clicks" }', "", "got other text in 2 of 3 rows .*: pad gives its lists"),
        ('{ column = "clicks" }, { step = "scale" }', "", "expected a number, .*: pad gives"),
        ('{ column = "clicks" }', 'clicks = "list<int64>"', "got a list of numbers: pad gives"),
        ('{ column = "kind" }, { step = "scale" }', "", "in 3 of 3 rows .*: add steps that take"),
    ],
)
def test_a_column_without_a_usable_cell_is_named_with_its_input(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    steps: str,
    declared: str,
    message: str,
) -> None:
    rows = write(tmp_path / "rows.csv", "clicks,kind", '"[1, 2]",a', '"[3]",b', ",c")
    (tmp_path / "m.pt").write_bytes(script(Same()))
    text = f'[columns]\n{declared}\n[[inputs]]\nname = "x"\nfrom = [[{steps}]]'
    spec = write(tmp_path / "spec.toml", text)
    arguments = ["--inputs", str(spec), "--sample", str(rows), "--output", str(tmp_path / "p")]
    assert run(["package", str(tmp_path / "m.pt"), *arguments]) != 0
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(rf"inputs\.x, column '(clicks|kind)': .*{message}", line)


def test_an_undeclared_list_column_of_a_csv_file_is_refused_when_steps_are_fitted(
    tmp_path: Path,
) -> None:
    rows = write(tmp_path / "rows.csv", "clicks,b", '"[1, 2]",1', '"[3]",2')
    with pytest.raises(InputError, match=r"inputs\.x, column 'clicks': .*: pad gives its lists"):
        fit(rows, {"x": [column("b"), column("clicks")]})


def test_columns_that_only_numbers_and_functions_read_are_numbers() -> None:
    table = pa.table({"a": ["1", "2.5", ""], "b": ["1", "x", "3"], "c": ["1", "2", "3"]})
    call = column("a").call("m:f", columns=["b", "c"])
    assert fit(table, {"x": call}).columns == {"a": "float64", "b": "string", "c": "float64"}
    inputs = {"x": call, "y": column("c").vocabulary(values=["1"], unknown=0)}
    assert fit(table, inputs).columns["c"] == "string"
    assert fit(table, {"x": column("a").lower().call("m:f")}).columns == {"a": "string"}
    declared = fit(table, {"x": column("a").call("m:f")}, columns={"a": "string"})
    assert declared.columns == {"a": "string"}


@pytest.mark.parametrize("kind", [pa.int64(), pa.int8()])
def test_a_mean_of_integers_is_not_rounded(kind: pa.DataType) -> None:
    table = pa.table({"a": pa.array([54, 55, None, 53, 55], kind)})
    found = fit(table, {"x": column("a").fill("mean")})
    assert found.columns == {"a": "float64"}
    assert prepare({"a": [None, 30.5]}, found)["x"].tolist() == [54.25, 30.5]
    median = fit({"a": [1, 2, None]}, {"x": column("a").fill("median").log1p()})
    assert median.columns == {"a": "float64"}


def test_a_mean_is_rounded_if_something_needs_integers() -> None:
    table = pa.table({"a": [54, 55, None, 53, 55]})
    mean = column("a").fill("mean")
    cases: list[tuple[Any, Any]] = [
        ({"x": mean}, {"a": "int64"}),
        ({"x": tensor(mean, dtype="int64")}, {}),
        ({"x": mean.one_hot(60)}, {}),
        ({"x": mean, "y": column("a").hash(8)}, {}),
        ({"x": column("a").fill("most_frequent")}, {}),
    ]
    for inputs, columns in cases:
        found = fit(table, inputs, columns=columns)
        assert found.columns == {"a": "int64"}
        fill = found.tensors["x"].columns[0].steps[0]
        assert isinstance(fill, Fill)
        assert isinstance(fill.value, int)


def test_a_mean_is_rounded_for_a_model_of_integers(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(export(Same(), torch.zeros(2, 1, dtype=torch.int64)))
    table = pa.table({"a": [54, 55, None, 53, 55]})
    steps = [column("a").fill("mean")]
    made = package(tmp_path / "m.pt2", tmp_path / "p", sample=table, inputs={"x": steps})
    assert made.columns == {"a": "int64"}
    (tmp_path / "f.pt2").write_bytes(export(Same(), torch.zeros(2, 1)))
    made = package(tmp_path / "f.pt2", tmp_path / "q", sample=table, inputs={"x": steps})
    assert made.columns == {"a": "float64"}


def test_a_function_that_fails_while_steps_are_fitted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def f(a, b):\n    raise ValueError('13 is a secret')\n"
    write(tmp_path / "failing_functions.py", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    table = pa.table({"a": ["1", "2.5", ""], "b": ["1", "x", "3"]})
    steps = column("a").call("failing_functions:f", columns=["b"]).scale()
    with pytest.raises(InputError) as raised:
        fit(table, {"x": steps}, trusted_modules=["failing_functions"])
    assert str(raised.value) == (
        "inputs.x, column 'a': scale cannot be fitted, because failing_functions:f raised "
        "ValueError in 3 of 3 rows of the sample (a is float64, b is string): correct the "
        "function, or declare other types in columns"
    )


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
