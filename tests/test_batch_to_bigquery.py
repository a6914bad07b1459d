"""batch_local into tables as a user runs it, on the emulator: the rows, and the output."""

import datetime
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Result, RunCommand, assert_one_line_error, words
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from examples.local_cloud import PROJECT, LocalCloud
from examples.transactions.data import FEATURES
from pipelines.batch_local import COMMAND

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROWS = 2_000  # of the fixture `example`
FAULTY = ROWS // 100


@dataclass
class Tables:
    """The dataset of a test."""

    client: bigquery.Client
    name: str

    def __truediv__(self, table: str) -> str:
        return f"{self.name}.{table}"

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Return the result of a query, which names tables without their dataset."""
        config = bigquery.QueryJobConfig(default_dataset=self.name)
        return [dict(row) for row in self.client.query(sql, config).result()]

    def counts(self, table: str, key: str = "run_id") -> dict[str, int]:
        found = self.query(f"SELECT {key} AS k, COUNT(*) AS n FROM {table} GROUP BY k")
        return {row["k"]: row["n"] for row in found}

    def created(self) -> set[str]:
        return {table.table_id for table in self.client.list_tables(self.name)}


@pytest.fixture
def tables(emulators: LocalCloud, dataset: str) -> Iterator[Tables]:
    tables = Tables(emulators.cloud.bigquery(), dataset)
    yield tables
    # The emulator becomes slower with every table.
    tables.client.delete_dataset(dataset, delete_contents=True, not_found_ok=True)


@pytest.fixture
def flags(example: Path, tables: Tables) -> dict[str, Any]:
    """The flags of a run that writes its scores to the table `scores`."""
    return {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_table": tables / "scores",
        "id_column": "transaction_id",
        "temp_location": "gs://bucket/tmp",
        "billing_project": PROJECT,
        "run_id": "r",
        "retry_seconds": 5,
        "direct_num_workers": 1,
    }


@pytest.fixture
def run(
    emulators: LocalCloud,
    flags: dict[str, Any],
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:
    """A function that runs batch_local; it returns the exit code, the output and the errors."""
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)

    return lambda **changes: run_command(COMMAND, flags | changes)


def source_ids(example: Path) -> list[str]:
    return list(pq.read_table(example / "transactions.parquet")["transaction_id"].to_pylist())


def test_tables_have_the_same_scores_and_dead_letters_as_files(
    run: Callable[..., Result], tables: Tables, tmp_path: Path, example: Path
) -> None:
    code, out, err = run(
        output_files=tmp_path / "out",
        dead_letter_files=tmp_path / "out",
        dead_letter_table=tables / "letters",
        output_fields="encoded,Amount,Class",
        cluster_by="ROW_ID,model_Name",
    )
    assert (code, err) == (0, "")
    in_files = pq.read_table(tmp_path / "out/r/scores").sort_by("row_id").to_pylist()
    assert tables.query("SELECT * FROM scores ORDER BY row_id") == in_files
    assert len(in_files) == ROWS - FAULTY
    table = tables.client.get_table(tables / "scores")
    assert (table.time_partitioning.field, table.time_partitioning.type_) == ("scored_at", "DAY")
    assert table.clustering_fields == ["row_id", "model_name"]
    lines = [
        json.loads(line)
        for file in (tmp_path / "out/r/dead_letters").iterdir()
        for line in file.read_text().splitlines()
    ]
    letters = tables.query("SELECT * FROM letters")
    assert len(lines) == len(letters) == FAULTY
    same = ("row_id", "stage", "reason", "message", "run_id", "model_digest", "attempts")
    assert Counter(tuple(row[name] for name in same) for row in letters) == Counter(
        tuple(row[name] for name in same) for row in lines
    )
    assert {row["payload"] for row in letters} == {line["payload"].encode() for line in lines}
    assert sorted(row["row_id"] for row in in_files + letters) == sorted(source_ids(example))
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    assert report["output"] == [str(tmp_path / "out/r/scores"), tables / "scores"]
    assert report["rows_written"]["scores_table"] == report["rows_scored"] == ROWS - FAULTY
    assert report["rows_written"]["dead_letters_table"] == FAULTY
    assert tables / "letters" in out
    assert tables.created() == {"scores", "letters"}


def test_without_files_the_report_is_in_temp_and_dead_letters_are_in_a_table_next_to_the_scores(
    run: Callable[..., Result], tables: Tables, emulators: LocalCloud
) -> None:
    # With a doubled slash in the path of a folder, BigQuery would not find the files.
    code, out, _ = run(temp_location="gs://bucket//to//", json_summary="true")
    assert code == 0
    report = json.loads(out)
    assert report["dead_letter_output"] == [tables / "scores_dead_letters"]
    assert report["report"] == "gs://bucket/to/millrace/r/report.json"
    blobs = emulators.cloud.storage().list_blobs("bucket", prefix="to")
    assert [blob.name for blob in blobs] == ["to/millrace/r/report.json"]
    assert tables.created() == {"scores", "scores_dead_letters"}
    assert tables.counts("scores_dead_letters") == {"r": FAULTY}


def test_runs_add_rows_and_a_repeated_run_replaces_only_its_own_rows(
    run: Callable[..., Result], tables: Tables
) -> None:
    for run_id in ("r", "s", "r"):
        assert run(run_id=run_id)[0] == 0
    assert tables.counts("scores") == {"r": ROWS - FAULTY, "s": ROWS - FAULTY}
    assert tables.counts("scores_dead_letters") == {"r": FAULTY, "s": FAULTY}
    assert run(run_id="t", write_disposition="truncate")[0] == 0
    assert tables.counts("scores") == {"t": ROWS - FAULTY}
    assert tables.counts("scores_dead_letters") == {"r": FAULTY, "s": FAULTY, "t": FAULTY}
    assert_one_line_error(
        run(run_id="u", write_disposition="empty"),
        1,
        tables / "scores",
        "--write_disposition empty expects none",
    )
    assert tables.counts("scores") == {"t": ROWS - FAULTY}


def test_the_reference_schema_has_the_ids_of_the_source_and_a_rerun_adds_nothing(
    run: Callable[..., Result], tables: Tables, example: Path
) -> None:
    # The table of the reference pipeline, which is not partitioned and exists before the run.
    fields = [
        SchemaField("instance_id", "STRING"),
        SchemaField("anomaly_score", "FLOAT"),
        SchemaField("encoded", "FLOAT", "REPEATED"),
        SchemaField("timestamp", "TIMESTAMP"),
    ]
    tables.client.create_table(bigquery.Table(tables / "scores", schema=fields))
    rows = "SELECT * FROM scores ORDER BY instance_id"
    assert run(output_schema="reference")[0] == 0
    before = tables.query(rows)
    assert list(before[0]) == [f.name for f in fields]
    assert len(before[0]["encoded"]) == 4
    letters = tables.query("SELECT row_id AS i FROM scores_dead_letters")
    ids = [row["instance_id"] for row in before] + [row["i"] for row in letters]
    assert sorted(ids) == sorted(source_ids(example))
    assert run(output_schema="reference")[0] == 0
    assert tables.query(rows) == before
    assert tables.counts("scores_dead_letters") == {"r": FAULTY}
    fewer = run(output_schema="reference", input_files=shortened(example, 1_000))
    assert_one_line_error(
        fewer, 1, tables / "scores", "1,980 rows", "this attempt has 990 rows", "--run_id"
    )
    assert tables.query(rows) == before
    assert_one_line_error(
        run(output_schema="reference", output_fields="encoded"), 2, "leave out --output_fields"
    )


def shortened(example: Path, rows: int) -> Path:
    """Write the first rows of the example to a file, and return its path."""
    path = example / f"first_{rows}.parquet"
    # Other workers share the folder.
    unfinished = path.with_suffix(f".{os.getpid()}")
    pq.write_table(pq.read_table(example / "transactions.parquet")[:rows], unfinished)
    return unfinished.rename(path)


def test_keys_of_folders_have_the_types_of_the_columns_of_the_table(
    run: Callable[..., Result], tables: Tables, tmp_path: Path, example: Path
) -> None:
    rows = pq.read_table(example / "transactions.parquet").slice(0, 3)
    for hour, suffix in enumerate(("parquet", "csv", "jsonl"), 7):
        folder = tmp_path / f"in/day=2026-11-20/hour={hour:02}/at=2026-11-20 07%3A00%3A00"
        folder.mkdir(parents=True)
        if suffix == "parquet":
            pq.write_table(rows, folder / "rows.parquet")
        elif suffix == "csv":
            pa_csv.write_csv(rows, folder / "rows.csv")
        else:
            lines = (json.dumps(row, default=str) + "\n" for row in rows.to_pylist())
            (folder / "rows.jsonl").write_text("".join(lines))
    flags = {"input_files": tmp_path / "in", "output_fields": "day,hour,at"}
    assert run(**flags)[0] == 0
    (row,) = tables.query("SELECT DISTINCT day, at FROM scores")
    assert row == {"day": "2026-11-20", "at": "2026-11-20 07:00:00"}
    kinds = {"day": "DATE", "hour": "INT64", "at": "TIMESTAMP"}
    schema = tables.client.get_table(tables / "scores").schema
    typed = [SchemaField(f.name, kinds.get(f.name, f.field_type), f.mode) for f in schema]
    tables.client.create_table(bigquery.Table(tables / "typed", typed))
    code, _, err = run(**flags, output_table=tables / "typed")
    assert (code, err) == (0, "")
    moment = datetime.datetime(2026, 11, 20, 7, tzinfo=datetime.UTC)
    found = tables.query("SELECT day, hour, at, COUNT(*) AS n FROM typed GROUP BY day, hour, at")
    assert sorted(found, key=lambda row: row["hour"]) == [
        {"day": moment.date(), "hour": hour, "at": moment, "n": 3} for hour in (7, 8, 9)
    ]
    (tmp_path / "in/day=2026-11-20").rename(tmp_path / "in/day=today")
    assert_one_line_error(
        run(**flags, output_table=tables / "typed"), 1, "day=VALUE: expected date32[day]"
    )


def test_conflicting_flags_are_reported_before_a_table_is_created(
    run: Callable[..., Result], tables: Tables
) -> None:
    assert_one_line_error(
        run(output_table="scores"),
        2,
        "--output_table: expected project.dataset.table",
        "got 'scores'",
    )
    assert_one_line_error(run(temp_location=None), 2, "--temp_location gs://BUCKET/FOLDER")
    assert_one_line_error(run(temp_location="/tmp/x"), 2, "--temp_location gs://BUCKET/FOLDER")
    assert_one_line_error(
        run(cluster_by="rowid"), 2, "no output column 'rowid' (did you mean 'row_id'?)", "scored_at"
    )
    assert_one_line_error(
        run(cluster_by="row_id,score,run_id,model_name,model_digest"), 2, "four columns"
    )
    assert_one_line_error(
        run(dead_letter_table=tables / "scores"), 2, "--dead_letter_table", "another"
    )
    assert_one_line_error(run(output_fields="Amount,amount"), 2, "'amount'")
    files = {"output_table": None, "output_files": "/tmp/none"}
    assert_one_line_error(run(**files, cluster_by="row_id"), 2, "no effect without --output_table")
    assert_one_line_error(
        run(**files, write_disposition="truncate"), 2, "no effect without --output_table"
    )
    assert tables.created() == set()


def test_outputs_that_cannot_be_written_are_reported_before_the_first_row(
    run: Callable[..., Result], tables: Tables, emulators: LocalCloud
) -> None:
    assert_one_line_error(
        run(output_table=f"{PROJECT}.nowhere.t"), 1, f"{PROJECT}.nowhere.t", "Not found"
    )
    assert_one_line_error(
        run(temp_location="gs://no-such-bucket/tmp"), 1, "bucket no-such-bucket does not exist"
    )
    files = {"output_table": None, "temp_location": None}
    for folder in ("gs://no-such-bucket/out", "gs://no-such-bucket"):
        assert_one_line_error(
            run(**files, output_files=folder), 1, f"{folder}: bucket no-such-bucket does"
        )
    assert_one_line_error(
        run(**files, output_files="gs:///out"), 2, "gs:///out: expected gs://BUCKET/FOLDER"
    )
    abroad = bigquery.Dataset(f"{tables.name}_eu")
    abroad.location = "EU"
    emulators.cloud.bigquery().create_dataset(abroad)
    assert_one_line_error(
        run(output_table=f"{tables.name}_eu.t"), 1, "is in US", "in EU", "same location"
    )
    assert tables.created() == set()
    tables.query("CREATE TABLE scores (row_id INT64, scor FLOAT64, owner STRING NOT NULL)")
    # A dry run finds the same fault.
    assert_one_line_error(run(dry_run="true"), 1, "row_id INT64, expected STRING")
    assert_one_line_error(
        run(),
        1,
        "row_id INT64, expected STRING",
        "lacks column score FLOAT64 (did you mean 'scor'?)",
        "lacks column encoded ARRAY<FLOAT64>",
        "requires column owner",
    )
    tables.query("CREATE VIEW seen AS SELECT 1 AS one")
    assert_one_line_error(run(output_table=tables / "seen"), 1, "is a VIEW")
    assert tables.created() == {"scores", "seen"}


def test_a_missing_server_is_reported_in_one_line_after_retry_seconds(
    run: Callable[..., Result],
) -> None:
    nowhere = "bigquery=localhost:9,bigquerystorage=localhost:9"
    assert_one_line_error(
        run(api_endpoints=nowhere, retry_seconds=1), 1, "localhost:9 cannot be reached"
    )


def load(tables: Tables, path: Path, name: str) -> str:
    """Load a Parquet file into a table, and return the full name of the table."""
    config = bigquery.LoadJobConfig(source_format="PARQUET")
    with path.open("rb") as file:
        tables.client.load_table_from_file(file, tables / name, job_config=config).result()
    return tables / name


def test_the_result_of_an_empty_table_is_an_empty_table(
    run: Callable[..., Result], tables: Tables, example: Path
) -> None:
    load(tables, shortened(example, 3), "rows")
    tables.query("CREATE TABLE source AS SELECT * FROM rows WHERE FALSE")
    code, out, _ = run(input_files=None, input_table=tables / "source", json_summary="true")
    assert (code, json.loads(out)["rows_in"]) == (0, 0)
    assert tables.counts("scores") == tables.counts("scores_dead_letters") == {}


class DropsTheLastRow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1)[:-1] if x.size(0) > 100 else x.sum(dim=1)


def test_a_failed_run_leaves_no_rows_and_no_temporary_tables_or_files(
    run: Callable[..., Result], tables: Tables, emulators: LocalCloud, tmp_path: Path
) -> None:
    torch.jit.save(torch.jit.script(DropsTheLastRow()), tmp_path / "model.pt")
    columns = {"model": tmp_path / "model.pt", "feature_columns": ",".join(FEATURES)}
    assert_one_line_error(
        run(**columns, temp_location="gs://bucket/failed"), 1, "output 'output'", "expected"
    )
    assert tables.counts("scores") == {}
    assert tables.created() == {"scores", "scores_dead_letters"}
    assert not list(emulators.cloud.storage().list_blobs("bucket", prefix="failed"))


ALL = {
    "i": ("INT64", "-9223372036854775808"),
    "f": ("FLOAT64", "CAST('-inf' AS FLOAT64)"),
    "n": ("NUMERIC", "NUMERIC '99999999999999999999999999999.999999999'"),
    "big": ("BIGNUMERIC", "BIGNUMERIC '-12345678901234567890.123456789012345678'"),
    "b": ("BOOL", "TRUE"),
    "s": ("STRING", "'caf\u00e9 \U0001f4b3'"),
    "y": ("BYTES", "b'\\x00\\xff'"),
    "d": ("DATE", "DATE '0001-01-01'"),
    "dt": ("DATETIME", "DATETIME '9999-12-31 23:59:59.999999'"),
    "ts": ("TIMESTAMP", "TIMESTAMP '1582-10-10 01:02:03.000004+00'"),
    "t": ("TIME", "TIME '23:59:59.999999'"),
    "j": ("JSON", "JSON '{\"a\": [1, null]}'"),
    "list": ("ARRAY<FLOAT64>", "[1.5, -0.0]"),
    "words": ("ARRAY<STRING>", "['a', '']"),
    "st": ("STRUCT<x INT64, y ARRAY<DATE>, j JSON>", "STRUCT(1, [DATE '2024-01-02'], JSON '[]')"),
    "sts": ("ARRAY<STRUCT<x INT64, y STRING>>", "[STRUCT(1, 'a'), STRUCT(2, NULL)]"),
}


def test_columns_of_every_type_are_passed_through_from_table_to_table(
    run: Callable[..., Result], tables: Tables, example: Path
) -> None:
    load(tables, shortened(example, 3), "rows")
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in ALL.items())
    tables.query(f"CREATE TABLE every (id STRING, {columns})")
    values = ", ".join(value for _, value in ALL.values())
    nulls = ", ".join("NULL" for _ in ALL)
    first, second, _ = sorted(source_ids(example)[:3])
    tables.query(
        f"INSERT INTO every SELECT '{first}', {values} UNION ALL SELECT '{second}', {nulls}"
    )
    tables.query(
        f"CREATE TABLE source AS SELECT rows.*, {', '.join(f'every.{name}' for name in ALL)} "
        "FROM rows LEFT JOIN every ON rows.transaction_id = every.id"
    )
    names = ",".join(ALL)
    code, _, err = run(input_files=None, input_table=tables / "source", output_fields=names)
    assert (code, err) == (0, "")
    fields = ", ".join(ALL)
    expected = tables.query(f"SELECT {fields} FROM source ORDER BY transaction_id")
    assert expected[0]["big"] == Decimal("-12345678901234567890.123456789012345678")
    assert expected[0]["d"] == datetime.date.min
    assert tables.query(f"SELECT {fields} FROM scores ORDER BY row_id") == expected
    kinds = {
        f.name: (f.field_type, f.mode) for f in tables.client.get_table(tables / "scores").schema
    }
    source = tables.client.get_table(tables / "source").schema
    assert {f.name: kinds[f.name] for f in source if f.name in ALL} == {
        f.name: (f.field_type, f.mode) for f in source if f.name in ALL
    }


def test_names_in_any_language_are_columns_and_an_integer_beyond_int64_is_a_dead_letter(
    run: Callable[..., Result], tables: Tables, example: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(shortened(example, 3))
    height = pa.array([1, 2**63, 2**63 - 1], pa.uint64())
    path = tmp_path / "heights.parquet"
    pq.write_table(rows.append_column("Größe in cm", height), path)
    code, _, err = run(input_files=path, output_fields='"Größe in cm"', max_dead_letter_share=0.5)
    assert (code, err) == (0, "")
    found = tables.query("SELECT * FROM scores ORDER BY row_id")
    ids = rows["transaction_id"].to_pylist()
    assert {row["row_id"]: row["Größe in cm"] for row in found} == {ids[0]: 1, ids[2]: 2**63 - 1}
    (letter,) = tables.query("SELECT stage, reason, row_id, message FROM scores_dead_letters")
    assert (letter["stage"], letter["reason"], letter["row_id"]) == ("encode", "refused", ids[1])
    assert "column Größe in cm: table" in letter["message"]


@dataclass
class Gate:
    """A proxy that passes calls to a server, and kills a process at one of them.

    `deadly` returns whether it is this call, from its method, path and body. If `after`, the server
    receives the call before the process is killed.
    """

    address: str
    deadly: Callable[[str, str, str], bool]
    after: bool
    process: subprocess.Popen[bytes] | None = None
    closed: threading.Event = field(default_factory=threading.Event)

    def call(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        dies = self.deadly(handler.command, handler.path, body.decode("latin-1"))
        if dies and not self.after:
            self.close()
        if self.closed.is_set():
            return
        server = urlsplit(self.address)
        connection = http.client.HTTPConnection(server.hostname or "", server.port, timeout=60)
        connection.request(handler.command, handler.path, body, dict(handler.headers))
        answer = connection.getresponse()
        content = answer.read()
        if dies:
            self.close()
            return
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def close(self) -> None:
        """Kill the process, and pass no more calls."""
        self.closed.set()
        assert self.process is not None
        self.process.kill()


@contextmanager
def listening(gate: Gate) -> Iterator[str]:
    """Serve a gate, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            gate.call(self)

        do_GET = do_PUT = do_DELETE = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


# In the order of a run: the service, the call, and whether the service receives the call.
DEATHS: Sequence[tuple[str, Callable[[str, str, str], bool], bool]] = (
    ("storage", lambda method, path, body: "upload" in path and "PAR1" in body, False),
    ("bigquery", lambda method, path, body: '"copy": {' in body and '"scores"' in body, True),
    ("bigquery", lambda method, path, body: "BEGIN TRANSACTION" in body, True),
)


def test_after_a_process_was_killed_repeatedly_a_rerun_writes_each_row_once(
    emulators: LocalCloud, flags: dict[str, Any], tables: Tables, example: Path
) -> None:
    command = [sys.executable, "-m", "pipelines.batch_local", *words(flags)]
    for service, deadly, after in DEATHS:
        gate = Gate(getattr(emulators.endpoints, service), deadly, after)
        with listening(gate) as address:
            gate.process = subprocess.Popen(
                [*command, "--api_endpoints", f"{service}={address}"],
                env=emulators.environ(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output, _ = gate.process.communicate(timeout=120)
        assert gate.process.returncode == -signal.SIGKILL, output
        # The table has all rows of one attempt or none, wherever the attempt died.
        assert tables.counts("scores") in ({}, {"r": ROWS - FAULTY})
    finished = subprocess.run(command, env=emulators.environ(), capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr
    found = tables.query(
        "SELECT row_id FROM scores UNION ALL SELECT row_id FROM scores_dead_letters"
    )
    assert sorted(row["row_id"] for row in found) == sorted(source_ids(example))
    left = tables.created() - {"scores", "scores_dead_letters"}
    assert left
    assert all(tables.client.get_table(tables / name).expires for name in left)
