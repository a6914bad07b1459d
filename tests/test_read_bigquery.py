"""Tables and queries as source batches: real clients on the emulator and on a scripted server."""

import datetime
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import apache_beam as beam
import grpc
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.internal.gcp import auth
from apache_beam.io.filesystem import FileMetadata
from apache_beam.testing.util import assert_that
from google.api_core import exceptions
from google.cloud.bigquery import SchemaField
from google.cloud.bigquery_storage_v1 import types
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples
from read_server import Reads, messages, serving

import transforms.bigquery.session
from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from common.errors import InputError, UsageError
from common.record_batch import concat_batches, to_rows
from examples.local_cloud import LocalCloud, free_port
from model_handlers.manifests.manifest import InputSpec, Manifest
from transforms.bigquery.jobs import job_id
from transforms.bigquery.read import (
    ReadBigQuery,
    ReadMethod,
)
from transforms.bigquery.schema import TableName, arrow_schema, project_of
from transforms.bigquery.session import ReadStream, open_session, read_stream
from transforms.bigquery.source import BigQuerySource, describe_source
from transforms.files.columns import Columns
from transforms.files.ranges import plan_file, split_file
from transforms.files.read_range import read_range
from transforms.files.sink.run_folder import RunFolder
from transforms.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NOON = datetime.datetime(2024, 5, 6, 12, tzinfo=datetime.UTC)


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("my-project.dataset.table", ("my-project", "dataset", "table")),
        ("my-project:dataset.table", ("my-project", "dataset", "table")),
        ("`my-project.dataset.table`", ("my-project", "dataset", "table")),
        ("`my-project`.`dataset`.`table`", ("my-project", "dataset", "table")),
        ("example.com:my-project.d.t", ("example.com:my-project", "d", "t")),
        ("example.com:my-project:d.t", ("example.com:my-project", "d", "t")),
        ("dataset.table", ("payer-project", "dataset", "table")),
        ("my-project.d.Table_1", ("my-project", "d", "Table_1")),
        ("my-project.d.a table-with ü", ("my-project", "d", "a table-with ü")),
    ],
)
def test_a_table_name_may_be_spelled_as_in_the_console_the_bq_tool_or_sql(
    text: str, name: tuple[str, str, str]
) -> None:
    found = TableName.parse(text, "input_table", "payer-project")
    assert (found.project, found.dataset, found.table) == name
    assert project_of(text) == (None if name[0] == "payer-project" else name[0])
    assert TableName.parse(str(found), "input_table") == found
    assert found.path == "projects/{}/datasets/{}/tables/{}".format(*name)


@pytest.mark.parametrize(
    "text",
    [
        "table",
        "",
        "my-project.d.t$20240101",
        "my-project.d.events_*",
        "my-project.d.t@-3600000",
        "my-project.d.",
        "my-project..t",
        "my-project.d.t; DROP TABLE x",
        "My-Project.d.t",
        "my-project.region-us.INFORMATION_SCHEMA.TABLES",
        "my-project/d/t",
    ],
)
def test_an_invalid_table_name_is_refused_with_advice(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        TableName.parse(text, "input_table", "payer-project")
    assert str(raised.value).startswith("--input_table: expected project.dataset.table")
    assert f"got {text!r}" in str(raised.value)
    assert "use --input_query to read a partition or a wildcard table" in str(raised.value)


def test_a_table_name_without_a_project_needs_a_project() -> None:
    with pytest.raises(UsageError, match=r"expected project\.dataset\.table"):
        TableName.parse("dataset.table", "input_table", None)


# A server of the Storage Read API


def numbered(rows: int) -> pa.Table:
    return pa.table(
        {"n": pa.array(range(rows), pa.int64()), "t": [f"text {i}" for i in range(rows)]}
    )


def read_all(reads: Reads, cloud: Cloud, retry_seconds: float = 20.0) -> pa.Table:
    stream = ReadStream("s/0", messages(reads.table[:0], 1)[0])
    batches = list(read_stream(stream, cloud.bigquery_read(), retry_seconds))
    return pa.Table.from_batches(batches, reads.table.schema)


PASSING = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
]


@pytest.mark.usefixtures("no_waits")
def test_a_stream_that_breaks_anywhere_any_number_of_times_yields_each_row_once_in_order() -> None:
    # One server is shared to have only one connection. There is no time limit for retries, which a
    # slow machine would exceed without waits.
    reads = Reads(numbered(0))
    with serving(reads) as cloud:

        @settings(max_examples=examples(60))
        @given(
            st.integers(0, 40),
            st.lists(st.integers(1, 7), min_size=1, max_size=4),
            st.lists(st.tuples(st.integers(0, 6), st.sampled_from(PASSING)), max_size=8),
        )
        def check(
            rows: int, sizes: list[int], breaks: list[tuple[int, grpc.StatusCode | None]]
        ) -> None:
            reads.table, reads.sizes, reads.breaks = numbered(rows), sizes, list(breaks)
            reads.offsets.clear()
            assert read_all(reads, cloud, math.inf).equals(reads.table)
            assert reads.offsets == sorted(reads.offsets)
            assert len(reads.offsets) <= len(breaks) + 1

        check()


@pytest.mark.parametrize("responses", range(5))
def test_a_stream_that_breaks_is_continued_at_its_offset(
    responses: int, no_waits: list[float]
) -> None:
    reads = Reads(numbered(12), breaks=[(responses, grpc.StatusCode.UNAVAILABLE)])
    with serving(reads) as cloud:
        assert read_all(reads, cloud).equals(reads.table)
    assert reads.offsets == [0, 3 * responses]


def test_waits_grow_until_a_row_arrives_and_are_short_again_afterwards(
    no_waits: list[float],
) -> None:
    broken = grpc.StatusCode.UNAVAILABLE
    reads = Reads(numbered(6), breaks=[*[(0, broken)] * 6, (1, broken)])
    with serving(reads) as cloud:
        assert read_all(reads, cloud).equals(reads.table)
    for i, wait in enumerate(no_waits[:6]):
        assert 0.05 * 2**i <= wait <= 0.1 * 2**i
    assert no_waits[6] <= 0.1


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.slow
def test_a_stream_without_progress_is_given_up_on_after_retry_seconds(first: int) -> None:
    broken = grpc.StatusCode.UNAVAILABLE
    reads = Reads(numbered(12), breaks=[(first, broken), *[(0, broken)] * 1_000])
    with serving(reads) as cloud, pytest.raises(exceptions.ServiceUnavailable, match="it is so"):
        read_all(reads, cloud, retry_seconds=0.3)
    assert len(reads.offsets) > 2


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
    ],
)
def test_a_permanent_error_is_raised_without_a_retry(
    code: grpc.StatusCode, no_waits: list[float]
) -> None:
    reads = Reads(numbered(12), breaks=[(1, code)])
    with serving(reads) as cloud, pytest.raises(exceptions.GoogleAPICallError) as raised:
        read_all(reads, cloud)
    assert raised.value.grpc_status_code == code
    assert reads.offsets == [0]
    assert no_waits == []


@pytest.mark.slow
def test_a_stream_that_hangs_is_continued_in_another_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transforms.bigquery.session, "READ_SECONDS", 0.3)
    reads = Reads(numbered(12), breaks=[(2, grpc.StatusCode.DEADLINE_EXCEEDED)])
    with serving(reads) as cloud:
        assert read_all(reads, cloud).equals(reads.table)
    assert reads.offsets == [0, 6]


# Sources on the emulator


@pytest.fixture
def anonymous(emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Beam access to the bucket, as pipelines/cloud_access.py does for a run."""
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)


@pytest.fixture
def sql(emulators: LocalCloud) -> Callable[[str], None]:
    """A function that runs SQL on the emulator."""
    client = emulators.cloud.bigquery()
    return lambda text: client.query(text).result() and None


@pytest.fixture
def source(emulators: LocalCloud, dataset: str, sql: Callable[[str], None]) -> BigQuerySource:
    """A table of 20 rows with the features a, b and c, an id, and another column."""
    sql(
        f"CREATE TABLE `{dataset}.t` AS SELECT CONCAT('id ', n) AS id, n AS a, n / 4 AS b, "
        "CAST(n AS NUMERIC) AS c, 'more' AS extra FROM UNNEST(GENERATE_ARRAY(0, 19)) AS n"
    )
    return BigQuerySource(
        cloud=emulators.cloud, table=TableName.parse(f"{dataset}.t", "input_table")
    )


def read(
    source: BigQuerySource,
    columns: Columns,
    method: ReadMethod = "direct",
    folder: RunFolder | None = None,
    **options: Any,
) -> pa.Table:
    """Read the rows of a source with the steps of the transform, but without a runner."""
    transform = ReadBigQuery(
        source=source, columns=columns, method=method, folder=folder, **options
    )
    table = transform._to_table(source)
    if method == "export":
        files = [f for f in transform._extract(table) if isinstance(f, FileMetadata)]
        ranges = [r for f in files for r in split_file(plan_file(f, "parquet"))]
        decoded = [d for r in ranges for d in read_range(r, transform.columns, 32_768)]
        batches = [d.batch for d in decoded if d.batch is not None]
    else:
        streams = open_session(table, transform.columns)
        read = [b for stream in streams for b in transform._read_stream(stream)]
        batches = [b for b in read if isinstance(b, pa.RecordBatch)]
    assert all(0 < batch.num_rows <= transform.batch_rows for batch in batches)
    return pa.Table.from_batches(batches) if batches else pa.table({"row_id": [], "source": []})


def sorted_rows(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: str(row["row_id"]))


@pytest.fixture
def columns(make_manifest: Callable[..., Manifest]) -> Columns:
    return Columns(make_manifest())


def test_a_table_is_read_by_its_columns(source: BigQuerySource, columns: Columns) -> None:
    found = read(source, replace(columns, id_column="id", keep=("extra",)), batch_rows=7)
    assert found["row_id"].to_pylist() == [f"id {n}" for n in range(20)]
    assert found["source"].to_pylist() == [
        {"id": f"id {n}", "a": n, "b": n / 4, "c": Decimal(n), "extra": "more"} for n in range(20)
    ]


@pytest.mark.parametrize("method", ["direct", "export"])
def test_names_match_whatever_their_case(
    source: BigQuerySource,
    columns: Columns,
    anonymous: None,
    sql: Callable[[str], None],
    method: ReadMethod,
) -> None:
    table = f"{source.table}_upper"
    names = "id AS ID, a AS A, b, c AS C, extra AS Extra"
    sql(f"CREATE TABLE `{table}` AS SELECT {names} FROM `{source.table}`")
    upper = replace(source, table=TableName.parse(table, "input_table"))
    wanted = replace(columns, id_column="Id", keep=("extra",))
    folder = RunFolder("gs://bucket/tmp", "r", "token")
    found = sorted_rows(read(upper, wanted, method, folder))
    assert [row["row_id"] for row in found] == sorted(f"id {n}" for n in range(20))
    assert {tuple(row["source"]) for row in found} == {("Id", "a", "b", "c", "extra")}


def test_the_case_of_names_matters_except_in_bigquery(
    make_manifest: Callable[..., Manifest],
) -> None:
    batch = pa.record_batch({"ID": ["x"], "A": [1.0], "b": [2.0], "C": [3.0], "more": [4]})
    columns = Columns(make_manifest(), "id", any_case=True)
    assert columns.names(batch.schema, "table t") == ["ID", "A", "b", "C"]
    source = columns.with_ids(batch, "", np.array([]))
    assert source.column("row_id").to_pylist() == ["x"]
    assert [field.name for field in source.column("source").type] == ["id", "a", "b", "c", "more"]
    with pytest.raises(InputError, match="needs column 'a'"):
        replace(columns, any_case=False).names(batch.schema, "a file")


def test_only_the_needed_columns_are_requested_and_the_job_project_pays(
    source: BigQuerySource, columns: Columns
) -> None:
    reads = Reads(pa.table({"a": [1.0], "b": [1.0], "c": [1.0]}))
    with serving(reads) as storage:
        cloud = Cloud(
            "payer-project",
            replace(
                source.cloud.endpoints, **{"bigquerystorage": storage.endpoints.bigquerystorage}
            ),
        )
        wanted = replace(source, cloud=cloud, row_restriction="a > 3", snapshot=NOON)
        streams = open_session(wanted, replace(columns, keep=("extra",)), 5_000)
        open_session(wanted, columns, 8)
    assert len(streams) == 1
    asked = [(one.preferred_min_stream_count, one.max_stream_count) for one in reads.sessions]
    assert asked == [(1_000, 1_000), (8, 1_000)]
    request, session = reads.sessions[0], reads.sessions[0].read_session
    assert request.parent == "projects/payer-project"
    assert source.table is not None
    assert session.table == source.table.path
    assert source.table.project != "payer-project"
    assert session.data_format == types.DataFormat.ARROW
    assert list(session.read_options.selected_fields) == ["a", "b", "c", "extra"]
    assert session.read_options.row_restriction == "a > 3"
    lz4 = types.ArrowSerializationOptions.CompressionCodec.LZ4_FRAME
    assert session.read_options.arrow_serialization_options.buffer_compression == lz4
    assert session.table_modifiers.snapshot_time == NOON


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, ("it is so", "grant", "--read_method export")),
        (grpc.StatusCode.INVALID_ARGUMENT, ("it is so",)),
        (grpc.StatusCode.NOT_FOUND, ("it is so", "check the project")),
    ],
)
def test_a_refused_session_is_reported_without_a_retry(
    code: grpc.StatusCode, parts: tuple[str, ...], source: BigQuerySource, columns: Columns
) -> None:
    reads = Reads(numbered(0), refusals=[code] * 2)
    with serving(reads) as storage:
        endpoints = replace(
            source.cloud.endpoints, bigquerystorage=storage.endpoints.bigquerystorage
        )
        with pytest.raises(InputError, match=f"^table {source.table} cannot be read: ") as raised:
            open_session(replace(source, cloud=Cloud("p", endpoints)), columns)
    assert len(reads.sessions) == 1
    for part in parts:
        assert part in str(raised.value)


def test_a_session_is_requested_again_while_the_service_is_unavailable(
    source: BigQuerySource, columns: Columns, no_waits: list[float]
) -> None:
    reads = Reads(numbered(0), streams=0, refusals=[grpc.StatusCode.UNAVAILABLE] * 3)
    with serving(reads) as storage:
        endpoints = replace(
            source.cloud.endpoints, bigquerystorage=storage.endpoints.bigquerystorage
        )
        assert open_session(replace(source, cloud=Cloud("p", endpoints)), columns) == []
    assert len(reads.sessions) == 4


def test_building_a_pipeline_makes_no_call(columns: Columns) -> None:
    nowhere = {
        name: f"127.0.0.1:{free_port()}" for name in ("bigquery", "bigquerystorage", "storage")
    }
    cloud = Cloud("p", Endpoints(**nowhere), retry_seconds=1.0)
    source = BigQuerySource(cloud=cloud, table=TableName("a-project", "d", "t"))
    folder = RunFolder("gs://bucket/tmp", "r", "token")
    pipeline = beam.Pipeline("FnApiRunner")
    for wanted in (source, replace(source, table=None, query="SELECT 1")):
        for method in ("direct", "export"):
            label = f"{wanted.label} {method}"
            pipeline | label >> ReadBigQuery(
                source=wanted, columns=columns, method=method, folder=folder
            )  # type: ignore[arg-type]
    assert pipeline.to_runner_api().components.transforms
    # The test would notice a call, because every call fails.
    with pytest.raises(InputError, match="cannot be reached"):
        describe_source(source)


@pytest.mark.parametrize("method", ["direct", "export"])
def test_a_pipeline_reads_each_row_once_and_none_as_a_failure(
    method: str, source: BigQuerySource, columns: Columns, anonymous: None
) -> None:
    def is_whole(batches: list[pa.RecordBatch]) -> None:
        rows = sorted(row["row_id"] for batch in batches for row in to_rows(batch))
        assert rows == sorted(f"id {n}" for n in range(20))

    def is_empty(batches: list[pa.RecordBatch]) -> None:
        assert batches == []

    folder = RunFolder("gs://bucket/tmp", "r", "token")
    with beam.Pipeline("FnApiRunner") as pipeline:
        found = pipeline | ReadBigQuery(
            source=source,
            columns=replace(columns, id_column="id"),
            batch_rows=6,
            method=method,  # type: ignore[arg-type]
            folder=folder,
        )
        assert_that(found.good, is_whole)
        assert_that(found.failures, is_empty, label="failures")


# Types

SCALARS = {
    "INT64": ("7", 7),
    "FLOAT64": ("1.5", 1.5),
    "NUMERIC": ("NUMERIC '1.25'", Decimal("1.25")),
    "BIGNUMERIC": ("BIGNUMERIC '2.5'", Decimal("2.5")),
    "BOOL": ("TRUE", True),
    "STRING": ("'text'", "text"),
    "BYTES": ("b'bytes'", b"bytes"),
    "DATE": ("DATE '2024-05-06'", datetime.date(2024, 5, 6)),
    "DATETIME": ("DATETIME '2024-05-06 12:00:00'", NOON.replace(tzinfo=None)),
    "TIMESTAMP": ("TIMESTAMP '2024-05-06 12:00:00+00'", NOON),
    "TIME": ("TIME '12:00:00.000001'", datetime.time(12, 0, 0, 1)),
    "JSON": ("JSON '{\"a\": 1}'", '{"a":1}'),
}


@pytest.fixture
def typed_table(emulators: LocalCloud, dataset: str, sql: Callable[[str], None]) -> BigQuerySource:
    """A table with columns of every type, plain, repeated and in structs, and a row of nulls."""
    declared = [f"{name.lower()}_ {name}" for name in SCALARS]
    declared += [f"{name.lower()}_list ARRAY<{name}>" for name in SCALARS]
    declared += ["s STRUCT<x INT64, y STRUCT<z STRING>>", "l ARRAY<STRUCT<x INT64, y BOOL>>"]
    values = [value for value, _ in SCALARS.values()]
    values += [f"[{value}, {value}]" for value, _ in SCALARS.values()]
    values += ["STRUCT(1 AS x, STRUCT('z' AS z) AS y)", "[STRUCT(1 AS x, TRUE AS y)]"]
    table = f"{dataset}.every_type"
    sql(f"CREATE TABLE `{table}` (k INT64 NOT NULL, {', '.join(declared)})")
    sql(f"INSERT INTO `{table}` VALUES (1, {', '.join(values)})")
    sql(f"INSERT INTO `{table}` (k) VALUES (2)")
    return BigQuerySource(cloud=emulators.cloud, table=TableName.parse(table, "input_table"))


@pytest.fixture
def one_feature(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(InputSpec("x", ("k",), shape=(1,)))


def test_the_described_schema_is_the_schema_that_is_read(
    typed_table: BigQuerySource, one_feature: Manifest
) -> None:
    described = describe_source(typed_table)
    columns = Columns(one_feature, keep=tuple(described.names))
    (stream,) = open_session(typed_table, columns)
    actual = pa.ipc.read_schema(pa.py_buffer(stream.schema))
    assert actual.names == described.names
    # The emulator differs from the service in three types, and does not mark JSON columns.
    differs = {"bignumeric_", "bignumeric_list", "json_list"}
    for name in described.names:
        assert (described.field(name).type == actual.field(name).type) == (name not in differs), (
            name
        )
    assert described.field("bignumeric_").type == pa.decimal256(76, 38)
    assert described.field("json_list").type == pa.list_(pa.string())
    mark = {b"ARROW:extension:name": b"google:sqlType:json"}
    assert (
        described.field("json_").metadata
        == described.field("json_list").type.value_field.metadata
        == mark
    )
    assert not described.field("k").nullable


@pytest.mark.parametrize("method", ["direct", "export"])
def test_values_of_every_type_are_passed_through(
    method: ReadMethod, typed_table: BigQuerySource, one_feature: Manifest, anonymous: None
) -> None:
    columns = Columns(one_feature, id_column="k", keep=tuple(describe_source(typed_table).names))
    folder = RunFolder("gs://bucket/tmp", "r", method)
    full, empty = (row["source"] for row in sorted_rows(read(typed_table, columns, method, folder)))
    for name, (_, value) in SCALARS.items():
        # The emulator wraps JSON in lists, and formats JSON in files with spaces.
        if name != "JSON":
            assert full[f"{name.lower()}_list"] == [value, value]
            assert full[f"{name.lower()}_"] == value
        assert empty[f"{name.lower()}_"] is None
    assert json.loads(full["json_"]) == {"a": 1}
    assert full["s"] == {"x": 1, "y": {"z": "z"}}
    assert full["l"] == [{"x": 1, "y": True}]
    assert empty["s"] is None


@pytest.mark.parametrize("kind", ["NUMERIC", "BIGNUMERIC", "INT64", "FLOAT64", "STRING"])
def test_numbers_of_every_type_are_features(
    kind: str, dataset: str, sql: Callable[[str], None], source: BigQuerySource, columns: Columns
) -> None:
    sql(
        f"CREATE OR REPLACE TABLE `{dataset}.t` AS SELECT CAST('3' AS {kind}) AS a, TRUE AS b, "
        f"CAST(NULL AS {kind}) AS c UNION ALL SELECT CAST('-2' AS {kind}), FALSE, "
        f"CAST('0' AS {kind})"
    )
    batch = concat_batches(read(source, columns).to_batches())
    good, bad, faults = validate(batch, columns.manifest)
    assert [row["inputs"]["x"] for row in to_rows(good)] == [[-2.0, 0.0, 0.0]]
    assert bad.num_rows == 1
    assert (faults[0].reason, faults[0].column) == ("null", "c")


def test_a_repeated_column_is_the_whole_vector(
    dataset: str, sql: Callable[[str], None], source: BigQuerySource, columns: Columns
) -> None:
    sql(
        f"CREATE OR REPLACE TABLE `{dataset}.t` AS SELECT [1.0, 2.0, 3.0] AS features, 1 AS other "
        "UNION ALL SELECT [4.0, 5.0], 2 UNION ALL SELECT NULL, 3"
    )
    found = read(source, columns)
    assert set(found["source"].combine_chunks().type.names) == {"features"}
    good, _, faults = validate(concat_batches(found.to_batches()), columns.manifest)
    assert [row["inputs"]["x"] for row in to_rows(good)] == [[1.0, 2.0, 3.0]]
    # BigQuery has no null lists: NULL was stored as an empty list.
    assert [fault.reason for fault in faults] == ["wrong_width", "wrong_width"]


# Ids


def test_derived_ids_are_the_same_whichever_way_rows_are_read(
    source: BigQuerySource, columns: Columns, anonymous: None
) -> None:
    folder = RunFolder("gs://bucket/tmp", "r", "ids")
    query = f"SELECT extra, c, b, a FROM `{source.table}` ORDER BY a DESC"
    ways = [
        read(source, columns),
        read(source, columns, batch_rows=3),
        read(source, columns, "export", folder),
        read(replace(source, row_restriction="a >= 0"), columns, "export", folder),
        read(replace(source, table=None, query=query), columns),
    ]
    ids = [{row["source"]["a"]: row["row_id"] for row in way.to_pylist()} for way in ways]
    assert all(found == ids[0] for found in ids)
    assert len(set(ids[0].values())) == 20


def test_only_rows_whose_id_is_null_get_a_derived_one(
    dataset: str, sql: Callable[[str], None], source: BigQuerySource, columns: Columns
) -> None:
    sql(f"UPDATE `{dataset}.t` SET id = NULL WHERE a < 2")
    found = read(source, replace(columns, id_column="id"))
    derived = {row["source"]["a"]: row["row_id"] for row in read(source, columns).to_pylist()}
    for row in found.to_pylist():
        number = row["source"]["a"]
        assert row["row_id"] == (f"id {number}" if number >= 2 else derived[number])


# Restrictions and exports


@pytest.mark.parametrize("method", ["direct", "export"])
@pytest.mark.parametrize(
    ("restriction", "expected"),
    [
        (None, set(range(20))),
        ("a > 16", {17, 18, 19}),
        ("a = 1 OR a = 2", {1, 2}),
        ("a > 100", set()),
    ],
)
def test_a_restriction_leaves_rows_out_with_both_methods(
    method: ReadMethod,
    restriction: str | None,
    expected: set[int],
    source: BigQuerySource,
    columns: Columns,
    anonymous: None,
) -> None:
    folder = RunFolder("gs://bucket/tmp", "r", "restricted")
    found = read(replace(source, row_restriction=restriction), columns, method, folder)
    assert {row["a"] for row in found["source"].to_pylist()} == expected
    assert found.num_rows == len(expected)


def test_an_export_with_a_restriction_has_only_the_needed_columns(
    source: BigQuerySource, columns: Columns, anonymous: None
) -> None:
    folder = RunFolder("gs://bucket/tmp", "r", "narrow")
    transform = ReadBigQuery(
        source=replace(source, row_restriction="a < 3"),
        columns=columns,
        method="export",
        folder=folder,
    )
    table = transform._to_table(transform.source)
    assert table.table != source.table
    assert table.row_restriction is None
    assert describe_source(table).names == ["a", "b", "c"]


def test_a_repeated_bundle_uses_the_jobs_of_the_first_one(
    source: BigQuerySource, columns: Columns, sql: Callable[[str], None], anonymous: None
) -> None:
    folder = RunFolder("gs://bucket/tmp", "r", "repeated")
    query = replace(source, table=None, query=f"SELECT * FROM `{source.table}`")
    transform = ReadBigQuery(source=query, columns=columns, method="export", folder=folder)
    first = transform._to_table(query)
    files = [f for f in transform._extract(first) if isinstance(f, FileMetadata)]
    sql(f"DELETE FROM `{source.table}` WHERE a < 10")
    assert transform._to_table(query) == first
    assert [f for f in transform._extract(first) if isinstance(f, FileMetadata)] == files
    assert sum(plan_file(file, "parquet").size for file in files) == 20


def test_another_run_of_the_same_query_reads_the_current_rows(
    source: BigQuerySource, columns: Columns, sql: Callable[[str], None]
) -> None:
    def run() -> int:
        query = BigQuerySource(cloud=source.cloud, query=f"SELECT * FROM `{source.table}`")
        return int(read(query, columns).num_rows)

    assert run() == 20
    sql(f"DELETE FROM `{source.table}` WHERE a < 10")
    assert run() == 10


def test_an_empty_table_has_no_rows_with_both_methods(
    source: BigQuerySource, columns: Columns, sql: Callable[[str], None], anonymous: None
) -> None:
    # Replace the table: after a DELETE the emulator would still count the rows.
    sql(f"CREATE OR REPLACE TABLE `{source.table}` AS SELECT 1 AS a, 2 AS b, 3 AS c LIMIT 0")
    for method in ("direct", "export"):
        folder = RunFolder("gs://bucket/tmp", "r", "none")
        assert read(source, columns, method, folder).num_rows == 0
    # There is no extract job, because its files might be missing.
    with pytest.raises(exceptions.NotFound):
        source.cloud.bigquery().get_job(job_id("extract", source.attempt, str(source.table)) + "-0")


# Errors that are reported before the run


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"table": TableName("millrace-test", "no_such", "t")}, ("no_such", "check the project")),
        ({"table": TableName("no-such-project", "d", "t")}, ("no-such-project", "Not found")),
        ({"row_restriction": "aa > 1"}, ("--row_restriction 'aa > 1'", "Unrecognized name: aa")),
        ({"row_restriction": "a >"}, ("--row_restriction 'a >'", "Syntax error")),
        ({"row_restriction": "a > 1 LIMIT 3"}, ("--row_restriction", "Syntax error")),
        ({"table": None, "query": "SELEC 1"}, ("--input_query cannot be run", "Syntax error")),
        ({"table": None, "query": "SELECT * FROM no_such.t"}, ("Not found", "no_such")),
        ({"table": None, "query": "SELECT 1 AS a; SELECT 2 AS a"}, ("one SELECT", "SCRIPT")),
        ({"table": None, "query": ""}, ("one SELECT", "no statement")),
    ],
)
def test_a_source_that_cannot_be_read_is_reported(
    changes: dict[str, Any], parts: tuple[str, ...], source: BigQuerySource
) -> None:
    with pytest.raises(InputError) as raised:
        describe_source(replace(source, **changes))
    for part in parts:
        assert part in str(raised.value)


def test_an_error_that_only_running_a_query_shows_is_reported_without_a_retry(
    source: BigQuerySource, columns: Columns
) -> None:
    failing = replace(source, table=None, query=f"SELECT *, ERROR('oh') AS x FROM `{source.table}`")
    assert "x" in describe_source(failing).names
    with pytest.raises(InputError, match=r"^the result of --input_query cannot be read: oh$"):
        read(failing, columns)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("DELETE FROM `{t}` WHERE TRUE", "DELETE"),
        ("UPDATE `{t}` SET a = 0 WHERE TRUE", "UPDATE"),
        ("INSERT INTO `{t}` (a) VALUES (1)", "INSERT"),
        ("CREATE OR REPLACE TABLE `{t}` AS SELECT 1 AS a, 1 AS b, 1 AS c", "CREATE_TABLE_AS"),
        ("DROP TABLE `{t}`", "DROP_TABLE"),
    ],
)
def test_a_statement_that_changes_a_table_is_refused_and_not_run(
    statement: str, kind: str, source: BigQuerySource, columns: Columns
) -> None:
    # A dry run of these statements returns the table's columns, like a dry run of a SELECT.
    with pytest.raises(InputError, match=f"expected one SELECT, got {kind}"):
        describe_source(replace(source, table=None, query=statement.format(t=source.table)))
    assert read(source, columns).num_rows == 20


def test_a_restriction_may_end_with_a_comment(source: BigQuerySource, columns: Columns) -> None:
    restricted = replace(source, row_restriction="a < 2 -- the first two")
    assert describe_source(restricted) == describe_source(source)
    assert read(restricted, columns).num_rows == 2


def test_a_view_is_refused_and_the_query_in_the_message_reads_it(
    source: BigQuerySource, columns: Columns, dataset: str, sql: Callable[[str], None]
) -> None:
    sql(f"CREATE VIEW `{dataset}.v` AS SELECT * FROM `{dataset}.t` WHERE a < 3")
    view = replace(source, table=TableName.parse(f"{dataset}.v", "input_table"))
    with pytest.raises(InputError) as raised:
        describe_source(view)
    advice = f'is a view, not a table: read it with --input_query "SELECT * FROM `{dataset}.v`"'
    assert advice in str(raised.value)
    query = str(raised.value).split('"')[1]
    assert read(replace(source, table=None, query=query), columns).num_rows == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"needs column 'b' and 1 more, which the source lacks \(did you mean 'bb'\?\)"),
        ({"keep": ("exra",)}, r"lacks column 'exra' \(did you mean 'extra'\?\)"),
        (
            {"id_column": "raw"},
            r"id column 'raw': expected text, numbers, times, UUIDs or bytes",
        ),
    ],
)
def test_missing_columns_are_reported_with_the_nearest_name(
    fields: dict[str, Any],
    message: str,
    source: BigQuerySource,
    columns: Columns,
    sql: Callable[[str], None],
) -> None:
    names = "1 AS a, 2 AS b, 3 AS c" if fields else "1 AS a, 2 AS bb"
    sql(f"CREATE OR REPLACE TABLE `{source.table}` AS SELECT {names}, 'x' AS extra, [1] AS raw")
    with pytest.raises(InputError, match=message):
        read(source, replace(columns, **fields))


# Responses of the service that the emulator does not have


@pytest.fixture
def answering() -> Iterator[Callable[..., Cloud]]:
    """A function that returns a Cloud whose REST API sends the given responses in turn."""
    servers: list[HTTPServer] = []

    def start(*answers: tuple[int, Any]) -> Cloud:
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = left.pop(0)
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,)).start()
        return Cloud("p", Endpoints(bigquery=f"127.0.0.1:{servers[-1].server_port}"), 5.0)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def dry_run(scanned: int, kind: str = "SELECT") -> tuple[int, Any]:
    fields = [{"name": "a", "type": "INTEGER", "mode": "NULLABLE"}]
    query = {
        "statementType": kind,
        "totalBytesProcessed": str(scanned),
        "schema": {"fields": fields},
    }
    return 200, {
        "jobReference": {"projectId": "p", "location": "europe-west1"},
        "configuration": {"dryRun": True, "query": {"query": "SELECT 1"}},
        "status": {"state": "DONE"},
        "statistics": {"totalBytesProcessed": str(scanned), "query": query},
    }


@pytest.mark.parametrize(("limit", "refused"), [(999, True), (1_000, False), (None, False)])
def test_a_query_that_would_scan_too_much_is_refused(
    limit: int | None, refused: bool, answering: Callable[..., Cloud]
) -> None:
    # In the emulator, a dry run scans 0 bytes.
    source = BigQuerySource(cloud=answering(dry_run(1_000)), query="SELECT 1 AS a", max_bytes=limit)
    if not refused:
        assert describe_source(source) == pa.schema([("a", pa.int64())])
        return
    with pytest.raises(UsageError) as raised:
        describe_source(source)
    assert "would scan 1,000 bytes, more than --max_bytes_billed 999" in str(raised.value)


def test_a_query_runs_in_the_location_of_its_dry_run_with_the_limit_of_bytes(
    answering: Callable[..., Cloud], columns: Columns
) -> None:
    place = {"projectId": "p", "datasetId": "_anonymous", "tableId": "result"}
    seen: list[Any] = []
    _, dry = dry_run(5)
    done = {
        "jobReference": {"projectId": "p", "jobId": "j", "location": "europe-west1"},
        "configuration": {"query": {"query": "SELECT 1", "destinationTable": place}},
        "status": {"state": "DONE"},
    }
    missing = {"error": {"code": 404, "message": "no job", "errors": [{"reason": "notFound"}]}}
    cloud = answering((200, dry), (404, missing), (200, done))
    source = BigQuerySource(cloud=cloud, query="SELECT 1 AS a", max_bytes=77)
    client = cloud.bigquery()
    send = client._connection.api_request

    def note(*args: Any, **request: Any) -> Any:
        seen.append(request)
        return send(*args, **request)

    client._connection.api_request = note
    transform = ReadBigQuery(source=source, columns=columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cloud, "bigquery", lambda _: client)
        table = transform._to_table(source)
    assert table.table == TableName("p", "_anonymous", "result")
    assert table.label == "the result of --input_query"
    _, looked_up, inserted = seen
    assert looked_up["query_params"]["location"] == "europe-west1"
    assert inserted["data"]["jobReference"]["location"] == "europe-west1"
    assert inserted["data"]["configuration"]["query"]["maximumBytesBilled"] == "77"


def test_an_account_that_may_not_run_queries_can_read_a_table(
    answering: Callable[..., Cloud],
) -> None:
    table = {
        "tableReference": {"projectId": "p", "datasetId": "d", "tableId": "t"},
        "type": "TABLE",
        "schema": {"fields": [{"name": "a", "type": "INTEGER"}]},
    }
    denied = {"error": {"code": 403, "message": "no", "errors": [{"reason": "accessDenied"}]}}
    source = BigQuerySource(
        cloud=answering((200, table), (403, denied)),
        table=TableName("a-project", "d", "t"),
        row_restriction="a > 1",
    )
    assert describe_source(source).names == ["a"]


def test_rows_that_an_export_would_leave_out_are_reported(
    answering: Callable[..., Cloud], columns: Columns
) -> None:
    table = {
        "tableReference": {"projectId": "p", "datasetId": "d", "tableId": "t"},
        "type": "TABLE",
        "numRows": "0",
        "streamingBuffer": {"estimatedRows": "1234", "estimatedBytes": "9", "oldestEntryTime": "1"},
    }
    source = BigQuerySource(cloud=answering((200, table)), table=TableName("a-project", "d", "t"))
    folder = RunFolder("gs://bucket/tmp", "r", "token")
    transform = ReadBigQuery(source=source, columns=columns, method="export", folder=folder)
    match = r"1,234 rows in its streaming buffer.*--read_method direct"
    with pytest.raises(InputError, match=match):
        list(transform._extract(source))


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("MATERIALIZED_VIEW", "a materialized view"),
        ("EXTERNAL", "an external"),
        ("TABLE", None),
        ("SNAPSHOT", None),
    ],
)
def test_tables_that_the_read_api_cannot_read_are_refused(
    kind: str, shown: str | None, answering: Callable[..., Cloud]
) -> None:
    table = {
        "tableReference": {"projectId": "p", "datasetId": "d", "tableId": "t"},
        "type": kind,
        "schema": {"fields": [{"name": "a", "type": "INTEGER"}]},
    }
    source = BigQuerySource(cloud=answering((200, table)), table=TableName("a-project", "d", "t"))
    if shown is None:
        assert describe_source(source).names == ["a"]
        return
    with pytest.raises(InputError, match=f"a-project.d.t is {shown}.*--input_query"):
        describe_source(source)


def test_a_type_without_an_arrow_counterpart_becomes_text_with_its_name() -> None:
    schema = arrow_schema([SchemaField("g", "GEOGRAPHY"), SchemaField("i", "INTERVAL", "REPEATED")])
    assert schema.types == [pa.string(), pa.list_(pa.string())]
    assert schema.field("g").metadata == {b"ARROW:extension:name": b"google:sqlType:geography"}
