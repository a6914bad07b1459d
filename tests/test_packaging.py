"""Tests of packaging models of several kinds, with steps that are fitted on a sample."""

import datetime
import inspect
import io
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_model import model_bytes
from torch import Tensor, nn

from common.errors import ContractBroken, InputError, ManifestError, UsageError
from millrace import column, field, fit, output, package, prepare
from model_handlers.manifests.manifest import InputSpec, OutputSpec
from model_handlers.manifests.model_json import parse_manifest, write_manifest
from model_handlers.package import main, read_manifest
from model_handlers.packaging.builder import Steps
from model_handlers.packaging.statistics import describe_column
from model_handlers.packaging.step_methods import StepMethods
from model_handlers.packaging.to_fit import TO_FIT, most_frequent
from model_handlers.steps.catalog import STEPS
from model_handlers.steps.raw import RAW_TYPES, become
from model_handlers.torch_model import TorchModelHandler

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from step_methods import is_current

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
ROWS = torch.export.Dim("rows", min=1)


def export(module: nn.Module, *args: Tensor, **kwargs: Tensor) -> bytes:
    """Return a .pt2 whose first dimensions are the number of rows."""
    buffer, rows = io.BytesIO(), {0: ROWS}
    shapes: Any = tuple(rows for _ in args) if args else dict.fromkeys(kwargs, rows)
    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=shapes)
    torch.export.save(program, buffer)
    return buffer.getvalue()


def script(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def load(folder: Path, **options: Any) -> Any:
    """Load a package as a worker does, which runs its known-good rows."""
    return TorchModelHandler(str(folder), read_manifest(str(folder)), **options).load_model()


def sample(rows: int = 200) -> pa.Table:
    """Return rows for the model of raw_model.py; one of 17 amounts is null."""
    random = np.random.default_rng(0)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    hours = random.integers(0, 5000, rows).tolist()
    amounts: list[float | None] = random.gamma(2, 20, rows).tolist()
    amounts[::17] = [None] * len(amounts[::17])
    return pa.table(
        {
            "amount": amounts,
            "limit": random.uniform(10, 100, rows),
            "kind": [["shop", "web", " Phone "][i] for i in random.integers(0, 3, rows)],
            "at": pa.array(
                [start + datetime.timedelta(hours=hour) for hour in hours], RAW_TYPES["timestamp"]
            ),
            "clicks": [random.integers(0, 20, k).tolist() for k in random.integers(0, 8, rows)],
        }
    )


INPUTS: dict[str, Any] = {
    "dense": [
        column("amount").fill("median").log1p().scale(),
        column("amount").fill("mean").divide("limit"),
        column("at").time_part("hour", zone="UTC", cyclic=True),
    ],
    "kind": column("kind").strip().lower().vocabulary(),
    "clicks": column("clicks").pad(4, keep="last"),
    "mask": column("clicks").mask(4, keep="last"),
}
FIELDS = {
    "probabilities": output("logits").softmax(),
    "label": field("probabilities").argmax().names(["stay", "call", "leave"]),
    "probability": field("probabilities").max(),
    "decision": field("probability").cut([0.4, 0.6], ["manual", "check", "auto"]),
}
SPEC = """
outputs = ["logits"]
score = "probability"

[columns]
amount = "float64"

[[inputs]]
name = "mask"
from = [[{ column = "clicks" }, { step = "mask", to = 4, keep = "last" }]]

[[inputs]]
name = "dense"
from = [
  [{column = "amount"}, {step = "fill", value = "median"}, {step = "log1p"}, {step = "scale"}],
  [{ column = "amount" }, { step = "fill", value = "mean" }, { step = "divide", other = "limit" }],
  [{ column = "at" }, { step = "time_part", part = "hour", zone = "UTC", cyclic = true }],
]

[[inputs]]
name = "kind"
from = [[{ column = "kind" }, { step = "strip" }, { step = "lower" }, { step = "vocabulary" }]]

[[inputs]]
name = "clicks"
from = [[{ column = "clicks" }, { step = "pad", to = 4, keep = "last" }]]

[[fields]]
name = "probabilities"
from = [{ output = "logits" }, { step = "softmax" }]

[[fields]]
name = "label"
from = [
  { field = "probabilities" },
  { step = "argmax" },
  { step = "names", values = ["stay", "call", "leave"] },
]

[[fields]]
name = "probability"
from = [{ field = "probabilities" }, { step = "max" }]

[[fields]]
name = "decision"
from = [
  { field = "probability" },
  { step = "cut", at = [0.4, 0.6], names = ["manual", "check", "auto"] },
]
"""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with the model of raw_model.py and a sample."""
    (tmp_path / "model.pt2").write_bytes(model_bytes())
    pq.write_table(sample(), tmp_path / "rows.parquet")
    return tmp_path


# Raw columns.


def test_a_package_of_raw_columns_answers_its_raw_golden_rows(raw: Path) -> None:
    manifest = package(
        raw / "model.pt2",
        raw / "package",
        sample=raw / "rows.parquet",
        inputs=INPUTS,
        fields=FIELDS,
        score="probability",
        outputs=["logits"],
    )
    assert manifest == read_manifest(str(raw / "package"))
    assert (raw / "package" / "kind.txt").read_text().split() == ["phone", "web", "shop"]
    assert manifest.columns == {
        "amount": "float64",
        "limit": "float64",
        "at": "timestamp",
        "kind": "string",
        "clicks": "list<int64>",
    }
    assert [spec.dtype for spec in manifest.inputs] == ["float32", "int64", "int64", "float32"]
    golden = manifest.golden
    assert golden is not None
    assert golden.rows[0]["amount"] is None
    assert golden.rows[0]["at"] == sample()["at"][0].as_py().isoformat()
    assert len(golden.rows) == len(golden.fields["decision"]) == 8
    model = load(raw / "package")
    tensors, refused = model.preparation.tensors(golden.rows)
    assert not refused
    found = model.forward(tensors, slice(0, 8))[0]
    np.testing.assert_allclose(golden.outputs["logits"], found, rtol=1e-5)


def test_a_file_describes_what_python_does(raw: Path) -> None:
    (raw / "spec.toml").write_text(SPEC)
    arguments = ["--inputs", str(raw / "spec.toml"), "--sample", str(raw / "rows.parquet")]
    assert main([str(raw / "model.pt2"), "--output", str(raw / "file"), *arguments]) == 0
    package(
        raw / "model.pt2",
        raw / "python",
        sample=raw / "rows.parquet",
        inputs=INPUTS,
        fields=FIELDS,
        score="probability",
        outputs=["logits"],
        columns={"amount": "float64"},
    )
    for name in ("model.json", "kind.txt"):
        assert (raw / "file" / name).read_bytes() == (raw / "python" / name).read_bytes()


@pytest.mark.slow
def test_training_and_serving_prepare_a_row_alike(raw: Path) -> None:
    fitted = fit(raw / "rows.parquet", INPUTS)
    training = prepare(raw / "rows.parquet", fitted)
    manifest = package(
        raw / "model.pt2", raw / "package", sample=raw / "rows.parquet", inputs=fitted
    )
    model = load(raw / "package")
    assert manifest.golden is not None
    serving, _ = model.preparation.tensors(manifest.golden.rows)
    for name, array in zip(training, serving, strict=True):
        np.testing.assert_array_equal(training[name][:8], array)
        assert training[name].dtype == array.dtype
    assert all(isinstance(tensor, Tensor) for tensor in training.torch().values())


def test_rows_that_a_run_would_refuse_are_left_out_of_training() -> None:
    table = pa.table({"a": [1.0, None, -3.0, 2.0], "kind": ["x", "x", "x", "y"]})
    found = prepare(
        table,
        {"a": column("a").log1p(), "kind": column("kind").vocabulary(["x"])},
    )
    assert found.rows.tolist() == [0]
    reasons: dict[int, tuple[str, str]] = {}
    for refused in found.refused:
        for row in refused.rows.tolist():
            reasons.setdefault(row, (refused.column, refused.reason))
    assert reasons == {
        1: ("a", "null"),
        2: ("a", "out_of_range"),
        3: ("kind", "unknown_value"),
    }
    np.testing.assert_array_equal(found["a"], np.log1p(np.array([1.0])).astype(np.float32))


# Models as people have them.


class Classes(nn.Module):
    """Five classes, [rows, 5]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize("save", [script, lambda m: export(m, torch.zeros(2, 3))])
def test_classes_get_names(tmp_path: Path, save: Callable[[nn.Module], bytes]) -> None:
    (tmp_path / "m.pt").write_bytes(save(Classes()))
    table = pa.table({name: np.arange(20.0) / 7 for name in "abc"})
    names = ["v", "w", "x", "y", "z"]
    manifest = package(
        tmp_path / "m.pt",
        tmp_path / "p",
        sample=table,
        inputs={"x": ["a", "b", "c"]},
        fields={
            "label": output("output").argmax().names(names),
            "best": output("output").softmax().top_k(names, k=2),
        },
    )
    # Numbers without steps are read as in a version 1 manifest.
    assert manifest.inputs == (InputSpec("x", ("a", "b", "c"), shape=(3,)),)
    assert manifest.columns == {}
    assert manifest.golden is not None
    expected = np.array(names)[np.argmax(manifest.golden.outputs["output"], axis=1)]
    assert manifest.golden.fields["label"] == expected.tolist()
    assert [best[0]["name"] for best in manifest.golden.fields["best"]] == expected.tolist()
    load(tmp_path / "p")


class Column(nn.Module):
    """A regression of one feature in the shape [rows, 1], for which [rows] is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize("save", [script, lambda m: export(m, torch.zeros(2, 1))])
def test_a_single_feature_may_be_a_column(
    tmp_path: Path, save: Callable[[nn.Module], bytes]
) -> None:
    (tmp_path / "m.pt").write_bytes(save(Column()))
    table = pa.table({"a": [1.0, 2.0, 3.0]})
    manifest = package(tmp_path / "m.pt", tmp_path / "p", sample=table, inputs={"x": ["a"]})
    assert manifest.inputs[0].shape == (1,)
    assert manifest.score_output == "output"
    load(tmp_path / "p")


class Tokens(nn.Module):
    """Embeddings of int64 tokens, with keyword arguments as models of Hugging Face have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(30, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask[:, :, None]
        return {"embedding": (self.table(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)}


@pytest.mark.slow
def test_a_model_with_keyword_arguments_reads_columns_of_their_names(tmp_path: Path) -> None:
    ids = torch.zeros(2, 6, dtype=torch.int64)
    data = export(Tokens(), input_ids=ids, attention_mask=torch.ones_like(ids))
    (tmp_path / "m.pt2").write_bytes(data)
    random = np.random.default_rng(0)
    rows = {
        "input_ids": pa.array(random.integers(0, 30, (40, 6)).tolist()),
        "attention_mask": pa.array(random.integers(0, 2, (40, 6)).tolist()),
        "other": pa.array(["x"] * 40),
    }
    manifest = package(tmp_path / "m.pt2", tmp_path / "p", sample=pa.table(rows))
    assert manifest.schema_version == 1
    assert manifest.inputs == tuple(
        InputSpec(name, (name,), dtype="int64", shape=(6,))
        for name in ("input_ids", "attention_mask")
    )
    assert manifest.outputs == (OutputSpec("embedding", shape=(8,)),)
    load(tmp_path / "p")


class Pair(NamedTuple):
    score: Tensor
    kind: Tensor


class Named(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x.sum(1), x.argmax(1))


def test_a_named_tuple_keeps_its_names(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(script(Named()))
    table = pa.table({"a": [1.0, 2.0], "b": [3.0, 0.0]})
    manifest = package(tmp_path / "m.pt", tmp_path / "p", sample=table, inputs={"x": ["a", "b"]})
    assert manifest.outputs == (OutputSpec("score"), OutputSpec("kind", "int64"))
    assert manifest.score_output == "score"
    load(tmp_path / "p")


class Series(nn.Module):
    """An LSTM over series of any length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(1, 4, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, series: Tensor, mask: Tensor) -> Tensor:
        states = self.lstm(series[:, :, None])[0] * mask[:, :, None]
        return self.out(states.mean(1)).squeeze(-1)


@pytest.mark.slow
def test_series_of_any_length_are_padded(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(script(Series()))
    values = [np.linspace(0, 1, length).tolist() for length in (3, 9, 0, 12, 5)]
    table = pa.table({"temperatures": pa.array(values, pa.list_(pa.float64()))})
    temperatures = column("temperatures")
    manifest = package(
        tmp_path / "m.pt",
        tmp_path / "p",
        sample=table,
        inputs={
            "series": temperatures.scale().pad(10, keep="last"),
            "mask": temperatures.mask(10, keep="last"),
        },
    )
    assert [spec.shape for spec in manifest.inputs] == [(10,), (10,)]
    assert manifest.column_statistics["temperatures"].lengths is not None
    load(tmp_path / "p")


class Sized(nn.Module):
    """A class that needs an argument."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, hidden), nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).squeeze(-1)


def test_a_class_gets_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    torch.save(Sized(7).state_dict(), buffer)
    (tmp_path / "weights.pt").write_bytes(buffer.getvalue())
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [0.0, 1.0]}), tmp_path / "rows.parquet")
    arguments = [str(tmp_path / "weights.pt"), "--output", str(tmp_path / "p")]
    arguments += ["--feature_columns", "a,b", "--sample", str(tmp_path / "rows.parquet")]
    arguments += ["--architecture", f"{__name__}:Sized", "--trusted_modules", __name__]
    assert main(arguments) == 1
    assert "cannot be created with architecture_args" in capsys.readouterr().err
    assert main([*arguments, "--architecture_args", '{"hidden": 7}']) == 0
    assert read_manifest(str(tmp_path / "p")).architecture_args == {"hidden": 7}
    load(tmp_path / "p", trusted_modules=[__name__])
    assert main([*arguments, "--architecture_args", "7"]) == 2
    assert "expected a JSON object" in capsys.readouterr().err


class Positive(nn.Module):
    """A model that cannot process zeros."""

    def forward(self, x: Tensor) -> Tensor:
        assert bool((x > 0).all()), "expected values above 0"
        return x.log().sum(1)


def test_a_model_that_cannot_process_zeros_is_tried_on_the_sample(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(script(Positive()))
    inputs = {"x": ["a"]}
    with pytest.raises(ContractBroken, match="or pass --sample if the model cannot process zeros"):
        package(tmp_path / "m.pt", tmp_path / "p", inputs=inputs)
    package(tmp_path / "m.pt", tmp_path / "p", inputs=inputs, sample={"a": [1.0, 2.0]})
    load(tmp_path / "p")


# Inputs that are not described.


def test_a_description_to_start_from_is_printed(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(raw / "model.pt2"), "--output", str(raw / "p")]
    assert main([*arguments, "--sample", str(raw / "rows.parquet")]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert "takes 4 inputs (dense float32 [rows, 4], kind int64 [rows], " in printed.err
    found = tomllib.loads(printed.out)
    assert [spec["name"] for spec in found["inputs"]] == ["dense", "kind", "clicks", "mask"]
    assert found["inputs"][1]["from"] == [
        [{"column": "kind"}, {"step": "vocabulary", "unknown": 0}]
    ]
    assert found["inputs"][2]["from"][0][1] == {"step": "pad", "to": 4, "keep": "last"}
    # It becomes a package once the columns that have no name are filled in.
    text = printed.out.replace('[[{ column = "COLUMN" }]]', "FIRST", 1).replace(
        '[[{ column = "COLUMN" }]]',
        '[[{ column = "clicks" }, { step = "mask", to = 4, keep = "last" }]]',
    )
    four = ", ".join('[{ column = "limit" }]' for _ in range(4))
    text = text.replace("FIRST", f"[{four}]").replace(
        '{ step = "vocabulary", unknown = 0 }', '{ step = "vocabulary" }'
    )
    (raw / "spec.toml").write_text(text)
    described = ["--inputs", str(raw / "spec.toml"), "--sample", str(raw / "rows.parquet")]
    assert main([*arguments, *described]) == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (lambda i: i | {"kinds": "kind"}, r"no input 'kinds' \(did you mean 'kind'\?\); it takes"),
        (lambda i: {"dense": i["dense"]}, "got none for kind, clicks, mask"),
        (lambda i: i | {"dense": i["dense"][:1]}, r"takes dense float32 \[rows, 4\], .* 1 number "),
        (
            lambda i: i | {"kind": column("at")},
            "expected a chain that ends in numbers, got a timestamp",
        ),
        (lambda i: i | {"kind": column("kinds").vocabulary()}, "no column 'kinds' .*'kind'"),
        (
            lambda i: i | {"kind": column("kind").log1p()},
            r"inputs\.kind, column 'kind': expected a number, got other text in \d+ of 200 rows",
        ),
        (lambda i: i | {"kind": 5}, r"expected column\(...\) or the name of a column, got int"),
        (lambda i: i | {"kind": output("x")}, r"expected column\(...\)"),
        (lambda i: i | {"kind": column("kind").vocabulary("none.txt")}, "none.txt cannot be read"),
        (lambda i: i | {"kind": column("kind").vocabulary(most=1)}, "unknown or hash_unknown"),
    ],
)
def test_wrong_inputs_are_refused(raw: Path, inputs: Any, message: str) -> None:
    with pytest.raises((UsageError, ContractBroken, ManifestError, InputError), match=message):
        package(
            raw / "model.pt2", raw / "p", sample=raw / "rows.parquet", inputs=inputs(dict(INPUTS))
        )
    assert not (raw / "p").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[inputs]\n", "not valid TOML"),
        ("[[input]]\n", "input: unknown (did you mean 'inputs'?)"),
        ("[columns]\na = 'int'\n", "columns.a: expected one of float64"),
        ("[[inputs]]\nname = 'x'\n", "inputs[0]: expected from"),
        ("[[inputs]]\nfrom = []\n", "inputs[0].name: expected a name"),
        (
            "[[inputs]]\nname = 'x'\nfrom = [[{column = 'a'}, {step = 'log'}]]\n",
            "inputs[0].from[0][1].step: expected one of",
        ),
        (
            "[[inputs]]\nname = 'x'\nfrom = [[{column = 'a'}, {step = 'clip', min = 'b'}]]\n",
            "inputs[0].from[0][1].min: expected a finite number, got 'b'",
        ),
        (
            "[[fields]]\nname = 'x'\nfrom = [{column = 'a'}]\n",
            'fields[0].from[0]: expected {"column": "..."}',
        ),
    ],
)
def test_a_wrong_description_is_reported_in_one_line(
    raw: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (raw / "spec.toml").write_text(text)
    arguments = ["--inputs", str(raw / "spec.toml"), "--output", str(raw / "p")]
    assert main([str(raw / "model.pt2"), *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith(f"error: --inputs: {raw}/spec.toml")
    assert len(printed.err.splitlines()) == 1


# Methods of steps.


def test_each_step_has_a_method_with_its_members() -> None:
    # `python tools/step_methods.py` writes them.
    assert is_current()
    for name, step in STEPS.items():
        parameters = list(inspect.signature(getattr(StepMethods, name)).parameters)[1:]
        members = inspect.signature(step).parameters.keys()
        fitted = inspect.signature(TO_FIT[name]).parameters.keys() if name in TO_FIT else set()
        assert set(parameters) == members | fitted


# mypy would refuse the wrong values too.
ANY: Any = column("a")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ANY.clip(min="3"), r"column\('a'\).min: expected a finite number"),
        (lambda: column("a").cut([2, 1], ["x", "y", "z"]), "in ascending order"),
        (lambda: column("a").scale(mean=1.0), r"column\('a'\).std: expected a value, got None"),
        (lambda: ANY.time_part("hours"), r"column\('a'\).part: expected one of minute"),
    ],
)
def test_a_wrong_member_is_refused_where_it_is_written(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


# Fitting.


def fitted_steps(values: pa.Array, steps: Steps) -> tuple[Any, dict[str, bytes]]:
    found = fit(pa.table({"a": values}), {"x": steps})
    return found.tensors["x"].columns[0].steps, dict(found.files)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_fitted_numbers_are_those_of_numpy(numbers: list[float]) -> None:
    values = pa.array([*numbers, None])
    steps, _ = fitted_steps(values, column("a").fill("mean").scale().bucket(count=4))
    filled = np.array([*numbers, np.mean(numbers)])
    assert steps[0].value == pytest.approx(np.mean(numbers))
    assert steps[1].mean == pytest.approx(filled.mean())
    deviation = filled.std()
    constant = deviation <= 1e-12 * np.abs(filled).max()
    assert steps[1].std == pytest.approx(1.0 if constant else deviation)
    assert list(steps[2].edges) == sorted(set(steps[2].edges))
    again, _ = fitted_steps(values, column("a").fill("mean").scale().bucket(count=4))
    assert again == steps


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=30), st.integers(1, 6))
def test_a_fitted_vocabulary_has_the_most_frequent_values(values: list[str], most: int) -> None:
    steps, files = fitted_steps(pa.array(values), column("a").vocabulary(most=most, unknown=0))
    lines = files[steps[0].file].decode().splitlines()
    assert lines[0] == "<unknown>"
    assert len(lines) <= most
    counts = sorted(((values.count(v), v) for v in set(values)), key=lambda c: (-c[0], c[1]))
    assert lines[1:] == [value for _, value in counts][: most - 1]
    found = prepare({"a": values}, {"x": Steps("column", "a").vocabulary(lines, unknown=0)})
    expected = [lines.index(value) if value in lines else 0 for value in values]
    assert found["x"].tolist() == expected


def test_columns_with_the_same_values_share_a_file(tmp_path: Path) -> None:
    found = fit(
        pa.table({"a/b": ["x", "y", "y"], "c": ["y", "z", "z"]}),
        {
            "one": column("a/b").vocabulary(),
            "two": column("a/b").vocabulary(),
            "three": column("a/b").vocabulary(most=1, unknown=5),
            "four": column("c").vocabulary(),
        },
    )
    assert found.files == {"a_b.txt": b"y\nx\n", "a_b_2.txt": b"y\n", "c.txt": b"z\ny\n"}


def test_a_vocabulary_of_the_user_becomes_a_file_of_the_package(raw: Path) -> None:
    (raw / "lists").mkdir()
    (raw / "lists" / "kinds.txt").write_text("web\nshop\nphone\n")
    text = SPEC.replace(
        '{ step = "vocabulary" }', '{ step = "vocabulary", file = "lists/kinds.txt" }'
    )
    (raw / "spec.toml").write_text(text)
    arguments = ["--inputs", str(raw / "spec.toml"), "--sample", str(raw / "rows.parquet")]
    assert main([str(raw / "model.pt2"), "--output", str(raw / "p"), *arguments]) == 0
    assert list(read_manifest(str(raw / "p")).files) == ["kinds.txt"]
    assert (raw / "p" / "kinds.txt").read_text() == "web\nshop\nphone\n"


def test_text_of_a_sample_becomes_what_its_steps_take() -> None:
    table = pa.table(
        {
            "n": ["1", "2.5", "x"],
            "t": ["2026-01-02T03:04:05Z", "2026-01-02 03:04:05+01:00", ""],
            "d": ["2026-01-02", "2026-01-03", None],
            "k": ["1", "2", "3"],
        }
    )
    found = fit(
        table,
        {
            "n": column("n").log1p(),
            "t": column("t").time_part("hour", zone="UTC"),
            "d": column("d").time_part("weekday"),
            "k": column("k").vocabulary(),
        },
    )
    assert found.columns == {"n": "float64", "t": "timestamp", "d": "date", "k": "string"}


# Statistics.


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=40))
def test_statistics_of_numbers(values: list[float | None]) -> None:
    found = describe_column(become(pa.array(values, pa.float64()), "float64"))
    known = [value for value in values if value is not None]
    assert found.count == len(values)
    assert found.nulls == pytest.approx((len(values) - len(known)) / max(1, len(values)))
    if not known:
        assert found.numbers is None
        return
    assert found.numbers is not None
    assert (found.numbers.min, found.numbers.max) == (min(known), max(known))
    assert found.numbers.quantiles["0.5"] == pytest.approx(np.median(known))


def test_statistics_of_other_columns() -> None:
    texts = describe_column(become(pa.array(["b", "a", "b", None, "c"]), "string"))
    assert (texts.distinct, texts.categories) == (3, {"b": 2, "a": 1, "c": 1})
    times = describe_column(
        become(pa.array(["2026-01-02T00:00:00Z", "2025-01-02T00:00:00Z", "x"]), "timestamp")
    )
    assert times.earliest is not None
    assert times.earliest.startswith("2025-01-02")
    assert times.refused == pytest.approx(1 / 3)
    assert times.nulls == 0
    lists = describe_column(become(pa.array([["a"], ["a", "b"], None]), "list<string>"))
    assert lists.lengths is not None
    assert (lists.lengths.max, lists.categories) == (2.0, {"a": 2, "b": 1})


def test_a_job_carries_no_values_of_single_rows(raw: Path) -> None:
    manifest = package(
        raw / "model.pt2", raw / "p", sample=raw / "rows.parquet", inputs=INPUTS, outputs=["logits"]
    )
    text = write_manifest(manifest.without_rows())
    assert parse_manifest(text) == manifest.without_rows()
    found = json.loads(text)["column_statistics"]
    assert found["amount"]["nulls"] == 0.06
    assert set(found["amount"]["numbers"]) == {"mean", "std"}
    assert "categories" not in found["kind"]
    assert "earliest" not in found["at"]


@given(st.lists(st.text("abc", max_size=2), max_size=20))
def test_the_most_frequent_values_come_first(values: list[str]) -> None:
    counts = [count for _, count in most_frequent(pa.array(values, pa.string()))]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == len(values)


def test_columns_beside_fitted_inputs_are_refused(tmp_path: Path) -> None:
    fitted = fit({"a": [1.0, 2.0]}, {"x": column("a").scale()})
    with pytest.raises(UsageError, match=r"columns has no effect on the result of fit: pass"):
        package(tmp_path / "m.pt2", tmp_path / "p", inputs=fitted, columns={"a": "float64"})
