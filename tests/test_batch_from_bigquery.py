"""batch_local from BigQuery to files, as a user runs it, on the emulator."""

import datetime
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Result, RunCommand, assert_one_line_error
from google.cloud import bigquery
from read_server import Reads, serving
from same_scores import assert_same_rows, assert_scores

from common.errors import InputError
from examples.local_cloud import PROJECT, LocalCloud
from examples.transactions.data import FEATURES
from model_handlers.torch_model import TorchModelHandler
from pipelines.batch_local import COMMAND
from transforms.accounts import QUERY_ROWS, TABLE_ROWS
from transforms.bigquery import read as read_bigquery
from transforms.bigquery.session import ReadStream, read_stream

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROWS = 2_000  # of the fixture `example`
DATASET = f"{PROJECT}.from_bigquery"
TABLE = f"{DATASET}.transactions"


@pytest.fixture(scope="module")
def client(emulators: LocalCloud, example: Path) -> bigquery.Client:
    """The emulator's client, with the example's transactions in TABLE."""
    client = emulators.cloud.bigquery()
    client.create_dataset(DATASET, exists_ok=True)
    config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_TRUNCATE")
    with (example / "transactions.parquet").open("rb") as file:
        client.load_table_from_file(file, TABLE, job_config=config).result()
    return client


@pytest.fixture
def run(
    emulators: LocalCloud,
    client: bigquery.Client,
    example: Path,
    tmp_path: Path,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:
    """A function that runs batch_local; it returns the exit code, the output and the errors."""
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)

    def call(**flags: Any) -> Result:
        own = {
            "model": example / "model",
            "output_files": tmp_path / "out",
            "project": PROJECT,
            "run_id": "r",
            "retry_seconds": 20,
            "direct_num_workers": 1,
        }
        return run_command(COMMAND, own | flags)

    return call


def scores(folder: Path) -> pa.Table:
    return pq.read_table(folder / "out/r/scores").sort_by("row_id")


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/r/report.json").read_text())  # type: ignore[no-any-return]


def ids_of_all(folder: Path) -> list[str]:
    """Return the ids of scored rows and dead letters."""
    files = (folder / "out/r/dead_letters").glob("*.jsonl")
    lines = [line for file in files for line in file.read_text().splitlines()]
    letters = [json.loads(line)["row_id"] for line in lines]
    return sorted([*scores(folder)["row_id"].to_pylist(), *letters])


def objects(emulators: LocalCloud) -> list[str]:
    return [blob.name for blob in emulators.cloud.storage().list_blobs("bucket", prefix="from/")]


def assert_same_tables(got: pa.Table, expected: pa.Table) -> None:
    """Check that the scores of two runs are equal, except for their time."""
    mine, theirs = (table.drop(["scored_at"]).to_pylist() for table in (got, expected))
    assert_same_rows(mine, theirs)


def test_a_table_has_the_scores_of_the_file_that_it_was_loaded_from(
    run: Callable[..., Result], example: Path, tmp_path: Path
) -> None:
    fields = {"id_column": "transaction_id", "output_fields": "encoded,Amount,Class"}
    assert run(input_files=example / "transactions.parquet", **fields)[0] == 0
    expected = scores(tmp_path)
    code, out, err = run(input_table=TABLE, **fields)
    assert (code, err) == (0, "")
    # Columns that are float32 in the file are FLOAT64 in the table.
    found_scores = scores(tmp_path).cast(expected.schema)
    assert found_scores.schema.equals(expected.schema)
    assert_same_tables(found_scores, expected)
    assert f"{ROWS:,}" in out
    found = report(tmp_path)
    assert found["balanced"]
    assert found["rows_in"] == ROWS == found["rows_scored"] + found["rows_dead_lettered"]
    assert found["rows_dead_lettered"] == ROWS // 100
    assert found["input"] == [TABLE]


@pytest.mark.parametrize(
    ("flags", "counted_by"),
    [
        ({"input_table": TABLE}, TABLE_ROWS),
        ({"input_query": f"SELECT * FROM `{TABLE}` WHERE Class = 0"}, QUERY_ROWS),
        ({"input_table": TABLE, "row_restriction": "Class = 0"}, None),
        (
            {"input_table": TABLE, "read_method": "export", "temp_location": "gs://bucket/from"},
            f"Parquet footers; {TABLE_ROWS}",
        ),
    ],
    ids=["table", "query", "restriction", "export"],
)
def test_the_report_says_how_many_rows_were_expected(
    flags: dict[str, str], counted_by: str | None, run: Callable[..., Result], tmp_path: Path
) -> None:
    assert run(**flags)[0] == 0
    found = report(tmp_path)
    if counted_by is None:
        assert found["rows_expected"] is None
        assert "streams are compared" in found["rows_expected_from"]
    else:
        assert (found["rows_expected"], found["rows_expected_from"]) == (
            found["rows_in"],
            counted_by,
        )
    unit = "files" if "read_method" in flags else "streams"
    assert found[f"{unit}_expected"] == found[f"{unit}_read"] >= 1


@pytest.mark.parametrize("restriction", [None, "Class = 0"])
def test_a_lost_stream_fails_the_run(
    restriction: str | None,
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = read_bigquery.ReadBigQuery._open

    def lossy(self: Any, source: Any) -> Iterator[Any]:
        found = list(whole(self, source))
        streams = [one for one in found if isinstance(one, ReadStream)]
        yield from (one for one in found if one is not streams[0])

    monkeypatch.setattr(read_bigquery.ReadBigQuery, "_open", lossy)
    result = run(input_table=TABLE, row_restriction=restriction)
    assert_one_line_error(
        result, 1, "rows of the source are missing or duplicated, so nothing was written"
    )
    assert f"table {TABLE}: streams 0 to 1 were not read" in result[2]
    assert not (tmp_path / "out/r").exists()


def test_a_stream_that_ends_early_fails_the_run(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_stream

    def short(*args: Any) -> Iterator[pa.RecordBatch]:
        yield from (batch.slice(1) for batch in whole(*args))

    monkeypatch.setattr(read_bigquery, "read_stream", short)
    assert_one_line_error(
        run(input_table=TABLE), 1, f"{ROWS:,} rows were expected (from: {TABLE_ROWS}), but "
    )
    assert not (tmp_path / "out/r").exists()


def test_derived_ids_are_the_same_in_runs_with_other_batches(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    found = []
    for flags in ({}, {"batch_rows": 300, "direct_num_workers": 2}):
        assert run(input_table=TABLE, direct_running_mode="multi_threading", **flags)[0] == 0
        found.append(ids_of_all(tmp_path))
    assert found[0] == found[1]
    assert len(set(found[0])) == ROWS


def test_a_query_from_a_file_is_read(run: Callable[..., Result], tmp_path: Path) -> None:
    query = tmp_path / "query.sql"
    sql = f"-- the expensive ones\nSELECT * FROM `{TABLE}` WHERE Amount BETWEEN 100 AND 200;\n"
    # Some editors on Windows write a UTF-8 byte order mark.
    query.write_text(sql, encoding="utf-8-sig")
    code, _, err = run(input_query=f"@{query}", output_fields="Amount", id_column="transaction_id")
    assert (code, err) == (0, "")
    amounts = scores(tmp_path)["Amount"].to_pylist()
    assert amounts
    assert all(100 <= amount <= 200 for amount in amounts)
    assert report(tmp_path)["input"] == [sql]


def test_a_query_that_is_run_again_reads_the_current_rows(
    run: Callable[..., Result], client: bigquery.Client, tmp_path: Path
) -> None:
    growing, found = f"{DATASET}.growing", []
    rows = f"SELECT * FROM `{TABLE}` WHERE Amount BETWEEN 100 AND 200"
    client.query(f"CREATE OR REPLACE TABLE `{growing}` AS {rows}").result()
    for _ in range(2):
        assert run(input_query=f"SELECT * FROM `{growing}`")[0] == 0
        found.append(report(tmp_path)["rows_in"])
        client.query(f"INSERT INTO `{growing}` {rows}").result()
    assert found[1] == 2 * found[0] > 0


@pytest.mark.parametrize("restriction", [None, "Amount > 100 AND Class = 0"])
def test_an_export_has_the_same_rows_as_a_direct_read(
    restriction: str | None,
    run: Callable[..., Result],
    tmp_path: Path,
) -> None:
    flags = {"input_table": TABLE, "row_restriction": restriction, "output_fields": "Amount"}
    assert run(**flags)[0] == 0
    direct, rows = scores(tmp_path), report(tmp_path)["rows_in"]
    assert (rows == ROWS) == (restriction is None)
    code, _, err = run(**flags, read_method="export", temp_location="gs://bucket/from")
    assert (code, err) == (0, "")
    assert_same_tables(scores(tmp_path), direct)
    assert report(tmp_path)["rows_in"] == rows


def test_an_export_leaves_nothing_behind(run: Callable[..., Result], emulators: LocalCloud) -> None:
    flags = {"read_method": "export", "temp_location": "gs://bucket/from"}
    assert run(input_table=TABLE, **flags)[0] == 0
    assert objects(emulators) == []


def test_an_export_of_a_run_that_fails_leaves_nothing_behind(
    run: Callable[..., Result], emulators: LocalCloud, example: Path, tmp_path: Path
) -> None:
    # Workers score the package's known-good rows when the exported files already exist.
    package = tmp_path / "model"
    package.mkdir()
    manifest = json.loads((example / "model/model.json").read_text())
    manifest["golden"]["outputs"]["denormalized_MAE"][0] += 1
    (package / "model.json").write_text(json.dumps(manifest))
    (package / "model.pt").write_bytes((example / "model/model.pt").read_bytes())
    flags = {"read_method": "export", "temp_location": "gs://bucket/from", "model": package}
    assert_one_line_error(run(input_table=TABLE, **flags), 1, "known-good row")
    assert objects(emulators) == []


@pytest.mark.parametrize(
    "flags",
    [
        {"input_table": f"{DATASET}.nothing"},
        {"input_query": f"SELECT * FROM `{DATASET}.nothing`"},
        {"input_table": f"{DATASET}.nothing", "read_method": "export"},
        {"input_table": TABLE, "row_restriction": "Amount < -1", "read_method": "export"},
    ],
    ids="-".join,
)
def test_a_source_without_rows_has_an_empty_result(
    flags: dict[str, str], run: Callable[..., Result], client: bigquery.Client, tmp_path: Path
) -> None:
    client.query(
        f"CREATE OR REPLACE TABLE `{DATASET}.nothing` AS SELECT * FROM `{TABLE}` WHERE FALSE"
    ).result()
    code, out, err = run(**flags, temp_location="gs://bucket/from")
    note = f"note: --input_query returns nothing, because it reads only {DATASET}.nothing, without"
    assert code == 0
    assert err.startswith(note) if "input_query" in flags else err == ""
    assert "no rows were read: check the source" in out
    code, _, err = run(**flags, temp_location="gs://bucket/from", min_rows=1)
    assert code == 1
    assert "0 rows were read from" in err
    found = report(tmp_path)
    assert found["balanced"]
    assert found["rows_in"] == found["rows_scored"] == found["rows_dead_lettered"] == 0
    assert not list((tmp_path / "out/r").rglob("part-*"))


@pytest.mark.parametrize(
    ("scanned", "limit", "note"),
    [
        (99 * 10**9, None, ""),
        (
            100 * 10**9,
            None,
            "note: --input_query scans 100 GB, which BigQuery bills; --max_bytes_billed refuses "
            "queries that scan more than you expect\n",
        ),
        (100 * 10**9, 200 * 10**9, ""),
        (100 * 10**9, 10**9, "error: --input_query would scan 100,000,000,000 bytes, more than"),
    ],
)
def test_a_query_that_scans_very_much_is_reported_before_it_runs(
    scanned: int,
    limit: int | None,
    note: str,
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In the emulator, a dry run scans 0 bytes.
    monkeypatch.setattr(bigquery.QueryJob, "total_bytes_processed", scanned)
    code, _, err = run(input_query=f"SELECT * FROM `{TABLE}`", max_bytes_billed=limit, dry_run=True)
    assert code == (2 if note.startswith("error") else 0)
    # A slow machine also prints how long so many rows take.
    found = [line for line in err.splitlines(keepends=True) if "scan" in line]
    assert len(found) == bool(note)
    assert "".join(found).startswith(note)


def test_a_view_is_read_by_the_query_that_the_error_names(
    run: Callable[..., Result], client: bigquery.Client, tmp_path: Path
) -> None:
    view = f"{DATASET}.view"
    client.query(f"CREATE OR REPLACE VIEW `{view}` AS SELECT * FROM `{TABLE}` LIMIT 7").result()
    result = run(input_table=view)
    query = f"SELECT * FROM `{view}`"
    assert_one_line_error(
        result, 1, f'{view} is a view, not a table: read it with --input_query "{query}"'
    )
    assert run(input_query=query)[0] == 0
    assert report(tmp_path)["rows_in"] == 7


def test_a_vector_column_is_read_as_features_and_other_columns_are_passed_through(
    run: Callable[..., Result], client: bigquery.Client, tmp_path: Path
) -> None:
    vectors = f"{DATASET}.vectors"
    features = ", ".join(f"CAST({name} AS FLOAT64)" for name in FEATURES)
    client.query(
        f"CREATE OR REPLACE TABLE `{vectors}` AS SELECT transaction_id, [{features}] AS features, "
        "STRUCT(Class AS class, [Amount] AS amounts) AS nested, "
        "TIMESTAMP '2024-05-06 12:00:00+00' AS at, CAST(Class AS NUMERIC) AS exact "
        f"FROM `{TABLE}` WHERE Amount BETWEEN 100 AND 200"
    ).result()
    fields = {"id_column": "transaction_id", "output_fields": "nested,at,exact"}
    assert run(input_table=vectors, **fields)[0] == 0
    found = scores(tmp_path)
    assert {"nested", "at", "exact"} < set(found.column_names)
    assert found.schema.field("at").type == pa.timestamp("us", tz="UTC")
    assert found["nested"][0].as_py().keys() == {"class", "amounts"}
    restriction = "Amount BETWEEN 100 AND 200"
    assert run(input_table=TABLE, row_restriction=restriction, id_column="transaction_id")[0] == 0
    whole = scores(tmp_path)
    # A float64 feature becomes the same float32, in a vector or in a column.
    assert found["row_id"].equals(whole["row_id"])
    assert_scores(found["score"], whole["score"])


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        ({"input_table": f"{DATASET}.none"}, 1, (f"{DATASET}.none cannot be read", "check the")),
        ({"input_table": f"{PROJECT}.none.t"}, 1, (f"{PROJECT}.none.t cannot be read",)),
        ({"input_table": "no-such-project.d.t"}, 1, ("no-such-project.d.t cannot be read",)),
        (
            {"input_table": "transactions"},
            2,
            ("--input_table: expected project.dataset.table", "got 'transactions'"),
        ),
        ({"input_table": f"{TABLE}$20240101"}, 2, ("a partition", "--input_query")),
        ({"input_table": f"{TABLE}_*"}, 2, ("a wildcard table", "--input_query")),
        (
            {"input_table": TABLE, "input_query": "SELECT 1"},
            2,
            ("cannot be combined",),
        ),
        (
            {"input_table": TABLE, "input_files": "x"},
            2,
            ("cannot be combined",),
        ),
        (
            {"input_query": "SELECT 1", "row_restriction": "x"},
            2,
            ("--row_restriction has no effect without --input_table",),
        ),
        ({"input_table": TABLE, "max_bytes_billed": 9}, 2, ("no effect without --input_query",)),
        (
            {"input_table": TABLE, "input_format": "csv"},
            2,
            ("--input_format has no effect without --input_f",),
        ),
        (
            {"input_files": "x", "read_method": "export"},
            2,
            ("without --input_query or --input_table:",),
        ),
        ({"input_query": "SELEC 1"}, 1, ("--input_query cannot be run", "SELEC")),
        ({"input_query": f"DELETE FROM `{TABLE}` WHERE TRUE"}, 1, ("one SELECT, got DELETE",)),
        ({"input_query": "@/no/such.sql"}, 2, ("--input_query: /no/such.sql cannot be read",)),
        ({"input_query": "@gs://bucket/no.sql"}, 2, ("gs://bucket/no.sql cannot be read",)),
        ({"input_query": "SELECT 1 AS Tme"}, 1, ("needs column 'Time' and 29 more", "Tme")),
        ({"input_table": TABLE, "row_restriction": "Amout > 1"}, 1, ("Amout > 1", "cannot be")),
        ({"input_table": TABLE, "id_column": "transaction"}, 2, ("did you mean 'transaction_id",)),
        ({"input_table": TABLE, "output_fields": "Amout"}, 2, ("'Amout'", "did you mean 'Amount")),
        ({"input_table": TABLE, "read_method": "export"}, 2, ("--temp_location gs://",)),
        ({"input_table": "d.t", "project": None}, 2, ("no billing project", "--billing_project")),
        (
            {"input_table": TABLE, "read_method": "export", "temp_location": "gs://no-bucket/x"},
            1,
            (f"{TABLE} cannot be exported to gs://no-bucket/x",),
        ),
        (
            {"input_table": TABLE, "api_endpoints": "bigquery=127.0.0.1:1", "retry_seconds": 1},
            1,
            ("127.0.0.1:1 cannot be reached: Connection refused", "--api_endpoints"),
        ),
        (
            {
                "input_table": TABLE,
                "api_endpoints": "bigquerystorage=127.0.0.1:1",
                "retry_seconds": 1,
            },
            1,
            (f"table {TABLE} cannot be read: failed after", "127.0.0.1:1", "try again later"),
        ),
        ({"input_table": TABLE, "api_endpoints": "bigquery"}, 2, ("SERVICE=ADDRESS",)),
        ({"input_table": TABLE, "read_method": "exprt"}, 2, ("exprt",)),
    ],
)
def test_an_error_is_reported_in_one_line_and_nothing_is_written(
    flags: dict[str, Any],
    code: int,
    parts: tuple[str, ...],
    run: Callable[..., Result],
    client: bigquery.Client,
    tmp_path: Path,
) -> None:
    assert_one_line_error(run(**flags), code, *parts)
    assert not list((tmp_path / "out").rglob("*.*"))
    assert client.get_table(TABLE).num_rows == ROWS


class Proxy:
    """A proxy for an address, which calls a function once after `limit` bytes of responses."""

    def __init__(self, address: str, limit: int, act: Callable[[], None]) -> None:
        host, port = address.rsplit(":", 1)
        self._target, self._left, self._act = (host, int(port)), limit, act
        self._lock = threading.Lock()
        self.acted = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:{1}".format(*self._listener.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with closing(near), suppress(OSError), socket.create_connection(self._target) as far:
            back = threading.Thread(target=self._pass, args=(near, far, False), daemon=True)
            back.start()
            self._pass(far, near, True)

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
                if counted and self._reached(len(data)):
                    self._act()
                    self.acted.set()
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _reached(self, size: int) -> bool:
        with self._lock:
            before, self._left = self._left, self._left - size
            return before > 0 >= self._left

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def large(client: bigquery.Client) -> str:
    """A table that the emulator reads in two streams."""
    table = f"{DATASET}.large"
    client.query(
        f"CREATE OR REPLACE TABLE `{table}` AS SELECT t.* EXCEPT (transaction_id), "
        f"CONCAT(transaction_id, '-', n) AS transaction_id FROM `{TABLE}` AS t, "
        "UNNEST(GENERATE_ARRAY(1, 60)) AS n"
    ).result()
    return table


@pytest.fixture
def killed(emulators: LocalCloud) -> Iterator[Callable[[bool], Proxy]]:
    """A function that returns a proxy for the Storage API.

    The proxy kills the emulator in the middle of the second stream. The function's argument says
    whether the emulator is then restarted at once.
    """
    proxies: list[Proxy] = []

    def make(again: bool) -> Proxy:
        def act() -> None:
            emulators.bigquery.kill()
            if again:
                emulators.bigquery.start()

        address = emulators.endpoints.bigquerystorage
        assert address is not None
        proxies.append(Proxy(address, 20 << 20, act))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()
    with suppress(Exception):
        emulators.cloud.bigquery().get_dataset(DATASET, timeout=2.0, retry=None)
        return
    emulators.bigquery.start()


def test_a_run_whose_server_is_killed_fails_with_one_line_and_the_next_run_has_each_row_once(
    large: str,
    killed: Callable[[bool], Proxy],
    run: Callable[..., Result],
    emulators: LocalCloud,
    tmp_path: Path,
) -> None:
    flags = {"input_table": large, "id_column": "transaction_id"}
    # The emulator loses its streams when it ends; the service does not.
    for again, wait, advice in ((False, 2, "try again later"), (True, 60, "check the project")):
        proxy = killed(again)
        result = run(**flags, api_endpoints=f"bigquerystorage={proxy.address}", retry_seconds=wait)
        assert proxy.acted.is_set()
        assert_one_line_error(result, 1, f"reading table {large} failed part-way: ", advice)
        assert not list((tmp_path / "out").rglob("*.*"))
        if not again:
            emulators.bigquery.start()
    assert run(**flags)[0] == 0
    ids = ids_of_all(tmp_path)
    assert len(ids) == len(set(ids)) == 60 * ROWS


# Results of queries


def tables_of_queries(client: bigquery.Client) -> list[str]:
    found = [one.dataset_id for one in client.list_datasets() if "queries" in one.dataset_id]
    return [table.table_id for one in found for table in client.list_tables(one)]


@pytest.mark.parametrize(
    "flags",
    [
        {"input_query": f"SELECT * FROM `{TABLE}` WHERE Class = 0"},
        {"input_table": TABLE, "row_restriction": "Class = 0", "read_method": "export"},
    ],
    ids=["query", "restriction"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_the_result_of_a_query_is_in_a_table_that_expires_and_is_deleted_after_the_run(
    flags: dict[str, str],
    fails: bool,
    run: Callable[..., Result],
    client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bigquery.Table] = []
    whole = read_bigquery.run_query

    def look(source: Any, query: str, results: Any) -> Any:
        found = whole(source, query, results)
        seen.append(client.get_table(results.reference))
        if fails:
            raise InputError("the worker is broken")
        return found

    monkeypatch.setattr(read_bigquery, "run_query", look)
    code, _, err = run(**flags, temp_location="gs://bucket/from")
    assert (code, err == "") == (int(fails), not fails)
    (table,) = seen
    assert table.dataset_id == "millrace_queries_us"
    day = datetime.timedelta(days=1)
    assert datetime.timedelta() < table.expires - datetime.datetime.now(datetime.UTC) <= day
    assert tables_of_queries(client) == []


def test_a_query_dataset_must_exist_where_the_query_reads(
    run: Callable[..., Result], client: bigquery.Client
) -> None:
    query = f"SELECT * FROM `{TABLE}`"
    abroad = bigquery.Dataset(f"{PROJECT}.abroad")
    abroad.location = "EU"
    client.create_dataset(abroad, exists_ok=True)
    assert_one_line_error(
        run(input_query=query, query_dataset="abroad"),
        1,
        f"dataset {PROJECT}.abroad is in EU, and the query reads data in US: pass --query_dataset "
        "with a dataset in US",
    )
    assert_one_line_error(
        run(input_query=query, query_dataset=f"{PROJECT}.none"),
        1,
        f"--query_dataset: dataset {PROJECT}.none does not exist: create it in US, or leave out",
    )
    assert run(input_query=query, query_dataset=DATASET)[0] == 0
    names = [table.table_id for table in client.list_tables(DATASET)]
    assert not any(name.startswith("millrace_query") for name in names)


# A session that ends while the model is slow


@pytest.mark.parametrize("spread", ["no", "yes"])
def test_a_slow_model_outlives_the_read_session_only_if_batches_are_spread(
    spread: str,
    run: Callable[..., Result],
    client: bigquery.Client,
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows come from a server whose session ends as soon as the model has scored a batch."""
    few = f"{DATASET}.few"
    client.query(f"CREATE OR REPLACE TABLE `{few}` AS SELECT * FROM `{TABLE}` LIMIT 40").result()
    rows = pq.read_table(example / "transactions.parquet").slice(0, 40)
    broken, ended = (1, grpc.StatusCode.UNAVAILABLE), tmp_path / "ended"
    reads = Reads(rows.select(FEATURES), sizes=[10], breaks=[broken] * 4, ended=ended)
    whole = TorchModelHandler.predict

    def slow(*args: Any) -> Any:
        ended.touch()
        return whole(*args)

    monkeypatch.setattr(TorchModelHandler, "predict", slow)
    with serving(reads) as cloud:
        result = run(
            input_table=few,
            spread_batches=spread,
            batch_rows=10,
            api_endpoints=f"bigquerystorage={cloud.endpoints.bigquerystorage}",
        )
    if spread == "yes":
        assert result[0] == 0, result[2]
        found = report(tmp_path)
        assert found["balanced"]
        assert found["rows_in"] == 40
    else:
        assert_one_line_error(result, 1, "the read session of BigQuery expired, when ")
        assert "add --spread_batches yes, which reads without waiting" in result[2]
        assert not (tmp_path / "out/r").exists()
