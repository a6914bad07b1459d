"""Predict returns every row once, scored or with the reason why not."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from apache_beam.ml.inference.base import ModelHandler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from property_tests import examples

from common.record_batch import ERROR, ERROR_TYPE, OUTPUTS
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.manifests.model_json import write_manifest
from model_handlers.torch_model import TorchModelHandler
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.dead_letters import Fault
from transforms.encode import EncodeRows
from transforms.files import ranges as file_ranges
from transforms.files.columns import Columns
from transforms.files.read import ReadFiles
from transforms.files.sink.destination import FolderDestination
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.files.sink.stage import StageFiles
from transforms.output_fields import choose_fields
from transforms.predict import Predict, split_answer
from transforms.provenance import Provenance
from transforms.run_report import CommitRun, CountFailures, CountRows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Make = Callable[..., Any]


def answered(
    make_source: Make, scores: list[Any], errors: list[Any], kind: pa.DataType
) -> pa.RecordBatch:
    """Return the answer of a handler: a source batch with `outputs` and `error`."""
    outputs = pa.StructArray.from_arrays([pa.array(scores, kind)], names=["total"])
    source = make_source({"a": list(range(len(scores)))})
    return source.append_column(OUTPUTS, outputs).append_column(ERROR, pa.array(errors, ERROR_TYPE))


def fault_of_score(score: float | None) -> str | None:
    if score is None:
        return "null"
    return None if math.isfinite(score) else "not_finite_score"


ERRORS = st.none() | st.just({"reason": "model_error", "message": "no"})


@given(
    st.lists(st.tuples(st.floats(width=32) | st.none(), ERRORS), max_size=8),
    st.sampled_from([pa.float32(), pa.float64()]),
    st.integers(0, 2),
)
def test_splitting_keeps_every_row_once_and_in_order(
    make_source: Make, answers: list[tuple[Any, Any]], kind: pa.DataType, start: int
) -> None:
    scores, errors = [a[0] for a in answers], [a[1] for a in answers]
    batch = answered(make_source, scores, errors, kind).slice(start)
    good, bad, faults = split_answer(batch, "total")
    reasons = [
        error["reason"] if error else fault_of_score(score) for score, error in answers[start:]
    ]
    ids = batch.column("row_id").to_pylist()
    by_reason = list(zip(ids, reasons, strict=True))
    assert good.column("row_id").to_pylist() == [i for i, reason in by_reason if reason is None]
    assert bad.column("row_id").to_pylist() == [i for i, reason in by_reason if reason]
    assert [fault.reason for fault in faults] == [reason for reason in reasons if reason]
    assert good.schema == bad.schema == batch.schema


def test_without_a_score_only_the_handler_marks_rows_as_failed(make_source: Make) -> None:
    error = {"reason": "model_error", "message": "no"}
    batch = answered(make_source, [math.nan, 1.0], [None, error], pa.float32())
    good, bad, faults = split_answer(batch)
    assert good.column("row_id").to_pylist() == ["r-0"]
    assert bad.column("row_id").to_pylist() == ["r-1"]
    assert faults == [Fault("model_error", "no")]


@pytest.mark.parametrize("kind", [pa.float16(), pa.int64(), pa.uint8(), pa.bool_()])
def test_a_score_may_be_of_any_number_type(make_source: Make, kind: pa.DataType) -> None:
    scores: list[Any] = [np.float16(1), np.float16(0)] if kind == pa.float16() else [1, 0]
    if kind == pa.bool_():
        scores = [True, False]
    good, _, faults = split_answer(answered(make_source, scores, [None, None], kind), "total")
    assert (good.num_rows, faults) == (2, [])


def test_a_fault_of_a_score_names_the_value_that_the_model_returned(make_source: Make) -> None:
    batch = answered(make_source, [-math.inf, None], [None, None], pa.float32())
    _, _, faults = split_answer(batch, "total")
    assert [fault.message for fault in faults] == [
        "the model returned -inf as total",
        "field total: the score is null",
    ]


@pytest.mark.slow
def test_predict_only_needs_a_handler_and_a_manifest(
    tiny_package: tuple[str, Manifest], make_source: Make
) -> None:
    path, manifest = tiny_package
    source = make_source({"a": [1.0, -7.0, None, 1.0], "b": [2.0, 2.0, 2.0, -7.0], "c": [3.0] * 4})
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        batches = pipeline | beam.Create([source.slice(0, 1), source.slice(1)])
        predicted = batches | Predict(TorchModelHandler(path, manifest, device="cpu"), manifest)
        assert predicted.good.element_type is pa.RecordBatch
        assert predicted.failures.element_type is pa.RecordBatch
        good = predicted.good | beam.FlatMap(
            lambda b: [(r["row_id"], r["outputs"]["total"], r["error"]) for r in b.to_pylist()]
        )
        assert_that(good, equal_to([("r-0", 6.0, None)]), "good")
        failed = predicted.failures | "Failed" >> beam.FlatMap(
            lambda b: [
                (r["row_id"], r["stage"], r["reason"], r["model_digest"]) for r in b.to_pylist()
            ]
        )
        expected = [
            ("r-1", "infer", "model_error"),
            ("r-2", "validate", "null"),
            ("r-3", "infer", "not_finite_score"),
        ]
        assert_that(failed, equal_to([(*row, manifest.sha256) for row in expected]), "failed")


class BrokenHandler(ModelHandler[pa.RecordBatch, pa.RecordBatch, list[int]]):  # type: ignore[misc]
    def load_model(self) -> Any:
        return np.zeros(1)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        raise ConnectionError("the endpoint is down")


def test_an_error_of_the_handler_is_not_blamed_on_rows(
    make_manifest: Make, make_source: Make
) -> None:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    source = pipeline | beam.Create([make_source({"a": [1.0], "b": [1.0], "c": [1.0]})])
    source | Predict(BrokenHandler(), make_manifest())
    with pytest.raises(Exception, match="the endpoint is down"):
        pipeline.run()


NUMBER = st.integers(-6, 99).map(float)
FAULTY = st.sampled_from([None, math.nan, math.inf, -1e300, "x", "", -7.0])
ROW = st.lists(st.integers(0, 9).flatmap(lambda n: NUMBER if n else FAULTY), min_size=3, max_size=3)
TABLE = st.lists(ROW, max_size=12)
LINE_FAULTS = st.sampled_from(["", "", "", "", "cut", "wide"])


def expected_reason(row: list[Any]) -> str | None:
    for cell in row:
        if cell is None or cell == "":
            return "null"
        if cell == "x":
            return "wrong_type"
        if not math.isfinite(cell) or abs(cell) > 3e38:
            return "not_finite"
    if row[0] == -7:
        return "model_error"
    return "not_finite_score" if row[1] == -7 else None


def write_parquet(path: Path, table: list[list[Any]], ids: Iterable[str]) -> dict[str, Any]:
    columns = {"id": pa.array(list(ids), pa.string())}
    for i, name in enumerate("abc"):
        cells = [row[i] for row in table]
        if any(isinstance(cell, str) for cell in cells):
            columns[name] = pa.array([None if c is None else str(c) for c in cells], pa.string())
        else:
            columns[name] = pa.array(cells, pa.float64())
    pq.write_table(pa.table(columns), path, row_group_size=3)
    reasons = [expected_reason(row) for row in table]
    return dict(zip(columns["id"].to_pylist(), reasons, strict=True))


def write_lines(
    path: Path, table: list[list[Any]], faults: list[str], ids: Iterable[str]
) -> dict[str, Any]:
    """Write rows as CSV or JSON Lines, some of them cut or too wide; return reasons by id."""
    lines, reasons = [], {}
    for row, fault, row_id in zip(table, faults, ids, strict=False):
        if path.suffix == ".csv":
            cells = [row_id, *("" if cell is None else str(cell) for cell in row)]
            lines.append(",".join(cells[:-1] if fault == "cut" else cells + ["1"] * bool(fault)))
            reasons[row_id] = "wrong_width" if fault else expected_reason(row)
        else:
            text = json.dumps({"id": row_id, "features": row + [1.0] * (fault == "wide")})
            lines.append(text[:-2] if fault == "cut" else text)
            reasons[row_id] = json_reason(row, fault)
    head = ["id,a,b,c"] if path.suffix == ".csv" else []
    path.write_text("\n".join(head + lines))
    return reasons


def json_reason(row: list[Any], fault: str) -> str | None:
    if fault == "cut":
        return "invalid_json"
    if "x" in row:
        return "wrong_type"
    return "wrong_width" if fault else expected_reason(row)


@settings(
    max_examples=examples(12),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(TABLE, min_size=3, max_size=3), st.lists(LINE_FAULTS, min_size=12, max_size=12))
def test_every_row_of_every_file_is_scored_or_dead_lettered_once(
    tiny_package: tuple[str, Manifest],
    provenance: Provenance,
    tmp_path_factory: pytest.TempPathFactory,
    tables: list[list[list[Any]]],
    faults: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "in").mkdir()
    ids = [[f"{kind}{i}" for i in range(12)] for kind in "pcj"]
    reasons = write_parquet(folder / "in/p.parquet", tables[0], ids[0][: len(tables[0])])
    reasons |= write_lines(folder / "in/c.csv", tables[1], faults, ids[1])
    reasons |= write_lines(folder / "in/j.jsonl", tables[2], faults, ids[2])
    rows = {
        row_id: row
        for names, table in zip(ids, tables, strict=True)
        for row_id, row in zip(names, table, strict=False)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_ranges, "RANGE_BYTES", 40)
        patch.setattr(file_ranges, "RANGE_ROWS", 4)
        report = score_files(folder, *tiny_package, provenance)

    scored = pq.read_table(folder / "out/r/scores").to_pylist() if report["rows_scored"] else []
    letters = [
        json.loads(line)
        for path in (folder / "out/r").glob("dead_letters/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    found = [(row["row_id"], None) for row in scored]
    for letter in letters:
        # A line that cannot be read has a derived id; its payload identifies it.
        (row_id,) = re.findall(r"\b[pcj]\d+\b", letter["payload"])
        broken = {"j": "invalid_json", "c": "wrong_width"}.get(row_id[0])
        assert letter["row_id"] == row_id or letter["reason"] == broken
        found.append((row_id, letter["reason"]))
    assert sorted(found, key=str) == sorted(reasons.items(), key=str)
    for row in scored:
        assert row["score"] == np.float32(sum(map(float, rows[row["row_id"]])))
        assert row["code"] == [float(value) for value in rows[row["row_id"]][:2]]


def score_files(
    folder: Path, path: str, manifest: Manifest, provenance: Provenance
) -> dict[str, Any]:
    """Score the files in folder/in into folder/out, and return the report."""
    options = PipelineOptions(direct_num_workers=2, direct_running_mode="multi_threading")
    out = RunFolder(str(folder / "out"), "r", "t")
    destinations = [
        FolderDestination(SCORES, out, "parquet"),
        FolderDestination(DEAD_LETTERS, out, "jsonl"),
    ]
    for destination in destinations:
        destination.prepare()
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        source = ReadFiles(
            patterns=[str(folder / "in")],
            columns=Columns(manifest, "id"),
            provenance=provenance,
            batch_rows=5,
        )
        read = pipeline | source
        handler = TorchModelHandler(path, manifest, device="cpu", batch_rows=4)
        predicted = read.good | Predict(handler, manifest, provenance)
        rows = predicted.good | EncodeRows(choose_fields(manifest), provenance)
        failures = (read.failures, predicted.failures) | beam.Flatten()
        staged = (
            rows | "StageRows" >> StageFiles(destinations[0]),
            failures | "StageLetters" >> StageFiles(destinations[1]),
        ) | "Staged" >> beam.Flatten()
        counts = (
            read.good | CountRows("read"),
            rows | "Scored" >> CountRows("scored"),
            failures | CountFailures(),
        ) | "Counts" >> beam.Flatten()
        {"counts": counts, "staged": staged} | CommitRun(destinations, out, {})
    report: dict[str, Any] = json.loads((folder / "out/r/report.json").read_text())
    return report


@pytest.mark.slow
def test_models_with_several_inputs_and_dtypes_are_supported(
    tmp_path: Path, make_manifest: Make, make_source: Make, provenance: Provenance
) -> None:
    class Several(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, ids: torch.Tensor, flag: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            return {"total": x.double() + ids.sum(dim=1), "kept": flag}

    torch.jit.script(Several()).save(str(tmp_path / "model.pt"))
    manifest = make_manifest(
        InputSpec("x", ("a",)),
        InputSpec("ids", ("ids",), dtype="int64", shape=(2,)),
        InputSpec("flag", ("flag",), dtype="bool"),
        outputs=(OutputSpec("total", "float64"), OutputSpec("kept", "bool")),
        sha256=hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest(),
    )
    (tmp_path / "model.json").write_text(write_manifest(manifest))
    source = make_source({"a": [0.5, 1], "ids": [[1, 2], [3, None]], "flag": [True, False]})
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        handler = TorchModelHandler(str(tmp_path), manifest, device="cpu")
        predicted = pipeline | beam.Create([source]) | Predict(handler, manifest, provenance)
        outputs = predicted.good | beam.Map(lambda b: str(b.column("outputs").to_pylist()))
        assert_that(outputs, equal_to([str([{"total": 3.5, "kept": True}])]), "good")
        failures = predicted.failures | beam.Map(lambda b: (b.schema == FAILURE_SCHEMA, b.num_rows))
        assert_that(failures, equal_to([(True, 1)]), "failures")
