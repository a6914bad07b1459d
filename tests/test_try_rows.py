"""Tests that a model whose answers depend on the batch is neither packaged nor loaded."""

import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from serving_client import running
from torch import Tensor, nn

from common.errors import ContractBroken
from model_handlers.devices.pass_size import PassSize
from model_handlers.infer import infer_manifest
from model_handlers.loaded_model import LoadedModel
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.manifests.tolerance import Tolerance
from model_handlers.package import main, read_manifest
from model_handlers.packaging.golden import with_golden_rows
from model_handlers.read_package import ModelPackage
from model_handlers.torch_model import TorchModelHandler
from model_handlers.trials.try_rows import (
    check_independence,
    made_up_rows,
    round_up,
    tolerance_of,
)
from model_handlers.write_package import write_package
from pipelines import batch_local
from pipelines.command import main as run_command

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

COLUMNS = ("a", "b", "c")


class Normalised(nn.Module):
    """A model with a layer that may use the mean of the batch when it is in training mode."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.layer = layer
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.layer(self.first(x))))[:, 0]


class Squeezes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x).squeeze()


class SqueezesAndPicks(nn.Module):
    """A model that fails on one row, because squeeze() removes the batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.squeeze())[:, 0]


class LoneRows(nn.Module):
    """A model that returns two rows for a batch of one row."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x])[:, 0] if x.shape[0] == 1 else x[:, 0]


class OfACrowd(nn.Module):
    """A model that subtracts the mean of the batch if it has more than 12 rows."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum(1)
        return total - total.mean() if x.shape[0] > 12 else total


class Counts(nn.Module):
    """A model with another answer in each call."""

    calls: int

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x.sum(1) + self.calls


class ByChance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) + torch.rand(x.shape[0])


class IsNoNumberAlone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) / (x.shape[0] - 1)


class Choosy(nn.Module):
    """A model that accepts only zeros and ones."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(((x != 0) & (x != 1)).any()):
            raise ValueError("neither 0 nor 1")
        return x.sum(1)


def traced(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, torch.randn(4, 3), check_trace=False), buffer)
    return buffer.getvalue()


def scripted(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def dynamic_int8() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0)).eval()
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


DEPENDENT: dict[str, Callable[[], bytes]] = {
    "batch norm": lambda: traced(Normalised(nn.BatchNorm1d(8)).train()),
    "dropout": lambda: traced(Normalised(nn.Dropout(0.5)).train()),
    "dynamic int8": lambda: scripted(dynamic_int8()),
    "large batches": lambda: scripted(OfACrowd()),
    "state": lambda: scripted(Counts()),
    "chance": lambda: scripted(ByChance()),
    "no number alone": lambda: scripted(IsNoNumberAlone()),
}
HONEST: dict[str, Callable[[], bytes]] = {
    "batch norm": lambda: traced(Normalised(nn.BatchNorm1d(8)).eval()),
    # The loader calls .eval() itself, which works for models that were not traced.
    "scripted in training": lambda: scripted(Normalised(nn.BatchNorm1d(8)).train()),
    "squeeze": lambda: scripted(Squeezes()),
    "choosy": lambda: scripted(Choosy()),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rows_of(count: int, seed: int = 3) -> np.ndarray:
    rows: np.ndarray = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    return rows


def bare(data: bytes) -> ModelPackage:
    return ModelPackage("m.pt", data, None)


def unprobed(data: bytes, **changes: Any) -> Manifest:
    """Return a manifest for a model file, like one that was written by hand."""
    values: dict[str, Any] = {
        "name": "m",
        "version": "1",
        "format": "torchscript",
        "file": "m.pt",
        "sha256": bare(data).sha256,
        "inputs": (InputSpec("features", COLUMNS, shape=(3,)),),
        "outputs": (OutputSpec("output"),),
    }
    return Manifest(**values | changes)


def package(folder: Path, data: bytes, *flags: str, sample: np.ndarray | None = None) -> int:
    """Run the package command on a model file, and return its exit code."""
    (folder / "m.pt").write_bytes(data)
    argv = [str(folder / "m.pt"), "--feature_columns", "a,b,c", "--output", str(folder / "package")]
    if sample is not None:
        table = pa.table({name: sample[:, i] for i, name in enumerate(COLUMNS)})
        pq.write_table(table, folder / "sample.parquet")
        argv += ["--sample", str(folder / "sample.parquet")]
    return main([*argv, *flags])


# Packaging.


@pytest.mark.exhaustive
@pytest.mark.parametrize("rows", [1, 2, 8, 200, None])
@pytest.mark.parametrize("kind", DEPENDENT)
def test_a_model_whose_rows_depend_on_the_batch_is_not_packaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, rows: int | None
) -> None:
    sample = None if rows is None else rows_of(rows)
    assert package(tmp_path, DEPENDENT[kind](), sample=sample) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: model m ")
    assert len(err.splitlines()) == 1
    assert ".eval()" in err or (kind, rows) == ("no number alone", 1)
    assert not (tmp_path / "package").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("rows", [1, 2, 8, 200, None])
@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_model_is_packaged_and_runs(tmp_path: Path, kind: str, rows: int | None) -> None:
    sample = None if rows is None else rows_of(rows)
    if kind == "choosy" and sample is not None:
        sample = (sample > 0).astype(np.float32)
    assert package(tmp_path, HONEST[kind](), sample=sample) == 0
    path = str(tmp_path / "package")
    manifest = read_manifest(path)
    assert manifest.batch_dependence is None
    TorchModelHandler(path, manifest).load_model()


def test_the_refusal_names_values_cause_and_the_flag_that_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, sample = DEPENDENT["batch norm"](), rows_of(50)
    assert package(tmp_path, data, sample=sample) == 1
    err = capsys.readouterr().err
    for part in (
        "output output of known-good row",
        "in a batch of all rows, but",
        "which exceeds the tolerance (rtol 0.0001, atol",
    ):
        assert part in err
    accept = err.split("if this is intended, package it with ")[1].split(" [")[0].split()
    assert package(tmp_path, data, *accept, sample=sample) == 0
    manifest = read_manifest(str(tmp_path / "package"))
    assert manifest.batch_dependence == float(accept[1])
    assert "batch_dependence" in json.loads((tmp_path / "package/model.json").read_text())
    # Half of that tolerance is not enough.
    assert package(tmp_path, data, accept[0], str(float(accept[1]) / 2), sample=sample) == 1


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x"])
def test_the_flag_needs_a_number_above_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    assert package(tmp_path, scripted(Squeezes()), f"--allow_batch_dependence={value}") == 2
    assert f"expected a number above 0, got '{value}'" in capsys.readouterr().err


def test_a_model_that_cannot_process_one_row_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (SqueezesAndPicks(), LoneRows()):
        for sample in (None, rows_of(5)):
            assert package(tmp_path, scripted(module), sample=sample) == 1
            err = capsys.readouterr().err
            assert "fails on a batch of one row, and any batch can have one row: " in err
            assert "squeeze(-1)" in err


def test_other_rows_that_the_model_refuses_do_not_matter() -> None:
    data = scripted(Choosy())
    ones = {"features": np.ones((3, 3))}
    others = {"features": rows_of(4)}
    manifest = infer_manifest(bare(data), COLUMNS, sampled=True)
    assert with_golden_rows(data, manifest, ones, others).golden is not None


# At load.


@pytest.mark.slow
def test_a_package_that_was_not_checked_is_refused_at_load(tmp_path: Path) -> None:
    data = DEPENDENT["batch norm"]()
    accepted = infer_manifest(bare(data), COLUMNS, batch_dependence=10.0)
    accepted = with_golden_rows(data, accepted, {"features": rows_of(8)})
    # Earlier versions created such packages, because they did not check this.
    manifest = dataclasses.replace(accepted, batch_dependence=None)
    for made, kind in ((manifest, "known-good row"), (unprobed(data), "random row")):
        write_package(tmp_path, data, made)
        with pytest.raises(
            ContractBroken,
            match=rf"of {kind} \d is .* alone, which exceeds the tolerance \(rtol .*eval",
        ):
            TorchModelHandler(str(tmp_path), made).load_model()
    write_package(tmp_path, data, accepted)
    TorchModelHandler(str(tmp_path), accepted).load_model()
    # The manifest of a job has no rows, but it has the accepted difference.
    TorchModelHandler(str(tmp_path), accepted.without_rows()).load_model()


def test_a_bare_model_is_refused_before_a_run_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.pt").write_bytes(DEPENDENT["batch norm"]())
    pq.write_table(pa.table({name: [1.0, 2.0] for name in COLUMNS}), tmp_path / "rows.parquet")
    flags = {
        "input_files": tmp_path / "rows.parquet",
        "model": tmp_path / "m.pt",
        "feature_columns": "a,b,c",
        "output_files": tmp_path / "out",
    }
    argv = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    assert run_command(batch_local.COMMAND, argv) == 1
    err = capsys.readouterr().err
    assert "returns different outputs for the same row in another batch" in err
    assert "package it with --allow_batch_dependence" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_report_has_the_accepted_difference(tmp_path: Path) -> None:
    sample = rows_of(50)
    for flags, accepted in (([], None), (["--allow_batch_dependence", "0.5"], 0.5)):
        data = DEPENDENT["dynamic int8"]() if flags else scripted(Squeezes())
        assert package(tmp_path, data, *flags, sample=sample) == 0
        argv = ["--input_files", str(tmp_path / "sample.parquet"), "--run_id", "r"]
        argv += ["--output_files", str(tmp_path / "out"), "--model", str(tmp_path / "package")]
        assert run_command(batch_local.COMMAND, argv) == 0
        report = json.loads((tmp_path / "out/r/report.json").read_text())
        assert report["model"]["batch_dependence"] == accepted


# One row.


@pytest.mark.parametrize("batch_rows", [1, 2])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_model_that_squeezes_scores_a_last_batch_of_one_row(
    tmp_path: Path, batch_rows: int
) -> None:
    assert package(tmp_path, scripted(Squeezes()), sample=rows_of(9)) == 0
    argv = ["--input_files", str(tmp_path / "sample.parquet"), "--run_id", "r"]
    argv += ["--output_files", str(tmp_path / "out"), "--model", str(tmp_path / "package")]
    assert run_command(batch_local.COMMAND, [*argv, "--batch_rows", str(batch_rows)]) == 0
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    assert (report["rows_in"], report["rows_scored"]) == (9, 9)


@pytest.mark.slow
def test_a_server_scores_one_row_with_a_model_that_squeezes(tmp_path: Path) -> None:
    assert package(tmp_path, scripted(Squeezes()), sample=rows_of(9)) == 0
    with running(tmp_path / "package") as server:
        for count in (1, 3):
            answer = server.client.predict(rows_of(count).tolist())
            assert answer.status == 200
            assert len(answer.json["predictions"]) == count


# Properties.


@given(
    pair=st.tuples(*[arrays_of.arrays(np.float64, 5, elements=st.floats(-1e9, 1e9))] * 2),
)
def test_the_suggested_tolerance_accepts_the_difference(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    got, expected = pair
    needed = float(tolerance_of(got, expected).max())
    if needed < 1e-300:
        return
    value = round_up(needed)
    assert needed <= value * (1 + 1e-12)
    assert value < 2.000001 * needed or value < 1.1 * needed + 10 ** math.floor(math.log10(needed))
    assert Tolerance(value, value).agree(got, expected).all()


class Exact(nn.Module):
    """A model whose answers do not depend on the batch."""

    seen: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        Exact.seen.append(len(x))
        return x[:, 0] * 2 + x[:, 1]


def test_rows_are_run_again_alone_and_among_others() -> None:
    manifest = unprobed(b"")
    model = LoadedModel(
        module=Exact(),
        manifest=manifest,
        outputs=manifest.outputs,
        device=torch.device("cpu"),
        size=PassSize(8),
    )
    rows = [rows_of(4)]
    answers = model.forward(rows, slice(0, 4))
    Exact.seen.clear()
    check_independence(model, rows, answers, [rows_of(10, seed=9)])
    assert Exact.seen == [4, 1, 1, 1, 1, 14, 52, 11]


def test_random_rows_have_the_dtypes_and_shapes_of_the_inputs() -> None:
    inputs = (
        InputSpec("x", COLUMNS, shape=(3,)),
        InputSpec("k", ("d",), dtype="int64"),
        InputSpec("flag", ("e",), dtype="bool"),
        InputSpec("long", ("f",), dtype="float16", shape=(2, 2)),
    )
    manifest = unprobed(b"", inputs=inputs)
    made = made_up_rows(manifest)
    assert [(a.shape, str(a.dtype)) for a in made] == [
        ((5, 3), "float32"),
        ((5,), "int64"),
        ((5,), "bool"),
        ((5, 4), "float16"),
    ]
    assert (made[1] >= 0).all()
    for one, other in zip(made, made_up_rows(manifest), strict=True):
        np.testing.assert_array_equal(one, other)
