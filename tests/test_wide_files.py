"""Of a Parquet file in a bucket, only the needed columns are fetched, and its footer once."""

import io
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.internal.gcp import auth
from apache_beam.io.filesystem import FileMetadata
from google.api_core.exceptions import Forbidden, NotFound
from hypothesis import given
from hypothesis import strategies as st
from object_server import ObjectServer, object_server

from common.errors import InputError
from model_handlers.manifests.manifest import InputSpec
from transforms.files import objects, parquet
from transforms.files.columns import Columns
from transforms.files.objects import ObjectFile, Span, grouped
from transforms.files.parquet import Footers, open_parquet
from transforms.files.pins import Pin, pin
from transforms.files.ranges import PlannedFile, match_files, plan_file, split_file
from transforms.files.read_range import read_range

PATH = "gs://bucket/wide.parquet"
KEY = "bucket/wide.parquet"


@pytest.fixture(autouse=True)
def footers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the footers that other tests have read."""
    monkeypatch.setattr(parquet, "_footers", Footers(parquet.FOOTER_BYTES))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with object_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
        yield server


def put(server: ObjectServer, columns: int, group_rows: int, groups: int = 1) -> pa.Table:
    """Put a file of random numbers, which do not compress, and return its rows."""
    numbers = np.random.default_rng(1).random((columns, groups * group_rows))
    table = pa.table({f"c{i}": column for i, column in enumerate(numbers)})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group_rows, use_dictionary=False)
    server.objects[KEY] = sink.getvalue()
    return table


def needed(content: bytes, names: tuple[str, ...]) -> int:
    """Return the bytes of columns in a file."""
    footer = pq.read_metadata(io.BytesIO(content))
    groups = map(footer.row_group, range(footer.num_row_groups))
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(c.total_compressed_size for c in chunks if c.path_in_schema in names)


def planned(server: ObjectServer) -> PlannedFile:
    return plan_file(FileMetadata(PATH, len(server.objects[KEY])), None)


def read(file: PlannedFile, columns: Columns, range_rows: int | None = None) -> pa.Table:
    """Return the rows of a file and their ids, as its ranges are read."""
    parts = split_file(file, range_rows)
    batches = [d.batch for part in parts for d in read_range(part, columns, 1_000)]
    return pa.Table.from_batches([batch for batch in batches if batch is not None])


@pytest.mark.parametrize(
    ("columns", "requests"), [pytest.param(300, 30, id="wide"), pytest.param(30, 1, id="narrow")]
)
def test_only_the_needed_columns_are_fetched(
    server: ObjectServer, make_manifest: Any, columns: int, requests: int
) -> None:
    table = put(server, columns, 3_000)
    names = tuple(f"c{i}" for i in sorted(random.Random(1).sample(range(columns), 30)))
    file = planned(server)
    server.reads.clear()
    rows = read(file, Columns(make_manifest(InputSpec("x", names, shape=(30,)))))
    structs = rows.column("source").combine_chunks()
    assert pa.Table.from_struct_array(structs).equals(table.select(names))
    assert len(server.reads) <= requests
    assert server.fetched <= 1.25 * needed(server.objects[KEY], names)


def test_many_small_row_groups_take_few_requests(
    server: ObjectServer, make_manifest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "MOST_REQUESTS", 8)
    put(server, 60, 20, groups=40)
    file = planned(server)
    server.reads.clear()
    read(file, Columns(make_manifest(InputSpec("x", ("c1", "c30", "c59"), shape=(3,)))))
    assert len(server.reads) == 8


def test_nested_columns_and_columns_with_dictionaries_are_fetched_whole(
    server: ObjectServer, make_manifest: Any
) -> None:
    texts = pa.array([["a", "b"], None] * 50)
    table = pa.table(
        {n: pa.array([1.0, 2.0] * 50) for n in "abc"}
        | {"s": texts, "other": pa.array(map(str, range(100))), "s.x": pa.array(range(100))}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    server.objects[KEY] = sink.getvalue()
    file = planned(server)
    server.reads.clear()
    rows = read(file, Columns(make_manifest(), keep=("s",)))
    assert rows.column("source").combine_chunks().field("s").equals(texts)
    wanted = ("a", "b", "c", "s.list.element", "s.x")
    assert server.fetched <= 1.25 * needed(server.objects[KEY], wanted)


SPANS = st.lists(
    st.builds(lambda start, size: Span(start, start + size), st.integers(0, 999), st.integers(1, 9))
)


@given(SPANS, st.integers(1, 40), st.integers(1, 100))
def test_requests_fetch_all_spans_and_little_else(
    spans: list[Span], most_requests: int, request_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "MOST_REQUESTS", most_requests)
        patch.setattr(objects, "REQUEST_BYTES", request_bytes)
        groups = grouped(spans)
    assert [span for group in groups for span in group] == sorted(set(spans))
    sizes = [max(s.stop for s in group) - group[0].start for group in groups]
    assert all(len(g) == 1 or n <= request_bytes + 9 for g, n in zip(groups, sizes, strict=True))
    if len(set(spans)) <= most_requests:
        assert sum(sizes) <= 1.25 * sum(stop - start for start, stop in set(spans))
    if request_bytes == 100 and max((s.stop for s in spans), default=0) <= 100:
        assert len(groups) <= most_requests


@pytest.mark.slow
def test_the_ranges_of_a_file_share_one_footer(server: ObjectServer, make_manifest: Any) -> None:
    put(server, 3, 100, groups=20)
    file = planned(server)
    body = needed(server.objects[KEY], ("c0", "c1", "c2")) + 4
    columns = Columns(make_manifest(InputSpec("x", ("c0", "c1"), shape=(2,))))
    parts = list(split_file(file, 100))
    assert len(parts) == 20
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda part: list(read_range(part, columns, 64)), parts))
    assert [start + size > body for start, size in server.reads].count(True) == 1


def test_ranges_of_a_local_file_share_one_footer(
    tmp_path: Path, make_manifest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({n: np.arange(90.0) for n in "abc"}), path, row_group_size=10)
    (found,) = match_files([str(path)])
    read_metadata, footers = pq.read_metadata, []

    def count(source: Any) -> pq.FileMetaData:
        footers.append(source)
        return read_metadata(source)

    monkeypatch.setattr(pq, "read_metadata", count)
    assert read(plan_file(found, None), Columns(make_manifest()), 10).num_rows == 90
    assert footers == [str(path)]


def test_threads_that_need_a_footer_at_once_read_it_once() -> None:
    footers, reads = Footers(1), []
    started, waiting = threading.Event(), threading.Event()
    footer = pq.read_metadata(io.BytesIO(_file(1)))

    def slow() -> pq.FileMetaData:
        reads.append(1)
        started.set()
        waiting.wait(10)
        return footer

    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(footers.get, Pin("a", 1, "1"), slow) for _ in range(4)]
        started.wait(10)
        waiting.set()
        assert all(f.result() is footer for f in found)
    assert reads == [1]


def test_footers_are_kept_within_a_bound_and_by_the_state_of_the_file() -> None:
    footer = pq.read_metadata(io.BytesIO(_file(5)))
    footers = Footers(2 * footer.serialized_size)
    reads: list[Pin] = []

    def get(path: str, version: str = "1") -> None:
        at = Pin(path, 1, version)

        def read_footer() -> pq.FileMetaData:
            reads.append(at)
            return footer

        footers.get(at, read_footer)

    for path in "abab":
        get(path)
    get("a", "2")  # This drops the first state of a.
    get("b")
    get("a")
    assert [(at.path, at.version) for at in reads] == [
        ("a", "1"),
        ("b", "1"),
        ("a", "2"),
        ("a", "1"),
    ]


def test_a_footer_that_cannot_be_read_is_read_again() -> None:
    footers, at = Footers(100), Pin("a", 1, "1")
    with pytest.raises(OSError, match="no answer"):
        footers.get(at, lambda: (_ for _ in ()).throw(OSError("no answer")))
    footer = pq.read_metadata(io.BytesIO(_file(1)))
    assert footers.get(at, lambda: footer) is footer


def _file(columns: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({f"c{i}": [1.0] for i in range(columns)}), sink)
    return sink.getvalue()


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_an_object_that_changes_before_a_read_is_an_error(
    server: ObjectServer, make_manifest: Any, change: str
) -> None:
    put(server, 3, 100)
    file = planned(server)
    if change == "replaced":
        server.generation = 2
    else:
        server.objects.clear()
    columns = Columns(make_manifest(InputSpec("x", ("c0", "c1"), shape=(2,))))
    server.reads.clear()
    with pytest.raises(InputError, match=f"input file {PATH} .* during the run"):
        read(file, columns)
    assert server.reads == []


def test_errors_of_the_service_are_not_blamed_on_the_file(server: ObjectServer) -> None:
    with pytest.raises(NotFound):
        open_parquet(PATH)
    put(server, 3, 100)
    pinned = pin(PATH)
    server.refuses = 403
    with pytest.raises(Forbidden):
        open_parquet(PATH, pinned)


@pytest.mark.parametrize("content", [b"", b"x", b"PAR1" * 5, _file(3)[:-9]])
def test_an_object_that_is_not_parquet_is_an_error(server: ObjectServer, content: bytes) -> None:
    server.objects[KEY] = content
    with pytest.raises(InputError, match="is not a readable Parquet file") as caught:
        open_parquet(PATH)
    assert "\n" not in str(caught.value)


def test_reads_return_the_bytes_of_the_object_whatever_was_fetched(server: ObjectServer) -> None:
    content = bytes(range(200))
    server.objects[KEY] = content
    with ObjectFile(PATH) as file:
        # The last three are nonsense, as in a damaged footer.
        file.fetch([Span(*s) for s in [(0, 9), (5, 20), (50, 60), (-5, 3), (9, 2), (150, 300)]])
        for start, size in [(5, 15), (0, 9), (0, 9), (50, 10), (52, 3), (190, 30), (300, 5)]:
            file.seek(start)
            assert file.read(size) == content[start : start + size]
        assert (file.seek(-3, io.SEEK_END), file.read()) == (197, content[-3:])
