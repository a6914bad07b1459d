"""Files of a stream on Dataflow: written by rows, bytes, the clock and a drain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream as Script

from common.record_batch import RecordBatchCoder, typed
from transforms.files.sink import groups
from transforms.files.sink.groups import WriteGroups, pack, unpack
from transforms.files.sink.stream_files import PROCESS, Span, StreamFiles

# 2026-11-20 12:34:00, the start of a minute.
START = 1_795_178_040
# The rows of the files that existed when a batch came to the sink, by the id of its first row.
SEEN: dict[str, list[list[str]]] = {}


class Clock:
    """The clock of the workers, in seconds since 1970."""

    now: float = START

    @classmethod
    def time(cls) -> float:
        return cls.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    SEEN.clear()
    monkeypatch.setattr(Clock, "now", START)
    monkeypatch.setattr(groups, "time", Clock)
    return Clock


def batch(*ids: str) -> pa.RecordBatch:
    return pa.record_batch({"id": pa.array(ids, pa.string()), "blob": [b"\xff"] * len(ids)})


def files_in(folder: Path) -> dict[str, list[str]]:
    """Return the ids of the rows in each file, by its name without the token of the attempt."""
    return {
        str(path.relative_to(folder)).rpartition("-")[0]: sorted(
            pq.read_table(path)["id"].to_pylist()
        )
        for path in folder.rglob("*.parquet")
    }


def rows_in(folder: Path) -> list[list[str]]:
    """Return the ids of the rows in each file, sorted."""
    return sorted(
        sorted(pq.read_table(path)["id"].to_pylist()) for path in folder.rglob("*.parquet")
    )


def note(rows: pa.RecordBatch, folder: Path, times: Mapping[str, float]) -> pa.RecordBatch:
    """Note which files exist, and set the clock."""
    first = rows["id"][0].as_py()
    SEEN[first] = rows_in(folder)
    Clock.now = times.get(first, Clock.now)
    return rows


def run(
    script: Script, folder: Path, times: Mapping[str, float] | None = None, **given: Any
) -> None:
    """Write a script of batches, and compare the manifests with the files.

    Args:
        script: The script.
        folder: The folder.
        times: What the clock shows from some batches on, by the ids of their first rows.
        given: Attributes of StreamFiles.
    """
    files = StreamFiles(
        folder=str(folder), seconds=given.pop("seconds", 60), output_format="parquet", **given
    )
    with beam.Pipeline("BundleBasedDirectRunner", PipelineOptions(streaming=True)) as pipeline:
        batches = typed(pipeline | script | beam.Map(note, folder, times or {}))
        # This runner drops what a timer sends to a shuffle at the end of time.
        WriteGroups(files).write(batches) | beam.Map(groups._list)
    assert listed_in(folder) == sizes_of(folder)


def listed_in(folder: Path) -> dict[str, int]:
    """Return the number of rows of each file that has a manifest, by its path."""
    manifests = [orjson.loads(path.read_bytes()) for path in folder.rglob("_*.json")]
    return {manifest["path"]: manifest["rows"] for manifest in manifests}


def sizes_of(folder: Path) -> dict[str, int]:
    """Return the number of rows of each file by its path."""
    return {str(path): pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet")}


def script() -> Script:
    """Return a script whose watermark stays ten hours behind the clock."""
    start = Script(coder=RecordBatchCoder()).advance_watermark_to(START - 36_000)
    return start.advance_processing_time(START)


def test_a_backlog_of_ten_hours_is_written_as_it_is_worked_off(tmp_path: Path) -> None:
    source = script()
    for i in range(5):
        source = source.add_elements([batch(f"r{i}")]).advance_processing_time(60)
    # The watermark has not moved, and never reaches the present.
    source = source.add_elements([batch("last")]).advance_watermark_to_infinity()
    run(source, tmp_path, {f"r{i}": START + 60 * i for i in range(5)})
    assert SEEN["last"] == [[f"r{i}"] for i in range(5)]
    assert rows_in(tmp_path) == [["last"], *SEEN["last"]]


def test_rows_are_in_the_span_in_which_they_were_scored(tmp_path: Path) -> None:
    source = script()
    for i in range(4):
        source = source.add_elements([batch(f"r{i}")])
    times = {"r0": START, "r1": START + 59.9, "r2": START + 60, "r3": START + 86_400}
    run(source.advance_watermark_to_infinity(), tmp_path, times)
    assert files_in(tmp_path) == {
        f"2026-11-20/12-34-00-060s-{PROCESS}": ["r0", "r1"],
        f"2026-11-20/12-35-00-060s-{PROCESS}": ["r2"],
        f"2026-11-21/12-34-00-060s-{PROCESS}": ["r3"],
    }


def test_a_drain_writes_what_is_held(tmp_path: Path) -> None:
    source = script().add_elements([batch("r0")]).add_elements([batch("r1", "r2")])
    # A drain moves the watermark to the end of time. The clock stands still.
    run(source.advance_watermark_to_infinity(), tmp_path, seconds=3_600)
    assert rows_in(tmp_path) == [["r0", "r1", "r2"]]


def test_at_the_end_every_file_has_a_manifest(tmp_path: Path) -> None:
    batches = [batch(f"r{i}a", f"r{i}b") for i in range(10)]
    files = StreamFiles(folder=str(tmp_path), seconds=60, output_format="parquet", rows=6)
    with beam.Pipeline("FnApiRunner") as pipeline:
        pipeline | beam.Create(batches) | WriteGroups(files)
    assert sum(listed_in(tmp_path).values()) == 20
    assert listed_in(tmp_path) == sizes_of(tmp_path)
    assert len(listed_in(tmp_path)) >= 4


def test_a_file_is_written_as_soon_as_it_has_enough_rows(tmp_path: Path) -> None:
    source = script()
    for i in range(5):
        source = source.add_elements([batch(f"r{i}a", f"r{i}b")])
    run(source.advance_watermark_to_infinity(), tmp_path, rows=4)
    assert SEEN["r2a"] == [["r0a", "r0b", "r1a", "r1b"]]
    assert [len(ids) for ids in SEEN["r4a"]] == [4, 4]
    assert sorted(map(len, rows_in(tmp_path))) == [2, 4, 4]


def test_a_file_is_written_as_soon_as_it_has_enough_bytes(tmp_path: Path) -> None:
    # A single message may be much larger than others.
    large = pa.record_batch({"id": ["large"], "blob": [b"\xff" * 1_000_000]})
    source = script().add_elements([batch("r0")]).add_elements([large]).add_elements([batch("r1")])
    run(source.advance_watermark_to_infinity(), tmp_path, size=1_000_000)
    assert SEEN["r1"] == [["large", "r0"]]
    assert rows_in(tmp_path) == [["large", "r0"], ["r1"]]


def test_large_batches_are_cut_for_the_shuffle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "_ELEMENT_BYTES", 1_000)
    ids = [f"r{i:04}" for i in range(1_000)]
    source = script().add_elements([batch(*ids)]).advance_watermark_to_infinity()
    run(source, tmp_path, rows=100)
    assert [i for part in rows_in(tmp_path) for i in part] == ids
    assert all(100 <= len(part) < 200 for part in rows_in(tmp_path)[:-1])


def test_rows_of_another_release_are_written_to_a_file_of_their_own(tmp_path: Path) -> None:
    new = pa.record_batch({"id": ["new0"], "score": [0.5]})
    source = script().add_elements([batch("old0")]).add_elements([new])
    source = source.add_elements([batch("old1")]).advance_watermark_to_infinity()
    run(source, tmp_path)
    assert rows_in(tmp_path) == [["new0"], ["old0", "old1"]]


def test_only_the_file_of_the_attempt_that_succeeds_gets_a_manifest(tmp_path: Path) -> None:
    write = WriteGroups(StreamFiles(folder=str(tmp_path), seconds=60, output_format="parquet"))
    held = [pack(batch("r0"))]
    list(write._write(((START, START + 60, "process0"), held)))
    # The bundle failed. More rows have come when it is retried.
    (manifest,) = write._write(((START, START + 60, "process0"), [*held, pack(batch("r1"))]))
    assert rows_in(tmp_path) == [["r0"], ["r0", "r1"]]
    assert list(tmp_path.rglob("_*.json")) == []
    for _ in range(2):
        groups._list(manifest)
    (listed,) = tmp_path.rglob("_*.json")
    assert pq.read_table(orjson.loads(listed.read_bytes())["path"])["id"].to_pylist() == [
        "r0",
        "r1",
    ]


def test_two_runs_in_the_same_span_write_different_files(tmp_path: Path) -> None:
    for name in ("r0", "r1"):
        run(script().add_elements([batch(name)]).advance_watermark_to_infinity(), tmp_path)
    assert rows_in(tmp_path) == [["r0"], ["r1"]]


def test_a_group_is_due_when_its_span_is_over() -> None:
    span = Span(START, START + 60)
    assert groups._due(span, START) == groups._due(span, START + 59.9) == START + 60
    # The stream lags.
    assert groups._due(span, START + 300) == START + 360
    # The clock of the worker that scored the rows is a day ahead.
    assert groups._due(span, START - 86_400) == START - 86_400 + 60


def test_packed_rows_keep_their_schema_and_leave_out_the_rows_around_a_slice() -> None:
    rows = pa.record_batch(
        {"id": [f"r{i}" for i in range(1_000)], "run": pa.array(["a"] * 1_000).dictionary_encode()}
    )
    packed = pack(rows[10:12])
    assert unpack(packed).equals(rows[10:12])
    assert packed[0] == 2
    assert len(packed[2]) < packed[1] < pack(rows)[1]
