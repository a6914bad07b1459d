"""Tests the BigQuery benchmarks: replays, gates, and that every contestant passes the gates."""

import json
import sys
from pathlib import Path

import apache_beam.io.gcp.bigquery as beam_bigquery
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.gcp.bigquery_tools import BigQueryWrapper
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types

from benchmarks.bigquery import appends as bigquery_appends
from benchmarks.bigquery import read as bigquery_read
from benchmarks.bigquery import sinks as bigquery_sinks
from benchmarks.bigquery import table as bigquery_table
from benchmarks.bigquery import timed_run
from benchmarks.bigquery import write as bigquery_write
from benchmarks.bigquery.decoders import CONTESTANTS, Decoding, read_kept
from benchmarks.bigquery.recording import Recording, ReplayingClient, cut
from benchmarks.bigquery.sinks import Writing, from_dicts, output_rows, table_rows, table_schema
from benchmarks.contestant import ID_COLUMN, Clock, Report, read_report
from benchmarks.measure import ContestantError, Measured
from benchmarks.row_costs import costs, ratio, report_rows, take_turns
from common.record_batch import BATCH_ROWS
from examples.local_cloud import LocalCloud
from examples.transactions.data import FEATURES, generate, write_parquet
from model_handlers.package import read_manifest
from transforms.bigquery.schema import TableName

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

ROWS = 300


def recorded(stream_rows: tuple[int, ...]) -> Recording:
    """Return a recording of a table of transactions, with one response per stream."""
    names = [ID_COLUMN, *FEATURES]
    batch = next(generate(sum(stream_rows), seed=1)).select(names)
    schema = types.ArrowSchema(serialized_schema=batch.schema.serialize().to_pybytes())
    session = types.ReadSession(
        arrow_schema=schema,
        data_format=types.DataFormat.ARROW,
        streams=[types.ReadStream(name=f"s{i}") for i in range(len(stream_rows))],
    )
    starts = np.cumsum([0, *stream_rows])
    streams = tuple(
        (
            types.ReadRowsResponse.serialize(
                types.ReadRowsResponse(
                    row_count=rows,
                    arrow_record_batch=types.ArrowRecordBatch(
                        serialized_record_batch=batch.slice(start, rows).serialize().to_pybytes()
                    ),
                )
            ),
        )
        for start, rows in zip(starts, stream_rows, strict=False)
    )
    return Recording(types.ReadSession.serialize(session), streams)


def rows_of(recording: Recording) -> pa.Table:
    client = ReplayingClient(recording)
    session = client.create_read_session()
    schema = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
    return pa.Table.from_batches(
        pa.ipc.read_record_batch(
            pa.py_buffer(response.arrow_record_batch.serialized_record_batch), schema
        )
        for stream in session.streams
        for response in client.read_rows(read_stream=stream.name)
    )


def test_a_recording_is_saved_and_loaded_completely(tmp_path: Path) -> None:
    recording = recorded((20, 30))
    recording.save(tmp_path / "new")
    assert Recording.load(tmp_path / "new") == recording
    assert (recording.rows, recording.response_rows) == (50, 30)


def test_a_replay_lists_its_streams_as_many_times_as_requested() -> None:
    client = ReplayingClient(recorded((20, 30)), times=2)
    session = client.create_read_session(parent="projects/p")
    assert [stream.name for stream in session.streams] == ["s0", "s1", "s0", "s1"]
    (response,) = client.read_rows(read_stream="s1", offset=0, retry=None)
    assert response.row_count == 30


def test_a_replay_refuses_to_start_in_the_middle() -> None:
    with pytest.raises(ValueError, match="not from row 7"):
        ReplayingClient(recorded((20,))).read_rows(read_stream="s0", offset=7)


def test_cut_responses_hold_the_same_rows_in_small_compressed_batches() -> None:
    whole = recorded((4_000, 3_000))
    small = cut(whole, 1_600)
    table = rows_of(small)
    assert table.equals(rows_of(whole))
    assert [batch.num_rows for batch in table.to_batches()] == [1_600, 1_600, 800, 1_600, 1_400]
    responses = [data for stream in small.streams for data in stream]
    for data, batch in zip(responses, table.to_batches(), strict=True):
        response = types.ReadRowsResponse.deserialize(data)
        body = response.arrow_record_batch.serialized_record_batch
        assert len(body) < batch.serialize().size
        assert response.row_count == batch.num_rows


@pytest.fixture
def beam_unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore what the benchmark replaces in Beam after the test."""
    for owner, name in (
        (beam_bigquery.bq_storage, "BigQueryReadClient"),
        (beam_bigquery._CustomBigQueryStorageSource, "_get_table_size"),
        (BigQueryWrapper, "_bigquery_client"),
    ):
        monkeypatch.setattr(owner, name, vars(owner)[name])


@pytest.mark.usefixtures("beam_unpatched")
def test_every_decoder_finds_the_rows_of_the_table(
    emulators: LocalCloud, dataset: str, example: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.parquet"
    write_parquet(data, ROWS, seed=1)
    config = bigquery.LoadJobConfig(source_format="PARQUET")
    with data.open("rb") as file:
        client = emulators.cloud.bigquery()
        client.load_table_from_file(file, f"{dataset}.rows", job_config=config).result()
    table = TableName.parse(f"{dataset}.rows", "table")
    recordings = bigquery_read.record_all(emulators.cloud, table)
    for name, recording in recordings.items():
        assert recording.rows == ROWS
        recording.save(tmp_path / name)
    manifest = read_manifest(str(example / "model"))
    for name, entrant in bigquery_read.ENTRANTS.items():
        output = tmp_path / f"{name} found"
        output.mkdir()
        task = Decoding(tmp_path / entrant.recording, 1, manifest, output)
        assert CONTESTANTS[entrant.decoder](task)() == ROWS
        expected = bigquery_read.expected_rows(data, entrant.has_ids)
        assert bigquery_read.find_faults(read_kept(output), expected) == [], name


def expected_rows() -> tuple[np.ndarray, np.ndarray]:
    ids = np.array(["a", "b", "c"])
    return ids, np.arange(6, dtype=np.float32).reshape(3, 2)


def test_the_gate_of_reading_detects_each_kind_of_fault() -> None:
    ids, matrix = expected_rows()
    wrong = matrix.copy()
    wrong[1, 1] = np.nextafter(wrong[1, 1], np.float32(9))
    twice = np.array(["a", "b", "b"])
    found = {
        "none": (ids, matrix),
        "one value": (ids, wrong),
        "swapped": (ids, matrix[[1, 0, 2]]),
        "unknown": (np.array(["a", "b", "x"]), matrix),
        "missing": (ids[:2], matrix[:2]),
        "doubled": (twice, matrix),
        "doubles": (ids, matrix.astype(np.float64)),
    }
    faults = {
        name: bigquery_read.find_faults(rows, expected_rows()) for name, rows in found.items()
    }
    assert faults == {
        "none": [],
        "one value": ["values differ: 1 rows, the first is b"],
        "swapped": ["values differ: 2 rows, the first is a"],
        "unknown": ["ids differ: 3 of 3 rows, the first is c"],
        "missing": ["ids differ: 2 of 3 rows, the first is c"],
        "doubled": ["ids differ: 3 of 3 rows, the first is c"],
        "doubles": ["expected a float32 matrix, got float64"],
    }


@pytest.mark.parametrize(
    "name", [name for name in bigquery_sinks.CONTESTANTS if not name.endswith("no_torch")]
)
def test_every_sink_writes_the_rows_of_the_table(name: str, tmp_path: Path) -> None:
    batches = output_rows(40)
    contest = bigquery_sinks.CONTESTANTS[name](Writing(batches, tmp_path, is_read=True))
    contest.run()
    assert bigquery_write.find_faults(contest.read(), table_rows(batches)) == []


def test_the_contestant_without_torch_refuses_a_process_with_it(tmp_path: Path) -> None:
    assert "torch" in sys.modules
    with pytest.raises(RuntimeError, match="without torch"):
        bigquery_sinks.beam_streaming_inserts_no_torch(Writing(output_rows(1), tmp_path, False))


def test_the_gate_of_writing_detects_each_kind_of_fault() -> None:
    expected = table_rows(output_rows(10))
    wrong = expected["score"].to_numpy().copy()
    wrong[3] = np.nextafter(wrong[3], 2.0)
    changed = expected.set_column(1, "score", pa.array(wrong))
    assert bigquery_write.find_faults(expected, expected) == []
    assert bigquery_write.find_faults(changed, expected) == ["columns differ: score"]
    (shorter,) = bigquery_write.find_faults(expected.slice(1), expected)
    assert shorter == "expected 10 rows, got 9"
    (narrower,) = bigquery_write.find_faults(expected.drop_columns("score"), expected)
    assert narrower.startswith("expected the columns row_id: string\nscore: double")


def test_batches_to_write_are_as_large_as_those_of_the_model() -> None:
    assert bigquery_sinks.BATCH_ROWS == BATCH_ROWS
    assert [batch.num_rows for batch in output_rows(BATCH_ROWS + 5)] == [BATCH_ROWS, 5]


def test_rows_of_beam_are_read_back_with_their_times() -> None:
    batches = output_rows(3)
    rows = bigquery_sinks.dict_rows(batches)
    assert all(isinstance(row["scored_at"], str) for row in rows)
    assert from_dicts(rows, table_schema(batches)).equals(table_rows(batches))


def reporting(rows: int) -> list[str]:
    """Return the command of a contestant that reports a number of rows."""
    report = {"rows": rows, "run_seconds": 2.0, "run_cpu_seconds": 1.0}
    return [sys.executable, "-c", f"print({json.dumps(json.dumps(report))})"]


def test_contestants_take_turns_and_their_costs_are_per_row() -> None:
    commands = {
        "ours": reporting(1_000_000),
        "theirs": reporting(20_000),
        "others": reporting(50_000),
    }
    rows = {"ours": 1_000_000, "theirs": 20_000, "others": 50_000}
    measured = take_turns(commands, rows, rounds=2)
    found = costs(measured)
    assert [len(one["rounds"]) for one in found.values()] == [2, 2, 2]
    assert found["ours"]["us_per_row"] == {"min": 1.0, "median": 1.0, "max": 1.0}
    assert found["theirs"]["us_per_row"]["median"] == 50.0
    assert ratio(found, ("theirs", "others"), "ours") == 20.0


def test_a_contestant_that_loses_rows_ends_the_benchmark() -> None:
    with pytest.raises(ContestantError, match="ours processed 9 rows of 10"):
        take_turns({"ours": reporting(9)}, {"ours": 10}, rounds=1)


def test_a_report_of_rows_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    report_rows(7, Clock(seconds=2.5, cpu_seconds=1.5))
    assert read_report(capsys.readouterr().out) == Report(7, 2.5, 1.5)


def test_a_timed_run_returns_how_many_rows_it_scored(example: Path, tmp_path: Path) -> None:
    flags = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "id_column": ID_COLUMN,
        "output_files": tmp_path,
        "run_id": "r",
    }
    rows = timed_run.run(
        [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    )
    scores = list((tmp_path / "r" / "scores").glob("*.parquet"))
    assert rows == sum(pq.read_metadata(path).num_rows for path in scores) == 1_980


def test_a_timed_run_that_fails_ends_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        timed_run.run(["--input_files", str(tmp_path / "none.parquet")])
    assert end.value.code == 2


def test_the_table_to_table_command_names_every_flag_once() -> None:
    flags = bigquery_table.command(Path("model"))[3:][::2]
    assert all(flag.startswith("--") for flag in flags)
    assert len(set(flags)) == len(flags)


def test_a_summary_of_runs_compares_the_highest_peak_with_the_target() -> None:
    def outcome(peak_bytes: int) -> bigquery_table.Outcome:
        measured = Measured(
            process_seconds=9.0,
            cpu_seconds=10.0,
            peak_bytes=peak_bytes,
            other_cpu_share=0.0,
            report=Report(5_000_000, 8.0, 9.0),
        )
        return bigquery_table.Outcome(measured, {"start-up": 1.0, "rest": 8.0})

    found = bigquery_table.summarise([outcome(900_000_000), outcome(1_100_000_000)])
    assert found["targets"] == {"peak_mb": {"at_most": 1_000, "measured": 1_100.0}}
    assert found["cpu_us_per_row"]["median"] == 2.0
    assert found["runs"][0]["seconds"] == {"start-up": 1.0, "rest": 8.0}


@pytest.mark.parametrize(("way", "connections"), [("shared", 1), ("own", 3)])
def test_the_append_benchmark_counts_rows_and_connections(
    way: str, connections: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bigquery_appends, "REQUESTS", 4)
    monkeypatch.setattr(bigquery_appends, "ANSWER_SECONDS", (0.0, 0.01))
    with bigquery_appends.serving() as service:
        bigquery_appends.append(way, service.address, threads=3, requests=2)
    assert service.connections == connections
    assert read_report(capsys.readouterr().out).rows == 3 * 4 * bigquery_appends.REQUEST_ROWS
