"""Fixtures that several test modules share; each gives a function, so that nothing is imported."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from examples.transactions.build import build
from model_handlers.contract import InputSpec, Manifest, OutputSpec
from transforms.failures import Provenance
from transforms.record_batch import derived_ids, source_batch

# No test depends on how fast the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """Inputs (one of three float32 columns a, b, c by default) and fields -> a manifest."""

    def make(*inputs: InputSpec, **fields: Any) -> Manifest:
        values: dict[str, Any] = {
            "name": "tiny",
            "version": "3",
            "format": "torchscript",
            "file": "model.pt",
            "sha256": "0" * 64,
            "inputs": inputs or (InputSpec("x", ("a", "b", "c"), shape=(3,)),),
            "outputs": (OutputSpec("total"), OutputSpec("code", shape=(2,))),
            "score_output": "total",
        }
        return Manifest(**values | fields)

    return make


@pytest.fixture(scope="session")
def make_source() -> Callable[..., pa.RecordBatch]:
    """Columns by name -> a source batch with ids r-0, r-1, ..."""

    def make(columns: Mapping[str, Any]) -> pa.RecordBatch:
        rows = pa.record_batch({name: pa.array(values) for name, values in columns.items()})
        return source_batch(derived_ids("r", np.arange(rows.num_rows)), rows)

    return make


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    return Provenance("run 1", "a test", "tiny", "3", "0" * 64)


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, small: 2,000 rows to score, 20 of them faulty, and the packages."""
    folder = tmp_path_factory.mktemp("example")
    build(folder, rows=2_000, train_rows=3_000, seed=7)
    return folder
