"""Output rows hold the chosen fields and their lineage."""

import datetime
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to

from common.errors import UsageError
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from pipelines.batch.input_files import check_files, passed_on, with_formats
from transforms.encode import EncodeRows, encode, output_schema
from transforms.files.columns import Columns
from transforms.files.csv.dialect import PLAIN
from transforms.files.ranges import match_files, match_inputs, plan_file, split_file
from transforms.files.read_range import read_range
from transforms.files.sink.stage import conform_to_files
from transforms.output_fields import OutputFields, check_fields, choose_fields, reference_fields
from transforms.provenance import Provenance
from transforms.validate import validate

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


def test_a_row_holds_the_chosen_fields_and_its_lineage(
    predicted: pa.RecordBatch, provenance: Provenance
) -> None:
    fields = OutputFields(score="total", outputs=("code", "total"), source=("city",))
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
    # Values that are the same in all rows take one byte per row.
    assert rows.schema.field("model_digest").type == pa.dictionary(pa.int8(), pa.string())


def test_rows_of_a_model_without_a_score_have_no_score(
    predicted: pa.RecordBatch, provenance: Provenance
) -> None:
    rows = encode(predicted, OutputFields(score=None, outputs=("total",)), provenance, NOW)
    assert rows.schema.names[:3] == ["row_id", "total", "model_name"]


def test_fields_come_from_the_manifest_unless_they_are_named(make_manifest: Make) -> None:
    assert choose_fields(make_manifest()) == OutputFields(score="total", outputs=("code",))
    chosen = make_manifest(output_fields=("total",))
    assert choose_fields(chosen) == OutputFields(score="total", outputs=("total",))
    named = choose_fields(make_manifest(), ["city", "code", "city"])
    assert named == OutputFields(score="total", outputs=("code",), source=("city",))
    assert choose_fields(make_manifest(), []) == OutputFields(score="total", outputs=())
    assert named.needed == ("total", "code")
    assert OutputFields(score="total", outputs=("total",)).needed == ("total",)
    assert OutputFields(score=None, outputs=("code",)).needed == ("code",)


@pytest.mark.parametrize("name", ["row_id", "score", "run_id", "scored_at", "model_name"])
def test_a_field_that_is_always_written_cannot_be_chosen(make_manifest: Make, name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is always written"):
        choose_fields(make_manifest(), ["code", name])


def test_an_output_never_replaces_a_lineage_column(make_manifest: Make) -> None:
    outputs = (OutputSpec("total"), OutputSpec("score"), OutputSpec("run_id"))
    with pytest.raises(UsageError, match=r"outputs 'run_id', 'score'.*--output_fields"):
        choose_fields(make_manifest(outputs=outputs))
    chosen = choose_fields(make_manifest(outputs=outputs, score_output="score"), ["total"])
    assert chosen == OutputFields(score="score", outputs=("total",))


def test_an_output_named_score_may_be_the_score(make_manifest: Make) -> None:
    outputs = (OutputSpec("score"), OutputSpec("code", shape=(2,)))
    assert choose_fields(make_manifest(outputs=outputs, score_output="score")) == OutputFields(
        score="score", outputs=("code",)
    )
    named = make_manifest(outputs=outputs, score_output="score", output_fields=("score", "code"))
    assert choose_fields(named) == OutputFields(score="score", outputs=("code",))
    none = choose_fields(make_manifest(outputs=outputs, score_output=None))
    assert none == OutputFields(score=None, outputs=("score", "code"))


def test_an_unknown_field_is_reported_with_similar_names(make_manifest: Make) -> None:
    fields = choose_fields(make_manifest(), ["cod", "city"])
    with pytest.raises(UsageError, match=r"'cod' is neither an output.*did you mean 'code"):
        check_fields(fields, make_manifest(), ["city"])
    check_fields(choose_fields(make_manifest(), ["city"]), make_manifest(), ["city"])


def test_the_transform_encodes_each_batch(
    predicted: pa.RecordBatch, provenance: Provenance
) -> None:
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        batches = pipeline | beam.Create([predicted, predicted.slice(2)])
        rows = batches | EncodeRows(OutputFields(score="total", outputs=()), provenance)
        assert rows.element_type is pa.RecordBatch
        scores = rows | beam.Map(lambda b: tuple(b.column("score").to_pylist()))
        assert_that(scores, equal_to([(0.5, 1.5, 2.5), (2.5,)]))


@pytest.fixture
def latent(make_manifest: Make) -> Manifest:
    """The manifest of a model with the outputs of the reference rows."""
    outputs = (OutputSpec("total"), OutputSpec("encoded", shape=(2,)))
    made: Manifest = make_manifest(outputs=outputs)
    return made


def test_reference_rows_hold_the_reference_columns_and_the_row_id(
    predicted: pa.RecordBatch, latent: Manifest, provenance: Provenance
) -> None:
    fields = reference_fields(latent)
    outputs = pa.StructArray.from_arrays(
        [predicted.column("outputs").field(i) for i in range(2)], names=["total", "encoded"]
    )
    batch = predicted.drop_columns(["outputs"]).append_column("outputs", outputs)
    rows = encode(batch.slice(1), fields, provenance, NOW)
    assert rows.schema == pa.schema(
        [
            ("instance_id", pa.string()),
            ("anomaly_score", pa.float64()),
            ("encoded", pa.list_(pa.float64())),
            ("timestamp", pa.timestamp("us", tz="UTC")),
        ]
    )
    assert rows.to_pylist() == [
        {"instance_id": "r-1", "anomaly_score": 1.5, "encoded": [3.0, 4.0], "timestamp": NOW},
        {"instance_id": "r-2", "anomaly_score": 2.5, "encoded": [5.0, 6.0], "timestamp": NOW},
    ]


def test_a_handler_has_to_return_the_outputs_of_reference_rows(latent: Manifest) -> None:
    fields = reference_fields(latent)
    assert fields.needed == ("total", "encoded")
    assert fields.time_column == "timestamp"
    assert choose_fields(latent).time_column == "scored_at"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"outputs": (OutputSpec("total"), OutputSpec("encoded"))},
        {"outputs": (OutputSpec("total"), OutputSpec("encoded", shape=(2, 2)))},
        {"outputs": (OutputSpec("encoded", shape=(2,)),), "score_output": None},
    ],
    ids=["no encoded", "one number", "two dimensions", "no score"],
)
def test_a_model_without_the_outputs_of_reference_rows_is_an_error(
    make_manifest: Make, fields: dict[str, Any]
) -> None:
    manifest = make_manifest(**fields)
    expected = "--output_schema reference: expected a model with a score"
    with pytest.raises(UsageError, match=expected) as caught:
        reference_fields(manifest)
    assert manifest.outputs[-1].name in str(caught.value)
    score = manifest.score_output
    has = "has no score and" if score is None else f"has the score {score} and"
    assert f"model {manifest.name} {has} the outputs " in str(caught.value)
    assert "\n" not in str(caught.value)


# Source columns of a table that are passed through, of every kind.
PASSED = {
    "count": pa.array([1, None, 3], pa.int64()),
    "city": pa.array(["x", None, "z"]),
    "kind": pa.array(["x", "x", None]).dictionary_encode(),
    "price": pa.array([Decimal("1.5"), None, Decimal("2.25")], pa.decimal128(9, 2)),
    "day": pa.array([0, None, 2], pa.date32()),
    "at": pa.array([0, 1, None], pa.timestamp("us", "UTC")),
    "blob": pa.array([b"\xff", None, b""]),
    "tags": pa.array([["x"], None, []], pa.list_(pa.string())),
    "place": pa.array([{"lat": 1.5, "names": ["y"]}, None, {"lat": None, "names": None}]),
    "legs": pa.array([[{"km": 1}], None, []], pa.list_(pa.struct([("km", pa.int32())]))),
}


def encoded(
    path: Path, manifest: Manifest, fields: OutputFields, provenance: Provenance
) -> Iterator[pa.RecordBatch]:
    """Encode the valid rows of a file in batches of two, with null as the outputs of the model."""
    columns = Columns(manifest, None, fields.source)
    answers = pa.struct([(spec.name, spec.arrow_type) for spec in manifest.outputs])
    (file,) = match_files([str(path)])
    for part in split_file(plan_file(file, None)):
        for decoded in read_range(part, columns, 2):
            if decoded.batch is None:
                continue
            good, _, _ = validate(decoded.batch, manifest)
            batch = good.append_column("outputs", pa.nulls(good.num_rows, answers))
            yield encode(batch, fields, provenance, NOW)


def schema_before_run(
    path: Path, manifest: Manifest, fields: OutputFields, provenance: Provenance
) -> pa.Schema:
    """Return the schema of a file's output rows, as it is known before the run."""
    files = with_formats(match_inputs([str(path)]), None)
    check_files(files, PLAIN, Columns(manifest, None, fields.source), fields)
    source, _ = passed_on(files, manifest, fields, {})
    return output_schema(fields, manifest, provenance, source)


def write_rows(path: Path, columns: dict[str, pa.Array]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pa_csv.write_csv(table, path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    return path


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("layout", ["default", "reference"])
def test_the_schema_before_a_run_is_the_schema_of_the_rows_that_it_writes(
    latent: Manifest, provenance: Provenance, tmp_path: Path, suffix: str, layout: str
) -> None:
    features = {
        "a": pa.array([1.5, 2.5, 3.5]),
        "b": pa.array([1, 2, 3], pa.int16()),
        # Parquet and CSV may hold numbers as strings; in JSON a string is not a number.
        "c": pa.array([1, 2, 3]) if suffix == "jsonl" else pa.array([" 1", "2", "no number"]),
    }
    passed = PASSED if suffix == "parquet" else {name: PASSED[name] for name in ("city", "count")}
    path = write_rows(tmp_path / f"rows.{suffix}", features | passed)
    fields = choose_fields(latent, ["encoded", "a", "b", "c", *passed])
    if layout == "reference":
        fields = reference_fields(latent)
    schema = schema_before_run(path, latent, fields, provenance)
    batches = list(encoded(path, latent, fields, provenance))
    assert sum(batch.num_rows for batch in batches) == (3 if suffix == "jsonl" else 2)
    for batch in batches:
        assert batch.schema.equals(schema), f"{batch.schema}\n\n{schema}"


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_features_of_other_kinds_fit_the_schema_before_the_run(
    make_manifest: Make, provenance: Provenance, tmp_path: Path, suffix: str
) -> None:
    manifest = make_manifest(
        InputSpec("n", ("n",), dtype="int64"),
        InputSpec("many", ("many",), dtype="float32", shape=(2,)),
    )
    rows = {"n": pa.array([1, 2, 3]), "many": pa.array([[1.0, 2], [3, 4], [5, 6]])}
    path = write_rows(tmp_path / f"rows.{suffix}", rows)
    fields = choose_fields(manifest, ["n", "many"])
    schema = schema_before_run(path, manifest, fields, provenance)
    for batch in encoded(path, manifest, fields, provenance):
        # The schema may have a float for an integer of a text file: another row may hold a float.
        assert conform_to_files(batch, schema).to_pylist() == batch.to_pylist()


def test_the_metadata_of_a_source_column_is_kept_in_the_schema(
    make_manifest: Make, provenance: Provenance
) -> None:
    mark = {"ARROW:extension:name": "google:sqlType:json"}
    inner = pa.field("inner", pa.string(), metadata=mark)
    source = pa.schema(
        [
            pa.field("a", pa.string(), metadata=mark),
            pa.field("doc", pa.string(), metadata=mark),
            pa.field("docs", pa.list_(pa.field("item", pa.string(), metadata=mark))),
            pa.field("place", pa.struct([inner])),
            pa.field("unread", pa.int8()),
        ]
    )
    manifest = make_manifest()
    fields = choose_fields(manifest, ["doc", "docs", "place"])
    schema = output_schema(fields, manifest, provenance, source)
    assert "unread" not in schema.names
    for name in ("doc", "docs", "place"):
        assert schema.field(name).equals(source.field(name), check_metadata=True)
