"""Tests of `millrace inspect`, and of `millrace package --from`, which changes a package."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from raw_model import ROWS, write_raw_package
from test_packaging import load, script
from torch import Tensor, nn

from common.errors import UsageError
from millrace import column, package
from model_handlers.inspect_package import main as inspect_main
from model_handlers.manifests.manifest import InputSpec
from model_handlers.package import main, read_manifest
from model_handlers.packaging.change import Changes, change
from model_handlers.preparation import Preparation
from model_handlers.steps.general import Fill
from model_handlers.steps.step import Context


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A package of version 1."""
    (tmp_path / "m.pt").write_bytes(script(Sum()))
    table = pa.table({"a": [1.0, 2.0, 4.0], "b": [3.0, 5.0, 7.0]})
    package(tmp_path / "m.pt", tmp_path / "first", sample=table, inputs={"x": ["a", "b"]})
    return tmp_path / "first"


def copy(folder: Path, *arguments: str) -> tuple[int, Path]:
    output = folder.parent / "new"
    return main(["--from", str(folder), "--output", str(output), *arguments]), output


def test_columns_are_renamed_everywhere(tmp_path: Path) -> None:
    write_raw_package(
        tmp_path / "raw",
        golden={"rows": ROWS[:3], "outputs": {"logits": answers(tmp_path)}},
        column_statistics={"amount": {"count": 3, "nulls": 0.5}},
    )
    code, new = copy(
        tmp_path / "raw",
        *("--rename", "amount=Betrag", "--rename", "limit=amount", "--version", "2"),
    )
    assert code == 0
    manifest = read_manifest(str(new))
    assert set(manifest.columns) == {"Betrag", "amount", "kind", "at", "clicks"}
    dense = manifest.inputs[0].chains
    assert [chain.names for chain in dense] == [("Betrag",), ("Betrag", "amount"), ("at",)]
    assert list(manifest.column_statistics) == ["Betrag"]
    assert manifest.golden is not None
    assert manifest.golden.rows[0]["Betrag"] == ROWS[0]["amount"]
    assert (manifest.name, manifest.version) == ("raw", "2")
    assert (new / "kinds.txt").read_bytes() == (tmp_path / "raw" / "kinds.txt").read_bytes()
    # The known-good rows still give the same answers.
    load(new)


def answers(folder: Path) -> list[Any]:
    """Return the answers of the model of raw_model.py to the good rows."""
    write_raw_package(folder / "plain")
    model = load(folder / "plain")
    tensors, _ = model.preparation.tensors(ROWS[:3])
    found: list[Any] = model.forward(tensors, slice(0, 3))[0].tolist()
    return found


def test_a_package_of_version_1_stays_one(first: Path) -> None:
    code, new = copy(first, "--rename", "a=A", "--name", "other", "--fill", "b=mean")
    assert code == 0
    manifest = read_manifest(str(new))
    assert (manifest.schema_version, manifest.name) == (1, "other")
    assert manifest.inputs == (InputSpec("x", ("A", "b"), shape=(2,), impute={"b": "mean"}),)
    assert set(manifest.statistics) == {"A", "b"}
    load(new)


def test_a_value_makes_a_package_of_version_1_one_of_version_2(first: Path) -> None:
    code, new = copy(first, "--fill", "a=mean", "--fill", "b=7")
    assert code == 0
    manifest = read_manifest(str(new))
    assert manifest.schema_version == 2
    model = load(new)
    tensors, refused = model.preparation.tensors([{"a": None, "b": None}, {"a": 1, "b": 2}])
    assert not refused
    np.testing.assert_allclose(tensors[0], np.array([[7 / 3, 7.0], [1.0, 2.0]]), rtol=1e-6)


@pytest.mark.slow
def test_a_fill_is_replaced_and_rows_that_it_changes_are_removed(tmp_path: Path) -> None:
    write_raw_package(
        tmp_path / "raw", golden={"rows": ROWS[:3], "outputs": {"logits": answers(tmp_path)}}
    )
    code, new = copy(tmp_path / "raw", "--fill", "amount=20", "--fill", "kind=web")
    assert code == 0
    manifest = read_manifest(str(new))
    assert [step.NAME for step in manifest.inputs[0].chains[0].steps] == ["fill", "log1p", "scale"]
    assert manifest.golden is not None
    assert [row["id"] for row in manifest.golden.rows] == ["r0", "r2"]
    load(new)
    files = {"kinds.txt": (new / "kinds.txt").read_bytes()}
    row = {"amount": None, "limit": 10, "kind": None, "at": ROWS[0]["at"], "clicks": []}
    tensors, refused = Preparation(manifest, Context(files)).tensors([row])
    assert not refused
    assert tensors[0][0, 1] == 2.0
    assert tensors[1].tolist() == [1]


def test_lists_are_not_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_raw_package(tmp_path / "raw")
    code, new = copy(tmp_path / "raw", "--fill", "clicks=0")
    [line] = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "--fill clicks: expected a column with one value in a row, got list<int64>: a" in line
    assert not new.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rename", "A=x"], "--rename: the model reads no column 'A' (did you mean 'a'?)"),
        (["--rename", "a=b"], "--rename: two columns would be called 'b'"),
        (["--rename", "a"], "--rename: expected NAME=VALUE, got 'a'"),
        (["--fill", "a=much"], "step fill: value: expected a number, as the column has"),
        (
            ["--fill", "a=Infinity"],
            "step fill: value: expected a number, as the column has, got inf",
        ),
        (["--fill", "a=" + "[" * 100_000], "step fill: value: expected a number, as the column"),
        (["--fill", "a=1", "--fill", "a=2"], "--fill names a column twice"),
        (["--rename", "a=x", "--rename", "a=y"], "--rename names a column twice"),
        (["--rename", "a="], "--rename: expected a name without line breaks"),
        (["--rename", "a=x\ny"], "--rename: expected a name without line breaks"),
        (["--name", "x\n"], "--name: expected a name without line breaks and control characters"),
        (["--version", ""], "--version: expected a name without line breaks"),
        (["--fill", "c=1"], "--fill: the model reads no column 'c'"),
        (["--score_output", "scroe"], "no output 'scroe'"),
        (["--feature_columns", "a"], "--from changes a package: leave out --feature_columns"),
        (["model.pt"], "--from changes a package: leave out the model file"),
    ],
)
def test_wrong_changes_are_reported_in_one_line(
    first: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, new = copy(first, *arguments)
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not new.exists()


def test_known_good_rows_that_all_change_are_not_dropped_in_silence(tmp_path: Path) -> None:
    golden = {"rows": ROWS[1:2], "outputs": {"logits": answers(tmp_path)[1:2]}}
    manifest = write_raw_package(tmp_path / "raw", golden=golden)
    with pytest.raises(UsageError, match="all known-good rows lack the column"):
        change(manifest, Changes(fill={"amount": "2"}))


def test_a_column_that_a_step_also_takes_is_not_filled_in_part(tmp_path: Path) -> None:
    manifest = write_raw_package(tmp_path / "raw")
    with pytest.raises(UsageError) as raised:
        change(manifest, Changes(fill={"limit": "5"}))
    assert str(raised.value) == (
        "--fill limit: the step divide of column 'amount' also takes the column, and fill does "
        "not reach it there: package the model again"
    )


def test_a_filled_integer_keeps_all_its_digits(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(script(Sum()))
    number = 2**53 + 1
    inputs: Any = {"x": [column("a").cast("string").hash(9)]}
    made = package(tmp_path / "m.pt", tmp_path / "new", sample={"a": [number, 5]}, inputs=inputs)
    filled = change(made, Changes(fill={"a": str(number)}))
    assert filled.inputs[0].chains[0].steps[0] == Fill(number)


def test_a_change_needs_a_package(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.pt", "--output", "o", "--rename", "a=b"]) == 2
    assert "name it with --from" in capsys.readouterr().err
    assert main(["--from", str(first.parent / "m.pt"), "--output", "o"]) == 2
    assert "expected a package, which has model.json" in capsys.readouterr().err


# Inspecting.


def test_a_package_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_raw_package(tmp_path / "raw", column_statistics={"amount": {"count": 3, "nulls": 0.25}})
    assert inspect_main([str(tmp_path / "raw")]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "model raw 1",
        "score probability",
        "writes label, decision, best",
        "golden rows none, so workers cannot check the model",
        "amount float64 25.0% dense fill value=1, log1p, scale mean=1 std=2",
        "dense fill value=1, divide other=limit",
        "kind string kind strip, lower, vocabulary file=kinds.txt",
        "mask mask to=4 keep=last",
        "limit float64",
        "dense float32 [rows, 4]",
        "logits float32 [rows, 3]",
        "decision text probability: cut at=[0.4, 0.6] names=[manual, check, auto]",
        "best list of names and numbers probabilities: top_k values=[stay, call, leave] k=2",
    ):
        assert line in lines
    assert any(line.startswith("kinds.txt 15 ") for line in lines)


def test_a_package_of_version_1_is_shown(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_main([str(first)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "a number x" in lines
    assert "golden rows 3, as tensors" in lines
    assert inspect_main([str(first.parent / "m.pt")]) == 1
    assert "pass the folder of a model package" in capsys.readouterr().err
