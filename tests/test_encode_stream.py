"""Rows of a stream carry the ids and times of their messages, also zero and empty values."""

import datetime
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from common.record_batch import OUTPUTS, to_rows
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from transforms.encode import EncodeRows, encode, output_schema
from transforms.json_rows.row_format import RowFormat
from transforms.messages.decode import MessageFormat, decode_messages
from transforms.messages.message import Message
from transforms.output_fields import OutputFields, choose_fields, reference_fields
from transforms.provenance import Provenance
from transforms.row_schemas import CARRIED, DECODED_AT

Make = Callable[..., Any]
RECEIVED = datetime.datetime(2026, 11, 20, 12, 0, 1, tzinfo=datetime.UTC)
SCORED = datetime.datetime(2026, 11, 20, 12, 0, 2, 500_000, tzinfo=datetime.UTC)
# 2026-11-20 11:59:58.123456
PUBLISHED = 1_795_175_998_123_456
EVENT_TIME = datetime.datetime(2026, 11, 20, 11, 59, 58, 123_456, tzinfo=datetime.UTC)


@pytest.fixture(scope="session")
def manifest(make_manifest: Make) -> Manifest:
    """A model with three features and the outputs of the reference rows."""
    outputs = (OutputSpec("total"), OutputSpec("encoded", shape=(2,)))
    made: Manifest = make_manifest(outputs=outputs)
    return made


def scored(
    messages: list[Message],
    manifest: Manifest,
    provenance: Provenance,
    fields: OutputFields,
    kind: Any = "json",
) -> list[pa.RecordBatch]:
    """Decode messages into batches, and add outputs as a handler would."""
    carried = tuple((n, t) for n, t in CARRIED if n not in manifest.features)
    row_format = RowFormat(manifest, None, fields.source, carried)
    read = MessageFormat(row_format, kind)
    batches, failures = decode_messages(messages, read, provenance, RECEIVED)
    assert failures is None
    return [with_outputs(batch, manifest) for batch in batches]


def with_outputs(batch: pa.RecordBatch, manifest: Manifest) -> pa.RecordBatch:
    outputs = []
    for spec in manifest.outputs:
        values = pa.array(np.arange(batch.num_rows * max(1, int(np.prod(spec.shape))), dtype="f4"))
        if spec.shape:
            values = pa.FixedSizeListArray.from_arrays(values, spec.shape[0])
        outputs.append(values)
    names = [spec.name for spec in manifest.outputs]
    return batch.append_column(OUTPUTS, pa.StructArray.from_arrays(outputs, names=names))


def message(row: Any, number: int = 0, time: int = PUBLISHED) -> Message:
    return Message(orjson.dumps(row), {}, f"m{number}", time, "")


def written(
    row: Any, manifest: Manifest, provenance: Provenance, fields: OutputFields
) -> dict[str, Any]:
    (batch,) = scored([message(row)], manifest, provenance, fields)
    rows: list[dict[str, Any]] = to_rows(encode(batch, fields, provenance, SCORED))
    return rows[0]


def test_a_row_holds_the_times_of_its_message_and_the_values_of_the_sender(
    manifest: Manifest, provenance: Provenance
) -> None:
    fields = choose_fields(manifest, ("encoded", "city"), stream=True)
    row = {"features": [1, 2, 3], "city": "Ulm", "test_id": "t", "sequence": 7}
    assert written(row, manifest, provenance, fields) == {
        "row_id": "m0",
        "score": 0.0,
        "encoded": [0.0, 1.0],
        "city": "Ulm",
        "model_name": "tiny",
        "model_version": "3",
        "model_digest": "0" * 64,
        "run_id": "run 1",
        "scored_at": SCORED,
        "event_time": EVENT_TIME,
        "received_at": RECEIVED,
        "test_id": "t",
        "message_id": "m0",
        "publish_time": PUBLISHED / 1e6,
        "sequence": 7,
    }


def test_reference_rows_have_the_columns_of_the_reference_streaming_table(
    manifest: Manifest, provenance: Provenance
) -> None:
    fields = replace(reference_fields(manifest), stream=True, window_seconds=60)
    row = written({"features": [1, 2, 3], "test_id": ""}, manifest, provenance, fields)
    assert row == {
        "instance_id": "m0",
        "anomaly_score": 0.0,
        "encoded": [0.0, 1.0],
        "timestamp": SCORED,
        "window_start": EVENT_TIME.replace(second=0, microsecond=0),
        "window_end": RECEIVED.replace(second=0),
        "pipeline_output_time": SCORED.timestamp(),
        "test_id": "",
        "message_id": "m0",
        "publish_time": PUBLISHED / 1e6,
        "sequence": None,
    }
    # The order and the types of the columns are those of the existing table.
    schema = output_schema(fields, manifest, provenance, None)
    assert schema.names == list(row)
    assert {name: schema.field(name).type for name, _ in CARRIED} == dict(CARRIED)
    assert schema.field("pipeline_output_time").type == pa.float64()
    without = replace(fields, window_seconds=None)
    row = written({"features": [1, 2, 3]}, manifest, provenance, without)
    assert (row["window_start"], row["window_end"]) == (None, None)
    assert output_schema(without, manifest, provenance, None).equals(schema)


def test_zero_and_empty_values_of_the_sender_are_written(
    manifest: Manifest, provenance: Provenance
) -> None:
    falsy = {"test_id": "", "message_id": "", "publish_time": 0.0, "sequence": 0}
    fields = choose_fields(manifest, stream=True)
    row = written({"features": [1, 2, 3], **falsy}, manifest, provenance, fields)
    assert {name: row[name] for name in falsy} == falsy
    # Values that the sender omits or sets to null are taken from Pub/Sub, row by row.
    rows: list[dict[str, Any]] = [falsy, {}, {"message_id": None, "sequence": 5}]
    messages = [message({"features": [1, 2, 3], **row}, i) for i, row in enumerate(rows)]
    (batch,) = scored(messages, manifest, provenance, fields)
    encoded = encode(batch, fields, provenance, SCORED)
    assert encoded.column("message_id").to_pylist() == ["", "m1", "m2"]
    assert encoded.column("publish_time").to_pylist() == [0.0, PUBLISHED / 1e6, PUBLISHED / 1e6]
    assert encoded.column("test_id").to_pylist() == ["", None, None]
    assert encoded.column("sequence").to_pylist() == [0, None, 5]
    assert encoded.column("row_id").to_pylist() == ["m0", "m1", "m2"]


@given(time=st.integers(-(10**15), 4 * 10**15), seconds=st.integers(1, 10**6))
def test_a_window_holds_its_message_and_starts_at_a_multiple_of_its_length(
    manifest: Manifest, provenance: Provenance, time: int, seconds: int
) -> None:
    fields = replace(choose_fields(manifest, stream=True), window_seconds=seconds)
    messages = [message({"features": [1, 2, 3]}, time=time)]
    (batch,) = scored(messages, manifest, provenance, fields)
    encoded = encode(batch, fields, provenance, SCORED)
    start, end = (
        encoded.column(f"window_{edge}").cast(pa.int64())[0].as_py() for edge in ("start", "end")
    )
    assert start <= time < end == start + seconds * 1_000_000
    assert start % (seconds * 1_000_000) == 0


def test_window_columns_are_only_written_if_windows_are_used(
    manifest: Manifest, provenance: Provenance
) -> None:
    fields = choose_fields(manifest, stream=True)
    names = output_schema(fields, manifest, provenance, None).names
    assert not {"window_start", "window_end"} & set(names)
    names = output_schema(replace(fields, window_seconds=1), manifest, provenance, None).names
    assert {"window_start", "window_end"} <= set(names)


@pytest.mark.parametrize("name", ["event_time", "window_end", "sequence", "score", "run_id"])
def test_names_that_are_always_written_cannot_be_chosen(manifest: Manifest, name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is always written, so leave it out"):
        choose_fields(manifest, (name,), stream=True)


def test_the_names_of_timings_can_be_chosen_unless_they_are_written(manifest: Manifest) -> None:
    assert choose_fields(manifest, (DECODED_AT,), stream=True).source == (DECODED_AT,)
    with pytest.raises(UsageError, match="'decoded_at' is always written"):
        choose_fields(manifest, (DECODED_AT,), stream=True, timings=(DECODED_AT,))


# One schema in every batch


def arrow_message(columns: dict[str, pa.Array], number: int) -> Message:
    sink = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return Message(sink.getvalue(), {}, f"m{number}", PUBLISHED, "")


def kinds_of_messages() -> list[tuple[str, list[Message]]]:
    named: dict[str, Any] = {"a": 1, "b": 2.5, "c": None, "city": "Ulm"}
    rows: list[list[dict[str, Any]]] = [
        [named],
        [{"features": [1, 2, 3]}],
        [named, {"features": [1, 2, 3]}],
        [{"a": 2**60, "b": 0, "c": 0}],
        [{**named, "city": {"x": 1}, "sequence": 1.0, "publish_time": 1}],
        [dict.fromkeys(named)],
    ]
    ones = pa.array([1, 2])
    tables = [
        {"a": ones, "b": ones.cast("float32"), "c": ones.cast("int8"), "city": ones},
        {"a": ones.cast("string"), "b": ones, "c": ones, "city": ones.cast("string")},
        {
            **{name: ones.cast(pa.decimal128(21, 2)) for name in "abc"},
            "city": ones.cast("string").dictionary_encode(),
            "sequence": ones.cast("uint8"),
        },
        {"a": pa.nulls(2), "b": ones, "c": ones, "city": pa.nulls(2), "test_id": pa.nulls(2)},
    ]
    jsons = [[message(row, i) for i, row in enumerate(part)] for part in rows]
    arrows = [[arrow_message(columns, i)] for i, columns in enumerate(tables)]
    return [("json", part) for part in jsons] + [("arrow", part) for part in arrows]


def all_fields(manifest: Manifest) -> list[OutputFields]:
    chosen = choose_fields(manifest, ("encoded", "city", "a"), stream=True)
    reference = replace(reference_fields(manifest), stream=True)
    return [chosen, replace(chosen, window_seconds=60), reference]


@pytest.mark.parametrize("kind", range(10))
def test_every_batch_has_the_schema_that_was_promised(
    manifest: Manifest, provenance: Provenance, kind: int
) -> None:
    form, messages = kinds_of_messages()[kind]
    for fields in all_fields(manifest):
        wanted = replace(fields, source=("city", "a")) if fields.layout == "reference" else fields
        promised = output_schema(fields, manifest, provenance, None)
        for batch in scored(messages, manifest, provenance, wanted, form):
            rows = EncodeRows(fields, provenance, promised).encode(batch)
            assert rows.schema.equals(promised)
            if form == "json":
                # Rows of JSON messages have it even without a cast.
                assert encode(batch, fields, provenance, SCORED).schema.equals(promised)


def test_a_feature_with_the_name_of_a_carried_field_is_not_carried(
    make_manifest: Make, provenance: Provenance
) -> None:
    names = ("sequence", "test_id", "c")
    manifest = make_manifest(InputSpec("x", names, shape=(3,)))
    fields = choose_fields(manifest, stream=True)
    promised = output_schema(fields, manifest, provenance, None)
    named = message(dict.fromkeys(names, 1.5))
    for messages in ([named], [named, message({"features": [1, 2, 3]})]):
        (batch,) = scored(messages, manifest, provenance, fields)
        encoded = encode(batch, fields, provenance, SCORED)
        assert encoded.schema.equals(promised)
        assert encoded.column("sequence").null_count == encoded.num_rows


def test_the_transform_returns_rows_of_its_schema(
    manifest: Manifest, provenance: Provenance
) -> None:
    fields = choose_fields(manifest, ("a",), stream=True)
    promised = output_schema(fields, manifest, provenance, None)
    messages = [part for kind, part in kinds_of_messages() if kind == "arrow"]
    batches = [b for m in messages for b in scored(m, manifest, provenance, fields, "arrow")]

    def check(found: list[pa.RecordBatch]) -> None:
        assert len(found) == len(batches)
        assert all(rows.schema.equals(promised) for rows in found)

    with beam.Pipeline("FnApiRunner") as pipeline:
        rows = pipeline | beam.Create(batches) | EncodeRows(fields, provenance, promised)
        assert_that(rows, check)
