"""Tests that the benchmark of Predict scores every row with a model that computes nothing."""

from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from benchmarks.predict_cost import batches, cheap_model
from common.record_batch import BATCH_ROWS, OUTPUTS, SOURCE, struct_columns, typed
from model_handlers.torch_model import TorchModelHandler
from transforms.predict import Predict

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def first_column_is_kept(batch: pa.RecordBatch) -> bool:
    answer = struct_columns(batch, OUTPUTS)["first"]
    return bool(np.array_equal(answer, struct_columns(batch, SOURCE)["Time"]))


def test_all_rows_pass_and_the_output_is_the_first_column(tmp_path: Path) -> None:
    manifest = cheap_model(tmp_path)
    with beam.Pipeline("FnApiRunner") as pipeline:
        source = typed(pipeline | beam.Create([0]) | beam.FlatMap(batches, 3))
        good, failures = source | Predict(TorchModelHandler(str(tmp_path), manifest), manifest)
        rows = good | beam.Map(lambda batch: (batch.num_rows, first_column_is_kept(batch)))
        assert_that(rows, equal_to([(BATCH_ROWS, True)] * 3))
        assert_that(failures, equal_to([]), label="no failures")
