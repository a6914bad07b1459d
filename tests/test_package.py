"""Tests of packaging: inferring a manifest from a bare model, and the package command."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from same_scores import assert_scores
from torch import Tensor, nn

from common.errors import ContractBroken, ManifestError, ModelError, UsageError
from model_handlers.infer import infer_manifest
from model_handlers.manifests.manifest import InputSpec, OutputSpec
from model_handlers.manifests.model_json import write_manifest
from model_handlers.package import main, read_manifest
from model_handlers.packaging.golden import with_golden_rows
from model_handlers.packaging.statistics import describe_features
from model_handlers.read_package import ModelPackage, read_package
from model_handlers.torch_model import TorchModelHandler
from model_handlers.write_package import write_mar, write_package

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

COLUMNS = ("Time", "V1", "Amount")


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.linear(x)
        return {
            "code": y,
            "score": y.sum(1),
            "flag": y[:, 0] > 0,
            "cube": y.double().view(-1, 2, 1),
        }


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(1), x.long()


class Single(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(2)


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


class Strange(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, 5


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1).to(torch.bfloat16)


class ByNumber(nn.Module):
    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return {1: x.sum(1)}


class Shifting(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {f"rows_{x.shape[0]}": x.sum(1)}


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x).sum(1)


def script(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def export(module: nn.Module, *, dynamic: bool = True) -> bytes:
    buffer = io.BytesIO()
    dims = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(module.eval(), (torch.zeros(2, 3),), dynamic_shapes=dims)
    torch.export.save(program, buffer)
    return buffer.getvalue()


def weights(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getvalue()


def bare(data: bytes) -> ModelPackage:
    return ModelPackage("fraud.pt", data, None)


def sample(path: Path, rows: int = 40) -> np.ndarray:
    """Write rows with COLUMNS and an id, some of them faulty, and return the valid rows."""
    values = np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)
    table = {name: pa.array(values[:, i]) for i, name in enumerate(COLUMNS)}
    amounts = values[:, 2].tolist()
    amounts[0], amounts[5], amounts[7] = None, float("nan"), float("inf")
    table["Amount"] = pa.array(amounts, pa.float32())
    pq.write_table(pa.table({"id": [f"t{i}" for i in range(rows)], **table}), path)
    return np.delete(values, [0, 5, 7], axis=0)


# Inferring a manifest from a bare model.


@pytest.mark.parametrize("save", [script, export])
def test_outputs_in_a_dict_keep_their_names(save: Any) -> None:
    data = save(Named())
    manifest = infer_manifest(bare(data), COLUMNS)
    assert manifest.outputs == (
        OutputSpec("code", "float32", (2,)),
        OutputSpec("score", "float32", ()),
        OutputSpec("flag", "bool", ()),
        OutputSpec("cube", "float64", (2, 1)),
    )
    assert manifest.inputs == (InputSpec("features", COLUMNS, dtype="float32", shape=(3,)),)
    assert (manifest.name, manifest.version, manifest.file) == ("fraud", "0", "fraud.pt")
    assert manifest.format == {script: "torchscript", export: "pt2"}[save]
    assert manifest.sha256 == hashlib.sha256(data).hexdigest()
    # This is the only output of one float per row.
    assert manifest.score_output == "score"


@pytest.mark.parametrize("save", [script, export])
@pytest.mark.parametrize(
    ("module", "outputs"),
    [
        (Pair(), (OutputSpec("output_0"), OutputSpec("output_1", "int64", (3,)))),
        (Single(), (OutputSpec("output"),)),
    ],
)
def test_outputs_without_names_are_numbered(
    save: Any, module: nn.Module, outputs: tuple[OutputSpec, ...]
) -> None:
    manifest = infer_manifest(bare(save(module)), COLUMNS, name="n", version="7")
    assert manifest.outputs == outputs
    assert manifest.score_output == outputs[0].name
    assert (manifest.name, manifest.version) == ("n", "7")


def test_a_model_of_one_column_takes_numbers_and_not_lists() -> None:
    spec = infer_manifest(bare(script(Single())), ["Amount"]).inputs[0]
    assert not spec.is_list_column
    assert spec.arrow_type == pa.list_(pa.float32(), 1)


def test_weights_need_an_architecture() -> None:
    data = weights(Named())
    with pytest.raises(ManifestError, match="expected architecture 'module:Class'"):
        infer_manifest(bare(data), COLUMNS)
    manifest = infer_manifest(
        bare(data), COLUMNS, architecture=f"{__name__}:Named", trusted_modules=[__name__]
    )
    assert [spec.name for spec in manifest.outputs] == ["code", "score", "flag", "cube"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Fixed(),
            r"output 'output' has shape \[2\] for 2 rows and \[2\] for 3: "
            "expected the number of rows as the first dimension; keep the batch dimension",
        ),
        (Total(), r"output 'output' has shape \[\] for 2 rows"),
        (Strange(), "expected a tensor, a tuple of tensors or .*, got int as output 'output_1'"),
        (ByNumber(), "expected a tensor, .*, got Tensor as output 1"),
        (Half(), "output 'output' has dtype bfloat16, expected one of float32, "),
        (Shifting(), r"same outputs for any number of rows, got \['rows_2'\] for 2 and"),
    ],
)
def test_answers_that_are_not_one_row_per_row_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ContractBroken, match=message):
        infer_manifest(bare(script(module)), COLUMNS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("columns", [("a", "b"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("save", [script, export])
def test_another_number_of_columns_is_refused(save: Any, columns: tuple[str, ...]) -> None:
    with pytest.raises(ContractBroken, match=r"fails on 2 rows of \d zeros: .*--feature_columns"):
        infer_manifest(bare(save(Named())), columns)


class Both(nn.Module):
    def forward(self, x: Tensor, shop: Tensor) -> Tensor:
        return x.sum(1) + shop


class Members(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return x["a"].sum(1)


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).sum((1, 2))


DOUBLE, HALF = nn.Linear(3, 1).double(), nn.Linear(3, 1).half()
BFLOAT = nn.Linear(3, 1).bfloat16()
ROW = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: script(Both()), r"takes 2 inputs \(x, shop\), .* all of them with --inputs"),
        (lambda: exported(Both(), ROW, ROW[:, 0]), r"takes 2 inputs \(x, shop\)"),
        (lambda: script(Members()), r"input x takes Dict\[str, Tensor\]: wrap the model"),
        (lambda: script(BFLOAT), r"takes bfloat16 instead of float32: convert .*\(torch.bfloat16"),
    ],
)
def test_inputs_that_cannot_be_inferred_are_named(data: Any, message: str) -> None:
    with pytest.raises(ContractBroken, match=message) as caught:
        infer_manifest(bare(data()), COLUMNS)
    assert "dynamic batch" not in str(caught.value)


def exported(module: nn.Module, *args: Tensor) -> bytes:
    buffer, rows = io.BytesIO(), {0: torch.export.Dim("rows")}
    program = torch.export.export(module.eval(), args, dynamic_shapes=tuple(rows for _ in args))
    torch.export.save(program, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (lambda: script(Lookup()), "int64"),
        (lambda: exported(Lookup(), ROW.long()), "int64"),
        (lambda: script(DOUBLE), "float64"),
        (lambda: exported(DOUBLE, ROW.double()), "float64"),
        (lambda: script(HALF), "float16"),
        (lambda: exported(HALF, ROW.half()), "float16"),
    ],
)
def test_the_dtype_of_the_only_input_is_found(data: Any, dtype: str) -> None:
    assert infer_manifest(bare(data()), COLUMNS).inputs == (
        InputSpec("features", COLUMNS, dtype=dtype, shape=(3,)),  # type: ignore[arg-type]
    )


def test_one_column_may_hold_the_list_that_an_exported_model_takes() -> None:
    (spec,) = infer_manifest(bare(export(Named())), ["values"]).inputs
    assert spec.is_list_column
    assert spec.shape == (3,)


def test_a_model_for_one_batch_size_is_refused() -> None:
    with pytest.raises(ContractBroken, match=r"fails on 3 rows of 3 zeros: .*size\(\)\[0\] == 2"):
        infer_manifest(bare(export(Single(), dynamic=False)), COLUMNS)


def test_repeated_columns_are_refused() -> None:
    with pytest.raises(ManifestError, match="expected one or more columns, none of them twice"):
        infer_manifest(bare(script(Single())), ("a", "a"))


# Reading the manifest of a path.


def test_the_manifest_of_a_bare_file_needs_columns(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(script(Single()))
    path = str(tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"has no model.json: pass its columns .*feature_columns"):
        read_manifest(path)
    manifest = read_manifest(path, feature_columns=COLUMNS)
    assert manifest.features == COLUMNS
    assert TorchModelHandler(path, manifest).load_model().manifest == manifest


def test_the_manifest_of_a_package_is_read_from_it(tmp_path: Path) -> None:
    data = script(Single())
    manifest = infer_manifest(bare(data), COLUMNS)
    write_package(tmp_path, data, manifest)
    path = str(tmp_path)
    assert read_manifest(path) == manifest
    assert read_manifest(path, digest=manifest.sha256, feature_columns=COLUMNS) == manifest
    message = r"differs from model.json .*Time,V1,Amount: leave out --feature_columns"
    with pytest.raises(UsageError, match=message):
        read_manifest(path, feature_columns=COLUMNS[::-1])
    with pytest.raises(ModelError, match="--model_digest"):
        read_manifest(path, digest="0" * 64)


# Statistics and known-good rows.


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 30), st.just(2)),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_statistics_agree_with_numpy(values: np.ndarray) -> None:
    found = describe_features(["a", "b"], values)
    assert list(found) == ["a", "b"]
    for i, statistics in enumerate(found.values()):
        column = values[:, i].astype(np.float64)
        assert statistics.count == len(column)
        assert [statistics.min, statistics.max] == [column.min(), column.max()]
        assert statistics.mean == pytest.approx(np.mean(column))
        assert statistics.std == pytest.approx(np.std(column))
        for name, value in statistics.quantiles.items():
            assert value == pytest.approx(np.quantile(column, float(name)))
        assert statistics.min <= statistics.quantiles["0.5"] <= statistics.max


def test_known_good_rows_have_the_answers_of_the_model(tmp_path: Path) -> None:
    module = Named()
    data = script(module)
    values = np.random.default_rng(3).normal(size=(5, 3))
    manifest = infer_manifest(bare(data), COLUMNS)
    golden = with_golden_rows(data, manifest, {"features": values}).golden
    assert golden is not None
    np.testing.assert_array_equal(golden.inputs["features"], values.astype(np.float32))
    with torch.inference_mode():
        expected = module(torch.tensor(values, dtype=torch.float32))
    assert list(golden.outputs) == list(expected)
    for name, tensor in expected.items():
        assert_scores(golden.outputs[name], tensor, name)


def test_known_good_rows_survive_a_round_trip_and_pass_at_load(tmp_path: Path) -> None:
    data = export(Named())
    manifest = infer_manifest(bare(data), COLUMNS)
    manifest = with_golden_rows(data, manifest, {"features": np.eye(3)})
    write_package(tmp_path, data, manifest)
    assert read_manifest(str(tmp_path)) == manifest
    TorchModelHandler(str(tmp_path), manifest).load_model()


def test_rows_with_answers_that_json_cannot_represent_are_refused() -> None:
    data = script(Logarithm())
    manifest = infer_manifest(bare(data), COLUMNS)
    with pytest.raises(
        ContractBroken, match="returns NaN or infinity as output for the first 2 valid rows"
    ):
        with_golden_rows(data, manifest, {"features": -np.ones((2, 3))})


# Archives for TorchServe.


def test_a_mar_survives_a_round_trip_and_always_has_the_same_bytes(tmp_path: Path) -> None:
    data = script(Single())
    manifest = infer_manifest(bare(data), COLUMNS)
    for name in ("a.mar", "folder/b.mar"):
        write_mar(tmp_path / name, data, manifest, "print('served')\n")
    package = read_package(str(tmp_path / "a.mar"), manifest.sha256)
    text = write_manifest(manifest).encode()
    assert package == ModelPackage("fraud.pt", data, manifest, text=text)
    assert (tmp_path / "a.mar").read_bytes() == (tmp_path / "folder/b.mar").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.mar") as archive:
        listing = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
        assert listing["serializedFile"] == "fraud.pt"
        assert archive.read(listing["handler"]) == b"print('served')\n"
        assert archive.testzip() is None


# The command line.


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model_handlers.package", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_creates_a_package_that_runs(tmp_path: Path) -> None:
    data = script(Named())
    (tmp_path / "model.pt").write_bytes(data)
    valid = sample(tmp_path / "rows.parquet")
    done = run(
        *(tmp_path / "model.pt", "--feature_columns", "Time,V1,Amount"),
        *("--sample", tmp_path / "rows.parquet", "--output", tmp_path / "package"),
        *("--name", "fraud", "--version", "2.0", "--score_output", "score"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    manifest = read_manifest(str(tmp_path / "package"))
    assert done.stdout.splitlines() == [
        f"created {tmp_path}/package: fraud 2.0, digest {hashlib.sha256(data).hexdigest()}",
        "outputs: code, score, flag, cube; score: score",
    ]
    assert (manifest.name, manifest.version, manifest.score_output) == ("fraud", "2.0", "score")
    assert manifest.golden is not None
    np.testing.assert_array_equal(manifest.golden.inputs["features"], valid[:8])
    assert manifest.statistics == describe_features(COLUMNS, valid)
    TorchModelHandler(str(tmp_path / "package"), manifest).load_model()


def test_help_imports_neither_torch_nor_beam() -> None:
    script = (
        "import sys; from model_handlers.package import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'apache_beam'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    for flag in ("--feature_columns", "--sample", "--output", "--name", "--version"):
        assert flag in done.stdout


def test_a_failing_command_prints_one_line(tmp_path: Path) -> None:
    done = run(tmp_path / "none.pt", "--feature_columns", "a", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}/none.pt cannot be read: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.pt").write_bytes(script(Named()))
    return tmp_path / "model.pt"


def test_without_a_sample_there_are_no_known_good_rows(model: Path, tmp_path: Path) -> None:
    arguments = [str(model), "--feature_columns", "Time,V1,Amount", "--output", str(tmp_path / "o")]
    assert main(arguments) == 0
    manifest = read_manifest(str(tmp_path / "o"))
    assert (manifest.golden, manifest.statistics) == (None, {})
    assert (manifest.name, manifest.version, manifest.file) == ("model", "1", "model.pt")


def test_a_package_in_the_folder_of_its_model_can_be_created_again(
    model: Path, tmp_path: Path
) -> None:
    arguments = [str(model), "--feature_columns", "Time,V1,Amount", "--output", str(tmp_path)]
    assert main(arguments) == 0
    model.write_bytes(script(Single()))
    assert main(arguments) == 0
    assert [spec.name for spec in read_manifest(str(tmp_path)).outputs] == ["output"]


def test_weights_are_packaged_with_their_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights.pt").write_bytes(weights(Named()))
    arguments = [str(tmp_path / "weights.pt"), "--feature_columns", "Time,V1,Amount"]
    arguments += ["--output", str(tmp_path / "o"), "--architecture", f"{__name__}:Named"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"add --trusted_modules {__name__}" in error
    assert main([*arguments, "--trusted_modules", __name__]) == 0
    manifest = read_manifest(str(tmp_path / "o"))
    assert (manifest.format, manifest.architecture) == ("state_dict", f"{__name__}:Named")
    TorchModelHandler(str(tmp_path / "o"), manifest, trusted_modules=[__name__]).load_model()


@pytest.mark.parametrize("shape", [(-1, 1), (-1, 1, 1)])
def test_a_model_that_returns_lists_of_one_number_has_a_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...]
) -> None:
    path, package = tmp_path / "column.pt", tmp_path / "o"
    path.write_bytes(script(torch.nn.Sequential(torch.nn.Linear(3, 1), Reshaped(shape))))
    pq.write_table(pa.table({name: [1.0, 2.0, 3.0] for name in "abc"}), tmp_path / "s.parquet")
    arguments = ["--feature_columns", "a,b,c", "--sample", str(tmp_path / "s.parquet")]
    assert main([str(path), *arguments, "--output", str(package)]) == 0
    assert "outputs: output; score: output\n" in capsys.readouterr().out
    manifest = read_manifest(str(package))
    assert (manifest.outputs, manifest.score_output) == ((OutputSpec("output"),), "output")
    assert manifest.choose("output") == manifest
    model = TorchModelHandler(str(package), manifest).load_model()
    for rows in (1, 3):
        (answer,) = model.forward([np.ones((rows, 3), np.float32)], slice(0, rows))
        assert answer.shape == (rows,)


def test_a_manifest_may_describe_one_number_as_a_list(tmp_path: Path) -> None:
    data = script(torch.nn.Linear(3, 1))
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    with torch.inference_mode():
        answers = torch.jit.load(io.BytesIO(data))(torch.from_numpy(rows)).tolist()
    found = infer_manifest(ModelPackage("m.pt", data, None), ("a", "b", "c"))
    value = json.loads(write_manifest(found))
    value["outputs"][0]["shape"] = [1]
    value["golden"] = {"inputs": {"features": rows.tolist()}, "outputs": {"output": answers}}
    (tmp_path / "m.pt").write_bytes(data)
    (tmp_path / "model.json").write_text(json.dumps(value))
    manifest = read_manifest(str(tmp_path))
    assert manifest.output("output").shape == ()
    TorchModelHandler(str(tmp_path), manifest).load_model()
    value["golden"]["outputs"]["output"][1][0] += 1
    (tmp_path / "model.json").write_text(json.dumps(value))
    with pytest.raises(ContractBroken, match="known-good row 1, output output"):
        TorchModelHandler(str(tmp_path), read_manifest(str(tmp_path))).load_model()


class Reshaped(torch.nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(self.shape)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--feature_columns", "a", "--output", "{}/o", "--smaple", "x"], 2, "unknown argume"),
        (["--feature_columns", "a,b", "--output", "{}/o"], 1, "fails on 2 rows of 2 zeros"),
        (["--feature_columns", "a,a,b", "--output", "{}/o"], 1, "columns, none of them twice"),
        (
            ["--feature_columns", "a,b,c", "--output", "{}/o", "--score_output", "scroe"],
            2,
            "no output 'scroe' (did you mean 'score",
        ),
        (
            ["--feature_columns", "a,b,c", "--output", "{}/o", "--score_output", "code"],
            2,
            "'code' has shape [2] per row, so it cannot be the score",
        ),
        (
            ["--feature_columns", "Time,V1,Amont", "--output", "{}/o", "--sample", "{}/s.parquet"],
            1,
            "has no column 'Amont' (did you mean 'Amount'?)",
        ),
        (
            ["--feature_columns", "Time,V1,id", "--output", "{}/o", "--sample", "{}/s.parquet"],
            1,
            "got none (column id: expected float32, got null or another string in 40 rows)",
        ),
        (
            ["--feature_columns", "a,b,c", "--output", "{}/o", "--sample", "{}/none.parquet"],
            1,
            "none.parquet does not exist: expected a Parquet file",
        ),
        (
            ["--feature_columns", "a,b,c", "--output", "{}/o", "--sample", "{}/model.pt"],
            1,
            "model.pt: expected a Parquet file, but it cannot be read as one (Arrow",
        ),
        (
            ["--feature_columns=Time,V1,Amount", "--output", "{}/o", "--sample", "{}/nan.parquet"],
            1,
            "expected at least one row without null, NaN or infinity, got none",
        ),
        (["--feature_columns", "a,b,c", "--output", "{}/model.pt/o"], 1, "cannot be written: "),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    folder = model.parent
    sample(folder / "s.parquet")
    nothing = pa.table({name: pa.array([None, float("nan")], pa.float64()) for name in COLUMNS})
    pq.write_table(nothing, folder / "nan.parquet")
    assert main([str(model), *(text.format(folder) for text in arguments)]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not (folder / "o").exists()
