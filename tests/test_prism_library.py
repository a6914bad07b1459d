"""Pipelines of library users on Prism, which `beam.Pipeline()` uses without being asked to."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from docs_pages import blocks

from common.record_batch import to_rows
from millrace import Predict, TorchModelHandler
from model_handlers.manifests.manifest import Manifest
from transforms.encode import EncodeRows
from transforms.files.columns import Columns
from transforms.files.read import ReadFiles
from transforms.json_rows.row_format import RowFormat
from transforms.messages.decode import DecodeMessages, MessageFormat
from transforms.messages.message import Message
from transforms.output_fields import choose_fields
from transforms.provenance import Provenance
from transforms.validate import ValidateFeatures

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Make = Callable[..., Any]
# The features a, b and c of each row of tests/tiny_model.py. The second row lacks one.
GOOD, BAD = {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 2.0, "c": None}


@contextmanager
def pipeline_of(prism: dict[str, str], caplog: pytest.LogCaptureFixture) -> Iterator[beam.Pipeline]:
    """Run the pipeline that the block builds, and check that Prism ran it."""
    options = PipelineOptions(["--prism_location", prism["prism_location"]])
    with caplog.at_level(logging.INFO, "apache_beam"), beam.Pipeline(options=options) as pipeline:
        yield pipeline
    assert "Running pipeline with PrismRunner." in caplog.text
    assert "Falling back" not in caplog.text


def outputs(batch: Any) -> list[tuple[str, float]]:
    return [(row["row_id"], row["outputs"]["total"]) for row in to_rows(batch)]


def reasons(batch: Any) -> list[tuple[str, str]]:
    return [(row["row_id"], row["reason"]) for row in to_rows(batch)]


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/use-the-transforms.md"])
def test_the_pipeline_of_the_documentation(
    page: str,
    prism: dict[str, str],
    example: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = (b for name, b in blocks("python") if name == page and "beam.Pipeline(" in b)
    options = f"beam.Pipeline(options=PipelineOptions(prism_location={prism['prism_location']!r}))"
    assert 'beam.Pipeline("FnApiRunner")' in code
    code = code.replace('beam.Pipeline("FnApiRunner")', options)
    code = code.replace("build/example", str(example))
    with caplog.at_level(logging.INFO, "apache_beam"):
        exec(compile(code, page, "exec"), {"PipelineOptions": PipelineOptions})
    assert "Running pipeline with PrismRunner." in caplog.text
    printed = capsys.readouterr().out
    assert printed.count("'row_id': 't1'") == printed.count("'row_id': 't2'") == 1
    assert "'reason': 'null'" in printed


def test_files(
    prism: dict[str, str],
    example: Path,
    tiny_package: tuple[str, Manifest],
    provenance: Provenance,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, manifest = tiny_package
    lines = [json.dumps({"id": name, **row}) for name, row in (("j1", GOOD), ("j2", BAD))]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    with pipeline_of(prism, caplog) as pipeline:
        read = pipeline | ReadFiles(
            patterns=[str(tmp_path)], columns=Columns(manifest, "id"), provenance=provenance
        )
        handler = TorchModelHandler(path, manifest, device="cpu")
        predicted = read.good | Predict(handler, manifest, provenance)
        failed = (read.failures, predicted.failures) | beam.Flatten()
        assert_that(predicted.good | beam.FlatMap(outputs), equal_to([("j1", 6.0)]), "good")
        assert_that(failed | "Why" >> beam.FlatMap(reasons), equal_to([("j2", "null")]), "failed")


def test_messages(
    prism: dict[str, str],
    tiny_package: tuple[str, Manifest],
    provenance: Provenance,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, manifest = tiny_package
    bodies = [json.dumps(GOOD).encode(), b"{"]
    messages = [
        Message(body, {}, f"m{i}", 1_700_000_000_000_000, "") for i, body in enumerate(bodies)
    ]
    with pipeline_of(prism, caplog) as pipeline:
        message_format = MessageFormat(RowFormat(manifest))
        read = pipeline | beam.Create(messages) | DecodeMessages(message_format, provenance, 4)
        handler = TorchModelHandler(path, manifest, device="cpu")
        predicted = read.good | Predict(handler, manifest, provenance)
        assert_that(predicted.good | beam.FlatMap(outputs), equal_to([("m0", 6.0)]), "good")
        found = read.failures | "Why" >> beam.FlatMap(reasons)
        assert_that(found, equal_to([("m1", "invalid_json")]), "failed")


def test_windows(
    prism: dict[str, str],
    tiny_package: tuple[str, Manifest],
    provenance: Provenance,
    make_source: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, manifest = tiny_package
    columns = {name: [value] * 20 for name, value in GOOD.items()}
    with pipeline_of(prism, caplog) as pipeline:
        batches = (
            pipeline
            | beam.Create([make_source(columns)])
            | beam.Map(lambda batch: beam.window.TimestampedValue(batch, 100))
            | beam.WindowInto(beam.window.FixedWindows(60))
        )
        handler = TorchModelHandler(path, manifest, device="cpu")
        predicted = batches | Predict(handler, manifest, provenance)
        rows = predicted.good | EncodeRows(choose_fields(manifest), provenance)
        ids = rows | beam.FlatMap(lambda batch: batch.column("row_id").to_pylist())
        assert_that(ids, equal_to([f"r-{i}" for i in range(20)]))


def test_keyed_batches(
    prism: dict[str, str],
    tiny_package: tuple[str, Manifest],
    provenance: Provenance,
    make_source: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, manifest = tiny_package
    batches = [make_source({n: [v + more] for n, v in GOOD.items()}) for more in range(3)]
    with pipeline_of(prism, caplog) as pipeline:
        valid = pipeline | beam.Create(batches) | ValidateFeatures(manifest, provenance)
        keyed = valid.good | "Key" >> beam.Map(lambda b: (to_rows(b)[0]["source"]["a"], b))
        handler = KeyedModelHandler(TorchModelHandler(path, manifest, device="cpu"))
        scored = keyed | RunInference(handler)
        totals = scored | beam.Map(lambda pair: (pair[0], outputs(pair[1])[0][1]))
        assert_that(totals, equal_to([(1.0, 6.0), (2.0, 9.0), (3.0, 12.0)]))
