"""Rows of a user's own pipeline end up once in a batch or among the dead letters."""

import datetime
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import torch
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from hypothesis import given
from hypothesis import strategies as st

from common.plain_json import to_json
from model_handlers.manifests.manifest import InputSpec, Manifest
from transforms.json_rows.row_format import RowFormat
from transforms.row_ids import content_id
from transforms.rows import RecordBatchesToRows, RowsToRecordBatches, batch_rows, plain_row
from transforms.validate import validate

Make = Callable[..., Any]


class Trade(NamedTuple):
    id: str
    a: float
    b: float
    c: float


GOOD = {"id": "x", "a": 1.0, "b": 2, "c": 3.5}


SAME_ROWS = [
    GOOD,
    Trade("x", 1.0, 2, 3.5),
    beam.Row(id="x", a=1.0, b=2, c=3.5),
    {"id": "x", "a": np.float32(1), "b": np.int8(2), "c": np.float64(3.5)},
    {"id": "x", "a": Decimal("1.0"), "b": Decimal(2), "c": torch.tensor(3.5)},
    {"id": np.str_("x"), "features": (1, 2, 3.5)},
    {"id": "x", "features": np.array([1, 2, 3.5], np.float32)},
    {"id": "x", "features": np.array([[1, 2, 3.5]])},
    {"id": "x", "features": torch.tensor([1, 2, 3.5])},
    {"id": "x", "features": (np.int64(1), np.float32(2), 3.5)},
]


def test_rows_of_any_kind_become_the_same_batch(make_manifest: Make) -> None:
    for row in SAME_ROWS:
        decoded = batch_rows([row], RowFormat(make_manifest(), "id"))
        assert decoded.batch is not None, row
        good, _, _ = validate(decoded.batch, make_manifest())
        (found,) = good.to_pylist()
        assert (found["row_id"], found["inputs"]) == ("x", {"x": [1.0, 2.0, 3.5]})


def test_the_payload_is_the_row_as_json(make_manifest: Make) -> None:
    row = {
        "a": math.nan,
        "b": np.float32(0.5),
        "c": None,
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        "raw": b"\xff",
        "price": Decimal("1.50"),
    }
    decoded = batch_rows([row], RowFormat(make_manifest(), None, ("when", "price")))
    assert decoded.batch is not None
    (found,) = decoded.batch.to_pylist()
    assert json.loads(found["payload"]) == {
        "a": "NaN",
        "b": 0.5,
        "c": None,
        "when": "2024-01-02T00:00:00+00:00",
        "raw": "/w==",
        "price": "1.50",
    }
    assert found["row_id"] == content_id(found["payload"])
    assert math.isnan(found["source"].pop("a"))
    assert found["source"] == {
        "b": 0.5,
        "c": None,
        "when": "2024-01-02 00:00:00+00",
        "price": "1.5",
    }


CELL = st.sampled_from([1.0, 2, None, "x", math.nan, np.float32(3), True, [1], b"b", 10**400])
ROWS = st.lists(
    st.fixed_dictionaries({}, optional={"a": CELL, "b": CELL, "c": CELL, "id": CELL}) | CELL,
    max_size=12,
)


@given(ROWS, st.sampled_from([None, "id"]))
def test_every_row_is_good_or_bad_and_in_order(
    make_manifest: Make, rows: list[Any], id_column: str | None
) -> None:
    decoded = batch_rows(rows, RowFormat(make_manifest(), id_column, ("a",)))
    batch = decoded.batch
    good = [] if batch is None else batch.column("payload").to_pylist()
    assert sorted(good + decoded.failed_payloads) == sorted(to_json(plain_row(r)) for r in rows)
    for part in (good, decoded.failed_payloads):
        places = iter([to_json(plain_row(row)) for row in rows])
        assert all(payload in places for payload in part)


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_batches_are_limited_and_lose_no_row(make_manifest: Make, batch_rows: int) -> None:
    rows = [GOOD | {"n": str(i)} for i in range(10)] + [{"n": str(i)} for i in range(10, 12)]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        to_batches = RowsToRecordBatches(make_manifest(), id_column="n", batch_rows=batch_rows)
        good, failures = pipeline | beam.Create(rows) | to_batches
        assert good.element_type is failures.element_type is pa.RecordBatch
        sizes = good | "Sizes" >> beam.Map(lambda b: b.num_rows)
        assert_that(sizes, lambda found: _sizes_fit(found, batch_rows), "sizes")
        ids = (good, failures) | beam.Flatten() | RecordBatchesToRows()
        found = ids | beam.Map(lambda row: row["row_id"])
        assert_that(found, equal_to([str(i) for i in range(12)]), "ids")


def _sizes_fit(found: list[int], most: int) -> None:
    assert sum(found) == 10
    assert all(0 < rows <= most for rows in found)


@pytest.mark.slow
def test_an_element_that_is_not_a_row_becomes_one_dead_letter(make_manifest: Make) -> None:
    deep: Any = 0
    for _ in range(300):
        deep = [deep]
    too_deep = {"a": 1.0, "b": 1.0, "c": 1.0, "deep": deep}
    rows = ["text", 7, {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": "x", "c": 1.0}, too_deep, GOOD]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        source = pipeline | beam.Create([0]) | beam.FlatMap(lambda _: rows).with_output_types(Any)
        good, failures = source | RowsToRecordBatches(make_manifest())
        assert_that(good | beam.Map(lambda b: b.num_rows), equal_to([1]), "good")
        failed = (
            failures
            | RecordBatchesToRows()
            | "Failures" >> beam.Map(lambda r: (r["reason"], r["run_id"]))
        )
        reasons = [
            "not_an_object",
            "not_an_object",
            "missing_feature",
            "wrong_type",
            "invalid_json",
        ]
        assert_that(failed, equal_to([(reason, "unnamed") for reason in reasons]), "failures")


@pytest.mark.slow
def test_windows_are_kept_apart(make_manifest: Make) -> None:
    rows = [TimestampedValue({"n": str(at), "features": [1, 2, 3]}, at) for at in (1, 11, 2, 12, 3)]
    bad = [TimestampedValue({"n": str(at)}, at) for at in (4, 14)]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        windowed = pipeline | beam.Create(rows + bad) | beam.WindowInto(FixedWindows(10))
        found = (
            windowed
            | RowsToRecordBatches(make_manifest(), id_column="n")
            | beam.Flatten()
            | beam.Map(
                lambda b, window=beam.DoFn.WindowParam, at=beam.DoFn.TimestampParam: (
                    float(window.start),
                    float(window.start) <= float(at) <= float(window.end),
                    sorted(b.column("row_id").to_pylist()),
                )
            )
        )
        assert_that(
            found,
            equal_to(
                [
                    (0.0, True, ["1", "2", "3"]),
                    (10.0, True, ["11", "12"]),
                    (0.0, True, ["4"]),
                    (10.0, True, ["14"]),
                ]
            ),
        )


def test_arrays_with_several_dimensions_are_flattened_in_c_order(make_manifest: Make) -> None:
    manifest: Manifest = make_manifest(InputSpec("x", ("image",), shape=(2, 2)))
    rows = [{"image": np.array([[1, 2], [3, 4]])}]
    decoded = batch_rows(rows, RowFormat(manifest))
    assert decoded.batch is not None
    assert decoded.batch.to_pylist()[0]["source"] == {"image": [1.0, 2.0, 3.0, 4.0]}


def test_a_value_that_is_not_a_mapping_is_unchanged() -> None:
    assert plain_row("text") == "text"
    assert plain_row(7) == 7
    assert plain_row({"a": (1, np.int64(2)), "b": {"c": 1}}) == {"a": [1, 2], "b": {"c": 1}}


def test_batches_become_rows(make_source: Make) -> None:
    source: pa.RecordBatch = make_source({"a": [1, 2], "t": pa.array([1, 2], pa.timestamp("ns"))})
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([source, source.slice(1)]) | RecordBatchesToRows()
        assert_that(rows | beam.Map(lambda r: r["source"]["a"]), equal_to([1, 2, 2]))
