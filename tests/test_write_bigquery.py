"""A table as a destination: it is checked before the run, and written once, all or nothing."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
import requests
from apache_beam.internal.gcp import auth
from google.api_core import exceptions
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from cloud.clients import Cloud
from common.errors import BalanceError, OutputError
from examples.local_cloud import LocalCloud
from transforms.bigquery import commit as commit_table
from transforms.bigquery.destination import TableDestination, loads_from
from transforms.bigquery.schema import JSON_METADATA, TableName
from transforms.bigquery.write_jobs import run_table
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.dead_letters import Fault, failure_batch
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder, StagedFile
from transforms.files.sink.stage import StagedWriter
from transforms.files.store import delete
from transforms.provenance import Provenance

NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")
SCORED = pa.schema(
    [
        ("row_id", pa.string()),
        ("score", pa.float32()),
        ("encoded", pa.list_(pa.float32(), 2)),
        ("model_name", pa.string()),
        ("run_id", pa.string()),
        ("scored_at", TIME),
    ]
)
# No column identifies the run, as in the rows of the reference pipeline.
REFERENCE = pa.schema([("instance_id", pa.string()), ("anomaly_score", pa.float64()), ("at", TIME)])


@pytest.fixture(autouse=True)
def _anonymous(emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Beam access to the bucket, as pipelines/cloud_access.py does for a run."""
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)


@dataclass
class Sink:
    """A table in the test's dataset, from which destinations are created."""

    cloud: Cloud
    table: TableName
    schema: pa.Schema = SCORED
    fields: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        run_id: str = "r",
        token: str = "a",
        pipeline: str = "batch_local",
        model: str = "tiny",
        digest: str = "0" * 64,
        **changes: Any,
    ) -> TableDestination:
        values: dict[str, Any] = {
            "provenance": Provenance(
                run_id=run_id,
                pipeline=pipeline,
                model_name=model,
                model_version="1",
                model_digest=digest,
            ),
            "part": SCORES,
            "folder": RunFolder("gs://bucket/tmp", run_id, token),
            "cloud": self.cloud,
            "table": self.table,
            "schema": self.schema,
            "time_column": self.schema.names[-1],
        }
        return TableDestination(**values | self.fields | changes)

    @property
    def client(self) -> bigquery.Client:
        return self.cloud.bigquery()

    def create(self, *fields: SchemaField, **properties: Any) -> bigquery.Table:
        table = bigquery.Table(str(self.table), schema=fields)
        for name, value in properties.items():
            setattr(table, name, value)
        return self.client.create_table(table)

    def get(self) -> bigquery.Table:
        return self.client.get_table(str(self.table))

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Return the result of a query, in which T stands for the table."""
        job = self.client.query(sql.replace(" T", f" `{self.table}`"))
        return [dict(row) for row in job.result()]

    def ids(self) -> list[str]:
        """Return the ids of all rows, sorted."""
        key = self.schema.names[0]
        return [row["id"] for row in self.query(f"SELECT {key} AS id FROM T ORDER BY 1")]

    def tables(self) -> set[str]:
        """Return the names of the tables in the dataset."""
        found = self.client.list_tables(f"{self.table.project}.{self.table.dataset}")
        return {table.table_id for table in found}


@pytest.fixture
def sink(emulators: LocalCloud, dataset: str) -> Iterator[Sink]:
    # Tests that stop the server should not retry for long.
    cloud = replace(emulators.cloud, retry_seconds=2.0)
    sink = Sink(cloud, TableName.parse(f"{dataset}.t", "output_table"))
    yield sink
    # The emulator becomes slower with every table.
    sink.client.delete_dataset(dataset, delete_contents=True, not_found_ok=True)


def scored(destination: TableDestination, *ids: str, at: datetime = NOON) -> pa.RecordBatch:
    """Return rows of the destination's schema with these ids."""
    values: dict[str, Any] = {
        "row_id": ids,
        "score": [0.1] * len(ids),
        "encoded": [[1.5, -0.0]] * len(ids),
        "model_name": [destination.provenance.model_name] * len(ids),
        "run_id": [destination.folder.run_id] * len(ids),
        "scored_at": [at] * len(ids),
        "instance_id": ids,
        "anomaly_score": [0.1] * len(ids),
        "at": [at] * len(ids),
    }
    names = destination.schema.names
    arrays = [pa.array(values[name], destination.schema.field(name).type) for name in names]
    return pa.RecordBatch.from_arrays(arrays, schema=destination.schema)


def stage(destination: TableDestination, *batches: pa.RecordBatch) -> list[StagedFile]:
    """Stage each batch as a file."""
    files = []
    for batch in batches:
        file = StagedWriter(destination, batch.schema)
        file.write(batch)
        files.append(file.close())
    return files


def run(destination: TableDestination, *ids: str) -> TableDestination:
    """Prepare the destination, and stage and commit rows with these ids."""
    destination.prepare()
    destination.commit(stage(destination, scored(destination, *ids)))
    return destination


def fails(action: Callable[[], Any], *parts: str, kind: type[Exception] = OutputError) -> None:
    """Check that the action fails with a message of one line that contains the parts."""
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_new_table_has_the_rows_schema_partitions_by_day_and_clusters(sink: Sink) -> None:
    sink("r", cluster_by=("row_id", "run_id")).prepare()
    table = sink.get()
    assert [(f.name, f.field_type, f.mode) for f in table.schema] == [
        ("row_id", "STRING", "NULLABLE"),
        ("score", "FLOAT", "NULLABLE"),
        ("encoded", "FLOAT", "REPEATED"),
        ("model_name", "STRING", "NULLABLE"),
        ("run_id", "STRING", "NULLABLE"),
        ("scored_at", "TIMESTAMP", "NULLABLE"),
    ]
    assert (table.time_partitioning.type_, table.time_partitioning.field) == ("DAY", "scored_at")
    assert table.clustering_fields == ["row_id", "run_id"]
    assert table.expires is None


def test_preparing_twice_changes_nothing(sink: Sink) -> None:
    run(sink("r"), "a")
    before = sink.get().to_api_repr()
    sink("s", cluster_by=()).prepare()
    assert sink.get().to_api_repr() == before


def test_what_would_fail_the_commit_is_reported_before_a_table_is_created(
    sink: Sink, emulators: LocalCloud
) -> None:
    nowhere = TableName(sink.table.project, "nowhere", "t")
    fails(sink(table=nowhere).prepare, str(nowhere), "nowhere", "check")
    gone = RunFolder("gs://no-such-bucket/tmp", "r", "a")
    fails(sink(folder=gone).prepare, "--temp_location", "bucket no-such-bucket does not exist")
    bad = pa.schema([("a!b", pa.string())])
    fails(sink(schema=bad, time_column=None).prepare, "'a!b'", "letters")
    assert sink.tables() == set()


def test_the_bucket_must_be_in_a_location_from_which_the_dataset_can_load(sink: Sink) -> None:
    dataset = bigquery.Dataset(f"{sink.table.project}.{sink.table.dataset}_eu")
    dataset.location = "EU"
    sink.client.create_dataset(dataset)
    # In the emulator, all buckets and all existing tables are in the US.
    abroad = TableName(sink.table.project, dataset.dataset_id, "t")
    fails(sink(table=abroad).prepare, "--temp_location is in US", str(abroad), "in EU")
    assert list(sink.client.list_tables(dataset)) == []


@pytest.mark.parametrize(
    ("dataset", "bucket", "loads"),
    [
        ("US", "US", True),
        ("US", "ASIA", True),
        ("EU", "EU", True),
        ("EU", "EUROPE-WEST1", True),
        ("EU", "US", False),
        ("EU", "US-EAST1", False),
        ("us-central1", "US-CENTRAL1", True),
        ("us-central1", "US", False),
        ("us-central1", "US-EAST1", False),
        ("europe-west1", "EU", False),
        ("europe-west1", "EUROPE-WEST12", False),
        ("asia-northeast1", "ASIA-NORTHEAST1", True),
    ],
)
def test_which_bucket_locations_a_dataset_can_load_from(
    dataset: str, bucket: str, loads: bool
) -> None:
    assert loads_from(dataset, bucket, "region") is loads
    assert loads_from(dataset, bucket, "dual-region")


def test_a_table_that_does_not_fit_is_reported_in_one_line_with_all_differences(sink: Sink) -> None:
    sink.create(
        SchemaField("row_id", "INTEGER"),
        SchemaField("Score", "FLOAT"),
        SchemaField("encoder", "FLOAT", "REPEATED"),
        SchemaField("model_name", "STRING"),
        SchemaField("run_id", "STRING", "REPEATED"),
        SchemaField("scored_at", "TIMESTAMP"),
        SchemaField("owner", "STRING", "REQUIRED"),
    )
    fails(
        sink().prepare,
        str(sink.table),
        "column row_id INT64, expected STRING",
        "lacks column encoded ARRAY<FLOAT64> (did you mean 'encoder'?)",
        "column run_id ARRAY<STRING>, expected STRING",
        "requires column owner",
    )


def test_a_view_is_refused_as_a_destination(sink: Sink) -> None:
    sink.query("CREATE VIEW T AS SELECT 'a' AS row_id")
    fails(sink().prepare, "VIEW", "expected a table")


def test_clustering_applies_to_new_tables_only(sink: Sink) -> None:
    sink(cluster_by=("row_id",)).prepare()
    sink(cluster_by=("row_id",)).prepare()
    fails(sink(cluster_by=("run_id",)).prepare, "by row_id, not by run_id", "--cluster_by")


def test_rows_are_added_to_the_rows_of_other_runs(sink: Sink) -> None:
    run(sink("r", "a"), "1", "2")
    run(sink("s", "b"), "1", "3")
    assert Counter(sink.ids()) == Counter(["1", "2", "1", "3"])
    (row,) = sink.query("SELECT * FROM T WHERE row_id = '2'")
    assert row == {
        "row_id": "2",
        "score": pytest.approx(0.1, abs=1e-7),
        "encoded": [1.5, -0.0],
        "model_name": "tiny",
        "run_id": "r",
        "scored_at": NOON,
    }


def test_truncating_keeps_only_the_rows_of_the_run_and_the_layout_of_the_table(sink: Sink) -> None:
    run(sink("r", "a", cluster_by=("row_id",)), "1", "2")
    run(sink("s", "b", write_disposition="truncate"), "3")
    assert sink.ids() == ["3"]
    table = sink.get()
    assert table.time_partitioning.field == "scored_at"
    assert table.clustering_fields == ["row_id"]


def test_a_step_that_is_repeated_after_the_cleanup_finds_its_work_done(sink: Sink) -> None:
    for token, ids in (("a", "12"), ("b", "23")):
        destination = sink("r", token)
        files = stage(run(destination, *ids), scored(destination, *ids))
        destination.discard()
        destination.commit(files)
        assert sink.ids() == list(ids)


def test_more_files_than_one_load_job_takes_are_loaded_by_several_jobs(
    sink: Sink, emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_table, "FILES_A_LOAD", 2)
    destination = sink()
    destination.prepare()
    files = stage(destination, *(scored(destination, *ids) for ids in ("1", "", "23", "4")))
    # The attempt dies between the two load jobs, and the first one is not repeated.
    assert commit_until(emulators, 2, destination, files, of_all=False)
    destination.commit(files)
    assert sink.ids() == ["1", "2", "3", "4"]


def test_a_quota_error_of_one_load_job_is_one_line_and_shows_no_row(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_table, "FILES_A_LOAD", 1)
    run(sink("r", "a"), "1")
    destination = sink("s", "b")
    destination.prepare()
    files = stage(destination, *(scored(destination, *ids) for ids in ("2", "3", "4")))
    load, started = bigquery.Client.load_table_from_uri, []

    def refuse(self: Any, uris: Any, *args: Any, **rest: Any) -> Any:
        started.append(uris)
        if len(started) == 2:
            details = {"reason": "quotaExceeded", "message": "Quota exceeded: load jobs"}
            raise exceptions.Forbidden("Quota exceeded: load jobs", errors=[details])
        return load(self, uris, *args, **rest)

    monkeypatch.setattr(bigquery.Client, "load_table_from_uri", refuse)
    fails(lambda: destination.commit(files), "cannot be written: Quota exceeded", "a quota of")
    assert sink.ids() == ["1"]
    destination.commit(files)
    assert sink.ids() == ["1", "2", "3", "4"]
    # The job that was started before the error is not started again.
    assert len(started) == 2 + 2


def test_a_run_without_rows_adds_none_but_still_truncates(sink: Sink) -> None:
    run(sink("r", "a"), "1")
    run(sink("s", "b"))
    assert sink.ids() == ["1"]
    run(sink("t", "c", write_disposition="truncate"))
    assert sink.ids() == []


def test_a_table_that_must_be_empty_is_refused_if_it_has_rows_of_other_runs(sink: Sink) -> None:
    run(sink("r", "a", write_disposition="empty"), "1")
    run(sink("r", "b", write_disposition="empty"), "1", "2")
    assert sink.ids() == ["1", "2"]
    other = sink("s", "c", write_disposition="empty")
    fails(other.prepare, "has 2 rows", "--write_disposition empty expects none", "append")


def test_rows_added_by_others_during_the_run_are_found_at_the_commit(sink: Sink) -> None:
    late = sink("r", "a", write_disposition="empty")
    late.prepare()
    files = stage(late, scored(late, "1"))
    run(sink("s", "b"), "2")
    fails(lambda: late.commit(files), "has 1 rows", "expects none")
    assert sink.ids() == ["2"]


def test_rows_added_by_others_at_the_last_moment_fail_the_commit_to_an_empty_table(
    sink: Sink, emulators: LocalCloud
) -> None:
    late = sink("r", "a", write_disposition="empty")
    late.prepare()
    files = stage(late, scored(late, "1"))

    def overtake() -> None:
        with ThreadPoolExecutor(1) as other:
            other.submit(run, sink("s", "b"), "2").result()

    with at_change(emulators, 2, overtake):
        fails(lambda: late.commit(files), str(sink.table), "Already Exists")
    assert sink.ids() == ["2"]


def test_only_the_runs_own_rows_are_replaced_by_each_later_attempt(sink: Sink) -> None:
    run(sink("r", "a"), "1", "2")
    run(sink("s", "b"), "1")
    for token, ids in (("c", "23"), ("d", "34")):
        run(sink("r", token), *ids)
        found = sink.query("SELECT row_id, run_id FROM T")
        expected = [("1", "s"), *((row_id, "r") for row_id in ids)]
        assert Counter((row["row_id"], row["run_id"]) for row in found) == Counter(expected)


def test_rows_of_a_fixed_model_replace_the_broken_ones_and_rows_of_other_models_stay(
    sink: Sink,
) -> None:
    run(sink("r", "a", digest="broken"), "1", "2")
    run(sink("r", "b", model="other"), "1")
    run(sink("r", "c", digest="fixed"), "2", "3")
    found = sink.query("SELECT row_id, model_name FROM T")
    expected = [("1", "other"), ("2", "tiny"), ("3", "tiny")]
    assert Counter((row["row_id"], row["model_name"]) for row in found) == Counter(expected)


def test_a_second_pipeline_with_the_same_run_id_is_refused_before_anything_changes(
    sink: Sink,
) -> None:
    run(sink("r", "a"), "1")
    second = sink("r", "b", pipeline="batch_vertex")
    fails(second.prepare, str(sink.table), "run r", "tiny", "batch_local", "--run_id")
    run(sink("r", "c", pipeline="batch_vertex", model="other"), "2")
    run(sink("r", "d"), "3")
    assert sink.ids() == ["2", "3"]
    sink.client.delete_table(str(sink.table))
    run(second, "1")
    run(sink("r", "e", write_disposition="truncate"), "4")
    assert sink.ids() == ["4"]


def test_a_pipeline_that_is_overtaken_by_another_with_its_run_id_keeps_the_rows_of_that_one(
    sink: Sink, emulators: LocalCloud
) -> None:
    slow, fast = sink("r", "a"), sink("r", "b", pipeline="batch_vertex")
    slow.prepare()
    files = stage(slow, scored(slow, "1"))

    def overtake() -> None:
        with ThreadPoolExecutor(1) as other:
            other.submit(run, fast, "2").result()

    with at_change(emulators, 2, overtake):
        fails(lambda: slow.commit(files), "pipeline batch_vertex has already written", "--run_id")
    assert sink.ids() == ["2"]


@pytest.mark.parametrize("other", [{"pipeline": "batch_vertex"}, {"model": "other"}])
def test_without_a_run_id_column_another_pipeline_or_model_adds_its_rows(
    sink: Sink, other: dict[str, str]
) -> None:
    sink.schema = REFERENCE
    run(sink("r", "a"), "1", "2")
    run(sink("r", "b", **other), "1", "3")
    assert sink.ids() == ["1", "1", "2", "3"]


# Tables into which rows cannot be copied: they are inserted, also when they replace a run's rows.
FORMS: dict[str, Sequence[SchemaField]] = {
    "extra columns": (
        SchemaField("note", "STRING"),
        SchemaField("model_name", "STRING"),
        SchemaField("row_id", "STRING"),
        SchemaField("score", "FLOAT"),
        SchemaField("encoded", "FLOAT", "REPEATED"),
        SchemaField("run_id", "STRING"),
        SchemaField("scored_at", "TIMESTAMP"),
    ),
    "another order": (
        SchemaField("scored_at", "TIMESTAMP"),
        SchemaField("encoded", "FLOAT", "REPEATED"),
        SchemaField("RUN_ID", "STRING"),
        SchemaField("model_name", "STRING"),
        SchemaField("row_id", "STRING"),
        SchemaField("Score", "FLOAT"),
    ),
    "required columns": (
        SchemaField("row_id", "STRING", "REQUIRED"),
        SchemaField("score", "FLOAT", "REQUIRED"),
        SchemaField("encoded", "FLOAT", "REPEATED"),
        SchemaField("model_name", "STRING"),
        SchemaField("run_id", "STRING"),
        SchemaField("scored_at", "TIMESTAMP"),
    ),
}


REQUIRED_REFERENCE = (
    SchemaField("instance_id", "STRING", "REQUIRED"),
    SchemaField("anomaly_score", "FLOAT"),
    SchemaField("at", "TIMESTAMP"),
)


@pytest.mark.parametrize(
    ("form", "disposition"),
    [
        ("extra columns", "append"),
        ("another order", "truncate"),
        ("required columns", "append"),
        ("required columns", "truncate"),
    ],
)
def test_tables_with_another_schema_keep_it_and_receive_the_rows(
    sink: Sink, form: str, disposition: str
) -> None:
    sink.create(*FORMS[form])
    before = [(f.name, f.mode) for f in sink.get().schema]
    for token, ids in (("a", "12"), ("b", "23")):
        run(sink("r", token, write_disposition=disposition), *ids)
    assert sink.ids() == ["2", "3"]
    assert [(f.name, f.mode) for f in sink.get().schema] == before
    (row,) = sink.query("SELECT * FROM T WHERE row_id = '3'")
    found = {name.lower(): value for name, value in row.items()}
    assert (found["run_id"], found["scored_at"], found["encoded"]) == ("r", NOON, [1.5, -0.0])
    assert found.get("note") is None


def test_rows_are_copied_into_a_table_without_partitions(sink: Sink) -> None:
    sink.create(*FORMS["another order"][::-1])
    run(sink(), "1")
    assert sink.ids() == ["1"]


@contextmanager
def statements() -> Iterator[list[str]]:
    """Yield a list of the SQL statements that the block sends."""
    send, seen = requests.Session.request, []

    def request(self: Any, method: str, url: str, *args: Any, **rest: Any) -> Any:
        if method == "POST" and '"query": {' in str(rest.get("data")):
            job = json.loads(rest["data"])["configuration"]
            seen.extend(job["query"]["query"].split(";"))
        return send(self, method, url, *args, **rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(requests.Session, "request", request)
        yield seen


@pytest.mark.parametrize(
    ("schema", "disposition"), [(SCORED, "append"), (SCORED, "truncate"), (REFERENCE, "append")]
)
def test_a_table_that_requires_a_partition_filter_is_written_and_still_requires_it(
    sink: Sink, schema: pa.Schema, disposition: str
) -> None:
    sink.schema = schema
    sink().prepare()
    table, (key, *_, column) = sink.get(), schema.names
    table.require_partition_filter = True
    sink.client.update_table(table, ["require_partition_filter"])
    with statements() as sent:
        for token in "ab":
            run(sink("r", token, write_disposition=disposition), "1", "2")
    # The emulator only requires a filter to read rows, the service also to delete them.
    for sql in sent:
        assert sql.count("FROM `") == sql.count(f"OR `{column}` IS NOT NULL"), sql
    assert sink.get().require_partition_filter
    rows = sink.query(f"SELECT {key} AS id FROM T WHERE `{column}` IS NOT NULL ORDER BY 1")
    assert [row["id"] for row in rows] == ["1", "2"]


def test_rows_of_a_table_partitioned_by_an_integer_are_replaced(sink: Sink) -> None:
    numbers = bigquery.PartitionRange(start=0, end=10, interval=1)
    sink.create(
        *FORMS["extra columns"],
        SchemaField("number", "INTEGER"),
        require_partition_filter=True,
        range_partitioning=bigquery.RangePartitioning(numbers, "number"),
    )
    with statements() as sent:
        for token, ids in (("a", "12"), ("b", "23")):
            run(sink("r", token), *ids)
    (delete,) = [sql for sql in sent if "DELETE" in sql]
    assert delete.endswith("AND (`number` IS NULL OR `number` IS NOT NULL)")
    sink.client.query(f"ALTER TABLE `{sink.table}` SET OPTIONS (require_partition_filter=FALSE)")
    assert sink.ids() == ["2", "3"]


def test_rows_of_a_table_partitioned_by_ingestion_time_are_deleted_by_that_time(
    sink: Sink,
) -> None:
    sink.create(
        *FORMS["required columns"],
        require_partition_filter=True,
        time_partitioning=bigquery.TimePartitioning(),
    )
    run(sink("r", "a"), "1")
    with statements() as sent:
        # The emulator does not support that column.
        fails(lambda: run(sink("r", "b"), "2"), "_PARTITIONTIME")
    (delete,) = [sql for sql in sent if "DELETE" in sql]
    assert delete.endswith("AND (`_PARTITIONTIME` IS NULL OR `_PARTITIONTIME` IS NOT NULL)")


def json_field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, metadata=JSON_METADATA)


JSON_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        json_field("plain", pa.string()),
        pa.field("many", pa.list_(json_field("item", pa.string()))),
        pa.field("nested", pa.struct([json_field("inner", pa.string()), ("n", pa.int64())])),
        ("run_id", pa.string()),
        ("scored_at", TIME),
    ]
)


def json_rows(run_id: str) -> pa.RecordBatch:
    texts = ['{"a": [1, null], "b": "\\u00e9"}', "null", None, "12345678901234567890123.5"]
    return pa.RecordBatch.from_pylist(
        [
            {
                "row_id": str(i),
                "plain": text,
                "many": ['{"i": 1}', '"x"', "[2]"][:i],
                "nested": None if text is None else {"inner": text, "n": i},
                "run_id": run_id,
                "scored_at": NOON,
            }
            for i, text in enumerate(texts)
        ],
        schema=JSON_SCHEMA,
    )


def test_json_columns_are_written_as_json_at_every_level(sink: Sink) -> None:
    sink.schema = JSON_SCHEMA
    # The first attempt inserts the rows, and the second one replaces them in a transaction.
    for token in "ab":
        destination = sink("r", token)
        destination.prepare()
        destination.commit(stage(destination, json_rows("r")))
    kinds = [(f.name, f.field_type, f.mode) for f in sink.get().schema[1:4]]
    assert kinds == [
        ("plain", "JSON", "NULLABLE"),
        ("many", "JSON", "REPEATED"),
        ("nested", "RECORD", "NULLABLE"),
    ]
    rows = sink.query(
        "SELECT plain IS NULL AS empty, JSON_TYPE(plain) AS kind, JSON_VALUE(plain, '$.b') AS b, "
        "ARRAY_LENGTH(many) AS n, ARRAY(SELECT JSON_TYPE(e) FROM UNNEST(many) AS e "
        "WITH OFFSET o ORDER BY o) AS kinds, nested IS NULL AS absent, "
        "JSON_TYPE(nested.inner) AS inner_kind FROM T ORDER BY row_id"
    )
    assert [row["kind"] for row in rows] == ["object", "null", None, "number"]
    assert [row["empty"] for row in rows] == [False, False, True, False]
    assert rows[0]["b"] == "\u00e9"
    assert [row["n"] for row in rows] == [0, 1, 2, 3]
    assert rows[3]["kinds"] == ["object", "string", "array"]
    assert [row["absent"] for row in rows] == [False, False, True, False]
    assert [row["inner_kind"] for row in rows] == ["object", "null", None, "number"]


def test_fields_of_structs_are_matched_by_name_and_not_by_position(sink: Sink) -> None:
    # The emulator always matches fields by name, but the service matches them by position. There
    # in_form must put them in order, which test_bigquery_schema.py tests.
    pair = pa.struct([("low", pa.int64()), ("high", pa.int64())])
    sink.schema = pa.schema(
        [("row_id", pa.string()), ("span", pair), ("spans", pa.list_(pair)), ("scored_at", TIME)]
    )
    turned = (SchemaField("high", "INTEGER"), SchemaField("low", "INTEGER"))
    sink.create(
        SchemaField("row_id", "STRING"),
        SchemaField("span", "RECORD", fields=turned),
        SchemaField("spans", "RECORD", "REPEATED", fields=turned),
        SchemaField("scored_at", "TIMESTAMP"),
    )
    span = {"low": 1, "high": 2}
    row = {
        "row_id": "1",
        "span": span,
        "spans": [span, {"low": 3, "high": 4}],
        "scored_at": NOON,
    }
    destination = sink()
    destination.prepare()
    destination.commit(stage(destination, pa.RecordBatch.from_pylist([row], schema=sink.schema)))
    assert sink.query("SELECT * FROM T") == [row]


def test_dead_letters_have_the_schema_of_every_sink(sink: Sink) -> None:
    destination = sink(part=DEAD_LETTERS, schema=FAILURE_SCHEMA, time_column="failed_at")
    letters = failure_batch(
        ["1", None],
        [b'{"a": NaN}', b"\xff\x00"],
        [Fault("null", "a is null", "a"), Fault("invalid_json", "no JSON")],
        stage="decode",
        provenance=Provenance(
            run_id="r",
            pipeline="batch",
            model_name="tiny",
            model_version="3",
            model_digest="0" * 64,
        ),
        failed_at=NOON,
    )
    destination.prepare()
    destination.commit(stage(destination, letters))
    assert [(f.name, f.field_type) for f in sink.get().schema] == [
        ("failed_at", "TIMESTAMP"),
        *((name, "STRING") for name in ("run_id", "pipeline", "stage", "reason", "message")),
        ("row_id", "STRING"),
        ("payload", "BYTES"),
        ("attributes", "STRING"),
        *((name, "STRING") for name in ("model_name", "model_version", "model_digest")),
        ("attempts", "INTEGER"),
    ]
    assert sink.query("SELECT * FROM T ORDER BY row_id NULLS LAST") == letters.to_pylist()


def test_dead_letters_of_pipelines_and_models_with_the_same_run_id_do_not_mix(sink: Sink) -> None:
    sink.fields = {"part": DEAD_LETTERS, "schema": FAILURE_SCHEMA, "time_column": "failed_at"}
    for token, pipeline, model, ids in (
        ("a", "batch_local", "tiny", "12"),
        ("b", "batch_vertex", "tiny", "1"),
        ("c", "batch_local", "other", "1"),
        ("d", "batch_local", "tiny", "3"),
    ):
        destination = sink("r", token, pipeline=pipeline, model=model)
        faults, payloads = [Fault("null", "null")] * len(ids), [b"{}"] * len(ids)
        own = destination.provenance
        letters = failure_batch(
            list(ids), payloads, faults, stage="decode", provenance=own, failed_at=NOON
        )
        destination.prepare()
        destination.commit(stage(destination, letters))
    found = sink.query("SELECT pipeline, model_name, row_id FROM T ORDER BY 1, 2")
    assert [tuple(row.values()) for row in found] == [
        ("batch_local", "other", "1"),
        ("batch_local", "tiny", "3"),
        ("batch_vertex", "tiny", "1"),
    ]


class Died(BaseException):
    """The death of a process, which no code of the process can catch."""


@contextmanager
def watching(emulators: LocalCloud, seen: Callable[[str, str], None]) -> Iterator[None]:
    """Call `seen` with the method and the path of each call to BigQuery before it is sent."""
    send, address = requests.Session.request, f"{emulators.endpoints.bigquery}/bigquery/v2/"
    thread = threading.get_ident()

    def request(self: Any, method: str, url: str, *args: Any, **rest: Any) -> Any:
        if url.startswith(address) and threading.get_ident() == thread:
            seen(method, url.removeprefix(address))
        return send(self, method, url, *args, **rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(requests.Session, "request", request)
        yield


def commit_until(
    emulators: LocalCloud,
    number: int,
    destination: TableDestination,
    files: list[StagedFile],
    *,
    of_all: bool = True,
) -> bool:
    """Commit, but die before the call with that number; return whether there was such a call.

    Unless `of_all`, only calls that change something are counted: wherever a process dies between
    two of them, it leaves the same state.
    """
    left = itertools.count(number, -1)

    def seen(method: str, _: str) -> None:
        if (of_all or method != "GET") and next(left) == 0:
            raise Died

    try:
        with watching(emulators, seen):
            destination.commit(files)
    except Died:
        return True
    return False


@dataclass
class Case:
    """The table before a commit, its schema and its ids, and the ids after the commit."""

    fields: dict[str, Any] = field(default_factory=dict)
    form: Sequence[SchemaField] = ()
    present: str = "9"
    earlier: str = ""
    after: str = "129"

    @property
    def before(self) -> str:
        return "".join(sorted(self.present + self.earlier))


CASES = {
    "append": Case(),
    "truncate": Case({"write_disposition": "truncate"}, after="12"),
    "empty": Case({"write_disposition": "empty"}, present="", after="12"),
    "no run_id column": Case({"schema": REFERENCE, "time_column": "at"}),
    "replacing an earlier attempt": Case(earlier="13"),
    "by a query": Case(form=FORMS["required columns"]),
}


def crash_and_repeat(
    sink: Sink, emulators: LocalCloud, case: Case, number: int, again: str, *, of_all: bool
) -> bool:
    """Die during a commit to a new table, and repeat it; return whether there was such a call."""
    sink.table = sink.table.sibling(f"t{number}")
    sink.schema = case.fields.get("schema", SCORED)
    sink.fields = case.fields
    if case.form:
        sink.create(*case.form)
    first = sink("r", "a")
    first.prepare()
    if case.present:
        key, value = sink.schema.names[:2]
        sink.query(f"INSERT INTO T ({key}, {value}) VALUES ('{case.present}', 0.5)")
    if case.earlier:
        run(sink("r", "e"), *case.earlier)
    files = stage(first, scored(first, "1", "2"))
    died = commit_until(emulators, number, first, files, of_all=of_all)
    assert "".join(sink.ids()) in (case.before, case.after)
    if again == "step":
        first.commit(files)
    else:
        run(sink("r", "b"), "1", "2")
    assert "".join(sink.ids()) == case.after
    for table in sink.tables():
        sink.client.delete_table(str(sink.table.sibling(table)))
    return died


# The changes of a commit: the attempt's table, its load job, and the job that writes the rows to
# the destination. The process dies before or after the last one. Every case has both moments and
# both ways to repeat the commit.
CRASHES = [
    ("append", "before", "run"),
    ("append", "before", "step"),
    ("append", "after", "run"),
    ("append", "after", "step"),
    ("truncate", "before", "step"),
    ("truncate", "after", "run"),
    ("empty", "before", "run"),
    ("empty", "after", "step"),
    ("no run_id column", "before", "step"),
    ("no run_id column", "after", "run"),
    ("replacing an earlier attempt", "before", "run"),
    ("replacing an earlier attempt", "after", "step"),
    ("by a query", "before", "step"),
    ("by a query", "after", "run"),
]


@pytest.mark.parametrize(("name", "moment", "again"), CRASHES)
def test_a_process_may_die_before_or_after_the_job_that_writes_the_rows(
    sink: Sink, emulators: LocalCloud, name: str, moment: str, again: str
) -> None:
    number = 2 if moment == "before" else 3
    died = crash_and_repeat(sink, emulators, CASES[name], number, again, of_all=False)
    assert died is (moment == "before")


def test_each_row_is_written_once_whichever_call_a_process_dies_before(
    sink: Sink, emulators: LocalCloud
) -> None:
    numbers = itertools.count()
    case = CASES["append"]
    while crash_and_repeat(sink, emulators, case, next(numbers), "run", of_all=True):
        pass
    assert next(numbers) > 8


def test_the_remains_of_a_dead_attempt_expire_or_are_deleted_by_discard(
    sink: Sink, emulators: LocalCloud
) -> None:
    destination = sink()
    destination.prepare()
    files = stage(destination, scored(destination, "1"))
    assert commit_until(emulators, 2, destination, files, of_all=False)
    (left,) = sink.tables() - {"t"}
    expires = sink.client.get_table(f"{sink.table.sibling(left)}").expires
    assert timedelta(hours=23) < expires - datetime.now(UTC) <= timedelta(hours=24)
    # A wildcard over the destination's name does not match it.
    assert not left.startswith("t")
    destination.discard()
    assert sink.tables() == {"t"}
    (bucket,) = {path.split("/")[2] for path in (file.path for file in files)}
    # Attempts of other tests stage files in the same folder.
    own = f"tmp/.staging/r/{destination.folder.token}-"
    assert not list(sink.cloud.storage().list_blobs(bucket, prefix=own))


def test_discarding_without_a_server_is_quiet(sink: Sink) -> None:
    nowhere = replace(sink.cloud, endpoints=replace(sink.cloud.endpoints, bigquery="localhost:9"))
    sink(cloud=nowhere).discard()


def test_an_attempts_table_that_was_deleted_is_loaded_again(
    sink: Sink, emulators: LocalCloud
) -> None:
    destination = sink()
    destination.prepare()
    files = stage(destination, scored(destination, "1"))
    assert commit_until(emulators, 2, destination, files, of_all=False)
    sink.client.delete_table(str(run_table(sink.table, destination.folder)))
    destination.commit(files)
    assert sink.ids() == ["1"]


def at_change(emulators: LocalCloud, number: int, action: Callable[[], Any]) -> Any:
    """Call the action before the change with that number in the block, counted from 0."""
    changes = itertools.count()

    def seen(method: str, _: str) -> None:
        if method != "GET" and next(changes) == number:
            action()

    return watching(emulators, seen)


# The changes: the attempt's table, its load job, and the job that writes the rows.
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("append", 0),
        ("append", 1),
        ("append", 2),
        ("truncate", 2),
        ("no run_id column", 1),
        ("no run_id column", 2),
    ],
)
def test_only_one_of_two_concurrent_attempts_leaves_its_rows(
    sink: Sink, emulators: LocalCloud, name: str, number: int
) -> None:
    sink.schema, sink.fields = CASES[name].fields.get("schema", SCORED), CASES[name].fields
    slow, fast = sink("r", "a"), sink("r", "b")
    slow.prepare()
    files = stage(slow, scored(slow, "1", "2"))

    def overtake() -> None:
        with ThreadPoolExecutor(1) as other:
            other.submit(run, fast, "1", "2").result()

    with at_change(emulators, number, overtake):
        slow.commit(files)
    assert sink.ids() == ["1", "2"]
    fast.commit([])
    slow.commit(files)
    assert sink.ids() == ["1", "2"]


def test_attempts_that_commit_at_the_same_moment_leave_the_rows_of_one_of_them_once(
    sink: Sink,
) -> None:
    attempts = [sink("r", token) for token in "abc"]
    attempts[0].prepare()
    rows = (("1", "2"), ("2", "3", "4"), ("5",))
    staged = [stage(a, scored(a, *ids)) for a, ids in zip(attempts, rows, strict=True)]
    start = threading.Barrier(len(attempts))

    def commit(i: int) -> None:
        start.wait()
        # BigQuery ends a transaction whose rows another one changes, so an attempt may fail.
        with suppress(OutputError):
            attempts[i].commit(staged[i])

    with ThreadPoolExecutor(len(attempts)) as threads:
        list(threads.map(commit, range(len(attempts))))
    assert sink.ids() in [sorted(ids) for ids in rows]
    run(sink("r", "d"), "1", "2")
    assert sink.ids() == ["1", "2"]


def test_an_attempt_whose_staged_files_are_gone_leaves_the_table_as_it_is(sink: Sink) -> None:
    late = sink("r", "a")
    late.prepare()
    files = stage(late, scored(late, "3"), scored(late, "4"))
    run(sink("r", "b"), "1", "2")
    delete([files[0].path])
    fails(lambda: late.commit(files), str(sink.table), files[0].path.removeprefix("gs://"))
    assert sink.ids() == ["1", "2"]


def test_a_file_that_cannot_be_loaded_fails_the_run_and_changes_nothing(sink: Sink) -> None:
    run(sink("s", "z"), "9")
    destination = sink()
    destination.prepare()
    files = stage(destination, scored(destination, "1"), scored(destination, "2"))
    blob = sink.cloud.storage().bucket("bucket").blob(files[1].path.removeprefix("gs://bucket/"))
    blob.upload_from_string(b"no Parquet at all")
    fails(lambda: destination.commit(files), str(sink.table), files[1].path)
    assert sink.ids() == ["9"]
    destination.discard()
    assert run_table(sink.table, destination.folder).table not in sink.tables()


def test_nothing_is_written_if_fewer_rows_are_loaded_than_staged(sink: Sink) -> None:
    destination = sink()
    destination.prepare()
    (file,) = stage(destination, scored(destination, "1", "2"))
    short = replace(file, rows=3)
    fails(lambda: destination.commit([short]), "3 rows", "2 were loaded", kind=BalanceError)
    assert sink.ids() == []


@contextmanager
def failing_copy(reason: str) -> Iterator[list[str]]:
    """Make the first copy job in the block fail for a reason; yield the ids of all copy jobs."""
    send, ids = requests.Session.request, []

    def request(self: Any, method: str, url: str, *args: Any, **rest: Any) -> Any:
        starts = method == "POST" and '"copy": {' in str(rest.get("data"))
        if starts:
            job = json.loads(rest["data"])
            ids.append(job["jobReference"]["jobId"])
            if len(ids) == 1:
                # The job fails in the emulator, because there is no such table. The reason in the
                # response is changed below.
                job["configuration"]["copy"]["sourceTables"][0]["tableId"] = "none"
                rest["data"] = json.dumps(job)
        response = send(self, method, url, *args, **rest)
        if ids and (ids[0] in url or (starts and len(ids) == 1)):
            response._content = response.content.replace(b'"notFound"', f'"{reason}"'.encode())
        return response

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(requests.Session, "request", request)
        patched.setattr("transforms.bigquery.jobs.time.sleep", lambda _: None)
        yield ids


def test_a_copy_with_a_transient_failure_is_repeated_under_the_next_number(
    sink: Sink, emulators: LocalCloud
) -> None:
    with failing_copy("jobRateLimitExceeded") as ids:
        run(sink("r", "a"), "1")
    assert [name.rsplit("-", 1)[-1] for name in ids] == ["0", "1"]
    assert sink.ids() == ["1"]
    run(sink("r", "b"), "1", "2")
    assert sink.ids() == ["1", "2"]


def test_a_copy_that_fails_for_good_is_reported_once_and_a_rerun_uses_the_next_number(
    sink: Sink, emulators: LocalCloud
) -> None:
    with failing_copy("quotaExceeded") as ids:
        fails(lambda: run(sink("r", "a"), "1"), str(sink.table), "quota")
        assert len(ids) == 1
        assert sink.ids() == []
        run(sink("r", "b"), "1")
    assert [name.rsplit("-", 1) for name in ids] == [[ids[0][:-2], "0"], [ids[0][:-2], "1"]]
    assert sink.ids() == ["1"]


def test_rows_that_cannot_be_inserted_leave_the_earlier_rows_in_the_table(sink: Sink) -> None:
    sink.create(*FORMS["required columns"])
    run(sink("r", "a"), "1")
    second = sink("r", "b")
    rows = scored(second, "2", "3")
    rows = rows.set_column(1, "score", pa.nulls(2, pa.float32()))
    fails(lambda: second.commit(stage(second, rows)), str(sink.table), "score")
    assert sink.ids() == ["1"]


def test_without_a_run_id_column_a_rerun_with_other_rows_is_refused(sink: Sink) -> None:
    sink.schema = REFERENCE
    run(sink("r", "a"), "1", "2")
    fails(
        lambda: run(sink("r", "b"), "1", "2", "3"), "2 rows", "this attempt has 3 rows", "--run_id"
    )
    assert sink.ids() == ["1", "2"]
    run(sink("r", "c", write_disposition="truncate"), "1", "2", "3")
    assert sink.ids() == ["1", "2", "3"]


def test_without_a_run_id_column_deleted_rows_are_written_again(sink: Sink) -> None:
    sink.schema = REFERENCE
    run(sink("r", "a"), "1", "2")
    run(sink("s", "b", write_disposition="truncate"), "9")
    run(sink("r", "c"), "1", "2")
    assert sink.ids() == ["1", "2", "9"]
    sink.client.delete_table(str(sink.table))
    run(sink("r", "d"), "1", "2")
    assert sink.ids() == ["1", "2"]


def test_without_a_run_id_column_partly_deleted_rows_are_reported(sink: Sink) -> None:
    sink.schema = REFERENCE
    run(sink("r", "a"), "1", "2")
    sink.query("DELETE FROM T WHERE instance_id = '1'")
    fails(
        lambda: run(sink("r", "b"), "1", "2"),
        "written 2 rows",
        "1 are left",
        "--run_id",
        "truncate",
    )
    # Rows of another run with the same ids do not belong to this run.
    destination = sink("s", "c", write_disposition="truncate")
    destination.prepare()
    late = datetime.now(UTC) + timedelta(hours=1)
    destination.commit(stage(destination, scored(destination, "1", "2", at=late)))
    fails(lambda: run(sink("r", "d"), "1", "2"), "of which 0 are left")
    assert sink.ids() == ["1", "2"]


def commit_at(destination: TableDestination, *ids: str, at: datetime) -> None:
    destination.prepare()
    destination.commit(stage(destination, scored(destination, *ids, at=at)))


@pytest.mark.parametrize("form", [(), REQUIRED_REFERENCE], ids=["copied", "inserted"])
def test_without_a_run_id_column_rows_of_another_run_are_not_mistaken_for_the_runs_own(
    sink: Sink, form: Sequence[SchemaField]
) -> None:
    sink.schema = REFERENCE
    if form:
        sink.create(*form)
    first, second = NOON, NOON + timedelta(microseconds=1)
    commit_at(sink("s", "a"), "1", "2", at=first)
    commit_at(sink("r", "b"), "1", "2", at=second)
    moment = round(first.timestamp() * 1e6)
    sink.query(f"DELETE FROM T WHERE UNIX_MICROS(`at`) > {moment}")
    fails(
        lambda: run(sink("r", "c"), "1", "2"),
        "run r",
        "of which 0 are left",
        "--run_id",
        "truncate",
    )
    assert sink.ids() == ["1", "2"]
    # While the table has the rows of both runs, nothing is missing.
    commit_at(sink("t", "d"), "1", "2", at=second)
    run(sink("t", "e"), "1", "2")
    assert sink.ids() == ["1", "1", "2", "2"]


def test_without_a_run_id_column_ambiguous_rows_of_the_same_time_are_reported(
    sink: Sink,
) -> None:
    sink.schema = REFERENCE
    run(sink("r", "a"), "1", "2")
    run(sink("s", "b"), "1", "2")
    fails(
        lambda: run(sink("r", "c"), "1", "2"),
        "other rows with the same ids",
        "4 rows could belong to it",
        "--run_id",
    )
    assert sink.ids() == ["1", "1", "2", "2"]


def test_without_a_run_id_column_another_model_file_is_reported(sink: Sink) -> None:
    sink.schema = REFERENCE
    run(sink("r", "a", digest="0" * 64), "1", "2")
    fails(lambda: run(sink("r", "b", digest="1" * 64), "1", "2"), "another model file", "truncate")
    run(sink("r", "c", digest="0" * 64), "1", "2")
    assert sink.ids() == ["1", "2"]


@contextmanager
def losing_a_row(emulators: LocalCloud, kind: str) -> Iterator[None]:
    """Make inserts in the block write only one row, or copies report one row instead of two."""
    send = requests.Session.request

    def request(self: Any, method: str, url: str, *args: Any, **rest: Any) -> Any:
        job = json.loads(rest["data"]) if method == "POST" and "/jobs" in url else {}
        query = job.get("configuration", {}).get("query", {})
        if "INSERT INTO" in query.get("query", ""):
            # Leave out the last row, whatever the condition is.
            text = query["query"].replace("; ASSERT", " LIMIT 1; ASSERT")
            query["query"] = text if "TRANSACTION" in text else f"{text} LIMIT 1"
            rest["data"] = json.dumps(job)
        response = send(self, method, url, *args, **rest)
        if kind == "copy":
            response._content = response.content.replace(
                b'"copiedRows":"2"', b'"copiedRows":"1"'
            ).replace(b'"copiedRows": "2"', b'"copiedRows": "1"')
        return response

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(requests.Session, "request", request)
        yield


@pytest.mark.parametrize("kind", ["copy", "insert"])
def test_the_run_fails_if_fewer_rows_are_written_than_staged(
    sink: Sink, emulators: LocalCloud, kind: str
) -> None:
    if kind == "insert":
        sink.create(*FORMS["required columns"])
    with losing_a_row(emulators, kind):
        fails(lambda: run(sink("r", "a"), "1", "2"), "2 rows", "wrote 1:", kind=BalanceError)
        # The repeated step finds its job, and how many rows the job wrote.
        fails(lambda: run(sink("r", "a"), "1", "2"), "2 rows", "wrote 1:", kind=BalanceError)


@pytest.mark.parametrize("disposition", ["append", "truncate"])
def test_no_rows_are_replaced_if_fewer_rows_are_inserted_than_staged(
    sink: Sink, emulators: LocalCloud, disposition: str
) -> None:
    sink.create(*FORMS["required columns"])
    run(sink("r", "a", write_disposition=disposition), "1", "2")
    with losing_a_row(emulators, "insert"):
        again = sink("r", "b", write_disposition=disposition)
        fails(lambda: run(again, "3", "4"), str(sink.table), "expected 2 rows of run r")
    assert sink.ids() == ["1", "2"]
    run(sink("r", "c", write_disposition=disposition), "3", "4")
    assert sink.ids() == ["3", "4"]


def test_a_table_that_was_created_again_receives_the_rows_again(sink: Sink) -> None:
    run(sink("r", "a"), "1", "2")
    sink.client.delete_table(str(sink.table))
    run(sink("r", "b"), "1", "2")
    assert sink.ids() == ["1", "2"]


def test_a_table_that_was_created_again_and_filled_by_others_is_not_empty(sink: Sink) -> None:
    run(sink("r", "a", write_disposition="empty"), "1")
    sink.client.delete_table(str(sink.table))
    run(sink("s", "b"), "2")
    fails(sink("r", "c", write_disposition="empty").prepare, "has 1 rows", "expects none")


def test_a_run_that_is_repeated_with_another_disposition_writes_its_rows_once(sink: Sink) -> None:
    for token, disposition in (("a", "truncate"), ("b", "append"), ("c", "empty")):
        run(sink("r", token, write_disposition=disposition), "1", "2")
        assert sink.ids() == ["1", "2"]


@pytest.mark.parametrize("number", [1, 2])
def test_after_a_server_dies_during_a_commit_a_rerun_writes_all_rows(
    sink: Sink, emulators: LocalCloud, number: int
) -> None:
    run(sink("s", "z"), "9")
    first = sink("r", "a")
    first.prepare()
    files = stage(first, scored(first, "1", "2"))
    try:
        with at_change(emulators, number, emulators.bigquery.kill):
            fails(lambda: first.commit(files), str(sink.table), "failed after repeated attempts")
        first.discard()
    finally:
        emulators.bigquery.start()
    assert sink.ids() == ["9"]
    run(sink("r", "b"), "1", "2")
    assert sink.ids() == ["1", "2", "9"]


@contextmanager
def answering(answer: Callable[[str, str, Callable[[], Any]], Any]) -> Iterator[None]:
    """Let `answer` respond to each call: it receives the method, the URL and a way to send it."""
    send = requests.Session.request

    def request(self: Any, method: str, url: str, *args: Any, **rest: Any) -> Any:
        return answer(method, url, lambda: send(self, method, url, *args, **rest))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(requests.Session, "request", request)
        patched.setattr("google.api_core.retry.retry_unary.time.sleep", lambda _: None)
        yield


def response(status: int, reason: str, message: str) -> requests.Response:
    """Return the response with which Google's services refuse a request."""
    refusal = requests.Response()
    refusal.status_code = status
    errors = [{"reason": reason, "message": message}]
    refusal._content = json.dumps({"error": {"message": message, "errors": errors}}).encode()
    refusal.headers["Content-Type"] = "application/json"
    refusal.request = requests.Request("GET", "http://localhost").prepare()
    return refusal


@pytest.mark.parametrize("when", ["before it is sent", "when it is done"])
def test_each_call_may_fail_once_with_a_transient_error(
    sink: Sink, emulators: LocalCloud, when: str
) -> None:
    run(sink("r", "z"), "9")
    destination = sink("r", "a")
    destination.prepare()
    files = stage(destination, scored(destination, "1", "2"))
    failed: list[str] = []

    def answer(method: str, url: str, send: Callable[[], Any]) -> Any:
        call = f"{method} {url}"
        if call in failed:
            return send()
        failed.append(call)
        if when == "before it is sent":
            return response(503, "backendError", "try again")
        send()
        raise requests.exceptions.ConnectionError("the response is lost")

    with answering(answer):
        destination.commit(files)
    assert len(failed) > 5
    assert sink.ids() == ["1", "2"]


@pytest.mark.parametrize(
    ("path", "permission", "part"),
    [
        ("/tables", "bigquery.tables.create", "t cannot be written"),
        ("/jobs", "bigquery.jobs.create", "--billing_project"),
        ("/upload/storage/v1/b/bucket/o", "storage.objects.create", "--temp_location gs://bucket"),
    ],
)
def test_a_missing_permission_is_reported_with_advice(
    sink: Sink, path: str, permission: str, part: str
) -> None:
    def answer(method: str, url: str, send: Callable[[], Any]) -> Any:
        if method == "POST" and url.split("?", maxsplit=1)[0].endswith(path):
            return response(403, "accessDenied", f"Access Denied: {permission}")
        return send()

    with answering(answer):
        fails(sink().prepare, permission, part, "grant the account the role")
    assert sink.tables() == set()


def test_an_account_that_may_not_describe_the_bucket_may_still_write(sink: Sink) -> None:
    def answer(method: str, url: str, send: Callable[[], Any]) -> Any:
        if method == "GET" and url.split("?", maxsplit=1)[0].endswith("/storage/v1/b/bucket"):
            return response(403, "forbidden", "no storage.buckets.get access")
        return send()

    # The client that writes files also describes the bucket, but accepts a refusal.
    destination = sink()
    with answering(answer):
        destination.prepare()
    assert sink.tables() == {"t"}
