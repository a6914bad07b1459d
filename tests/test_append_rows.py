"""The streaming sink: whatever the service does, no row is lost and no wait is endless."""

import datetime
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any

import apache_beam as beam
import grpc
import orjson
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, IntervalWindow, TimestampedValue
from append_server import (
    TABLE,
    Service,
    end_call,
    ids,
    refuse,
    services,
    threads_since,
    when,
    write,
)
from docs_pages import blocks
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from common.errors import OutputError
from common.record_batch import OUTPUTS, sized
from examples.local_cloud import LocalCloud
from model_handlers.manifests.manifest import Manifest
from transforms.bigquery import append as append_rows
from transforms.bigquery.append import (
    WRITTEN,
    AppendToTable,
    conform_to_table,
    leave_out,
)
from transforms.bigquery.schema import JSON_METADATA, TableName, arrow_schema, table_fields
from transforms.encode import encode
from transforms.output_fields import choose_fields
from transforms.provenance import Provenance

Serve = Callable[..., Service]
Code = grpc.StatusCode


@pytest.fixture
def serve() -> Iterator[Serve]:
    with services() as start:
        yield start


# Rows that are written


@given(data=st.data(), rows=st.integers(0, 20))
def test_each_row_is_written_once_or_refused_however_many_faults_a_response_names(
    data: st.DataObject, rows: int
) -> None:
    bad = {f"r{i}" for i in data.draw(st.sets(st.integers(0, 19)))}
    written: list[str] = []

    def send(part: pa.RecordBatch) -> dict[int, str]:
        names = part.column("id").to_pylist()
        faults = [i for i, name in enumerate(names) if name in bad]
        if not faults:
            written.extend(names)
            return {}
        named = data.draw(st.lists(st.sampled_from(faults), min_size=1, unique=True))
        return {i: f"bad {names[i]}" for i in named}

    every = [f"r{i}" for i in range(rows)]
    refused = leave_out(ids(*every), send(ids(*every)), send)
    assert written == [name for name in every if name not in bad]
    assert refused == {i: f"bad {name}" for i, name in enumerate(every) if name in bad}


@pytest.mark.parametrize("index", [-1, 3, 1 << 40])
def test_refusing_a_row_that_was_not_sent_raises_an_error_instead_of_looping(index: int) -> None:
    message = rf"row {index} of a request that has only 3 rows \(who\?\): please report this"
    with pytest.raises(OutputError, match=message):
        leave_out(ids("a", "b", "c"), {0: "bad", index: "who?"}, lambda _: {})


TEXTS = st.lists(st.none() | st.integers(0, 400).map(lambda n: "x" * n), max_size=40)


def wide(texts: Sequence[str | None]) -> pa.RecordBatch:
    """Return columns of several layouts, whose sizes grow with the texts."""
    lists = [None if text is None else [len(text)] * (len(text) % 7) for text in texts]
    return pa.record_batch(
        {
            "text": pa.array(texts, pa.string()),
            "flag": pa.array([bool(text) for text in texts], pa.bool_()),
            "list": pa.array(lists, pa.list_(pa.int64())),
            "struct": pa.array([{"b": (text or "").encode()} for text in texts]).cast(
                pa.struct([("b", pa.binary())])
            ),
        }
    )


@given(texts=TEXTS, skipped=st.integers(0, 9), limit=st.integers(1, 3000))
def test_a_batch_is_cut_into_slices_within_the_limit_that_cover_it_in_order(
    texts: list[str | None], skipped: int, limit: int
) -> None:
    rows = wide(texts).slice(skipped)
    parts = list(sized(rows, limit))
    assert [row for part in parts for row in part.to_pylist()] == rows.to_pylist()
    assert all(part.num_rows == 1 or part.nbytes <= limit for part in parts)
    assert all(part.num_rows for part in parts)


def test_an_enormous_row_gets_its_own_slice_and_its_neighbours_stay_together() -> None:
    parts = list(sized(ids("a", "b", "x" * 100_000, *"cdefgh"), 1000))
    assert [part.num_rows for part in parts if part.nbytes > 1000] == [1]
    assert len(parts) <= 6


@given(texts=TEXTS, skipped=st.integers(0, 9), size=st.integers(1, 20))
def test_the_size_of_a_slice_is_the_number_of_bytes_sent_for_it(
    texts: list[str | None], skipped: int, size: int
) -> None:
    part = wide(texts).slice(skipped, size)
    framing = pa.ipc.get_record_batch_size(part) - part.nbytes
    # The framing describes each of the 12 buffers and pads it to a multiple of 8 bytes.
    assert 0 <= framing <= 1000


def test_rows_are_converted_to_the_types_that_the_api_expects() -> None:
    encoded = pa.FixedSizeListArray.from_arrays(pa.array([0.5, 1, 2, 3], pa.float32()), 2)
    rows = pa.record_batch(
        {
            "unused": pa.array(["x", "y"]),
            "encoded": encoded,
            "list": pa.array([None, [1]], pa.large_list(pa.int32())),
            "run_id": pa.array(["r", "r"]).dictionary_encode(),
        }
    )
    schema = arrow_schema(table_fields(rows.select(["run_id", "encoded", "list"]).schema))
    assert conform_to_table(rows, schema).schema == schema
    assert conform_to_table(rows, schema).to_pylist() == [
        # BigQuery stores a null list as an empty one, and its API refuses null.
        {"run_id": "r", "encoded": [0.5, 1.0], "list": []},
        {"run_id": "r", "encoded": [2.0, 3.0], "list": [1]},
    ]


# The transform


def run(
    sink: AppendToTable, batches: Sequence[pa.RecordBatch], expected: int, check: Any = None
) -> None:
    """Append batches in one bundle, and check the number of rows and the dead letters."""
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([None]) | beam.FlatMap(lambda _: batches)
        written, failures = rows | sink
        total = written | beam.CombinePerKey(sum)
        assert_that(total, equal_to([((WRITTEN,), expected)]), label="Written")
        assert_that(failures, check or equal_to([]), label="Failures")


def records(**expected: tuple[str, str]) -> Callable[[list[pa.RecordBatch]], None]:
    """Return a check of dead letters, by row id: the reason, and how the message starts."""

    def check(batches: list[pa.RecordBatch]) -> None:
        rows = [row for batch in batches for row in batch.to_pylist()]
        assert {row["stage"] for row in rows} == {"write"}
        assert {row["run_id"] for row in rows} == {"run 1"}
        assert sorted(row["row_id"] for row in rows) == sorted(expected)
        for row in rows:
            reason, message = expected[row["row_id"]]
            assert row["reason"] == reason
            assert row["message"].startswith(message), row["message"]
            assert orjson.loads(row["payload"])["id"] == row["row_id"]

    return check


@pytest.mark.slow
def test_small_batches_are_appended_together_and_large_batches_in_parts(
    serve: Serve, provenance: Provenance
) -> None:
    service = serve()
    sink = AppendToTable(
        cloud=service.cloud(),
        table=TABLE,
        schema=ids().schema,
        provenance=provenance,
        batch_bytes=2000,
    )
    small = [ids(f"s{i}") for i in range(20)]
    large = ids(*(f"{i:0100d}" for i in range(50)))
    before = set(threading.enumerate())
    run(sink, [ids(), *small, large, ids("last")], 71)
    assert [row for rows in service.requests for row in rows] == [
        row for batch in [*small, large, ids("last")] for row in batch.column(0).to_pylist()
    ]
    assert service.requests[0][:20] == [f"s{i}" for i in range(20)]
    assert 4 <= len(service.requests) <= 8
    assert len(service.connections) == 1
    wait_until(lambda: not threads_since(before))


def test_a_bundle_sends_its_requests_before_earlier_ones_are_answered(
    serve: Serve, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_rows, "BATCH_SECONDS", -1.0)
    answering = threading.Event()
    service = serve(when(answering, write))
    sink = AppendToTable(
        cloud=service.cloud(), table=TABLE, schema=ids().schema, provenance=provenance
    )
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run, sink, [ids("a"), ids("b"), ids("c")], 3)
        try:
            wait_until(lambda: service.received == 3)
            assert not ended.done()
        finally:
            answering.set()
        ended.result(60)
    assert service.written == ["a", "b", "c"]


@pytest.mark.slow
def test_rows_do_not_wait_for_the_end_of_a_long_bundle(
    serve: Serve, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_rows, "BATCH_SECONDS", -1.0)
    service = serve()
    run(
        AppendToTable(
            cloud=service.cloud(), table=TABLE, schema=ids().schema, provenance=provenance
        ),
        [ids("a"), ids("b")],
        2,
    )
    assert service.requests == [["a"], ["b"]]


@pytest.mark.slow
def test_a_refused_row_without_an_id_is_recorded_without_one(
    serve: Serve, provenance: Provenance
) -> None:
    def check(batches: list[pa.RecordBatch]) -> None:
        (row,) = batches[0].to_pylist()
        assert (row["row_id"], row["payload"], row["message"]) == (None, b'{"id":null}', "bad None")

    service = serve(then=refuse(None))
    sink = AppendToTable(
        cloud=service.cloud(), table=TABLE, schema=ids().schema, provenance=provenance
    )
    run(sink, [ids("a", None)], 1, check)
    assert service.written == ["a"]


@pytest.mark.slow
def test_a_row_too_large_for_an_append_becomes_a_dead_letter_and_the_largest_fitting_row_is_sent(
    serve: Serve, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()
    small, fits, large = "x", "y" * 996, "z" * 997
    # The offset of a string takes 4 bytes.
    monkeypatch.setattr(append_rows, "REQUEST_BYTES", 1000)
    monkeypatch.setattr(append_rows, "PAYLOAD_BYTES", 900)

    def check(batches: list[pa.RecordBatch]) -> None:
        (row,) = batches[0].to_pylist()
        assert (row["row_id"], row["reason"]) == (large, "too_large")
        assert row["message"] == "expected a row of at most 1,000 bytes, got 1,001"
        # The whole payload would be too large for a dead-letter table.
        assert row["payload"] == b'{"id":"' + b"z" * 893

    sink = AppendToTable(
        cloud=service.cloud(), table=TABLE, schema=ids().schema, provenance=provenance
    )
    run(sink, [ids(small, fits, large)], 2, check)
    assert service.written == [small, fits]


@pytest.mark.slow
def test_values_that_a_column_of_the_table_cannot_hold_become_dead_letters(
    serve: Serve, provenance: Provenance
) -> None:
    service = serve()
    rows = pa.record_batch(
        {
            "id": pa.array(["a", "b", "c", "d"]),
            "n": pa.array([1, 1 << 63, 3, (1 << 64) - 1], pa.uint64()),
        }
    )
    sink = AppendToTable(
        cloud=service.cloud(), table=TABLE, schema=rows.schema, provenance=provenance
    )
    message = "column n: expected int64, got a uint64 value that does not fit"
    faults = {"b": ("refused", message), "d": ("refused", message)}
    run(sink, [rows], 2, records(**faults))
    assert service.written == ["a", "c"]


def test_lists_with_a_null_element_become_dead_letters_and_null_lists_are_written(
    serve: Serve, provenance: Provenance
) -> None:
    service = serve()
    lists = pa.array([[1.0], [None], None, [2.0, None]])
    rows = pa.record_batch({"id": pa.array(["a", "b", "c", "d"]), "x": lists})
    sink = AppendToTable(
        cloud=service.cloud(), table=TABLE, schema=rows.schema, provenance=provenance
    )
    message = "column x: expected lists without null elements, got a list<item: double> with one"
    faults = {"b": ("refused", message), "d": ("refused", message)}
    run(sink, [rows], 2, records(**faults))
    assert service.written == ["a", "c"]


def test_an_error_of_the_service_fails_the_bundle_with_a_one_line_message(
    serve: Serve, provenance: Provenance
) -> None:
    service = serve(then=end_call(Code.PERMISSION_DENIED))
    sink = AppendToTable(
        cloud=service.cloud(), table=TABLE, schema=ids().schema, provenance=provenance
    )
    message = (
        "table some-project.d.t cannot be written: said by the service; grant the account the "
        "missing role"
    )
    with pytest.raises(OutputError, match=message):
        run(sink, [ids("a")], 1)
    wait_until(lambda: not any(c.is_active() for c in service.connections))


A, B, C = (IntervalWindow(start, start + 10) for start in (0, 10, 20))
TIMED = {"a1": 1, "a2": 2, "b1": 15, "b2": 13, "a3": 4, "c1": 27, "c2": 28}


def placed(
    element: Any, window: Any = beam.DoFn.WindowParam, time: Any = beam.DoFn.TimestampParam
) -> tuple[Any, ...]:
    """Return the window, the time, and the count or the row ids of an element."""
    is_count = isinstance(element, tuple)
    return window, int(time), element[1] if is_count else element.column("row_id").to_pylist()


@pytest.mark.parametrize(
    ("batch_bytes", "counts"),
    [
        (5000, [(A, 4, 3), (B, 15, 1), (C, 28, 1)]),
        (1, [(A, 1, 1), (A, 2, 1), (B, 15, 0), (B, 13, 1), (A, 4, 1), (C, 27, 1), (C, 28, 0)]),
    ],
    ids=["together", "one by one"],
)
@pytest.mark.slow
def test_counts_and_failures_keep_the_windows_and_the_times_of_their_rows(
    serve: Serve, provenance: Provenance, batch_bytes: int, counts: list[tuple[Any, ...]]
) -> None:
    service = serve(then=refuse("b1", "c2"))
    sink = AppendToTable(
        cloud=service.cloud(),
        table=TABLE,
        schema=ids().schema,
        provenance=provenance,
        batch_bytes=batch_bytes,
    )
    timed = [TimestampedValue(ids(name), at) for name, at in TIMED.items()]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([None]) | beam.FlatMap(lambda _: timed)
        written, failures = rows | beam.WindowInto(FixedWindows(10)) | sink
        assert_that(written | "W" >> beam.Map(placed), equal_to(counts), label="Written")
        refused = [(B, 15, ["b1"]), (C, 28, ["c2"])]
        assert_that(failures | "F" >> beam.Map(placed), equal_to(refused), label="Failures")
    # All windows were in one bundle.
    assert len(service.connections) == 1


@pytest.mark.parametrize(
    ("mode", "workers", "processes"), [("multi_threading", 8, 1), ("multi_processing", 3, 3)]
)
def test_a_process_has_one_connection_to_a_table_however_many_threads_append(
    serve: Serve,
    provenance: Provenance,
    beam_processes: None,
    mode: str,
    workers: int,
    processes: int,
) -> None:
    service = serve(then=slowly)
    sink = AppendToTable(
        cloud=service.cloud(), table=TABLE, schema=ids().schema, provenance=provenance
    )
    options = PipelineOptions(direct_num_workers=workers, direct_running_mode=mode)
    names = [f"r{i}" for i in range(64)]
    with beam.Pipeline("FnApiRunner", options) as pipeline:
        # The worker processes do not find the modules of the tests.
        batches = beam.Map(lambda name: pa.record_batch({"id": [name]}))
        rows = pipeline | beam.Create(names) | beam.Reshuffle() | batches
        rows.element_type = pa.RecordBatch
        rows | sink
    assert sorted(service.written) == sorted(names)
    assert len(service.requests) >= workers
    assert 1 <= len(service.connections) <= processes


def slowly(
    service: Service, rows: list[str], context: grpc.ServicerContext
) -> types.AppendRowsResponse:
    """Write rows only when several threads have sent some, or after a moment."""
    with suppress(AssertionError):
        wait_until(lambda: service.received >= 8, seconds=0.2)
    return write(service, rows, context)


# On the emulator


def make_table(
    servers: LocalCloud, dataset: str, fields: Sequence[bigquery.SchemaField]
) -> TableName:
    name = TableName.parse(f"{dataset}.t", "output_table")
    servers.cloud.bigquery().create_table(bigquery.Table(str(name), schema=fields))
    return name


def rows_of(servers: LocalCloud, table: TableName) -> list[dict[str, Any]]:
    return [dict(row.items()) for row in servers.cloud.bigquery().list_rows(str(table))]


UTC = datetime.UTC
TYPES = pa.schema(
    [
        ("id", pa.string()),
        ("int64", pa.int64()),
        ("float64", pa.float64()),
        ("numeric", pa.decimal128(38, 9)),
        ("bignumeric", pa.decimal256(76, 38)),
        ("bool", pa.bool_()),
        ("string", pa.string()),
        ("bytes", pa.binary()),
        ("date", pa.date32()),
        ("datetime", pa.timestamp("us")),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("time", pa.time64("us")),
        pa.field("json", pa.string(), metadata=JSON_METADATA),
        ("strings", pa.list_(pa.string())),
        # No BYTES within a STRUCT: unlike the service, the emulator reads them as base64.
        ("struct", pa.struct([("a", pa.int64()), ("b", pa.list_(pa.float64()))])),
        ("structs", pa.list_(pa.struct([("x", pa.date32()), ("y", pa.bool_())]))),
    ]
)
# Left out, because the emulator does not support them: NaN and the infinities (it converts rows to
# JSON), and a BIGNUMERIC with more than 18 digits after the point. The service supports both.
EXAMPLES: list[dict[str, Any]] = [
    {
        "id": "first",
        "int64": -(1 << 63),
        "float64": 1.7976931348623157e308,
        "numeric": Decimal("99999999999999999999999999999.999999999"),
        "bignumeric": Decimal("-12345678901234567890.012345678901234567"),
        "bool": True,
        "string": 'line\nbreak, "quotes", \U0001f40b \x00',
        "bytes": bytes(range(256)),
        "date": datetime.date(1, 1, 1),
        "datetime": datetime.datetime(9999, 12, 31, 23, 59, 59, 999999),
        "timestamp": datetime.datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
        "time": datetime.time(23, 59, 59, 999999),
        "json": '{"a":[1,null,{"b":"c"}]}',
        "strings": ["", "b"],
        "struct": {"a": 1, "b": [0.1, -0.2]},
        "structs": [{"x": datetime.date(2024, 2, 29), "y": None}, {"x": None, "y": False}],
    },
    {
        **dict.fromkeys(TYPES.names),
        "id": "nothing",
        "strings": [],
        "structs": [],
    },
    {
        **dict.fromkeys(TYPES.names),
        "id": "small",
        "int64": (1 << 63) - 1,
        "float64": 5e-324,
        "numeric": Decimal("-0.000000001"),
        "bool": False,
        "string": "",
        "bytes": b"",
        "timestamp": datetime.datetime(2024, 1, 1, tzinfo=UTC),
        "strings": [],
        "struct": {"a": None, "b": []},
        "structs": [],
    },
]


def test_values_of_every_type_arrive_unchanged(
    emulators: LocalCloud, dataset: str, provenance: Provenance
) -> None:
    table = make_table(emulators, dataset, table_fields(TYPES))
    rows = pa.RecordBatch.from_pylist(EXAMPLES, TYPES)
    run(
        AppendToTable(cloud=emulators.cloud, table=table, schema=TYPES, provenance=provenance),
        [rows],
        3,
    )
    expected = [{**row, "json": row["json"] and orjson.loads(row["json"])} for row in EXAMPLES]
    assert sorted(rows_of(emulators, table), key=lambda row: row["id"]) == expected


def test_output_rows_of_a_pipeline_arrive_with_their_provenance(
    emulators: LocalCloud,
    dataset: str,
    provenance: Provenance,
    make_manifest: Callable[..., Manifest],
    make_source: Callable[..., pa.RecordBatch],
) -> None:
    codes = pa.FixedSizeListArray.from_arrays(pa.array([0.1, 2, 3, 4], pa.float32()), 2)
    outputs = pa.StructArray.from_arrays(
        [pa.array([0.3, 7], pa.float32()), codes], ["total", "code"]
    )
    batch = make_source({"a": [1.0, 2.0]}).append_column(OUTPUTS, outputs)
    now = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456, UTC)
    rows = encode(batch, choose_fields(make_manifest(), ["code", "a"]), provenance, now)
    table = make_table(emulators, dataset, table_fields(rows.schema))
    run(
        AppendToTable(
            cloud=emulators.cloud, table=table, schema=rows.schema, provenance=provenance
        ),
        [rows],
        2,
    )
    assert sorted(rows_of(emulators, table), key=lambda row: row["row_id"]) == rows.to_pylist()


def test_rows_that_the_table_refuses_become_dead_letters_and_the_others_are_written(
    emulators: LocalCloud, dataset: str, provenance: Provenance
) -> None:
    table = TableName.parse(f"{dataset}.t", "output_table")
    # With the REST API, the emulator would create a NUMERIC of any precision.
    emulators.cloud.bigquery().query_and_wait(
        f"CREATE TABLE `{table}` (id STRING, amount NUMERIC(5, 2), name STRING NOT NULL)"
    )
    schema = pa.schema(
        [("id", pa.string()), ("amount", pa.decimal128(9, 2)), ("name", pa.string())]
    )
    amounts = {"a": "1.25", "b": "123456.00", "c": "-999.99", "d": None, "e": "7"}
    names = {"a": "x", "b": "y", "c": "z", "d": None, "e": "w"}
    rows = [
        {"id": key, "amount": amount and Decimal(amount), "name": names[key]}
        for key, amount in amounts.items()
    ]
    faults = {
        "b": ("refused", "Cannot convert value to numeric (bad value): ..."),
        "d": ("refused", "Missing required field: name."),
    }
    sink = AppendToTable(cloud=emulators.cloud, table=table, schema=schema, provenance=provenance)
    run(sink, [pa.RecordBatch.from_pylist(rows, schema)], 3, records(**faults))
    assert sorted(row["id"] for row in rows_of(emulators, table)) == ["a", "c", "e"]


def test_a_table_that_does_not_exist_is_reported_in_one_line(
    emulators: LocalCloud, dataset: str, provenance: Provenance
) -> None:
    table = TableName.parse(f"{dataset}.missing", "output_table")
    sink = AppendToTable(
        cloud=emulators.cloud, table=table, schema=ids().schema, provenance=provenance
    )
    with pytest.raises(OutputError, match=r"missing cannot be written: .*check the project"):
        run(sink, [ids("a")], 1)


CRASHES: list[Callable[[], None]] = []


def batches_with_a_crash(_: None) -> Iterator[pa.RecordBatch]:
    for i in range(6):
        if i == 3:
            CRASHES.pop()()
        yield ids(*(f"{i}.{k}" for k in range(100)))


def test_no_row_is_missing_after_the_service_crashes_and_restarts(
    emulators: LocalCloud, dataset: str, provenance: Provenance
) -> None:
    table = make_table(emulators, dataset, table_fields(ids().schema))
    back = threading.Thread(target=emulators.bigquery.start)

    def crash() -> None:
        # Requests are sent without waiting for the answers.
        wait_until(lambda: rows_of(emulators, table))
        emulators.bigquery.kill()
        back.start()

    CRASHES[:] = [crash]
    # Each batch is an append of its own.
    sink = AppendToTable(
        # On a busy machine, the service needs long to start.
        cloud=replace(emulators.cloud, retry_seconds=120.0),
        table=table,
        schema=ids().schema,
        provenance=provenance,
        batch_bytes=500,
    )
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([None]) | beam.FlatMap(batches_with_a_crash)
        written, _ = rows | sink
        total = written | beam.CombinePerKey(sum)
        assert_that(total, equal_to([((WRITTEN,), 600)]))
    back.join()
    # At least once: an append whose response was lost has been written twice.
    expected = {f"{i}.{k}" for i in range(6) for k in range(100)}
    assert {row["id"] for row in rows_of(emulators, table)} == expected


def test_the_view_of_the_guide_reads_each_row_once(
    emulators: LocalCloud, dataset: str, provenance: Provenance
) -> None:
    rows = pa.record_batch(
        {
            "row_id": ["a", "b", "a", "a"],
            "score": [1.0, 2.0, 3.0, 4.0],
            "scored_at": pa.array([1, 1, 3, 2], pa.timestamp("us", tz="UTC")),
        }
    )
    table = make_table(emulators, dataset, table_fields(rows.schema))
    sink = AppendToTable(
        cloud=emulators.cloud, table=table, schema=rows.schema, provenance=provenance
    )
    run(sink, [rows], 4)
    # A response that was lost: the same rows once more.
    run(sink, [rows], 4)
    queries = [block for page, block in blocks("sql") if page == "docs/how-to/streams.md"]
    (view,) = [block for block in queries if block.startswith("CREATE VIEW")]
    names = {"scores_once": "once", "scores_stream": table.table, "PROJECT.dataset": dataset}
    for name, own in names.items():
        view = view.replace(name, own)
    client = emulators.cloud.bigquery()
    client.query_and_wait(view)
    found = client.query_and_wait(f"SELECT row_id, score FROM `{dataset}.once` ORDER BY row_id")
    assert [tuple(row.values()) for row in found] == [("a", 3.0), ("b", 2.0)]


CHANGES: list[Callable[[], object]] = []


def batches_around_a_change(_: None) -> Iterator[pa.RecordBatch]:
    yield pa.record_batch({"id": ["before"], "n": [1]})
    CHANGES.pop()()
    yield pa.record_batch({"id": ["after"], "n": [2]})


def append_around(
    servers: LocalCloud, table: TableName, provenance: Provenance, change: str, check: Any
) -> None:
    """Append a row, change the table by a query, and append another row, in one bundle."""
    client = servers.cloud.bigquery()
    schema = pa.schema([("id", pa.string()), ("n", pa.int64())])

    def alter() -> None:
        wait_until(lambda: rows_of(servers, table))
        client.query_and_wait(change.format(table=f"`{table}`"))

    CHANGES[:] = [alter]
    # Each batch is an append of its own.
    sink = AppendToTable(
        cloud=servers.cloud, table=table, schema=schema, provenance=provenance, batch_bytes=1
    )
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([None]) | beam.FlatMap(batches_around_a_change)
        assert_that((rows | sink).failures, check)


@pytest.fixture
def numbered(emulators: LocalCloud, dataset: str) -> TableName:
    """A table with the columns `id` and `n`."""
    schema = pa.schema([("id", pa.string()), ("n", pa.int64())])
    return make_table(emulators, dataset, table_fields(schema))


def test_rows_are_written_on_after_the_table_gains_a_column(
    emulators: LocalCloud, numbered: TableName, provenance: Provenance
) -> None:
    change = "ALTER TABLE {table} ADD COLUMN more STRING"
    append_around(emulators, numbered, provenance, change, equal_to([]))
    rows = sorted(rows_of(emulators, numbered), key=lambda row: str(row["id"]))
    assert rows == [{"id": name, "n": n, "more": None} for name, n in (("after", 2), ("before", 1))]


def test_rows_with_a_column_that_the_table_loses_are_dead_letters(
    emulators: LocalCloud, numbered: TableName, provenance: Provenance
) -> None:
    change = "ALTER TABLE {table} DROP COLUMN n"
    check = records(after=("refused", "no such field: n"))
    append_around(emulators, numbered, provenance, change, check)
    assert rows_of(emulators, numbered) == [{"id": "before"}]


def test_a_table_that_is_deleted_fails_the_bundle_and_gets_rows_when_it_is_made_again(
    emulators: LocalCloud, numbered: TableName, provenance: Provenance
) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: .*check the project"):
        append_around(emulators, numbered, provenance, "DROP TABLE {table}", equal_to([]))
    make_table(
        emulators,
        f"{numbered.project}.{numbered.dataset}",
        [
            bigquery.SchemaField("id", "STRING"),
            bigquery.SchemaField("n", "INT64"),
        ],
    )
    sink = AppendToTable(
        cloud=emulators.cloud,
        table=numbered,
        schema=pa.schema([("id", pa.string()), ("n", pa.int64())]),
        provenance=provenance,
    )
    run(sink, [pa.record_batch({"id": ["again"], "n": [3]})], 1)
    assert rows_of(emulators, numbered) == [{"id": "again", "n": 3}]
