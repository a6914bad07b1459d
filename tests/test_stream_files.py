"""Files of a stream: complete or absent, one for each schema, each with a manifest."""

import datetime
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from pyarrow.dataset import dataset

from common.errors import OutputError
from common.measures import FILES, seen, start_measures
from common.record_batch import UTC_MICROSECONDS
from examples.local_cloud import LocalCloud
from transforms.files.sink import unfinished
from transforms.files.sink.stream_files import (
    Span,
    StreamFiles,
    check_folder,
    file_name,
    write_file,
    write_manifest,
    write_span,
)
from transforms.files.sink.unfinished import remove_dead
from transforms.files.sink.writers import OutputFormat

# 2026-11-20 12:34:00, the start of a minute.
START = 1_795_178_040
SPAN = Span(START, START + 60)


def batch(*ids: str) -> pa.RecordBatch:
    return pa.record_batch({"id": pa.array(ids, pa.string()), "blob": [b"\xff"] * len(ids)})


def rows_of(folder: Path) -> list[list[str]]:
    """Return the ids in each Parquet file in a folder."""
    return [pq.read_table(path)["id"].to_pylist() for path in folder.rglob("*.parquet")]


def files_in(folder: Path, output_format: OutputFormat = "parquet") -> StreamFiles:
    return StreamFiles(folder=str(folder), seconds=60, output_format=output_format)


def test_each_attempt_writes_a_file_of_its_own(tmp_path: Path) -> None:
    rows = [batch("r0"), batch("r1")]
    once = write_span(files_in(tmp_path), SPAN, "process0", rows)
    again = write_span(files_in(tmp_path), SPAN, "process0", iter(rows))
    assert once[0]["path"] != again[0]["path"]
    assert rows_of(tmp_path) == [["r0", "r1"]] * 2


def test_the_time_to_write_each_file_is_measured(tmp_path: Path) -> None:
    start_measures()
    write_span(files_in(tmp_path), SPAN, "process0", [batch("r0"), pa.record_batch({"other": [1]})])
    assert seen(FILES).count == 2
    assert seen(FILES).total > 0


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_batches_of_each_schema_go_to_a_file(tmp_path: Path, kind: OutputFormat) -> None:
    new = pa.record_batch({"id": ["n0"], "score": [1.0]})
    rows = [batch("r0"), new, batch("r1").replace_schema_metadata({"a": "b"}), new]
    manifests = write_span(files_in(tmp_path, kind), SPAN, "process0", rows)
    assert [[c["name"] for c in m["columns"]] for m in manifests] == [
        ["id", "blob"],
        ["id", "score"],
    ]
    for manifest in manifests:
        path = Path(manifest["path"])
        assert manifest["bytes"] == path.stat().st_size
        assert manifest["rows"] == 2
        lines = (
            path.read_text().splitlines() if kind == "jsonl" else pq.read_table(path).to_pylist()
        )
        assert len(lines) == 2


def test_a_manifest_describes_its_file_and_is_hidden_from_readers(tmp_path: Path) -> None:
    scored = [datetime.datetime.fromtimestamp(START + i, datetime.UTC) for i in (7, 5, 9)]
    times = pa.array(scored, UTC_MICROSECONDS)
    rows = pa.record_batch({"id": ["r0", "r1", "r2"], "scored_at": times})
    (manifest,) = write_span(files_in(tmp_path), SPAN, "process0", [rows[:2], rows[2:]])
    path = Path(manifest["path"])
    assert list(tmp_path.rglob("*.json")) == []
    for _ in range(2):
        write_manifest(manifest)
    (written,) = tmp_path.rglob("*.json")
    assert written == path.with_name(f"_{path.stem}.json")
    assert json.loads(written.read_text()) == {
        "path": str(path),
        "rows": 3,
        "bytes": path.stat().st_size,
        "span_start": "2026-11-20T12:34:00+00:00",
        "span_end": "2026-11-20T12:35:00+00:00",
        "columns": [
            {"name": "id", "type": "string"},
            {"name": "scored_at", "type": "timestamp[us, tz=UTC]"},
        ],
        "first": "2026-11-20T12:34:05+00:00",
        "last": "2026-11-20T12:34:09+00:00",
    }
    # Arrow, as Spark does, skips names that start with `_`.
    assert dataset(tmp_path, format="parquet").count_rows() == 3


def test_a_file_that_fails_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "day" / "a.jsonl"

    class Broken(list[pa.RecordBatch]):
        def __iter__(self) -> Iterator[pa.RecordBatch]:
            yield batch("r0")
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a.jsonl cannot be written: .*No space left on device"):
        write_file(str(path), Broken([batch("r0")]), "jsonl")
    assert list((tmp_path / "day").iterdir()) == []


WRITES = """
import sys
from pathlib import Path
import pyarrow as pa
from transforms.files.sink.stream_files import write_file

class Batches(list):
    def __iter__(self):
        yield self[0]
        print("begun", flush=True)
        sys.stdin.read()

write_file(sys.argv[1], Batches([pa.record_batch({"id": ["r0"]})]), "jsonl")
"""


def test_the_next_run_removes_unfinished_files_of_a_killed_process(tmp_path: Path) -> None:
    day = tmp_path / "2026-11-20"
    command = [sys.executable, "-c", WRITES]
    both = [
        subprocess.Popen(
            [*command, str(day / f"{name}.jsonl")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("dead", "alive")
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
    foreign = [day / ".hidden", tmp_path / f".a-{uuid.uuid4().hex}"]
    for path in foreign:
        path.write_text("of another program")
    both[0].kill()
    both[0].communicate()
    assert len(list(day.glob(".dead.jsonl-*"))) == 1
    remove_dead(str(tmp_path))
    assert list(day.glob(".dead.jsonl-*")) == []
    assert len(list(day.glob(".alive.jsonl-*"))) == 1
    both[1].communicate()
    assert both[1].returncode == 0
    assert sorted(p.name for p in day.iterdir()) == [".hidden", "alive.jsonl"]
    assert all(path.exists() for path in foreign)


@pytest.fixture
def storage(stream_emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The emulator of Cloud Storage, configured for Beam, with a bucket `bucket`."""
    from apache_beam.internal.gcp import auth

    for name, value in stream_emulators.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    return stream_emulators.cloud.storage()


@pytest.mark.usefixtures("storage")
def test_in_a_bucket_an_unfinished_file_is_dead_after_a_day(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    day = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    folder = "gs://bucket/unfinished/scores"
    path = f"{folder}/{day}/.a.jsonl-{uuid.uuid4().hex}"
    with FileSystems.create(path) as handle:
        handle.write(b"{}")
    remove_dead(folder)
    assert FileSystems.exists(path)
    monkeypatch.setattr(unfinished, "DEAD_SECONDS", -3_600)
    remove_dead(folder)
    assert not FileSystems.exists(path)


def test_names_contain_the_span_and_sort_by_it() -> None:
    assert file_name(SPAN, "a", "b", "jsonl") == "2026-11-20/12-34-00-060s-a-b.jsonl"
    names = [
        file_name(Span(START + i * 5_000, START + (i + 1) * 5_000), "a", "b", "jsonl")
        for i in range(50)
    ]
    assert sorted(names) == names


@pytest.mark.parametrize("seconds", [1, 7, 60, 3_600])
def test_a_span_contains_its_moment_and_starts_on_the_clock(seconds: int) -> None:
    files = StreamFiles(folder="", seconds=seconds, output_format="jsonl")
    for moment in (START, START + 59.999, START + 86_399):
        span = files.span(moment)
        assert span.start <= moment < span.end == span.start + seconds
        assert span.start % seconds == 0


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = r"file/scores cannot be created: Not a directory; choose"
    with pytest.raises(OutputError, match=words):
        check_folder(str(tmp_path / "file" / "scores"))
    check_folder(str(tmp_path / "new" / "scores"))
    assert list((tmp_path / "new" / "scores").iterdir()) == []
    (tmp_path / "day" / "a.parquet").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"day/a.parquet cannot be written: "):
        write_file(str(tmp_path / "day" / "a.parquet"), [batch("r0")], "parquet")


def test_a_bucket_can_be_used_like_a_folder(storage: Any) -> None:
    check_folder("gs://bucket/windows/scores")
    path = "gs://bucket/windows/scores/a.parquet"
    for _ in range(2):
        size = write_file(path, [batch("r0"), batch("r1")], "parquet")
        write_manifest({"path": path})
    blobs = {blob.name: blob.size for blob in storage.list_blobs("bucket", prefix="windows")}
    assert blobs == {"windows/scores/a.parquet": size, "windows/scores/_a.json": ANY}
    with pytest.raises(OutputError, match=r"folder gs://missing-bucket/x cannot be written: .*404"):
        check_folder("gs://missing-bucket/x")
