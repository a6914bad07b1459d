"""replay as a user runs it: dead letters of batch runs and streams, in files and on emulators."""

import dataclasses
import datetime
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from apache_beam.internal.gcp import auth
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.runners.worker import data_plane
from command_line import Result, RunCommand, assert_one_line_error, words
from pubsub_mailbox import Mailbox
from same_scores import assert_scores
from waiting import wait_for_staged

from examples.local_cloud import PROJECT, LocalCloud
from examples.transactions.data import FEATURES
from model_handlers.package import read_manifest
from pipelines import batch_local
from pipelines.beam_args import beam_flags
from pipelines.command import main
from pipelines.options import all_flags
from pipelines.replay import command as replay
from pipelines.stream import subscription
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.dead_letters import failed_rows
from transforms.files.sink import commit as commit_files
from transforms.files.sink.writers import JsonLinesBatchWriter
from transforms.json_rows.row_format import RowFormat
from transforms.messages import lease
from transforms.messages.decode import MessageFormat, decode_messages
from transforms.messages.message import Message
from transforms.messages.publish import PublishBatches
from transforms.provenance import Provenance, utc_now
from transforms.replay.read import LetterFiles
from transforms.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROWS = 2_000  # in the fixture `example`
PUBLISHED = datetime.datetime(2024, 5, 6, 12, 30, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def cured(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixed package of the example: nulls and NaN become the mean. Infinities still fail."""
    package = tmp_path_factory.mktemp("cured") / "model"
    shutil.copytree(example / "model", package)
    manifest = json.loads((package / "model.json").read_text())
    for spec in manifest["inputs"]:
        spec["impute"] = dict.fromkeys(spec["columns"], "mean")
    (package / "model.json").write_text(json.dumps(manifest))
    return package


@pytest.fixture
def run(
    example: Path, cured: Path, tmp_path: Path, run_command: RunCommand
) -> Callable[..., Result]:
    """A function that runs a command: module, flags -> (exit code, standard output and error)."""

    def call(command: Any, **flags: Any) -> Result:
        own = {"model": cured} if command is replay else {"model": example / "model", "run_id": "r"}
        here = {"output_files": tmp_path / "out", "direct_num_workers": 1}
        return run_command(command.COMMAND, here | own | flags)

    return call


def reports(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the reports below a folder by run id, and assert that each balances."""
    found = [json.loads(path.read_text()) for path in folder.rglob("report.json")]
    for report in found:
        assert report["balanced"]
        assert report["rows_in"] == report["rows_scored"] + report["rows_dead_lettered"]
    return {report["run_id"]: report for report in found}


def replay_of(folder: Path) -> dict[str, Any]:
    """Return the report of the only replay in a folder."""
    (report,) = (r for r in reports(folder).values() if r["pipeline"].endswith("_replay"))
    return report


def scores(folder: Path, run_id: str) -> pa.Table:
    table = pq.read_table(folder / run_id / "scores").sort_by("row_id")
    ids = table["row_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    return table


def dead_letters(folder: Path) -> list[dict[str, Any]]:
    """Return all dead letters in files below a folder."""
    files = sorted(folder.rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def ids_of(letters: list[dict[str, Any]]) -> list[str]:
    return sorted(letter["row_id"] for letter in letters)


@pytest.fixture(scope="module")
def scored(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run `r` of batch_local over the example."""
    out = tmp_path_factory.mktemp("scored") / "out"
    flags = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "id_column": "transaction_id",
        "output_fields": "encoded,Amount,Class",
        "output_files": out,
        "run_id": "r",
        "direct_num_workers": 1,
    }
    assert main(batch_local.COMMAND, words(flags)) == 0
    return out


@pytest.fixture
def letters(scored: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """The dead letters of a run `r` of batch_local over the example, in tmp_path / out."""
    shutil.copytree(scored, tmp_path / "out")
    found = dead_letters(tmp_path / "out/r")
    assert len(found) == ROWS // 100
    return found


def infinite(letter: dict[str, Any]) -> bool:
    """Return whether the fixed package still rejects the row of a dead letter."""
    return "infinite" in letter["message"]


@pytest.mark.slow
def test_a_row_that_a_fixed_package_accepts_is_scored_as_if_it_had_never_failed(
    run: Callable[..., Result],
    letters: list[dict[str, Any]],
    example: Path,
    cured: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    fields = {"output_fields": "encoded,Amount,Class"}
    code, text, err = run(replay, input_files=out / "r/dead_letters", **fields)
    assert (code, err) == (0, "")
    assert "batch_replay" in text
    report = replay_of(out)
    again = dead_letters(out / report["run_id"])
    assert ids_of(again) == ids_of([x for x in letters if infinite(x)])
    assert {(x["attempts"], x["pipeline"]) for x in again} == {(2, "batch_replay")}
    assert {x["attempts"] for x in letters} == {1}
    assert {x["row_id"]: x["payload"] for x in again}.items() <= {
        x["row_id"]: x["payload"] for x in letters
    }.items()
    assert (report["rows_in"], report["rows_dead_lettered"]) == (len(letters), len(again))
    replayed, first = scores(out, report["run_id"]), scores(out, "r")
    # Each row is in exactly one place.
    every = [*replayed["row_id"].to_pylist(), *first["row_id"].to_pylist(), *ids_of(again)]
    source = pq.read_table(example / "transactions.parquet")["transaction_id"].to_pylist()
    assert sorted(every) == sorted(source)
    # Compare with the same rows, scored from the file with the fixed package.
    run(
        batch_local,
        input_files=example / "transactions.parquet",
        id_column="transaction_id",
        model=cured,
        run_id="cured",
        **fields,
    )
    expected = scores(out, "cured")
    expected = expected.filter(pc.is_in(expected["row_id"], replayed["row_id"]))
    for name in ("row_id", "model_digest"):
        assert replayed[name].to_pylist() == expected[name].to_pylist()
    for name in ("score", "encoded", "Amount"):
        # As in JSON Lines, columns that are not features are passed through as strings.
        got, wanted = (np.array(t[name].to_pylist(), np.float64) for t in (replayed, expected))
        assert_scores(got, wanted, name)
    assert replayed.column_names == expected.column_names
    assert replayed["Class"].to_pylist() == [str(x) for x in expected["Class"].to_pylist()]


@pytest.mark.slow
def test_the_same_replay_again_replaces_the_first(
    run: Callable[..., Result], letters: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # The folder also holds the dead letters of the replay itself, which are not replayed.
    seen = []
    for _ in range(2):
        assert run(replay, input_files=out)[0] == 0
        report = replay_of(out)
        seen.append((report["run_id"], report["rows_in"], scores(out, report["run_id"])["row_id"]))
    assert seen[0] == seen[1]
    assert seen[0][1] == len(letters)
    assert set(reports(out)) == {"r", seen[0][0]}


@pytest.mark.slow
def test_another_replay_scores_the_last_dead_letter_of_each_row(
    run: Callable[..., Result], letters: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(replay, input_files=out, run_id="second")[0] == 0
    assert run(replay, input_files=out, run_id="third")[0] == 0
    # The folder now also holds dead letters of the second run, which are of the same rows.
    assert reports(out)["third"]["rows_in"] == len(letters)
    tries = {x["row_id"]: x["attempts"] for x in dead_letters(out / "third")}
    assert tries == {x["row_id"]: 3 for x in letters if infinite(x)}


def test_filters_choose_what_is_replayed(
    run: Callable[..., Result], letters: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = {"input_files": tmp_path / "out/r/dead_letters"}
    nulls = [x for x in letters if x["reason"] == "null"]
    assert 0 < len(nulls) < len(letters)
    code, _, err = run(replay, **source, reason="null", stage="validate,infer", since="2024-05-06")
    assert (code, err) == (0, "")
    report = replay_of(tmp_path / "out")
    assert report["rows_in"] == report["rows_scored"] == len(nulls)
    assert scores(tmp_path / "out", report["run_id"])["row_id"].to_pylist() == ids_of(nulls)
    assert report["input"][1:] == [
        "--reason null",
        "--stage infer,validate",
        "--since 2024-05-06",
    ]


@pytest.mark.parametrize(
    "filters",
    [
        {"reason": "invalid_json"},
        {"stage": "decode,infer"},
        {"since": "2999-01-01T00:00:00Z"},
        {"pipeline": "stream_local"},
        {"replayed_run_id": "r", "reason": "invalid_json"},
    ],
    ids=lambda filters: next(iter(filters)),
)
@pytest.mark.exhaustive
def test_without_matching_dead_letters_no_run_starts(
    run: Callable[..., Result],
    letters: list[dict[str, Any]],
    tmp_path: Path,
    filters: dict[str, str],
) -> None:
    code, out, err = run(replay, input_files=tmp_path / "out", **filters)
    assert (code, err) == (0, "")
    given = ", ".join(sorted(f"--{name} {value}" for name, value in filters.items()))
    assert out == f"no dead letters in {tmp_path / 'out'}, {given}: nothing to replay\n"
    assert list(reports(tmp_path / "out")) == ["r"]
    # With --json_summary, standard output holds only a report.
    quiet = run(replay, input_files=tmp_path / "out", **filters, json_summary="true")
    assert quiet == (0, "", out)


@pytest.mark.parametrize("ids", ["q", "r,q"])
@pytest.mark.exhaustive
def test_a_replay_of_an_unknown_run_fails_and_lists_the_runs(
    run: Callable[..., Result], letters: list[dict[str, Any]], tmp_path: Path, ids: str
) -> None:
    result = run(replay, input_files=tmp_path / "out", replayed_run_id=ids)
    listed = f"runs with dead letters: r ({len(letters):,})"
    place = f"no dead letters of this run in {tmp_path / 'out'}"
    assert_one_line_error(result, 1, "--replayed_run_id q: ", place, listed)
    assert list(reports(tmp_path / "out")) == ["r"]


@pytest.mark.slow
def test_a_replay_with_the_same_package_fails_and_keeps_the_dead_letters(
    run: Callable[..., Result], letters: list[dict[str, Any]], example: Path, tmp_path: Path
) -> None:
    source = tmp_path / "out/r/dead_letters"
    code, out, err = run(replay, input_files=source, model=example / "model")
    assert code == 1
    assert "batch_replay" in out
    assert_one_line_error(
        (code, "", err), 1, f"{len(letters)} of {len(letters)} rows (100.00 %) are dead letters"
    )
    again = dead_letters(tmp_path / "out" / replay_of(tmp_path / "out")["run_id"])
    assert Counter((x["row_id"], x["reason"]) for x in again) == Counter(
        (x["row_id"], x["reason"]) for x in letters
    )
    assert {x["attempts"] for x in again} == {2}


@pytest.mark.slow
def test_rows_of_csv_are_read_as_their_columns_were(
    run: Callable[..., Result], example: Path, cured: Path, tmp_path: Path
) -> None:
    table = pq.read_table(example / "transactions.parquet").slice(0, 40).select(FEATURES)
    texts = table.cast(pa.schema([(name, pa.string()) for name in FEATURES])).to_pylist()
    # One value that is not a number makes the whole column a column of strings.
    for row, name, text in ((0, "V1", "abc"), (1, "V1", ""), (2, "V2", ""), (3, "V2", " inf ")):
        texts[row][name] = text
    pa_csv.write_csv(pa.Table.from_pylist(texts), tmp_path / "rows.csv")
    assert run(batch_local, input_files=tmp_path / "rows.csv")[0] == 0
    assert run(replay, input_files=tmp_path / "out/r")[0] == 0
    report = replay_of(tmp_path / "out")
    again = {x["row_id"]: x["reason"] for x in dead_letters(tmp_path / "out" / report["run_id"])}
    before = {x["row_id"]: x["reason"] for x in dead_letters(tmp_path / "out/r")}
    assert sorted(again.values()) == ["not_finite", "wrong_type"]
    assert again.items() <= before.items()
    # Compare with the file itself, scored with the fixed package.
    rows = tmp_path / "rows.csv"
    assert run(batch_local, input_files=rows, model=cured, run_id="cured")[0] == 0
    expected = scores(tmp_path / "out", "cured")
    replayed = scores(tmp_path / "out", report["run_id"])
    expected = expected.filter(pc.is_in(expected["row_id"], replayed["row_id"]))
    assert replayed["row_id"].to_pylist() == expected["row_id"].to_pylist()
    assert_scores(replayed["score"], expected["score"])
    assert ids_of(dead_letters(tmp_path / "out/cured")) == sorted(again)
    assert replayed.num_rows == len(before) - 2 >= 2


@pytest.mark.slow
def test_equal_rows_of_equal_ids_are_all_replayed(
    run: Callable[..., Result], example: Path, tmp_path: Path
) -> None:
    row = pq.read_table(example / "transactions.parquet").slice(0, 1).to_pylist()[0]
    rows = [row | {"V1": None, "transaction_id": "same"}] * 3 + [row]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    flags = {"id_column": "transaction_id", "max_dead_letter_share": 1}
    assert run(batch_local, input_files=tmp_path / "rows.parquet", **flags)[0] == 0
    assert run(replay, input_files=tmp_path / "out/r/dead_letters")[0] == 0
    report = replay_of(tmp_path / "out")
    found = pq.read_table(tmp_path / "out" / report["run_id"] / "scores")
    assert found["row_id"].to_pylist() == ["same"] * 3


def refusals(messages: list[Message], package: Path) -> pa.RecordBatch:
    """Return the dead letters of the messages that a stream with this package cannot score."""
    manifest = read_manifest(str(package))
    provenance = Provenance.of(manifest, "live", "stream_local")
    read = MessageFormat(RowFormat(manifest))
    batches, failures = decode_messages(messages, read, provenance, utc_now())
    found = [] if failures is None else [failures]
    for rows in batches:
        _, bad, faults = validate(rows, manifest)
        if faults:
            now = utc_now()
            found.append(
                failed_rows(bad, faults, stage="validate", provenance=provenance, failed_at=now)
            )
    return pa.concat_batches(found)


def message(number: int, data: bytes) -> Message:
    time = round(PUBLISHED.timestamp() * 1e6) + number
    return Message(data, {"sender": "test"}, f"m-{number}", time, "")


@pytest.fixture
def faulty() -> list[Message]:
    """Six messages: four lack a feature that the fixed package replaces, two are not fixable."""
    good = [{name: float(i) for i, name in enumerate(FEATURES)} | {"sequence": n} for n in range(5)]
    bodies = [orjson.dumps(row | {"V1": None}) for row in good[:4]]
    bodies += [b"\xff not JSON", orjson.dumps(good[4] | {"V2": "text"})]
    return [message(i, body) for i, body in enumerate(bodies)]


def write_letters(failures: pa.RecordBatch, folder: Path) -> Path:
    """Write dead letters to files as a stream does, and return the folder."""
    path = folder / "dead_letters/2024-05-06/12-30-00-300s-3f0c2a71-9b1d44e0.jsonl"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        JsonLinesBatchWriter(file, failures.schema).write(failures)
    return folder


@pytest.mark.slow
def test_replayed_messages_have_the_columns_that_the_stream_writes(
    run: Callable[..., Result], faulty: list[Message], example: Path, tmp_path: Path
) -> None:
    # Streams write dead letters at least once, so two of them are duplicated here.
    twice = refusals(faulty + faulty[:2], example / "model")
    source = write_letters(twice, tmp_path / "stream")
    code, out, err = run(
        replay, input_files=source, window_seconds=60, output_fields="normalized_MAE,Amount"
    )
    assert (code, err) == (0, "")
    assert "stream_replay" in out
    report = replay_of(tmp_path / "out")
    assert (report["rows_in"], report["rows_scored"]) == (6, 4)
    rows = scores(tmp_path / "out", report["run_id"]).to_pylist()
    assert [row["row_id"] for row in rows] == ["m-0", "m-1", "m-2", "m-3"]
    for n, row in enumerate(rows):
        assert row["event_time"] == PUBLISHED + datetime.timedelta(microseconds=n)
        assert row["window_start"] == PUBLISHED.replace(second=0)
        assert (row["message_id"], row["sequence"], row["Amount"]) == (f"m-{n}", n, 29.0)
    again = dead_letters(tmp_path / "out")
    assert {x["row_id"]: x["reason"] for x in again} == {"m-4": "invalid_json", "m-5": "wrong_type"}
    assert {x["attempts"] for x in again} == {2}
    described = json.loads(again[0]["attributes"])["message"]
    assert described["attributes"]["sender"] == "test"


def start(cured: Path, root: Path, *flags: str, **given: Any) -> subprocess.Popen[str]:
    """Start a replay into root / out as a separate process."""
    command = [sys.executable, "-m", "pipelines.replay", "--model", str(cured)]
    command += ["--output_files", str(root / "out"), *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_replay_and_leaves_nothing_staged(
    letters: list[dict[str, Any]], cured: Path, tmp_path: Path, number: int
) -> None:
    source = tmp_path / "letters.jsonl"
    with open(source, "w") as file:
        for i in range(100):
            for letter in letters:
                row_id = f"{letter['row_id']}-{i}"
                file.write(json.dumps({**letter, "row_id": row_id}) + "\n")
    process = start(cured, tmp_path, "--input_files", str(source), "--batch_rows", "1")
    wait_for_staged(process, tmp_path / "out")
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (128 + number, "")
    assert err.splitlines()[-1].startswith("interrupted: "), err
    assert not (tmp_path / "out/.staging").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["r"]


@pytest.mark.slow
def test_letters_of_streams_and_of_batch_runs_are_not_replayed_together(
    run: Callable[..., Result],
    letters: list[dict[str, Any]],
    faulty: list[Message],
    example: Path,
    tmp_path: Path,
) -> None:
    write_letters(refusals(faulty, example / "model"), tmp_path / "out/stream")
    for pipeline, rows in (("batch_local", len(letters)), ("stream_local", len(faulty))):
        result = run(replay, input_files=tmp_path / "out")
        assert_one_line_error(result, 1, "dead letters of both", "separately", "with --pipeline")
        target = tmp_path / pipeline
        assert (
            run(replay, input_files=tmp_path / "out", pipeline=pipeline, output_files=target)[0]
            == 0
        )
        assert replay_of(target)["rows_in"] == rows
    assert list(reports(tmp_path / "out")) == ["r"]


@pytest.mark.slow
def test_with_several_workers_no_timer_sends_a_buffer_that_is_being_written(
    run: Callable[..., Result],
    letters: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_handlers, "DATA_BUFFER_TIME_LIMIT_MS", 1_000)
    intervals = []

    class Clock(data_plane.PeriodicThread):  # type: ignore[misc]
        def __init__(self, interval: float, *rest: Any) -> None:
            super().__init__(interval, *rest)
            intervals.append(interval)

    monkeypatch.setattr(data_plane, "PeriodicThread", Clock)
    flags = {"direct_num_workers": 2, "direct_running_mode": "multi_threading"}
    assert run(replay, input_files=tmp_path / "out/r", **flags)[0] == 0
    assert replay_of(tmp_path / "out")["rows_in"] == len(letters)
    # Elements that are added while the thread of a timer sends are lost.
    assert intervals
    assert min(intervals) > 86_400


def test_wrong_flags_are_reported_in_one_line(
    run: Callable[..., Result], letters: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = {"input_files": tmp_path / "out/r"}
    subscription = "projects/p/subscriptions/s"
    assert_one_line_error(
        run(replay, model=None), 2, "--input_files", "--model", "python -m pipelines.replay"
    )
    assert_one_line_error(run(replay, **source, output_files=None), 2, "missing --output_files")
    assert_one_line_error(run(replay, **source, input_table="p.d.t"), 2, "use only one of them")
    assert_one_line_error(run(replay, **source, stage="validat"), 2, "--stage", "did you mean 'val")
    assert_one_line_error(
        run(replay, **source, reason="null,wrong_typ"), 2, "--reason", "did you mean 'wrong_type"
    )
    assert_one_line_error(
        run(replay, **source, stage="write"), 2, "--stage write", "cannot be scored again"
    )
    assert_one_line_error(
        run(replay, **source, since="yesterday"), 2, "--since", "2026-11-20T12:00:00Z"
    )
    assert_one_line_error(run(replay, **source, run_id="r"), 2, "--run_id r", "choose another")
    assert_one_line_error(
        run(replay, **source, message_format="arrow"), 2, "--message_format", "of streams"
    )
    assert_one_line_error(
        run(replay, **source, window_seconds=60), 2, "--window_seconds", "of streams"
    )
    assert_one_line_error(
        run(replay, **source, max_message_bytes=9), 2, "--max_message_bytes", "of streams"
    )
    assert_one_line_error(run(replay, input_subscription="s"), 2, "--input_subscription")
    assert_one_line_error(run(replay, **source, output_topic="t"), 2, "--output_topic")
    assert_one_line_error(
        run(replay, **source, reasons="null"), 2, "--reasons (did you mean '--rea"
    )
    assert_one_line_error(
        run(replay, input_subscription=subscription, runner="DataflowRunner"),
        2,
        "--input_subscription can only be replayed in this process",
        "--runner",
    )
    assert list(reports(tmp_path / "out")) == ["r"]


def test_input_without_dead_letters_is_reported(
    run: Callable[..., Result], letters: list[dict[str, Any]], example: Path, tmp_path: Path
) -> None:
    assert_one_line_error(run(replay, input_files=tmp_path / "none"), 1, "no input file matches")
    assert_one_line_error(run(replay, input_files=example / "model"), 1, "ends in .jsonl")
    assert_one_line_error(run(replay, input_files=tmp_path / "out/r/scores"), 1, "ends in .jsonl")
    (tmp_path / "rows.jsonl").write_text('{"row_id":"t1","score":1.5}\n')
    assert_one_line_error(
        run(replay, input_files=tmp_path / "rows.jsonl"), 1, "rows.jsonl: expected dead letters"
    )
    (tmp_path / "cut.jsonl").write_bytes(
        next((tmp_path / "out/r").rglob("*.jsonl")).read_bytes()[:-9]
    )
    assert_one_line_error(
        run(replay, input_files=tmp_path / "cut.jsonl"), 1, "cut.jsonl: expected dead letters"
    )
    assert list(reports(tmp_path / "out")) == ["r"]


def test_only_the_files_of_dead_letters_in_a_folder_are_read(
    letters: list[dict[str, Any]], tmp_path: Path
) -> None:
    files = LetterFiles((str(tmp_path / "out"),))
    parts, _ = files.parts()
    lines = [line for part in parts for chunk in files.chunks(part) for line in chunk.lines]
    assert ids_of([json.loads(line) for line in lines]) == ids_of(letters)


def test_no_flag_is_declared_twice_or_owned_by_beam() -> None:
    names = [f.name for kind in replay.COMMAND.options for f in dataclasses.fields(kind)]
    assert len(names) == len(set(names))
    assert {f"--{name}" for name in names} <= all_flags()
    # Millrace takes this flag over from Beam (pipelines/beam_args.py).
    own = {f"--{name}" for name in names} - {"--extra_packages"}
    assert not own & beam_flags().keys()


# Tests on the emulators.


@pytest.fixture
def servers(stream_emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> LocalCloud:
    """The emulators, found through environment variables. Beam's settings are restored after."""
    for variable, address in stream_emulators.environment.items():
        monkeypatch.setenv(variable, address)
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 0.5)
    return stream_emulators


def rows_of(servers: LocalCloud, sql: str) -> list[dict[str, Any]]:
    return [dict(row) for row in servers.cloud.bigquery().query(sql).result()]


@pytest.fixture
def table(
    servers: LocalCloud,
    run: Callable[..., Result],
    example: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> dict[str, Any]:
    """Flags that write to a table of scores that already has 300 rows, 3 of them dead letters."""
    name = f"{PROJECT}.streams.{request.node.name[:60]}"
    flags = {
        "output_table": name,
        "output_files": None,
        "output_fields": "Amount,Class",
        "temp_location": "gs://bucket/tmp",
        "project": PROJECT,
        "retry_seconds": 20,
    }
    rows = pq.read_table(example / "transactions.parquet").slice(0, 300)
    pq.write_table(rows, tmp_path / "few.parquet")
    code, _, err = run(
        batch_local, input_files=tmp_path / "few.parquet", id_column="transaction_id", **flags
    )
    assert (code, err) == (0, "")
    return flags


def balance(servers: LocalCloud, table: str) -> Counter[tuple[str, str]]:
    """Return how many times each (run id, row id) is in a table of scores."""
    return Counter((r["run_id"], r["row_id"]) for r in rows_of(servers, f"SELECT * FROM `{table}`"))


def test_a_replay_into_the_tables_of_its_run_leaves_each_row_once(
    servers: LocalCloud, run: Callable[..., Result], table: dict[str, Any]
) -> None:
    name = table["output_table"]
    dead = rows_of(servers, f"SELECT * FROM `{name}_dead_letters`")
    assert len(dead) == 3
    for _ in range(2):
        code, out, err = run(replay, input_table=f"{name}_dead_letters", **table)
        assert (code, err) == (0, ""), err
        assert "batch_replay" in out
        rows = rows_of(servers, f"SELECT * FROM `{name}`")
        letters = rows_of(servers, f"SELECT * FROM `{name}_dead_letters`")
        # The second replay does not score dead letters of the first, and replaces its output.
        first = [row for row in letters if row["run_id"] == "r"]
        again = [row for row in letters if row["run_id"] != "r"]
        assert first == dead
        assert ids_of(again) == ids_of([row for row in dead if infinite(row)])
        assert {row["attempts"] for row in again} <= {2}
        ids = [row["row_id"] for row in rows]
        assert len(ids) == len(set(ids)) == 300 - len(again)
        # The integer column gets integers, although the JSON of a dead letter has no types.
        assert {row["Class"] for row in rows} <= {0, 1}
    assert {row["run_id"] for row in rows} == {"r", *{row["run_id"] for row in rows} - {"r"}}
    assert len({row["run_id"] for row in rows}) == 2


def rerun(run: Callable[..., Result], tmp_path: Path, **flags: Any) -> Result:
    """Run the run `r` of the fixture `table` again."""
    few = {"input_files": tmp_path / "few.parquet", "id_column": "transaction_id"}
    return run(batch_local, **few, **flags)


def places(servers: LocalCloud, name: str) -> Counter[str]:
    """Count the row ids in a table of scores and, for rows not in it, in its dead letters."""
    scored = rows_of(servers, f"SELECT row_id FROM `{name}`")
    dead = {x["row_id"] for x in rows_of(servers, f"SELECT row_id FROM `{name}_dead_letters`")}
    ids = [row["row_id"] for row in scored]
    return Counter([*ids, *dead.difference(ids)])


def test_a_replay_of_all_dead_letters_replaces_a_replay_of_some(
    servers: LocalCloud, run: Callable[..., Result], table: dict[str, Any]
) -> None:
    name = table["output_table"]
    source = {"input_table": f"{name}_dead_letters", **table}
    reasons = Counter(x["reason"] for x in rows_of(servers, f"SELECT * FROM `{name}_dead_letters`"))
    some = "null" if "null" in reasons else next(iter(reasons))
    for flags in ({"reason": some}, {}, {"run_id": "again"}, {"run_id": "and-again"}):
        code, _, err = run(replay, **source, **flags)
        assert (code, err) == (0, ""), err
        assert set(places(servers, name).values()) == {1}
    assert len(places(servers, name)) == 300
    # A replay of some dead letters cannot replace a replay of all.
    result = run(replay, **source, reason=some, run_id="part")
    if reasons[some] < sum(reasons.values()):
        assert_one_line_error(
            result, 1, "and-again has already replayed some of", name, "choose filters"
        )
    assert set(places(servers, name).values()) == {1}


def test_a_rerun_replaces_what_was_replayed(
    servers: LocalCloud,
    run: Callable[..., Result],
    table: dict[str, Any],
    cured: Path,
    tmp_path: Path,
) -> None:
    name = table["output_table"]
    assert run(replay, input_table=f"{name}_dead_letters", **table)[0] == 0
    assert rerun(run, tmp_path, **table, model=cured)[0] == 0
    assert {run_id for run_id, _ in balance(servers, name)} == {"r"}
    assert places(servers, name) == Counter(dict.fromkeys(places(servers, name), 1))
    assert len(places(servers, name)) == 300
    letters = rows_of(servers, f"SELECT run_id FROM `{name}_dead_letters`")
    assert {letter["run_id"] for letter in letters} <= {"r"}


def test_a_rerun_is_refused_if_its_dead_letters_were_replayed_with_those_of_another_run(
    servers: LocalCloud, run: Callable[..., Result], table: dict[str, Any], tmp_path: Path
) -> None:
    name = table["output_table"]
    assert rerun(run, tmp_path, **table, run_id="q")[0] == 0
    # If two runs have dead letters of the same row, those of the last run are replayed.
    before = balance(servers, name)
    assert run(replay, input_table=f"{name}_dead_letters", run_id="both", **table)[0] == 0
    after = balance(servers, name)
    assert after.keys() > before.keys()
    result = rerun(run, tmp_path, **table)
    assert_one_line_error(
        result, 1, "run both", "this run and of q", "DELETE FROM", name, "letters of q"
    )
    assert balance(servers, name) == after


def test_a_second_replay_into_a_table_without_a_run_id_column_is_refused(
    servers: LocalCloud, run: Callable[..., Result], table: dict[str, Any], tmp_path: Path
) -> None:
    name, letters = f"{table['output_table']}_reference", f"{table['output_table']}_dead_letters"
    flags = {**table, "output_table": name, "output_fields": None, "output_schema": "reference"}
    flags |= {"dead_letter_files": tmp_path / "again", "dead_letter_table": None}
    assert run(replay, input_table=letters, run_id="first", **flags)[0] == 0
    before = rows_of(servers, f"SELECT instance_id FROM `{name}`")
    result = run(replay, input_table=letters, run_id="second", **flags)
    assert_one_line_error(
        result,
        1,
        f"table {name} has no column run_id, so the rows that run first replayed into it for run ",
        "cannot be replaced: write to another table, or replace all rows of the table with "
        "--write_disposition truncate",
    )
    assert rows_of(servers, f"SELECT instance_id FROM `{name}`") == before
    # The same replay, run again, finds its own rows.
    assert run(replay, input_table=letters, run_id="first", **flags)[0] == 0
    assert rows_of(servers, f"SELECT instance_id FROM `{name}`") == before


def test_after_a_crash_the_same_command_leaves_each_row_once(
    servers: LocalCloud,
    run: Callable[..., Result],
    table: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = table["output_table"]

    def crash(*_: Any) -> bool:
        raise OSError("the machine is gone")

    flags = {"input_table": f"{name}_dead_letters", "reason": "null,not_finite", **table}
    with monkeypatch.context() as broken:
        broken.setattr(commit_files, "replace", crash)
        assert_one_line_error(run(replay, **flags), 1, "the machine is gone")
    halfway = balance(servers, name)
    assert len(halfway) > 300 - 3
    assert_one_line_error(
        run(replay, **flags, replayed_run_id="typo"), 1, "runs with dead letters: "
    )
    assert run(replay, **flags)[0] == 0
    assert balance(servers, name) == halfway
    assert set(halfway.values()) == {1}


def test_since_limits_the_dead_letters_read_from_a_table(
    servers: LocalCloud, run: Callable[..., Result], table: dict[str, Any]
) -> None:
    source = f"{table['output_table']}_dead_letters"
    (last,) = rows_of(servers, f"SELECT MAX(failed_at) AS t FROM `{source}`")
    late = last["t"] + datetime.timedelta(microseconds=1)
    code, out, err = run(replay, input_table=source, since=late.isoformat(), **table)
    assert (code, err) == (0, "")
    assert out.endswith("nothing to replay\n")
    code, out, err = run(replay, input_table=source, since=last["t"].isoformat(), **table)
    assert (code, err) == (0, "")
    assert "batch_replay" in out


def test_dead_letters_are_read_from_a_table_that_spells_its_columns_in_other_case(
    servers: LocalCloud, run: Callable[..., Result], table: dict[str, Any], tmp_path: Path
) -> None:
    source = f"{table['output_table']}_dead_letters"
    columns = ", ".join(f"`{name}` AS `{name.upper()}`" for name in FAILURE_SCHEMA.names)
    copy = f"{table['output_table']}_copy"
    client = servers.cloud.bigquery()
    client.query(f"CREATE TABLE `{copy}` AS SELECT {columns} FROM `{source}`").result()
    assert client.get_table(copy).schema[0].name == FAILURE_SCHEMA.names[0].upper()
    flags = {**table, "input_table": copy, "output_table": None, "output_files": tmp_path / "o"}
    flags["temp_location"] = None
    result = run(replay, **flags, replayed_run_id="typo")
    assert_one_line_error(result, 1, "runs with dead letters: ")
    code, out, err = run(replay, **flags)
    assert (code, err) == (0, "")
    assert "batch_replay" in out


def test_a_table_without_dead_letters_is_reported(
    servers: LocalCloud, run: Callable[..., Result]
) -> None:
    other = f"{PROJECT}.streams.of_another_kind"
    servers.cloud.bigquery().query(f"CREATE TABLE `{other}` (row_id STRING, stage STRING)").result()
    flags = {"project": PROJECT, "retry_seconds": 20}
    assert_one_line_error(
        run(replay, input_table=other, **flags), 1, "is not a table of dead letters", "failed_at"
    )
    assert_one_line_error(
        run(replay, input_table=f"{PROJECT}.streams.none", **flags), 1, "cannot be read"
    )


@pytest.fixture
def mailbox(servers: LocalCloud, request: pytest.FixtureRequest) -> Callable[[str], Mailbox]:
    """A function that creates a topic of this name for the test, with a subscription."""

    def make(name: str) -> Mailbox:
        own = re.sub(r"\W", "-", f"{request.node.name[:150]}-{name}")
        return Mailbox(servers.cloud, own).create()

    return make


@pytest.fixture
def box(mailbox: Callable[[str], Mailbox], faulty: list[Message], example: Path) -> Mailbox:
    """A dead letter topic with the dead letters of `faulty` and one other message."""
    made = mailbox("dead")
    with beam.Pipeline("FnApiRunner") as pipeline:
        letters = pipeline | beam.Create([refusals(faulty, example / "model")])
        _ = letters | PublishBatches(made.cloud, made.topic, "failures")
    made.cloud.publisher().publish(topic=made.topic, messages=[{"data": b"a stranger"}])
    return made


def test_replayed_messages_leave_the_subscription_and_the_others_stay(
    run: Callable[..., Result],
    box: Mailbox,
    mailbox: Callable[[str], Mailbox],
    faulty: list[Message],
    example: Path,
    tmp_path: Path,
) -> None:
    results, hopeless = mailbox("results"), mailbox("hopeless")
    flags = {"input_subscription": box.subscription, "output_topic": results.topic}
    flags["dead_letter_topic"] = hopeless.topic
    code, out, err = run(replay, **flags, reason="null,wrong_type")
    assert code == 0, err
    assert "stream_replay" in out
    assert err == (
        f"2 messages stay in {box.subscription}: 1 with another reason than --reason, 1 without "
        "a whole dead letter\n"
    )
    unknown = run(replay, **flags, replayed_run_id="typo")
    assert unknown[0] == 1
    assert "no dead letters of this run in" in unknown[2]
    first = replay_of(tmp_path / "out")
    assert (first["rows_in"], first["rows_scored"]) == (5, 4)
    rows = scores(tmp_path / "out", first["run_id"])
    assert rows["row_id"].to_pylist() == ["m-0", "m-1", "m-2", "m-3"]
    assert rows["sequence"].to_pylist() == [0, 1, 2, 3]
    assert sorted(m.attributes["row_id"] for m in results.look()) == ["m-0", "m-1", "m-2", "m-3"]
    (letter,) = hopeless.look()
    assert letter.data == faulty[5].data
    attributes = dict(letter.attributes)
    assert (attributes["millrace_attempts"], attributes["millrace_row_id"]) == ("2", "m-5")
    assert attributes["sender"] == "test"
    assert box.bodies() == [b"a stranger", faulty[4].data]
    # The same command again finds no dead letters that match.
    code, out, err = run(replay, **flags, reason="null,wrong_type")
    assert code == 0
    assert out.endswith("nothing to replay\n")
    assert list(reports(tmp_path / "out")) == [first["run_id"]]


def test_messages_stay_in_the_subscription_if_too_many_fail_again(
    run: Callable[..., Result], box: Mailbox, faulty: list[Message], tmp_path: Path
) -> None:
    code, out, err = run(replay, input_subscription=box.subscription, max_dead_letter_share=0.1)
    assert code == 1
    assert "stream_replay" in out
    assert (
        "2 of 6 rows (33.33 %) are dead letters, more than --max_dead_letter_share 0.1 allows;"
        in err
    )
    assert "run the same command again" in err
    assert box.bodies() == sorted([b"a stranger", *(m.data for m in faulty)])
    first = replay_of(tmp_path / "out")
    # The next run finds the same dead letters, and replaces the rows of the first.
    assert run(replay, input_subscription=box.subscription)[0] == 0
    assert replay_of(tmp_path / "out")["run_id"] == first["run_id"]
    assert box.bodies() == [b"a stranger"]


def test_messages_are_acknowledged_after_the_report_and_a_crash_between_doubles_no_row(
    run: Callable[..., Result],
    box: Mailbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def crash(self: lease.Lease, message_ids: Any) -> None:
        seen.append(replay_of(tmp_path / "out")["run_id"])
        raise RuntimeError("the machine is gone")

    with monkeypatch.context() as broken:
        broken.setattr(lease.Lease, "acknowledge", crash)
        assert run(replay, input_subscription=box.subscription)[0] == 1
    assert len(box.bodies()) == 7
    assert run(replay, input_subscription=box.subscription)[0] == 0
    report = replay_of(tmp_path / "out")
    assert [report["run_id"]] == seen
    assert scores(tmp_path / "out", report["run_id"]).num_rows == 4
    assert box.bodies() == [b"a stranger"]


def test_a_replay_waits_for_messages_that_a_killed_one_holds(
    run: Callable[..., Result], box: Mailbox, tmp_path: Path
) -> None:
    box.hold(7, 20)
    code, _, err = run(replay, input_subscription=box.subscription)
    assert code == 0
    assert "more, because a reader that was killed may hold messages for that long" in err
    assert replay_of(tmp_path / "out")["rows_in"] == 6


def test_a_replay_of_an_empty_subscription_waits_no_longer_than_a_message_may_be_held(
    run: Callable[..., Result],
    mailbox: Callable[[str], Mailbox],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscription, "DEADLINE_SECONDS", 12)
    code, out, err = run(replay, input_subscription=mailbox("empty").subscription)
    assert code == 0
    assert err.count("\n") == 1
    assert err.endswith(
        "more, because a reader that was killed may hold messages for that long (Ctrl-C stops)\n"
    )
    assert out.endswith("nothing to replay\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_held_messages(
    mailbox: Callable[[str], Mailbox],
    servers: LocalCloud,
    cured: Path,
    tmp_path: Path,
    number: int,
) -> None:
    source = ["--input_subscription", mailbox("empty").subscription]
    process = start(cured, tmp_path, *source, env=servers.environ())
    assert process.stderr is not None
    assert "waiting 50 s more" in process.stderr.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    # It was interrupted before its end, which it would have reported on standard output.
    assert (process.returncode, out) == (128 + number, "")
    assert err == "\ninterrupted: nothing was written\n"


def test_two_replays_of_one_subscription_do_not_replace_each_other(
    run: Callable[..., Result], box: Mailbox, faulty: list[Message], example: Path, tmp_path: Path
) -> None:
    flags = {"input_subscription": box.subscription, "reason": "null", "run_id": "daily"}
    assert run(replay, **flags)[0] == 0
    later = [message(9, faulty[0].data)]
    with beam.Pipeline("FnApiRunner") as pipeline:
        letters = pipeline | beam.Create([refusals(later, example / "model")])
        _ = letters | PublishBatches(box.cloud, box.topic, "failures")
    assert run(replay, **flags)[0] == 0
    ids = [scores(tmp_path / "out", run_id)["row_id"] for run_id in reports(tmp_path / "out")]
    assert sorted(i for some in ids for i in some.to_pylist()) == [
        "m-0",
        "m-1",
        "m-2",
        "m-3",
        "m-9",
    ]


def test_dead_letters_published_to_their_own_topic_count_attempts_and_double_no_row(
    run: Callable[..., Result], box: Mailbox, example: Path, tmp_path: Path
) -> None:
    flags = {"input_subscription": box.subscription}
    code, _, _ = run(replay, **flags, model=example / "model", dead_letter_topic=box.topic)
    assert code == 1
    assert len(box.bodies()) == 1 + 6 + 6
    assert run(replay, **flags)[0] == 0
    report = replay_of(tmp_path / "out")
    assert (report["rows_in"], report["rows_scored"]) == (6, 4)
    assert {letter["attempts"] for letter in dead_letters(tmp_path / "out")} == {3}
    assert box.bodies() == [b"a stranger"]


def test_max_messages_bounds_a_replay(
    run: Callable[..., Result], box: Mailbox, tmp_path: Path
) -> None:
    # The subscription holds seven messages, one of which is not a dead letter.
    flags = {"max_messages": 3, "max_dead_letter_share": 1}
    assert run(replay, input_subscription=box.subscription, **flags)[0] == 0
    assert 2 <= replay_of(tmp_path / "out")["rows_in"] <= 3
    assert len(box.bodies()) == 7 - replay_of(tmp_path / "out")["rows_in"]


def test_unusable_subscriptions_and_topics_are_reported(
    run: Callable[..., Result], box: Mailbox, tmp_path: Path
) -> None:
    source = {"input_subscription": box.subscription}
    none = f"projects/{PROJECT}/subscriptions/none"
    assert_one_line_error(run(replay, input_subscription=none), 1, f"{none} cannot be read")
    assert_one_line_error(
        run(replay, **source, output_topic=box.topic), 2, "--output_topic", "choose another"
    )
    code, out, err = run(replay, **source, output_topic=f"projects/{PROJECT}/topics/none")
    assert (code, out) == (1, "")
    assert "topics/none cannot be published to" in err.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*"))
    assert len(box.bodies()) == 7
