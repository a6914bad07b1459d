"""Rows with raw columns: every source gives the same scores, decisions and dead letters."""

import copy
import datetime
import io
import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Result, RunCommand, assert_one_line_error
from google.cloud import bigquery
from raw_model import FAULTS, GOOD, KINDS, MANIFEST, ROWS, Net, batch_flags, write_raw_package

from common.record_batch import to_rows
from examples.local_cloud import PROJECT, LocalCloud
from model_handlers.manifests.manifest import Manifest
from model_handlers.package import read_manifest
from model_handlers.packaged_steps import PackagedSteps
from pipelines.batch_local import COMMAND
from pipelines.replay.command import COMMAND as REPLAY
from transforms.files.columns import Columns
from transforms.files.parquet import open_parquet
from transforms.files.pins import pin
from transforms.json_rows.row_format import RowFormat
from transforms.messages.avro_revisions import AvroRevisions
from transforms.messages.decode import MessageFormat, decode_messages
from transforms.messages.message import Message
from transforms.provenance import Provenance
from transforms.row_schemas import CARRIED
from transforms.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
LABELS = ["stay", "call", "leave"]
TYPES = pa.schema(
    [
        ("id", pa.string()),
        ("amount", pa.float64()),
        ("limit", pa.float64()),
        ("kind", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("clicks", pa.list_(pa.int64())),
    ]
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "package"
    write_raw_package(folder)
    return folder


@pytest.fixture
def run(package: Path, tmp_path: Path, run_command: RunCommand) -> Callable[..., Result]:
    """A function that runs batch_local: flags -> (exit code, standard output, standard error)."""

    def call(**flags: Any) -> Result:
        return run_command(COMMAND, batch_flags(package, tmp_path) | flags)

    return call


def expected(row: dict[str, Any]) -> tuple[float, str, str]:
    """Return the score, the label and the decision of a row, prepared by hand."""
    amount = 1.0 if row["amount"] is None else float(row["amount"])
    at = datetime.datetime.fromisoformat(row["at"].replace("Z", "+00:00"))
    angle = 2 * math.pi * at.astimezone(datetime.UTC).hour / 24
    dense = [
        (math.log1p(amount) - 1.0) / 2.0,
        amount / row["limit"],
        math.sin(angle),
        math.cos(angle),
    ]
    clicks = row["clicks"][-4:]
    with torch.inference_mode():
        logits = Net().eval()(
            torch.tensor([dense]),
            torch.tensor([KINDS.index(row["kind"].strip().lower())]),
            torch.tensor([clicks + [0] * (4 - len(clicks))]),
            torch.tensor([[1.0] * len(clicks) + [0.0] * (4 - len(clicks))]),
        )
    shares = logits.softmax(1)[0].tolist()
    best = max(shares)
    decision = "manual" if best < 0.4 else "check" if best < 0.6 else "auto"
    return best, LABELS[shares.index(best)], decision


def scores(folder: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(folder / "r" / "scores").to_pylist()
    return {row["row_id"]: row for row in rows}


def letters(folder: Path) -> dict[str, tuple[str, str]]:
    files = sorted((folder / "r" / "dead_letters").glob("*.jsonl"))
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {
        one["row_id"]: (one["reason"], json.loads(one["attributes"])["column"]) for one in found
    }


def assert_results(folder: Path, faults: dict[str, tuple[str, str]]) -> None:
    found = scores(folder)
    assert sorted(found) == [ROWS[i]["id"] for i in GOOD]
    for i in GOOD:
        row = found[ROWS[i]["id"]]
        score, label, decision = expected(ROWS[i])
        assert row["score"] == pytest.approx(score, rel=1e-4, abs=1e-5)
        assert (row["label"], row["decision"]) == (label, decision)
        assert row["best"][0]["name"] == label
    assert letters(folder) == faults


def as_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_document(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1))


def as_text_table() -> pa.Table:
    """Return all rows as text, as a CSV file has them."""
    columns: dict[str, list[Any]] = {name: [] for name in TYPES.names}
    for row in ROWS:
        for name, value in row.items():
            text = json.dumps(value) if isinstance(value, list) else value
            columns[name].append(None if text is None else str(text))
    return pa.table(columns, pa.schema([(name, pa.string()) for name in TYPES.names]))


WRITERS: dict[str, Callable[[Path], None]] = {
    "rows.jsonl": as_jsonl,
    "rows.json": as_document,
    "rows.csv": lambda path: pa_csv.write_csv(as_text_table(), path),
    "rows.parquet": lambda path: pq.write_table(as_text_table(), path),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_rows_of_every_kind_of_file_get_the_same_results(
    run: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    WRITERS[name](tmp_path / name)
    code, out, err = run(input_files=tmp_path / name)
    assert (code, err) == (0, "")
    assert "unknown_value at validate" in out
    assert_results(tmp_path / "out", FAULTS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": pa.dictionary(pa.int8(), pa.string()), "at": pa.timestamp("ns", tz="Asia/Tokyo")},
        {"kind": pa.large_string(), "clicks": pa.large_list(pa.int16()), "amount": pa.float32()},
        {"kind": pa.string_view(), "amount": pa.decimal128(10, 2), "limit": pa.int32()},
    ],
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_typed_columns_get_the_same_results(
    run: Callable[..., Result], tmp_path: Path, changes: dict[str, pa.DataType]
) -> None:
    rows = [ROWS[i] for i in (*GOOD, 3, 6)]
    for row in rows:
        at = datetime.datetime.fromisoformat(row["at"].replace("Z", "+00:00"))
        assert at.tzinfo is not None
    typed = [{**row, "at": datetime.datetime.fromisoformat(row["at"])} for row in rows]
    table = pa.Table.from_pylist(typed, TYPES)
    for name, kind in changes.items():
        i = table.schema.get_field_index(name)
        column = table.column(name)
        column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
        table = table.set_column(i, name, column)
    pq.write_table(table, tmp_path / "rows.parquet")
    assert run(input_files=tmp_path / "rows.parquet")[0] == 0
    faults = {name: FAULTS[name] for name in ("unknown", "zero")}
    assert_results(tmp_path / "out", faults)


@pytest.mark.parametrize(
    ("column", "kind", "parts"),
    [
        ("at", pa.timestamp("us"), ("column 'at'", "got timestamp[us]", "declare it as datetime")),
        ("kind", pa.list_(pa.string()), ("column 'kind'", "expected text", "got list<")),
        ("amount", pa.binary(), ("column 'amount'", "expected a number", "got binary")),
    ],
)
def test_a_column_of_another_type_ends_the_run_in_one_line(
    run: Callable[..., Result], tmp_path: Path, column: str, kind: pa.DataType, parts: Any
) -> None:
    table = pa.table({f.name: pa.nulls(2, kind if f.name == column else f.type) for f in TYPES})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert_one_line_error(run(input_files=tmp_path / "rows.parquet"), 1, *parts)


def test_a_missing_column_is_named_with_a_similar_one(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    table = pa.table(
        {f"{f.name}s" if f.name == "kind" else f.name: pa.nulls(2, f.type) for f in TYPES}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    result = run(input_files=tmp_path / "rows.parquet")
    assert_one_line_error(result, 1, "needs column 'kind'", "did you mean 'kinds'")


@pytest.mark.slow
def test_a_row_may_lack_a_column_that_is_filled_and_no_other(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    rows = [{k: v for k, v in ROWS[0].items() if k != lacking} for lacking in ("amount", "kind")]
    rows[1]["id"] = "lacking"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(input_files=tmp_path / "rows.jsonl")[0] == 0
    assert list(scores(tmp_path / "out")) == ["r0"]
    assert letters(tmp_path / "out") == {"lacking": ("missing_feature", "kind")}


@pytest.mark.slow
def test_raw_columns_are_passed_on_with_their_types(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    as_jsonl(tmp_path / "rows.jsonl")
    fields = "decision,kind,at,amount,clicks"
    assert run(input_files=tmp_path / "rows.jsonl", output_fields=fields)[0] == 0
    row = scores(tmp_path / "out")["r2"]
    assert (row["kind"], row["amount"], row["clicks"]) == (" Phone ", 3.0, [7, 8, 9, 4, 5])
    assert row["at"].isoformat() == "2026-11-29T00:00:00.500000+00:00"


AVRO = {
    "type": "record",
    "name": "row",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "amount", "type": ["null", "double", "string"]},
        {"name": "limit", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9}},
        {"name": "kind", "type": {"type": "enum", "name": "kinds", "symbols": ["shop", "web"]}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "clicks", "type": {"type": "array", "items": "int"}},
    ],
}


def decoded(
    bodies: Sequence[bytes], message_format: MessageFormat, package: Path
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, str | None]]]:
    """Return the tensors of messages by row id, and the reason and column of each dead letter."""
    manifest = message_format.row_format.manifest
    provenance = Provenance.of(manifest)
    messages = [
        Message(body, {}, f"m{i}", 1_700_000_000_000_000, "") for i, body in enumerate(bodies)
    ]
    batches, failures = decode_messages(messages, message_format, provenance, NOW)
    rows = [] if failures is None else to_rows(failures)
    bad = {r["row_id"]: (r["reason"], json.loads(r["attributes"]).get("column")) for r in rows}
    good = {}
    steps = PackagedSteps(manifest, str(package)).load()
    for batch in batches:
        fine, failed, faults = validate(batch, manifest, preparation=steps)
        for row in to_rows(fine):
            good[row["row_id"]] = row["inputs"]
        for row_id, fault in zip(failed.column("row_id").to_pylist(), faults, strict=True):
            bad[row_id] = (fault.reason, fault.column)
    return good, bad


def wanted(manifest: Manifest, package: Path) -> dict[str, Any]:
    """Return the tensors of the good rows by id."""
    steps = PackagedSteps(manifest, str(package)).load()
    tensors, refused = steps.tensors([ROWS[i] for i in GOOD])
    assert not refused
    names = [spec.name for spec in manifest.inputs]
    return {
        ROWS[i]["id"]: {n: t[place].tolist() for n, t in zip(names, tensors, strict=True)}
        for place, i in enumerate(GOOD)
    }


def test_messages_of_json_and_arrow_get_the_tensors_of_files(package: Path) -> None:
    manifest = read_manifest(str(package))
    row_format = RowFormat(manifest, "id", typed=CARRIED)
    bodies = [json.dumps(row).encode() for row in ROWS]
    good, bad = decoded(bodies, MessageFormat(row_format), package)
    assert good == wanted(manifest, package)
    assert bad == FAULTS
    # All rows in one message.
    together = MessageFormat(row_format, several=True)
    assert decoded([b"[" + b",".join(bodies) + b"]"], together, package) == (good, bad)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, as_text_table().schema) as writer:
        writer.write_table(as_text_table())
    arrow = MessageFormat(row_format, "arrow")
    assert decoded([sink.getvalue()], arrow, package) == (good, bad)


def test_messages_of_avro_get_the_tensors_of_files(package: Path) -> None:
    manifest = read_manifest(str(package))
    rows = [dict(ROWS[0]), dict(ROWS[1]), {**ROWS[5], "kind": "web"}, {**ROWS[6], "kind": "web"}]
    bodies = []
    for row in rows:
        row["at"] = datetime.datetime.fromisoformat(row["at"].replace("Z", "+00:00"))
        row["limit"] = Decimal(int(row["limit"]))
        body = io.BytesIO()
        fastavro.schemaless_writer(body, fastavro.parse_schema(AVRO), row)
        bodies.append(body.getvalue())
    avro = MessageFormat(RowFormat(manifest, "id"), "avro", AvroRevisions(json.dumps(AVRO)))
    good, bad = decoded(bodies, avro, package)
    expect = wanted(manifest, package)
    assert good == {name: expect[name] for name in ("r0", "r1")}
    assert bad == {name: FAULTS[name] for name in ("text", "zero")}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_letters_are_replayed_with_another_package(
    run: Callable[..., Result],
    run_command: RunCommand,
    tmp_path: Path,
    name: str,
) -> None:
    WRITERS[name](tmp_path / name)
    assert run(input_files=tmp_path / name)[0] == 0
    # The new package knows the category, and divides by zero.
    inputs = copy.deepcopy(MANIFEST["inputs"])
    inputs[1]["from"][0][-1] = {"step": "vocabulary", "file": "kinds.txt", "unknown": 1}
    inputs[0]["from"][1][-1]["by_zero"] = 0.0
    write_raw_package(tmp_path / "cured", inputs=inputs)
    flags = {
        "model": tmp_path / "cured",
        "input_files": tmp_path / "out/r/dead_letters",
        "output_files": tmp_path / "again",
        "id_column": "id",
        "max_dead_letter_share": 1.0,
        "direct_num_workers": 1,
    }
    code, _, err = run_command(REPLAY, flags)
    assert (code, err) == (0, "")
    (folder,) = (path.parent for path in (tmp_path / "again").rglob("scores"))
    ids = pq.read_table(folder / "scores")["row_id"].to_pylist()
    assert sorted(ids) == ["unknown", "zero"]


@pytest.mark.parametrize("read_method", ["direct", "export"])
def test_a_table_gets_the_same_results(
    emulators: LocalCloud,
    dataset: str,
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read_method: str,
) -> None:
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)
    rows = [ROWS[i] for i in (*GOOD, 3, 6)]
    client = emulators.cloud.bigquery()
    table = f"{dataset}.raw"
    schema = [
        bigquery.SchemaField("id", "STRING"),
        bigquery.SchemaField("amount", "FLOAT64"),
        bigquery.SchemaField("limit", "NUMERIC"),
        bigquery.SchemaField("kind", "STRING"),
        bigquery.SchemaField("at", "TIMESTAMP"),
        bigquery.SchemaField("clicks", "INT64", mode="REPEATED"),
    ]
    config = bigquery.LoadJobConfig(schema=schema, source_format="NEWLINE_DELIMITED_JSON")
    client.load_table_from_json(rows, table, job_config=config).result()
    flags = {"read_method": read_method}
    if read_method == "export":
        flags["temp_location"] = "gs://bucket/raw"
    code, _, err = run(input_table=table, project=PROJECT, retry_seconds=20, **flags)
    assert (code, err) == (0, "")
    assert_results(tmp_path / "out", {name: FAULTS[name] for name in ("unknown", "zero")})


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.slow
def test_text_that_is_stored_as_a_dictionary_is_read_as_one(
    package: Path, run: Callable[..., Result], tmp_path: Path, dictionary: bool
) -> None:
    typed = [row for row in ROWS if row["id"] not in ("zone", "text")]
    rows = [row | {"id": f"{row['id']}-{i}"} for i in range(50) for row in typed]
    at = [datetime.datetime.fromisoformat(row["at"].replace("Z", "+00:00")) for row in rows]
    path = tmp_path / "many.parquet"
    table = pa.Table.from_pylist([row | {"at": t} for row, t in zip(rows, at, strict=True)], TYPES)
    pq.write_table(table, path, use_dictionary=dictionary, row_group_size=100)
    columns = Columns(read_manifest(str(package)), "id")
    with open_parquet(str(path), pin(str(path)), columns.categories) as source:
        types = source.schema_arrow
    assert pa.types.is_dictionary(types.field("kind").type) is dictionary
    assert types.field("id").type == pa.string()
    assert run(input_files=path)[0] == 0
    found = scores(tmp_path / "out")
    good = [row for row in rows if row["id"].startswith("r")]
    assert sorted(found) == sorted(row["id"] for row in good)
    for row in good:
        assert found[row["id"]]["score"] == pytest.approx(expected(row)[0], rel=1e-4)
    refused = letters(tmp_path / "out")
    assert refused == {
        row["id"]: FAULTS[row["id"].split("-")[0]] for row in rows if row not in good
    }
