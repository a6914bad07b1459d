"""Files of a stream: each row is in exactly one of them, even if it is late or retried."""

import datetime
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream as Script
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import IntervalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN

from common.errors import OutputError
from common.record_batch import RecordBatchCoder
from examples.local_cloud import LocalCloud
from transforms.files import unfinished
from transforms.files import windows as write_windows
from transforms.files.unfinished import remove_dead
from transforms.files.windows import WriteWindows, check_folder, file_name, write_file
from transforms.files.writers import OutputFormat

# 2026-11-20 12:34:00, the start of a minute.
START = 1_795_178_040


def batch(*ids: str) -> pa.RecordBatch:
    return pa.record_batch({"id": pa.array(ids, pa.string()), "blob": [b"\xff"] * len(ids)})


class Clock:
    """A worker's clock that returns the next of the given seconds for each batch."""

    seconds: Iterator[float]

    @classmethod
    def now(cls) -> Timestamp:
        return Timestamp(next(cls.seconds))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(write_windows, "Timestamp", Clock)
    return Clock


def rows_of(folder: Path) -> dict[str, list[str]]:
    """Return the rows of each file in a folder by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            found[str(path.relative_to(folder))] = pq.read_table(path)["id"].to_pylist()
        elif path.is_file():
            lines = path.read_text().splitlines()
            found[str(path.relative_to(folder))] = [json.loads(line)["id"] for line in lines]
    return found


def run(source: beam.PTransform, write: WriteWindows) -> None:
    """Write a source of batches, and compare the returned counts with the files."""

    def check(found: list[tuple[str, int]]) -> None:
        assert len({path for path, _ in found}) == len(found)
        for path, rows in found:
            assert len(rows_of(Path(path).parent)[Path(path).name]) == rows

    options = PipelineOptions(streaming=True)
    with beam.Pipeline("BundleBasedDirectRunner", options) as pipeline:
        assert_that(pipeline | source | write, check)


def stream() -> Script:
    return Script(coder=RecordBatchCoder())


def test_rows_are_in_the_span_in_which_they_were_scored(tmp_path: Path, clock: type[Clock]) -> None:
    clock.seconds = iter([START, START + 59.9, START + 60, START + 86_400])
    source = stream().advance_watermark_to(START)
    # The event times of the batches do not matter.
    for i in range(4):
        source = source.add_elements([batch(f"r{i}")])
    run(
        source.advance_watermark_to_infinity(),
        WriteWindows(folder=str(tmp_path), seconds=60, output_format="parquet", run="x"),
    )
    found = rows_of(tmp_path)
    assert {path: sorted(ids) for path, ids in found.items()} == {
        "2026-11-20/12-34-00-060s-0-of-1-pane-0-x.parquet": ["r0", "r1"],
        "2026-11-20/12-35-00-060s-0-of-1-pane-0-x.parquet": ["r2"],
        "2026-11-21/12-34-00-060s-0-of-1-pane-0-x.parquet": ["r3"],
    }


def test_a_span_is_written_when_the_watermark_passes_its_end_and_late_rows_after_it(
    tmp_path: Path, clock: type[Clock]
) -> None:
    # The third batch comes from a worker whose clock is behind the watermark. The last two arrive
    # long after the span was written.
    clock.seconds = iter([START, START + 70, START + 1, START + 2, START + 3])
    source = (
        stream()
        .advance_watermark_to(START)
        .add_elements([batch("r0")])
        .add_elements([batch("r1")])
        .advance_watermark_to(START + 61)
        .add_elements([batch("r2")])
        .advance_watermark_to(START + 5_000)
        .add_elements([batch("r3")])
        .add_elements([batch("r4")])
        .advance_watermark_to_infinity()
    )
    run(source, WriteWindows(folder=str(tmp_path), seconds=60, output_format="parquet", run="x"))
    found = rows_of(tmp_path)
    assert sorted(i for ids in found.values() for i in ids) == ["r0", "r1", "r2", "r3", "r4"]
    first = found["2026-11-20/12-34-00-060s-0-of-1-pane-0-x.parquet"]
    assert first == ["r0"]
    assert found["2026-11-20/12-35-00-060s-0-of-1-pane-0-x.parquet"] == ["r1"]
    late = {path: ids for path, ids in found.items() if "-pane-0-" not in path}
    assert sorted(i for ids in late.values() for i in ids) == ["r2", "r3", "r4"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_spread_over_shards_are_each_in_one_file(
    tmp_path: Path, clock: type[Clock], kind: OutputFormat
) -> None:
    clock.seconds = iter([START] * 30)
    batches = [batch(f"{i}-0", f"{i}-1") for i in range(30)]
    source = stream().add_elements(batches).advance_watermark_to_infinity()
    run(
        source,
        WriteWindows(folder=str(tmp_path), seconds=3600, output_format=kind, shards=3, run="x"),
    )
    found = rows_of(tmp_path)
    assert 1 < len(found) <= 3
    assert all(path.startswith("2026-11-20/12-00-00-3600s-") for path in found)
    every = sorted(i for ids in found.values() for i in ids)
    assert every == sorted(i for part in batches for i in part.column("id").to_pylist())


def test_a_retried_bundle_replaces_its_file(tmp_path: Path) -> None:
    dofn = write_windows._WriteDoFn(str(tmp_path), 1, "x", "parquet")
    window = IntervalWindow(START, START + 60)
    pane = PANE_INFO_UNKNOWN
    once = list(dofn.process((0, [batch("r0"), batch("r1")]), window, pane))
    again = list(dofn.process((0, iter([batch("r0"), batch("r1")])), window, pane))
    assert once == again == [(once[0][0], 2)]
    assert list(rows_of(tmp_path).values()) == [["r0", "r1"]]


def test_a_second_run_in_the_same_span_keeps_the_files_of_the_first(
    tmp_path: Path, clock: type[Clock]
) -> None:
    for name in ("r0", "r1"):
        clock.seconds = iter([START])
        source = stream().add_elements([batch(name)]).advance_watermark_to_infinity()
        run(source, WriteWindows(folder=str(tmp_path), seconds=60, output_format="parquet"))
    assert sorted(rows_of(tmp_path).values()) == [["r0"], ["r1"]]


def test_a_file_that_fails_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "day" / "a.jsonl"

    def broken() -> Iterator[pa.RecordBatch]:
        yield batch("r0")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a.jsonl cannot be written: .*No space left on device"):
        write_file(str(path), broken(), "jsonl")
    assert list((tmp_path / "day").iterdir()) == []


WRITES = """
import sys
from pathlib import Path
import pyarrow as pa
from transforms.files.windows import write_file

def batches():
    yield pa.record_batch({"id": ["r0"]})
    print("begun", flush=True)
    sys.stdin.read()

write_file(sys.argv[1], batches(), "jsonl")
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
    def name(start: float, seconds: float) -> str:
        return file_name(start, start + seconds, 1, shards=2, pane=3, run="run", suffix="jsonl")

    assert name(START, 300) == "2026-11-20/12-34-00-300s-1-of-2-pane-3-run.jsonl"
    starts = [START + i * 5_000 for i in range(50)]
    assert sorted(name(s, 5_000) for s in starts) == [name(s, 5_000) for s in starts]
    day = datetime.datetime.fromtimestamp(START, datetime.UTC)
    assert name(START, 1).startswith(f"{day:%Y-%m-%d}/")


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
        assert write_file(path, [batch("r0"), batch("r1")], "parquet") == 2
    blobs = storage.list_blobs("bucket", prefix="windows")
    assert [blob.name for blob in blobs] == ["windows/scores/a.parquet"]
    with pytest.raises(OutputError, match=r"folder gs://missing-bucket/x cannot be written: .*404"):
        check_folder("gs://missing-bucket/x")
