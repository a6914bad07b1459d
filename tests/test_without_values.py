"""Tests that no message, attribute or log repeats the values of a row outside its payload."""

import datetime
import io
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud.errors import without_quotes
from common.errors import InputError
from common.record_batch import source_batch, to_rows
from model_handlers.batch_handler import error_column
from model_handlers.manifests.manifest import InputSpec, Manifest
from model_handlers.without_values import without_cells, without_numbers
from serving.instances import BadInstances, InstanceReader
from transforms.bigquery.append import _unfit
from transforms.dead_letters import Fault, failed_rows, failure_batch
from transforms.files.csv.parse import UnclosedQuote, read_lines
from transforms.json_rows.decode import Decoded, decode_json
from transforms.json_rows.row_format import RowFormat
from transforms.messages.avro_revisions import AvroRevisions
from transforms.messages.decode import MessageFormat, decode_messages
from transforms.messages.message import Message
from transforms.provenance import Provenance, utc_now
from transforms.replay.letters import read_letter
from transforms.row_schemas import CARRIED
from transforms.validate import validate

NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
COLUMNS = ("a", "n", "sequence")
AVRO = {
    "type": "record",
    "name": "row",
    "fields": [{"name": name, "type": ["null", "double", "string"]} for name in COLUMNS],
}
# No other part of a message looks like these cells. None of them fits n, which is an int8.
WORDS = st.text("QXZJKWV", min_size=8, max_size=30)
NUMBERS = st.integers(10**9 + 7, 10**12) | st.floats(1e9, 1e12).filter(lambda x: x != int(x))
CELLS = st.tuples(WORDS | NUMBERS, WORDS | NUMBERS, WORDS | NUMBERS)
slow = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(
        InputSpec("x", ("a",), shape=(1,)), InputSpec("y", ("n",), dtype="int8", shape=(1,))
    )


def contains(text: str, cells: Sequence[Any]) -> bool:
    """Return whether a text contains a cell, or the first digits or letters of a cell."""
    return any(str(cell)[:8] in text for cell in cells)


def check(records: pa.RecordBatch | None, cells: Sequence[Any]) -> None:
    """Check that there are dead letters, and that none has a cell outside its payload."""
    assert records is not None
    assert records.num_rows
    for record in to_rows(records):
        rest = {name: value for name, value in record.items() if name not in ("payload", "row_id")}
        assert not contains(json.dumps(rest, default=str), cells), rest
        assert record["message"]


def record(faults: Sequence[Fault], provenance: Provenance) -> pa.RecordBatch:
    ids = [str(i) for i in range(len(faults))]
    return failure_batch(
        ids, [b""] * len(ids), faults, stage="decode", provenance=provenance, failed_at=utc_now()
    )


def judged(batch: pa.RecordBatch, manifest: Manifest, provenance: Provenance) -> pa.RecordBatch:
    _, bad, faults = validate(batch, manifest)
    return failed_rows(bad, faults, stage="validate", provenance=provenance, failed_at=utc_now())


def avro(row: dict[str, Any]) -> bytes:
    body = io.BytesIO()
    as_is = {name: float(v) if isinstance(v, int) else v for name, v in row.items()}
    fastavro.schemaless_writer(body, fastavro.parse_schema(AVRO), as_is)
    return body.getvalue()


def arrow(row: dict[str, Any]) -> bytes:
    body = io.BytesIO()
    table = pa.table({name: [value] for name, value in row.items()})
    with pa.ipc.new_stream(body, table.schema) as writer:
        writer.write_table(table)
    return body.getvalue()


@slow
@given(cells=CELLS, cut=st.integers(0, 60))
@pytest.mark.parametrize("kind", ["json", "avro", "arrow"])
def test_messages_do_not_leak_values(
    manifest: Manifest,
    provenance: Provenance,
    caplog: pytest.LogCaptureFixture,
    kind: Any,
    cells: Sequence[Any],
    cut: int,
) -> None:
    row = dict(zip(COLUMNS, cells, strict=True))
    whole = {"json": lambda r: json.dumps(r).encode(), "avro": avro, "arrow": arrow}[kind](row)
    bodies = [whole, whole[:-cut] if cut else whole + b"1", str(cells[0]).encode() * 3]
    if kind == "json":
        nested = {"a": 1, "n": 1, "x": row}
        bodies += [json.dumps(nested).replace('"a"', f'"{cells[0]}"').encode().replace(b"}}", b"}")]
        bodies += [json.dumps({"a": [cells[0]], "n": row}).encode(), json.dumps(cells).encode()]
    message_format = MessageFormat(
        RowFormat(manifest, typed=CARRIED),
        kind,
        AvroRevisions(json.dumps(AVRO)) if kind == "avro" else None,
    )
    messages = [
        Message(body, {}, f"m{i}", 1_700_000_000_000_000, "") for i, body in enumerate(bodies)
    ]
    good, failures = decode_messages(messages, message_format, provenance, NOW)
    if failures is not None:
        check(failures, cells)
    for batch in good:
        check(judged(batch, manifest, provenance), cells)
    assert failures is not None or good
    assert not contains(caplog.text, cells)


@slow
@given(cells=CELLS)
def test_lines_and_columns_do_not_leak_values(
    manifest: Manifest,
    provenance: Provenance,
    caplog: pytest.LogCaptureFixture,
    cells: Sequence[Any],
) -> None:
    row = dict(zip(COLUMNS, cells, strict=True))
    lines = [json.dumps(row).encode(), json.dumps(row).encode()[:-2], str(cells[0]).encode()]
    decoded: Decoded = decode_json(lines, None, RowFormat(manifest, keep=("sequence",)))
    check(record(decoded.faults, provenance), cells)
    table = pa.table({name: [value, value] for name, value in row.items()})
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    batch = pq.read_table(pa.BufferReader(parquet.getvalue())).combine_chunks().to_batches()[0]
    check(judged(source_batch(pa.array(["r", "s"]), batch), manifest, provenance), cells)
    text = ",".join(map(str, cells)).encode()
    types = {"a": pa.float64(), "n": pa.float64()}
    block = b"\n".join([text, text + b",1", text + b'"', text + b"\xff", text]) + b"\n"
    part = read_lines(block, 0, COLUMNS, types)
    check(record([fault for _, _, fault in part.failed], provenance), cells)
    rows = part.columns.combine_chunks().to_batches()[0]
    ids = pa.array([str(i) for i in range(rows.num_rows)])
    check(judged(source_batch(ids, rows), manifest, provenance), cells)
    with pytest.raises(UnclosedQuote) as unclosed:
        read_lines(b'"' + block, 0, COLUMNS, types)
    assert not contains(str(unclosed.value), cells)
    assert not contains(caplog.text, cells)


@given(cells=CELLS)
@slow
def test_a_server_and_a_table_do_not_leak_values(
    manifest: Manifest, provenance: Provenance, cells: Sequence[Any]
) -> None:
    instances = [dict(zip(COLUMNS[:2], cells, strict=False)), {"a": [cells[0]], "n": 1}]
    with pytest.raises(BadInstances) as raised:
        InstanceReader(manifest).read(instances)
    check(record(list(raised.value.faults.values()), provenance), cells)
    row = pa.record_batch({name: [cell] for name, cell in zip(COLUMNS, cells, strict=True)})
    schema = pa.schema([(name, pa.int8()) for name in COLUMNS])
    check(record([_unfit(row, schema)], provenance), cells)


@given(cells=CELLS)
def test_an_unreadable_dead_letter_does_not_leak_values(cells: Sequence[Any]) -> None:
    for line in (json.dumps({"failed_at": cells[0], "payload": ""}), str(cells[0])):
        with pytest.raises(InputError) as raised:
            read_letter(line.encode(), "file:1")
        assert not contains(str(raised.value), cells)
        assert str(raised.value).startswith("file:1: expected dead letters")


@given(
    st.floats(1e3, 1e9, width=32),
    st.integers(2, 5),
    st.sampled_from(["bad amount {}", "IndexError: index {} is out of bounds", "[{}, 1]", "x={}."]),
)
def test_values_are_removed_from_a_model_error(value: float, places: int, text: str) -> None:
    row = np.array([[1.5, value]], np.float32)
    for written in (repr(value), f"{value:.{places}f}", f"{value:,.2f}", f"{value:.7e}"):
        column = error_column({0: ("model_error", text.format(written))}, [row], 1)
        assert column[0].as_py()["message"] == text.format("...")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("index 7 is out of bounds for dimension 0 with size 5", None),
        ("mat1 and mat2 shapes cannot be multiplied (1x30 and 4x2)", None),
        ("expected float32, got 20000", "expected float32, got ..."),
        ("tensor([-5., 20,000, 20_000])", "tensor([...., ..., ...])"),
        ("RuntimeError: 0.1000000015 is below 0.2", "RuntimeError: ... is below 0.2"),
    ],
)
def test_other_numbers_are_kept(text: str, shown: str | None) -> None:
    values = [np.array([7.3, 20000, 0.1, -5], np.float32)]
    assert without_numbers(text, values) == (shown or text)


def test_the_status_of_an_answer_is_kept_even_if_the_row_contains_it() -> None:
    faults = {0: ("endpoint_refused", "400 Bad Request: 400 is too much")}
    (error,) = error_column(faults, [np.array([[400.0]])], 1).to_pylist()
    assert error["message"] == "400 Bad Request: ... is too much"


def test_values_are_removed_from_a_message_of_bigquery() -> None:
    row = {"id": "r1", "name": "Ada Lovelace", "code": "xy", "n": 12345, "more": ["second", None]}
    text = "Field name: bad value 'Ada Lov...' ('xy') for n 12345, Ada Lovelace, \"second\", 'n'"
    shown = "Field name: bad value '...' ('...') for n ..., ..., \"...\", 'n'"
    assert without_cells(text, row) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bad double value: Ada Lovelace; while reading", "Bad double value: ...; while reading"),
        ("Invalid timestamp: 'Ada'", "Invalid timestamp: '...'"),
        ('Failed to parse input string "Ada"', 'Failed to parse input string "..."'),
        ("Could not convert value 'Ada' to integer. Value: Ada", None),
        ("Not found: Table p:d.t was not found in location US", "same"),
        ("Invalid value for field 'labels'", "same"),
    ],
)
def test_quotes_are_removed_from_errors_of_bigquery(text: str, shown: str | None) -> None:
    found = without_quotes(text)
    assert found == (text if shown == "same" else shown or found)
    assert "Ada" not in found


def test_the_check_finds_values_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("any").warning("QXZJKWVQ")
    assert contains(caplog.text, ["QXZJKWVQXX"])
