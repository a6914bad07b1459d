"""Output rows: the fields that were chosen, and where they come from."""

import datetime
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from model_handlers.contract import OutputSpec
from model_handlers.errors import UsageError
from transforms.encode import EncodeRows, OutputFields, check_fields, choose_fields, encode
from transforms.failures import Provenance

Make = Callable[..., Any]
NOW = datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)


@pytest.fixture
def predicted(make_source: Make) -> pa.RecordBatch:
    source = make_source({"a": [1, 2, 3], "city": ["x", None, "z"]})
    code = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, 3, 4, 5, 6]), 2)
    outputs = pa.StructArray.from_arrays(
        [pa.array([0.5, 1.5, 2.5], pa.float32()), code], names=["total", "code"]
    )
    batch: pa.RecordBatch = source.append_column("outputs", outputs)
    return batch


def test_a_row_holds_what_was_chosen_and_its_lineage(
    predicted: pa.RecordBatch, provenance: Provenance
) -> None:
    fields = OutputFields("total", ("code", "total"), ("city",))
    rows = encode(predicted.slice(1), fields, provenance, NOW)
    assert rows.schema.names == [
        *("row_id", "score", "code", "total", "city"),
        *("model_name", "model_version", "model_digest", "run_id", "scored_at"),
    ]
    assert rows.to_pylist()[0] == {
        "row_id": "r-1",
        "score": 1.5,
        "code": [3.0, 4.0],
        "total": 1.5,
        "city": None,
        "model_name": "tiny",
        "model_version": "3",
        "model_digest": "0" * 64,
        "run_id": "run 1",
        "scored_at": NOW,
    }
    assert rows.num_rows == 2
    # One byte a row for what is the same in all.
    assert rows.schema.field("model_digest").type == pa.dictionary(pa.int8(), pa.string())


def test_a_score_is_left_out_where_there_is_none(
    predicted: pa.RecordBatch, provenance: Provenance
) -> None:
    rows = encode(predicted, OutputFields(None, ("total",)), provenance, NOW)
    assert rows.schema.names[:3] == ["row_id", "total", "model_name"]


def test_fields_are_the_manifests_unless_they_are_named(make_manifest: Make) -> None:
    assert choose_fields(make_manifest()) == OutputFields("total", ("code",))
    chosen = make_manifest(output_fields=("total",))
    assert choose_fields(chosen) == OutputFields("total", ("total",))
    named = choose_fields(make_manifest(), ["city", "code", "city"])
    assert named == OutputFields("total", ("code",), ("city",))
    assert choose_fields(make_manifest(), []) == OutputFields("total", ())
    assert named.needed == ("total", "code")
    assert OutputFields("total", ("total",)).needed == ("total",)
    assert OutputFields(None, ("code",)).needed == ("code",)


@pytest.mark.parametrize("name", ["row_id", "score", "run_id", "scored_at", "model_name"])
def test_a_field_that_is_always_written_is_not_chosen(make_manifest: Make, name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is always written"):
        choose_fields(make_manifest(), ["code", name])


def test_an_output_never_takes_the_place_of_a_column_of_our_own(make_manifest: Make) -> None:
    outputs = (OutputSpec("total"), OutputSpec("score"), OutputSpec("run_id"))
    with pytest.raises(UsageError, match=r"outputs 'run_id', 'score'.*--output_fields"):
        choose_fields(make_manifest(outputs=outputs))
    chosen = choose_fields(make_manifest(outputs=outputs, score_output="score"), ["total"])
    assert chosen == OutputFields("score", ("total",))


def test_an_output_named_score_may_be_the_score(make_manifest: Make) -> None:
    outputs = (OutputSpec("score"), OutputSpec("code", shape=(2,)))
    assert choose_fields(make_manifest(outputs=outputs, score_output="score")) == OutputFields(
        "score", ("code",)
    )
    named = make_manifest(outputs=outputs, score_output="score", output_fields=("score", "code"))
    assert choose_fields(named) == OutputFields("score", ("code",))
    none = choose_fields(make_manifest(outputs=outputs, score_output=None))
    assert none == OutputFields(None, ("score", "code"))


def test_an_unknown_field_is_told_with_the_nearest(make_manifest: Make) -> None:
    fields = choose_fields(make_manifest(), ["cod", "city"])
    with pytest.raises(UsageError, match=r"'cod' is neither an output.*nearest: code"):
        check_fields(fields, make_manifest(), ["city"])
    check_fields(choose_fields(make_manifest(), ["city"]), make_manifest(), ["city"])


def test_the_transform_encodes_each_batch(
    predicted: pa.RecordBatch, provenance: Provenance
) -> None:
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        batches = pipeline | beam.Create([predicted, predicted.slice(2)])
        rows = batches | EncodeRows(OutputFields("total", ()), provenance)
        assert rows.element_type is pa.RecordBatch
        scores = rows | beam.Map(lambda b: tuple(b.column("score").to_pylist()))
        assert_that(scores, equal_to([(0.5, 1.5, 2.5), (2.5,)]))
