"""A name in --id_column or --output_fields that no row has is refused, or a warning says so."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from common.errors import UsageError
from common.record_batch import MESSAGE, ROW_ID, SOURCE
from model_handlers.manifests.manifest import Manifest
from pipelines.batch.input_files import check_files, with_formats
from pipelines.field_names import check_name, named_by_user
from pipelines.stream import in_process, progress, unseen
from pipelines.stream.config import MessageConfig
from pipelines.stream.messages import message_format
from pipelines.stream.progress import (
    CountReceived,
    Tally,
    count_received,
    start_tally,
    summary,
    unseen_names,
)
from transforms.files import first_rows
from transforms.files.columns import Columns
from transforms.files.csv.dialect import PLAIN
from transforms.files.ranges import match_inputs
from transforms.json_rows.row_format import RowFormat
from transforms.messages.decode import MessageFormat, decode_messages
from transforms.messages.message import Message
from transforms.output_fields import choose_fields
from transforms.provenance import Provenance, utc_now

MakeManifest = Callable[..., Manifest]


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def check(manifest: Manifest, *paths: str, own: str | None = None, fields: str = "") -> None:
    chosen = choose_fields(manifest, fields.split(",")) if fields else choose_fields(manifest)
    files = with_formats(match_inputs(paths), None)
    check_files(files, PLAIN, Columns(manifest, own, chosen.source), chosen)


ROW = {"id": "r", "a": 1, "b": 1, "c": 1, "amount": 5, "card1": 2}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"own": "ID"},
            "--id_column: none of the first 3 rows of the input has 'ID' (did you mean",
        ),
        ({"own": "key"}, "'key'; they have id, a, b, c, amount, card1"),
        (
            {"fields": "amounts"},
            "--output_fields: none of the first 3 rows of the input has 'amounts'",
        ),
        ({"fields": "amount,Amount"}, "has 'Amount' (did you mean 'amount'?)"),
    ],
)
def test_a_misspelt_name_is_refused_by_the_first_rows(
    make_manifest: MakeManifest, tmp_path: Path, flags: dict[str, str], words: str
) -> None:
    path = lines(tmp_path / "rows.jsonl", [ROW] * 3)
    with pytest.raises(UsageError) as caught:
        check(make_manifest(), path, **flags)
    assert words in str(caught.value)


def test_a_name_that_only_a_later_row_or_file_has_is_accepted(
    make_manifest: MakeManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = lines(tmp_path / "a.jsonl", [ROW] * 50)
    other = lines(tmp_path / "b.jsonl", [7, ROW, ROW | {"Amount": 1}])
    check(make_manifest(), one, other, own="id", fields="Amount,amount,a")
    assert capsys.readouterr().err == ""


def test_a_field_that_may_be_absent_is_a_warning(
    make_manifest: MakeManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Exports leave out nulls, so the names of a numbered series may be absent.
    path = lines(tmp_path / "rows.jsonl", [ROW] * 2)
    check(make_manifest(), path, fields="card2,note")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: --output_fields: none of the first 2 rows of the input has")
    assert "'card2': the field is null" in first
    assert "'note'" in second


def test_features_may_be_in_a_list_and_rows_without_names_show_nothing(
    make_manifest: MakeManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(make_manifest(), lines(tmp_path / "v.jsonl", [{"features": [1, 2, 3]}] * 3), fields="a,b")
    (tmp_path / "n.jsonl").write_text("not JSON\n[1]\n")
    check(make_manifest(), str(tmp_path / "n.jsonl"), own="ID")
    assert capsys.readouterr().err == ""


def test_only_the_first_rows_are_searched(
    make_manifest: MakeManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_rows, "FIRST_ROWS", 10)
    path = lines(tmp_path / "rows.jsonl", [*[ROW] * 10, ROW | {"ID": 1}])
    with pytest.raises(UsageError, match="none of the first 10 rows"):
        check(make_manifest(), path, own="ID")


def test_folders_and_documents_show_names(
    make_manifest: MakeManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "day=1" / "rows.json"
    path.parent.mkdir()
    path.write_text(json.dumps([ROW, ROW | {"amount": float("nan"), "note": 1}], indent=1))
    check(make_manifest(), str(path), own="id", fields="day,note")
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="none of the first 2 rows of the input has 'dya'"):
        check(make_manifest(), str(path), fields="dya")


def test_a_similar_name_with_other_digits_is_no_misspelling() -> None:
    assert check_name("V12", "output_fields", ["V1", "V2"], "these rows").startswith("warning: ")
    with pytest.raises(UsageError, match="did you mean 'V1'"):
        check_name("v1", "output_fields", ["V1", "V2"], "these rows")


# Streams


def avro(*names: str) -> str:
    fields = [{"name": name, "type": "double"} for name in names]
    return json.dumps({"type": "record", "name": "Row", "fields": fields})


@pytest.mark.parametrize(("own", "fields"), [("ID", "a"), (None, "amounts")])
def test_the_names_of_an_avro_schema_are_known(
    make_manifest: MakeManifest, own: str | None, fields: str
) -> None:
    manifest = make_manifest()
    config = MessageConfig(
        kind="avro",
        avro_schema=avro("a", "b", "c", "id", "amount"),
        avro_revisions=(),
        max_bytes=1_000,
        id_column=own,
        window_seconds=None,
    )
    chosen = choose_fields(manifest, fields.split(","), stream=True)
    with pytest.raises(UsageError, match=r"--avro_schema has no field '(ID|amounts)' \(did you"):
        message_format(config, manifest, chosen, None)


def decoded(
    manifest: Manifest, provenance: Provenance, bodies: list[Any], own: str | None
) -> list[pa.RecordBatch]:
    read = MessageFormat(RowFormat(manifest, own, ("amount",)))
    messages = [Message(json.dumps(b).encode(), {}, f"{i}", 0, "") for i, b in enumerate(bodies)]
    return decode_messages(messages, read, provenance, utc_now())[0]


@pytest.mark.parametrize(
    ("row", "left"),
    [
        ({"id": "x"}, {"amount"}),
        ({"id": None, "amount": 1}, {"id"}),
        ({"amount": 2, "id": 3}, set()),
        ({"ID": "x"}, {"id", "amount"}),
    ],
)
def test_a_stream_knows_which_names_no_row_has_had(
    make_manifest: MakeManifest,
    provenance: Provenance,
    monkeypatch: pytest.MonkeyPatch,
    row: dict[str, Any],
    left: set[str],
) -> None:
    manifest = make_manifest()
    monkeypatch.setattr(progress, "_tally", None)
    tally = start_tally(named_by_user(manifest, "id", ("amount", "a")))
    bodies = [{"a": 1, "b": 1, "c": 1} | extra for extra in ({}, row, {})]
    for batch in decoded(manifest, provenance, bodies, "id"):
        assert {ROW_ID, SOURCE, MESSAGE} <= {*batch.schema.names}
        count_received(batch)
    tally.scored = 3
    assert {*tally.unseen} == left
    assert len(unseen_names(tally)) == len(left)
    assert all(f"'{name}'" in summary(tally, 1.0) for name in left)


def test_nothing_is_said_of_names_before_a_row_is_scored() -> None:
    assert unseen_names(Tally(received=3, dead_letters=3, unseen={"ID": "id_column"})) == []


def test_the_first_progress_line_with_rows_warns_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Running:
        """A run that ends after five looks at it."""

        looks = 0

        def wait(self, _: float) -> bool:
            self.looks += 1
            return self.looks > 5

    tally = Tally(scored=3, unseen={"ID": "id_column"})
    tally.latencies.add(np.ones(1))
    intake = SimpleNamespace(waits_until=None)
    for _ in in_process._reported(Running(), intake, tally, 0):  # type: ignore[arg-type]
        pass
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "--id_column: no row so far has a field 'ID'" in warnings[0]


@pytest.mark.parametrize(("rows", "warnings"), [(99, 0), (100, 2)])
def test_a_worker_logs_once_which_names_its_first_rows_lack(
    make_manifest: MakeManifest,
    provenance: Provenance,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    rows: int,
    warnings: int,
) -> None:
    monkeypatch.setattr(unseen, "_warned", set())
    manifest = make_manifest()
    names = named_by_user(manifest, "ID", ("amount", "a"))
    batches = decoded(manifest, provenance, [{"a": 1, "b": 1, "c": 1, "id": "x"}] * rows, "ID")
    caplog.set_level("WARNING", "millrace")
    for _ in range(2):
        with beam.Pipeline("FnApiRunner") as pipeline:
            pipeline | beam.Create(batches) | beam.Map(CountReceived(names))
    logged = [one.getMessage() for one in caplog.records if one.name == "millrace"]
    assert len(logged) == warnings
    if warnings:
        field, own = sorted(logged, key=lambda text: "--id_column" in text)
        assert field.startswith(
            "--output_fields: no row so far has a field 'amount', so it is null"
        )
        assert own.startswith("--id_column: no row so far has a field 'ID', so rows get the ids of")


def test_a_worker_does_not_warn_of_names_that_a_row_has(
    make_manifest: MakeManifest, provenance: Provenance, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = make_manifest()
    names = named_by_user(manifest, "id", ("amount",))
    bodies = [{"a": 1, "b": 1, "c": 1}] * 199 + [{"a": 1, "b": 1, "c": 1, "id": 1, "amount": 2}]
    count = CountReceived(names)
    for batch in decoded(manifest, provenance, bodies, "id"):
        count(batch)
    assert not caplog.records
