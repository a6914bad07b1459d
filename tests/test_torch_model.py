"""Tests of TorchModelHandler: every row gets an answer or an error, in any batch."""

import functools
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import torch
from apache_beam.internal import pickler
from apache_beam.ml.inference.base import KeyedModelHandler, KeyModelMapping, RunInference
from apache_beam.testing.test_pipeline import TestPipeline as LocalPipeline
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples
from same_scores import assert_predictions, assert_scores
from torch import Tensor, nn

from common.errors import (
    ContractBroken,
    DeviceError,
    DigestMismatch,
    MissingDevice,
    ModelError,
    UsageError,
)
from common.record_batch import ERROR, INPUTS, OUTPUTS, concat_batches, struct_columns
from model_handlers import torch_model
from model_handlers.devices.find import check_device, find_devices
from model_handlers.devices.pass_size import PassSize
from model_handlers.loaded_model import LoadedModel, describe_error
from model_handlers.manifests.manifest import GoldenRows, InputSpec, Manifest, OutputSpec
from model_handlers.write_package import write_package

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

# Packages of weights name classes in this module.
TorchModelHandler = functools.partial(torch_model.TorchModelHandler, trusted_modules=(__name__,))
FEATURES = InputSpec("features", ("Time", "V1", "Amount"), shape=(3,))


class Scores(nn.Module):
    """A model of three numbers per row that returns a score and a code of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.out(torch.relu(self.hidden(x)))
        return {"score": y[:, 0].exp(), "code": y[:, 1:]}


class RaisesOnNegative(Scores):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if bool((x[:, 2] < 0).any()):
            raise ValueError("negative Amount")
        y = self.out(torch.relu(self.hidden(x)))
        return {"score": y[:, 0].exp(), "code": y[:, 1:]}


class WorksInPlace(nn.Module):
    """A model that changes its input, even if it then raises."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x.sub_(1000.0)
        if bool((x[:, 2] < -1000.0).any()):
            raise ValueError("negative Amount")
        x.add_(1.0)
        return {"score": x.sum(1), "code": x[:, 1:]}


class Sum(nn.Module):
    """A model that returns the sum of each row."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


class Greedy(nn.Module):
    """A model that runs out of memory above 10 rows, like torch on a GPU."""

    seen: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        Greedy.seen.append(len(x))
        if len(x) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x.sum(1)


class GreedyOnTheHost(nn.Module):
    """A model that requests 4 PB of the host above 10 rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) + torch.zeros([x.shape[0] // 11, 1 << 50]).sum()


SUM = (OutputSpec("score"),)
SCORES = (OutputSpec("score"), OutputSpec("code", shape=(2,)))


def script(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def export(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    dims = ({0: torch.export.Dim("batch")},)
    torch.export.save(
        torch.export.export(module.eval(), (torch.zeros(3, 3),), dynamic_shapes=dims), buffer
    )
    return buffer.getvalue()


def weights(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getvalue()


SAVED: dict[str, Callable[[nn.Module], bytes]] = {
    "torchscript": script,
    "pt2": export,
    "state_dict": weights,
}


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., tuple[str, Manifest]]:
    """Return a function that writes a package of a module, and returns its path and manifest."""

    def write(
        module: nn.Module,
        outputs: tuple[OutputSpec, ...],
        kind: str = "torchscript",
        inputs: tuple[InputSpec, ...] = (FEATURES,),
        **changes: Any,
    ) -> tuple[str, Manifest]:
        torch.manual_seed(5)
        data = SAVED[kind](module)
        values: dict[str, Any] = {
            "name": "m",
            "version": "1",
            "format": kind,
            "file": "model.bin",
            "sha256": hashlib.sha256(data).hexdigest(),
            "inputs": inputs,
            "outputs": outputs,
            "architecture": f"{__name__}:{type(module).__name__}",
        }
        manifest = Manifest(**values | changes)
        folder = tmp_path / f"{type(module).__name__}-{kind}"
        write_package(folder, data, manifest)
        return str(folder), manifest

    return write


Package = Callable[..., tuple[str, Manifest]]


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    values[:, 2] = np.abs(values[:, 2])
    return values


def tensor_column(values: np.ndarray) -> pa.Array:
    """Return the column of an input, for an array `[rows]` or `[rows, width]`."""
    flat = pa.array(values.reshape(-1))
    if values.ndim == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def batch_of(**inputs: np.ndarray) -> pa.RecordBatch:
    """Return a validated batch with these inputs."""
    columns = [tensor_column(values) for values in inputs.values()]
    rows = len(columns[0])
    return pa.record_batch(
        {
            "row_id": pa.array([f"r{i}" for i in range(rows)], pa.string()),
            INPUTS: pa.StructArray.from_arrays(columns, names=list(inputs)),
        }
    )


def features(values: np.ndarray) -> pa.RecordBatch:
    return batch_of(features=values)


def infer(
    handler: torch_model.TorchModelHandler, model: LoadedModel, *batches: pa.RecordBatch
) -> pa.RecordBatch:
    """Return a handler's answers to batches as one batch."""
    answers = handler.run_inference(batches, model)
    assert [a.num_rows for a in answers] == [b.num_rows for b in batches]
    for answer, batch in zip(answers, batches, strict=True):
        assert answer.select(batch.schema.names).equals(batch)
    return concat_batches(answers)


def numbers(answer: pa.RecordBatch, name: str) -> np.ndarray:
    """Return an output as an array `[rows]`, or `[rows, width]` for a list column."""
    column = struct_columns(answer, OUTPUTS)[name]
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column)
    values: np.ndarray = np.asarray(column.flatten())
    return values.reshape(-1, column.type.list_size)


def messages(answer: pa.RecordBatch) -> dict[int, tuple[str, str]]:
    """Return the reason and message of each row with an error."""
    errors = answer.column(ERROR).to_pylist()
    return {i: (e["reason"], e["message"]) for i, e in enumerate(errors) if e is not None}


# Answers.


@pytest.mark.parametrize("kind", SAVED)
def test_answers_agree_with_the_module(package: Package, kind: str) -> None:
    module = Scores().eval()
    path, manifest = package(module, SCORES, kind)
    handler = TorchModelHandler(path, manifest)
    model = handler.load_model()
    for count in (0, 1, 2, 3, 50):
        values = rows_of(count)
        answer = infer(handler, model, features(values))
        with torch.inference_mode():
            expected = module(torch.tensor(values))
        assert answer.schema.field(OUTPUTS).type == pa.struct(
            [(spec.name, spec.arrow_type) for spec in SCORES]
        )
        assert answer.column(OUTPUTS).null_count == 0
        assert answer.column(ERROR).null_count == count
        for name in ("score", "code"):
            assert_scores(numbers(answer, name), expected[name], name)


@st.composite
def slicings(draw: st.DrawFn) -> list[int]:
    return draw(st.lists(st.integers(0, 25), min_size=1, max_size=8))


@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
def test_answers_do_not_depend_on_batches(package: Package, kind: str) -> None:
    path, manifest = package(Scores(), SCORES, kind)
    handler = TorchModelHandler(path, manifest)
    model = handler.load_model()

    @settings(deadline=None, max_examples=examples(60))
    @given(slicings(), st.integers(1, 70))
    def check(sizes: list[int], batch_rows: int) -> None:
        whole = features(rows_of(sum(sizes)))
        model.size = PassSize(10_000)
        expected = infer(handler, model, whole)
        starts = np.cumsum([0, *sizes])
        model.size = PassSize(batch_rows)
        answer = infer(handler, model, *map(whole.slice, starts[:-1].tolist(), sizes))
        assert answer.column("row_id").equals(expected.column("row_id"))
        assert answer.column(ERROR).null_count == sum(sizes)
        for name in ("score", "code"):
            assert_scores(numbers(answer, name), numbers(expected, name), name)

    check()


def test_only_the_requested_outputs_are_returned(package: Package) -> None:
    path, manifest = package(Scores(), SCORES)
    handler = TorchModelHandler(path, manifest, outputs=["code", "code"])
    answer = infer(handler, handler.load_model(), features(rows_of(4)))
    assert [f.name for f in answer.schema.field(OUTPUTS).type] == ["code"]
    with pytest.raises(UsageError, match=r"no output 'scores' \(did you mean 'score"):
        TorchModelHandler(path, manifest, outputs=["scores"])


class Mixed(nn.Module):
    """A model with four inputs of different kinds that returns a tuple of three outputs."""

    def forward(
        self, features: Tensor, merchant: Tensor, amount: Tensor, history: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        table = torch.arange(10.0) * 2
        score = features.sum(1) + table[merchant] + amount + history.sum(2)[:, 1]
        return score, merchant + 1, amount > 0


def test_inputs_and_outputs_of_every_kind(package: Package) -> None:
    inputs = (
        FEATURES,
        InputSpec("merchant", ("merchant",), dtype="int64"),
        InputSpec("amount", ("amount",), dtype="float32"),
        InputSpec("history", ("history",), dtype="float32", shape=(2, 2)),
    )
    outputs = (OutputSpec("score"), OutputSpec("next", "int64"), OutputSpec("positive", "bool"))
    path, manifest = package(Mixed(), outputs, inputs=inputs)
    handler = TorchModelHandler(path, manifest, batch_rows=4)
    values, history = rows_of(10), np.arange(40, dtype=np.float32).reshape(10, 4)
    merchant, amount = np.arange(10), np.linspace(-1, 1, 10, dtype=np.float32)
    batch = batch_of(features=values, merchant=merchant, amount=amount, history=history)
    answer = infer(handler, handler.load_model(), batch.slice(0, 3), batch.slice(3))
    expected = values.sum(1) + merchant * 2 + amount + history[:, 2:].sum(1)
    assert_scores(numbers(answer, "score"), expected)
    assert numbers(answer, "next").tolist() == list(range(1, 11))
    assert numbers(answer, "positive").tolist() == (amount > 0).tolist()


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2) * torch.ones(1, 1, 2)


def test_an_output_of_several_dimensions_is_a_list_of_lists(package: Package) -> None:
    path, manifest = package(Nested(), (OutputSpec("cube", shape=(3, 2)),))
    handler = TorchModelHandler(path, manifest, batch_rows=2)
    answer = infer(handler, handler.load_model(), features(np.ones((3, 3), np.float32)))
    assert struct_columns(answer, OUTPUTS)["cube"].to_pylist() == [[[1.0, 1.0]] * 3] * 3


class Undefined(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) / 0.0


def test_nan_and_infinity_are_returned_unchanged(package: Package) -> None:
    path, manifest = package(Undefined(), SUM)
    handler = TorchModelHandler(path, manifest)
    values = np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0]], np.float32)
    answer = infer(handler, handler.load_model(), features(values))
    np.testing.assert_array_equal(numbers(answer, "score"), [np.nan, np.inf, -np.inf])
    assert answer.column(OUTPUTS).null_count == 0


def test_beam_runs_the_handler(package: Package) -> None:
    path, manifest = package(Scores(), SCORES)
    handler = TorchModelHandler(path, manifest, batch_rows=16)
    whole = features(rows_of(100))
    expected = infer(handler, handler.load_model(), whole)
    # Some elements are larger than a batch, and some are empty.
    sizes = [0, 40, 5, 5, 0, 17, 1, 32, 0]
    starts = np.cumsum([0, *sizes])[:-1].tolist()

    def check(answers: Sequence[pa.RecordBatch]) -> None:
        assert sorted(answer.num_rows for answer in answers) == sorted(sizes)
        rows = [row for answer in answers for row in answer.to_pylist()]
        by_id = {row["row_id"]: row[OUTPUTS] for row in rows}
        assert len(by_id) == len(rows) == 100
        for row in expected.to_pylist():
            assert_predictions(by_id[row["row_id"]], row[OUTPUTS])

    with LocalPipeline(runner="FnApiRunner") as pipeline:
        batches = pipeline | beam.Create([*map(whole.slice, starts, sizes)], reshuffle=False)
        assert_that(batches | RunInference(handler), check)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.slow
def test_a_handler_runs_within_the_keyed_handler_of_beam(package: Package, several: bool) -> None:
    handlers = [
        TorchModelHandler(*package(module, outputs), batch_rows=16)
        for module, outputs in ((Scores(), SCORES), (Sum(), SUM))
    ]
    keyed = KeyedModelHandler(
        [KeyModelMapping([key], handler) for key, handler in zip("ab", handlers, strict=True)]
        if several
        else handlers[0]
    )
    whole = features(rows_of(100))
    # The first element is larger than a batch, and the last is empty.
    elements = [("a", whole.slice(0, 40)), ("b", whole.slice(40, 60)), ("a", whole.slice(0, 0))]
    expected = {
        "a": infer(handlers[0], handlers[0].load_model(), whole.slice(0, 40)),
        "b": infer(handlers[several], handlers[several].load_model(), whole.slice(40, 60)),
    }

    def check(answers: Sequence[tuple[str, pa.RecordBatch]]) -> None:
        assert sorted((key, answer.num_rows) for key, answer in answers) == [
            ("a", 0),
            ("a", 40),
            ("b", 60),
        ]
        for key, answer in answers:
            for got, known in zip(answer.to_pylist(), expected[key].to_pylist(), strict=False):
                assert got["row_id"] == known["row_id"]
                assert_predictions(got[OUTPUTS], known[OUTPUTS])

    with LocalPipeline(runner="FnApiRunner") as pipeline:
        batches = pipeline | beam.Create(elements, reshuffle=False)
        assert_that(batches | RunInference(keyed), check)


# Rows at fault.


@pytest.mark.parametrize(("batch_bytes", "most"), [(1, 1), (12, 1), (40, 3), (1 << 20, 16)])
def test_a_forward_pass_is_bounded_by_the_bytes_of_its_inputs(
    package: Package, batch_bytes: int, most: int
) -> None:
    # The three features of a row are 12 bytes.
    handler = TorchModelHandler(*package(Sum(), SUM), batch_rows=16, batch_bytes=batch_bytes)
    assert handler.load_model().batch_rows == most


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 40), st.integers(1, 4_000))
def test_batches_that_are_gathered_for_a_call_are_within_both_limits(
    sizes: list[int], batch_rows: int, batch_bytes: int
) -> None:
    manifest = Manifest(
        name="m",
        version="1",
        format="torchscript",
        file="m.pt",
        sha256="0" * 64,
        inputs=(FEATURES,),
        outputs=SUM,
    )
    handler = TorchModelHandler("m", manifest, batch_rows=batch_rows, batch_bytes=batch_bytes)
    size_of = handler.batch_elements_kwargs()["element_size_fn"]
    batches = [features(rows_of(count)) for count in sizes]
    parts = [size_of(batch) for batch in batches]
    # Beam adds elements up as long as they are no more than a full batch.
    assert all(part <= batch_rows for part in parts)
    if len(batches) > 1 and sum(parts) <= batch_rows and max(parts) < batch_rows:
        assert sum(batch.num_rows for batch in batches) <= batch_rows
        assert sum(batch.nbytes for batch in batches) <= batch_bytes


@pytest.mark.parametrize("kind", ["torchscript", "state_dict"])
@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
def test_exactly_the_rows_on_which_the_model_raises_fail(
    package: Package, kind: str, batch_rows: int
) -> None:
    path, manifest = package(RaisesOnNegative(), SCORES, kind)
    handler = TorchModelHandler(path, manifest, batch_rows=batch_rows)
    model = handler.load_model()
    values = rows_of(60)
    sound = infer(handler, model, features(values))
    bad_rows = [0, 13, 14, 59]
    values[bad_rows, 2] *= -1
    answer = infer(handler, model, features(values[:20]), features(values[20:]))
    fault = ("model_error", "ValueError: negative Amount")
    assert messages(answer) == dict.fromkeys(bad_rows, fault)
    assert [row is None for row in answer.column(OUTPUTS).to_pylist()] == [
        row in bad_rows for row in range(60)
    ]
    others = np.delete(np.arange(60), bad_rows)
    for name in ("score", "code"):
        assert_scores(numbers(answer, name)[others], numbers(sound, name)[others], name)


def test_a_batch_of_bad_rows_has_no_outputs(package: Package) -> None:
    path, manifest = package(RaisesOnNegative(), SCORES)
    handler = TorchModelHandler(path, manifest)
    answer = infer(handler, handler.load_model(), features(-1 - rows_of(9)))
    assert list(messages(answer)) == list(range(9))
    assert answer.column(OUTPUTS).null_count == 9


def test_if_most_rows_are_bad_few_are_tried_alone(package: Package) -> None:
    path, manifest = package(RaisesOnNegative(), SCORES)
    handler = TorchModelHandler(path, manifest)
    values = rows_of(5_000)
    values[:4_500, 2] *= -1
    answer = infer(handler, handler.load_model(), features(values))
    found = messages(answer)
    assert set(found) >= set(range(4_500))
    texts = {text for _, text in found.values()}
    (left,) = texts - {"ValueError: negative Amount"}
    assert re.fullmatch(
        r"not tried on its own, because most rows of its batch fail: of 128 rows chosen at random, "
        r"\d+ failed, for example with ValueError: negative Amount",
        left,
    )
    assert {reason for reason, _ in found.values()} == {"model_error"}
    alone = [row for row, (_, text) in found.items() if text != left]
    assert len(alone) < 300
    assert set(alone) <= set(range(4_500))


def test_bad_rows_are_found_within_beam(package: Package) -> None:
    path, manifest = package(RaisesOnNegative(), SCORES)
    values = rows_of(50)
    values[[3, 30], 2] = -1

    def check(answers: Sequence[pa.RecordBatch]) -> None:
        failed = {row["row_id"] for answer in answers for row in answer.to_pylist() if row[ERROR]}
        assert failed == {"r3", "r30"}

    with LocalPipeline(runner="FnApiRunner") as pipeline:
        batches = pipeline | beam.Create([features(values)])
        assert_that(batches | RunInference(TorchModelHandler(path, manifest)), check)


@pytest.mark.parametrize("kind", ["torchscript", "state_dict"])
def test_a_model_that_works_in_place_does_not_change_the_batch(package: Package, kind: str) -> None:
    path, manifest = package(WorksInPlace(), SCORES, kind)
    handler = TorchModelHandler(path, manifest)
    values = rows_of(30)
    values[[4, 20], 2] = -5
    batch = features(values.copy())
    answer = infer(handler, handler.load_model(), batch)
    assert batch.equals(features(values))
    assert list(messages(answer)) == [4, 20]
    others = np.delete(np.arange(30), [4, 20])
    expected = (values[others] - 999).sum(1)
    assert_scores(numbers(answer, "score")[others], expected)


class Raises(nn.Module):
    """A model that raises a chosen exception if a row is large."""

    error: BaseException = ValueError()

    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 90).any()):
            raise Raises.error
        return x.sum(1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AttributeError("no attribute"), AttributeError),
        (OSError("disk gone"), OSError),
        (MemoryError("host"), MemoryError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceError),
        (torch.AcceleratorError("device-side assert triggered"), DeviceError),
        (AssertionError("Torch not compiled with CUDA enabled"), MissingDevice),
        (RuntimeError("No CUDA GPUs are available"), MissingDevice),
        (
            NotImplementedError("Could not run 'a' with arguments from the 'XPU' backend"),
            MissingDevice,
        ),
        (RuntimeError("geqrf: LAPACK library not found in compilation"), MissingDevice),
        (AssertionError("Guard failed: x.size()[0] == 3"), ContractBroken),
    ],
)
def test_faults_of_the_machine_are_not_blamed_on_rows(
    package: Package, error: Exception, expected: type[Exception]
) -> None:
    path, manifest = package(Raises(), SUM, "state_dict")
    handler = TorchModelHandler(path, manifest)
    model = handler.load_model()
    Raises.error = error
    with pytest.raises(expected):
        handler.run_inference([features(rows_of(5) + 100)], model)


class Branch(nn.Module):
    """A model with a branch for large rows that needs a device that no machine of the tests has."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 90).any()):
            x = x.to(torch.device("cuda", 99))
        return x.sum(1)


@pytest.mark.parametrize("kind", ["torchscript", "state_dict"])
def test_a_branch_that_needs_a_missing_device_is_not_blamed_on_rows(
    package: Package, kind: str
) -> None:
    path, manifest = package(Branch(), SUM, kind)
    handler = TorchModelHandler(path, manifest, device="cpu")
    model = handler.load_model()
    assert messages(infer(handler, model, features(rows_of(5)))) == {}
    with pytest.raises(DeviceError) as caught:
        handler.run_inference([features(rows_of(5) + 100)], model)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (IndexError("index 12 is out of range"), "IndexError: index 12 is out of range"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (KeyError("category"), "KeyError: 'category'"),
        (RuntimeError("one\n two\nthree"), "RuntimeError: one two three"),
        (AssertionError(), "AssertionError: AssertionError"),
    ],
)
def test_faults_of_rows_are_reported_in_one_line(
    package: Package, error: Exception, message: str
) -> None:
    path, manifest = package(Raises(), SUM, "state_dict")
    handler = TorchModelHandler(path, manifest)
    model = handler.load_model()
    Raises.error = error
    answer = infer(handler, model, features(rows_of(2) + 100))
    assert messages(answer) == dict.fromkeys(range(2), ("model_error", message))


def test_the_description_of_an_error_in_a_script_has_its_message() -> None:
    @torch.jit.script
    def divide(x: Tensor) -> Tensor:
        return x / x[:, 5]

    with pytest.raises(RuntimeError) as caught:
        divide(torch.ones(2, 3))
    assert describe_error(caught.value).startswith("RuntimeError: select(): index 5 out of range")


# Models that do not match their manifest.


class Drops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)[x[:, 0] > -90]


def test_a_model_that_returns_fewer_rows_fails_the_run(package: Package) -> None:
    path, manifest = package(Drops(), SUM)
    handler = TorchModelHandler(path, manifest)
    values = rows_of(5)
    values[:, 0] = [1, 1, -99, 1, 1]
    with pytest.raises(
        ContractBroken, match=r"'score' for 5 rows: expected float32 \[5\], got float32 \[4\]"
    ):
        handler.run_inference([features(values)], handler.load_model())
    with (
        pytest.raises(Exception, match=r"expected float32 \[5\], got float32 \[4\]"),
        LocalPipeline(runner="FnApiRunner") as pipeline,
    ):
        _ = pipeline | beam.Create([features(values)]) | RunInference(handler)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((OutputSpec("score", "float64"),), r"expected float64 \[2\], got float32 \[2\]"),
        ((OutputSpec("score", shape=(2,)),), r"expected float32 \[2, 2\], got float32 \[2\]"),
        ((OutputSpec("a"), OutputSpec("b")), r"expected 2 outputs \(a, b\), got 1"),
    ],
)
def test_a_tensor_that_differs_from_the_manifest_is_refused_at_load(
    package: Package, outputs: tuple[OutputSpec, ...], message: str
) -> None:
    path, manifest = package(Sum(), outputs)
    with pytest.raises(ContractBroken, match=message):
        TorchModelHandler(path, manifest).load_model()


@pytest.mark.parametrize("kind", SAVED)
def test_a_dict_that_lacks_an_output_is_refused_at_load(package: Package, kind: str) -> None:
    path, manifest = package(Scores(), (*SCORES, OutputSpec("reconstruction")), kind)
    with pytest.raises(ModelError, match="reconstruction") as caught:
        TorchModelHandler(path, manifest).load_model()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "inputs",
    [
        (InputSpec("features", ("a", "b"), shape=(2,)),),
        (InputSpec("features", ("a", "b", "c"), dtype="int64", shape=(3,)),),
        (FEATURES, InputSpec("more", ("d",))),
    ],
)
@pytest.mark.parametrize("kind", SAVED)
def test_inputs_that_do_not_fit_the_model_are_refused_at_load(
    package: Package, kind: str, inputs: tuple[InputSpec, ...]
) -> None:
    path, manifest = package(Scores(), SCORES, kind, inputs)
    with pytest.raises(
        ModelError, match=r"fails on two rows of zeros: |does not have the outputs|size\(\)\[1\] =="
    ) as e:
        TorchModelHandler(path, manifest).load_model()
    assert len(str(e.value).splitlines()) == 1


def test_a_pt2_for_one_batch_size_is_refused(package: Package, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Sum(), (torch.zeros(8, 3),)), buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    _, manifest = package(Sum(), SUM, "pt2", sha256=digest)
    write_package(tmp_path / "static", buffer.getvalue(), manifest)
    message = r"cannot process 2 rows: Guard failed.*dynamic batch"
    with pytest.raises(ContractBroken, match=message):
        TorchModelHandler(str(tmp_path / "static"), manifest).load_model()


def test_a_pt2_for_at_most_some_rows_runs_in_passes(package: Package, tmp_path: Path) -> None:
    buffer, most = io.BytesIO(), {0: torch.export.Dim("rows", max=64)}
    program = torch.export.export(Sum(), (torch.zeros(8, 3),), dynamic_shapes=(most,))
    torch.export.save(program, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    _, manifest = package(Sum(), SUM, "pt2", sha256=digest)
    write_package(tmp_path / "most", buffer.getvalue(), manifest)
    handler = TorchModelHandler(str(tmp_path / "most"), manifest)
    values = rows_of(1_000)
    model = handler.load_model()
    answer = infer(handler, model, features(values))
    assert_scores(numbers(answer, "score"), values.sum(1))
    assert messages(answer) == {}
    assert model.batch_rows == 64


def golden(module: nn.Module, rows: int = 8, **changes: Any) -> GoldenRows:
    values = rows_of(rows, seed=2)
    with torch.inference_mode():
        answer = module.eval()(torch.tensor(values))
    outputs = {name: tensor.tolist() for name, tensor in answer.items()}
    return GoldenRows({"features": values.tolist()}, outputs | changes)


@pytest.mark.parametrize("kind", SAVED)
def test_correct_known_good_rows_pass(package: Package, kind: str) -> None:
    module = Scores()
    path, manifest = package(module, SCORES, kind, golden=golden(module))
    TorchModelHandler(path, manifest).load_model()
    TorchModelHandler(path, manifest, outputs=["code"]).load_model()


def test_a_wrong_known_good_row_is_named_with_output_and_numbers(package: Package) -> None:
    module = Scores()
    expected = golden(module).outputs["code"]
    expected[3][1] += 0.01
    path, manifest = package(module, SCORES, golden=golden(module, code=expected))
    number = re.escape(f"{np.float32(expected[3][1])}")
    message = rf"for known-good row 3, output code is [-0-9.e]+, expected {number}; this is"
    recorded = "m 1 does not reproduce the answers recorded in its model.json"
    with pytest.raises(ContractBroken, match=f"{recorded}: {message}"):
        TorchModelHandler(path, manifest).load_model()
    # If the job does not carry the rows, the worker reads them together with the model.
    with pytest.raises(ContractBroken, match=message):
        TorchModelHandler(path, manifest.without_rows()).load_model()
    # Outputs that are not requested are neither computed nor compared.
    TorchModelHandler(path, manifest, outputs=["score"]).load_model()


def test_known_good_rows_on_which_the_model_raises_are_reported(package: Package) -> None:
    rows = GoldenRows({"features": [[0, 0, -1]]}, {"score": [1]})
    path, manifest = package(RaisesOnNegative(), SCORES, golden=rows)
    with pytest.raises(
        ContractBroken, match="fails on its known-good rows: ValueError: negative Amount"
    ):
        TorchModelHandler(path, manifest).load_model()


def test_known_good_rows_may_hold_integers_and_booleans(package: Package) -> None:
    inputs = (InputSpec("merchant", ("merchant",), dtype="int64"),)
    outputs = (OutputSpec("next", "int64"), OutputSpec("even", "bool"))

    right = GoldenRows({"merchant": [1, 2]}, {"next": [2, 3], "even": [False, True]})
    path, manifest = package(Counts(), outputs, inputs=inputs, golden=right)
    TorchModelHandler(path, manifest).load_model()
    wrong = GoldenRows({"merchant": [1, 2]}, {"next": [2, 3], "even": [True, True]})
    path, manifest = package(Counts(), outputs, inputs=inputs, golden=wrong)
    with pytest.raises(ContractBroken, match="row 0, output even is False, expected True; this"):
        TorchModelHandler(path, manifest).load_model()


class Counts(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x % 2 == 0


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_passes_known_good_rows_and_returns_float32(
    package: Package, kind: str, precision: Any
) -> None:
    module = Scores()
    path, manifest = package(module, SCORES, kind, golden=golden(module))
    handler = TorchModelHandler(path, manifest, precision=precision, device="cpu")
    model = handler.load_model()
    answer = infer(handler, model, features(rows_of(20)))
    exact = infer(handler, TorchModelHandler(path, manifest).load_model(), features(rows_of(20)))
    difference = np.abs(numbers(answer, "code") - numbers(exact, "code"))
    assert 0 < difference.max() < 0.05


# Memory.


def test_running_out_of_memory_halves_the_batch_and_goes_on(package: Package) -> None:
    path, manifest = package(Greedy(), SUM, "state_dict")
    handler = TorchModelHandler(path, manifest, batch_rows=64)
    model = handler.load_model()
    values = rows_of(150)
    Greedy.seen.clear()
    answer = infer(handler, model, features(values))
    assert_scores(numbers(answer, "score"), values.sum(1))
    assert messages(answer) == {}
    assert model.batch_rows == 8
    assert [n for n in Greedy.seen if n > 10] == [64, 32, 16]
    Greedy.seen.clear()
    infer(handler, model, features(values))
    assert max(Greedy.seen) == 8


def test_running_out_of_host_memory_in_a_script_halves_the_batch_too(package: Package) -> None:
    path, manifest = package(GreedyOnTheHost(), SUM)
    handler = TorchModelHandler(path, manifest, batch_rows=50)
    model = handler.load_model()
    values = rows_of(50)
    answer = infer(handler, model, features(values))
    assert_scores(numbers(answer, "score"), values.sum(1))
    assert messages(answer) == {}
    assert model.batch_rows == 6


class Gluttonous(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 0).any()):
            x = x + torch.zeros([1 << 50]).sum()
        return x.sum(1)


def test_one_row_that_exhausts_the_memory_is_not_blamed(package: Package) -> None:
    path, manifest = package(Gluttonous(), SUM)
    handler = TorchModelHandler(path, manifest)
    with pytest.raises(
        MemoryError, match="this worker has too little memory for one row"
    ) as caught:
        handler.run_inference([features(rows_of(4))], handler.load_model())
    assert len(str(caught.value).splitlines()) == 1


class RaisesAndIsGreedy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if bool((x[:, 2] < 0).any()):
            raise ValueError("negative Amount")
        return x.sum(1)


def test_bad_rows_are_found_even_if_memory_is_short(package: Package) -> None:
    path, manifest = package(RaisesAndIsGreedy(), SUM, "state_dict")
    handler = TorchModelHandler(path, manifest)
    values = rows_of(33)
    values[[7, 32], 2] = -1
    answer = infer(handler, handler.load_model(), features(values))
    assert list(messages(answer)) == [7, 32]
    others = np.delete(np.arange(33), [7, 32])
    assert_scores(numbers(answer, "score")[others], values[others].sum(1))


# Options, and the methods that Beam calls.


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_valid_device_names_are_accepted(device: str) -> None:
    assert check_device(device) == device


@pytest.mark.parametrize("device", ["gpu", "GPU", "CPU", "", "cuda:", "cuda:-1", "cuda:0 ", "mps"])
def test_other_device_names_are_refused(package: Package, device: str) -> None:
    path, manifest = package(Sum(), SUM)
    with pytest.raises(UsageError, match=r"device must be auto, cpu, cuda or cuda:N, got"):
        TorchModelHandler(path, manifest, device=device)


def test_a_missing_device_is_refused_on_the_worker(package: Package) -> None:
    path, manifest = package(Sum(), SUM)
    handler = TorchModelHandler(path, manifest, device="cuda:99")
    with pytest.raises(
        DeviceError,
        match=r"cuda:99 is not available: this worker has \d+ CUDA devices?; use --device",
    ):
        handler.load_model()


def test_auto_uses_the_gpu_if_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert {device.type for device in find_devices("auto")} == {expected}
    assert find_devices("cpu") == (torch.device("cpu"),)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_rows": 0}, r"must be at least 1, got 0 and \d+"),
        ({"batch_bytes": 0}, r"must be at least 1, got \d+ and 0"),
        ({"threads": 0}, "must be at least 1, got 0"),
        ({"precision": "int8"}, "precision must be float32, tf32, bf16, fp16 or auto, got 'int8'"),
        ({"compile": True}, "compile is not possible for a TorchScript model; use a .pt2"),
    ],
)
def test_options_out_of_range_are_refused(
    package: Package, option: dict[str, Any], message: str
) -> None:
    path, manifest = package(Sum(), SUM)
    with pytest.raises(UsageError, match=message):
        TorchModelHandler(path, manifest, **option)


def test_threads_are_set_where_the_model_is_loaded(package: Package) -> None:
    path, manifest = package(Sum(), SUM)
    for threads in (2, 1):
        TorchModelHandler(path, manifest, threads=threads).load_model()
        assert torch.get_num_threads() == threads


def test_a_pickled_copy_of_a_handler_answers_the_same(package: Package) -> None:
    path, manifest = package(Scores(), SCORES)
    handler = TorchModelHandler(path, manifest, batch_rows=7, outputs=["score"])
    copy = pickler.loads(pickler.dumps(handler))
    assert (copy.manifest, copy.outputs, copy.batch_rows) == (manifest, ("score",), 7)
    batch = features(rows_of(20))
    expected = infer(handler, handler.load_model(), batch)
    assert infer(copy, copy.load_model(), batch).equals(expected)


def test_loading_does_not_change_the_handler(package: Package) -> None:
    path, manifest = package(Sum(), SUM)
    handler = TorchModelHandler(path, manifest)
    before = dict(vars(handler))
    handler.load_model()
    assert vars(handler) == before


def test_a_model_changed_after_the_pipeline_was_built_is_refused(package: Package) -> None:
    path, manifest = package(Sum(), SUM)
    handler = TorchModelHandler(path, manifest)
    package(Undefined(), SUM)
    other, changed = package(Undefined(), SUM)
    write_package(Path(path), (Path(other) / "model.bin").read_bytes(), changed)
    with pytest.raises(DigestMismatch):
        handler.load_model()


def test_the_size_of_a_batch_counts_only_the_inputs(package: Package) -> None:
    path, manifest = package(Sum(), SUM)
    handler = TorchModelHandler(path, manifest)
    batch = features(rows_of(1000))
    assert handler.get_num_bytes([batch]) == 1000 * 3 * 4
    assert handler.get_num_bytes([batch.slice(10, 5), batch.slice(0, 1)]) == 6 * 3 * 4
    assert handler.get_num_bytes([]) == 0
    assert handler.run_inference([], handler.load_model()) == []


def test_metrics_are_in_the_namespace_of_the_project(package: Package) -> None:
    path, manifest = package(Sum(), SUM)
    handler = TorchModelHandler(path, manifest)
    with LocalPipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create([features(rows_of(9))]) | RunInference(handler)
    counters = {
        counter.key.metric.name: counter.committed
        for counter in pipeline.result.metrics().query()["counters"]
        if counter.key.metric.namespace == "millrace"
    }
    assert counters["rows_inferred"] == 9


class Linear(nn.Module):
    """A model that a C++ compiler does not take ten seconds to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.out(x)
        return {"score": y[:, 0], "code": y[:, 1:]}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
@pytest.mark.slow
def test_a_compiled_model_answers_the_same(package: Package) -> None:
    module = Linear()
    path, manifest = package(module, SCORES, "pt2", golden=golden(module))
    handler = TorchModelHandler(path, manifest, compile=True, device="cpu")
    model = handler.load_model()
    plain = TorchModelHandler(path, manifest, device="cpu").load_model()
    for count in (2, 5, 40):
        batch = features(rows_of(count))
        answer, expected = infer(handler, model, batch), infer(handler, plain, batch)
        assert_scores(numbers(answer, "score"), numbers(expected, "score"))
