"""Tests of --precision auto: the fastest precision that keeps the known-good rows."""

import hashlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import torch
from apache_beam.testing.util import assert_that
from torch import Tensor, nn

from common.errors import UsageError
from common.record_batch import source_batch
from model_handlers.devices.precision import Trial, choose, describe
from model_handlers.loaded_model import LoadedModel
from model_handlers.manifests.manifest import GoldenRows, InputSpec, Manifest, OutputSpec
from model_handlers.manifests.tolerance import Tolerance
from model_handlers.torch_model import TorchModelHandler
from model_handlers.trials import choose_precision as module
from model_handlers.write_package import write_package
from pipelines.batch.report_text import run_facts
from transforms.predict import Predict
from transforms.run_report import CountPrecision

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROWS = [[0.1, 0.2, 0.3], [3.0, -1.0, 7.0]]


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.out(x)[:, 0]
        return answer


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


def package(folder: Path, tolerance: Tolerance, golden: bool = True) -> tuple[str, Manifest]:
    torch.manual_seed(3)
    model, buffer = Weighted().eval(), io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    with torch.inference_mode():
        answers = model(torch.tensor(ROWS)).tolist()
    rows = GoldenRows(inputs={"x": ROWS}, outputs={"score": answers})
    manifest = Manifest(
        name="m",
        version="1",
        format="torchscript",
        file="m.pt",
        sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        inputs=(InputSpec("x", ("a", "b", "c"), shape=(3,)),),
        outputs=(OutputSpec("score"),),
        golden=rows if golden else None,
        batch_dependence=tolerance.rtol if tolerance != Tolerance() else None,
    )
    write_package(folder / "m", buffer.getvalue(), manifest)
    return str(folder / "m"), manifest


def with_paces(monkeypatch: pytest.MonkeyPatch, **paces: float) -> None:
    monkeypatch.setattr(module, "rows_a_second", lambda model: paces[model.precision])


@pytest.mark.parametrize(
    ("tolerance", "bf16", "expected"),
    [
        (Tolerance(), 300.0, "float32"),
        (Tolerance(0.05, 0.05), 300.0, "bf16"),
        (Tolerance(0.05, 0.05), 105.0, "float32"),
    ],
)
def test_the_fastest_precision_within_the_tolerance_is_taken_and_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tolerance: Tolerance,
    bf16: float,
    expected: str,
) -> None:
    with_paces(monkeypatch, float32=100.0, bf16=bf16)
    path, manifest = package(tmp_path, tolerance)
    handler = TorchModelHandler(path, manifest, precision="auto", device="cpu")
    with caplog.at_level(logging.INFO, "millrace"):
        model = handler.load_model()
    assert model.precision == expected
    assert model.tolerance == manifest.tolerance
    (line,) = [record.getMessage() for record in caplog.records if record.name == "millrace"]
    assert line.startswith(f"precision {expected} for model m: float32 100 rows/s, ")
    assert f"bf16 {bf16:,.0f} rows/s, " in line


def test_a_model_without_known_good_rows_stays_in_float32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, manifest = package(tmp_path, Tolerance(0.05, 0.05), golden=False)
    with caplog.at_level(logging.INFO, "millrace"):
        model = TorchModelHandler(path, manifest, precision="auto", device="cpu").load_model()
    assert model.precision == "float32"
    assert "it has no known-good rows" in caplog.text


class Fails(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        answer = super().forward(x)
        if answer.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return answer


def test_a_precision_in_which_the_model_fails_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_paces(monkeypatch, float32=100.0, bf16=900.0)
    path, manifest = package(tmp_path, Tolerance(0.05, 0.05))
    model = TorchModelHandler(path, manifest, device="cpu").load_model()
    torch.manual_seed(3)
    model.module = Fails().eval()
    model, line = module.choose_precision(model)
    assert model.precision == "float32"
    assert line.endswith("; bf16 fails")


def test_tf32_is_on_only_if_it_is_requested(tmp_path: Path) -> None:
    path, manifest = package(tmp_path, Tolerance())
    for precision, expected in (("tf32", "high"), ("float32", "highest")):
        TorchModelHandler(path, manifest, precision=precision, device="cpu").load_model()
        assert torch.get_float32_matmul_precision() == expected


def test_an_unknown_precision_is_refused_in_one_line(tmp_path: Path) -> None:
    path, manifest = package(tmp_path, Tolerance())
    with pytest.raises(UsageError, match="must be float32, tf32, bf16, fp16 or auto, got 'int8'"):
        TorchModelHandler(path, manifest, precision="int8")


def test_the_choice_prefers_float32_unless_another_one_is_clearly_faster() -> None:
    plain = Trial("float32", 100.0, 0.0)
    bf16, fp16, tf32 = Trial("bf16", 400.0, 3.0), Trial("fp16", 300.0, 0.9), Trial("tf32", 200, 0.1)
    assert choose([plain, tf32, bf16, fp16]) == "fp16"
    assert choose([plain, tf32, bf16]) == "tf32"
    assert choose([plain, bf16]) == choose([plain]) == "float32"
    text = describe([plain, bf16, Trial("fp16", 0.0, float("inf"))])
    assert (
        text == "float32 100 rows/s, 0 of the tolerance; bf16 400 rows/s, 3 of the tolerance; "
        "fp16 fails"
    )


@pytest.mark.parametrize(
    ("got", "expected", "share"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], 0.0),
        ([1.05], [1.0], 0.25),
        ([np.nan], [1.0], np.inf),
        ([np.inf], [1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_the_share_of_a_tolerance_is_at_most_one_if_values_agree(
    got: list[float], expected: list[float], share: float
) -> None:
    tolerance = Tolerance(0.1, 0.1)
    found = tolerance.share(got, expected)
    assert found == pytest.approx(share)
    assert (found <= 1) == tolerance.agree(got, expected).all()


@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.slow
def test_the_rows_of_a_chosen_precision_are_counted_for_the_report(
    tmp_path: Path, precision: str
) -> None:
    path, manifest = package(tmp_path, Tolerance())
    handler = TorchModelHandler(path, manifest, precision=precision, device="cpu")
    columns = {name: pa.array([0.5] * 7, pa.float64()) for name in "abc"}
    batch = source_batch(pa.array([str(n) for n in range(7)]), pa.record_batch(columns))

    def check(counts: list[object]) -> None:
        assert counts == ([(("precision", "float32"), 7)] if precision == "auto" else [])

    with beam.Pipeline("FnApiRunner") as pipeline:
        source = pipeline | beam.Create([batch], reshuffle=False)
        good = (source | Predict(handler, manifest)).good
        assert_that(good | CountPrecision(), check)


def test_the_summary_of_a_run_names_the_chosen_precision() -> None:
    report = {
        "model": {"name": "m", "version": "1", "digest": "d"},
        "run_id": "r",
        "pipeline": "batch_local",
        "rows_in": 3,
        "rows_scored": 3,
        "rows_dead_lettered": 0,
        "score_output": "s",
        "dead_letters": [],
        "output": [],
        "dead_letter_output": [],
        "report": "r.json",
    }
    facts = [value for label, value in run_facts(report, 1.0) if label == "precision"]
    assert facts == []
    for rows, text in (
        ({"bf16": 3}, "bf16"),
        ({"tf32": 1, "bf16": 2}, "bf16 for 2 rows, tf32 for 1 rows"),
    ):
        shown = dict(run_facts(report | {"precision": rows}, 1.0))
        assert shown["precision"] == text


def test_a_loaded_model_keeps_its_size_in_another_precision(tmp_path: Path) -> None:
    path, manifest = package(tmp_path, Tolerance())
    model: LoadedModel = TorchModelHandler(path, manifest, device="cpu").load_model()
    assert module.in_precision(model, "bf16").size is model.size
