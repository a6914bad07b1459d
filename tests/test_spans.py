"""Files of a stream whose rows wait in the memory of the process."""

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import OutputError
from transforms.bundles import Bundle
from transforms.files.sink import spans
from transforms.files.sink.spans import _Spans
from transforms.files.sink.stream_files import StreamFiles


class Owner:
    """A source that notes which messages were acknowledged, and the error of the run."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.error: Exception | None = None

    def acknowledge(self, ids: Sequence[str]) -> None:
        self.acknowledged += ids

    def give_back(self, ids: Sequence[str]) -> None:
        raise AssertionError(f"{ids} are given back")

    def fail(self, error: Exception) -> None:
        self.error = error

    def sink(self, key: Any, make: Any) -> Any:
        raise AssertionError(f"{key} is not asked for")


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def sinks() -> Iterator[list[_Spans]]:
    """The sinks of a test, which are stopped at its end."""
    made: list[_Spans] = []
    yield made
    for sink in made:
        sink.stop()


def sink_of(folder: Path, sinks: list[_Spans], **limits: int) -> _Spans:
    files = StreamFiles(folder=str(folder), seconds=36_000, output_format="parquet", **limits)
    sinks.append(_Spans(files))
    return sinks[-1]


def add(sink: _Spans, owner: Owner, rows: pa.RecordBatch, name: str) -> None:
    """Add rows as the only ones of a bundle with one message, which is final at once."""
    bundle = Bundle(owner)
    bundle.ids, bundle.decoded = [name], 1
    sink.add(rows, bundle)
    bundle.finalize()


def batch(*ids: str) -> pa.RecordBatch:
    return pa.record_batch({"id": pa.array(ids, pa.string())})


def rows_in(folder: Path) -> list[list[str]]:
    return sorted(pq.read_table(path)["id"].to_pylist() for path in folder.rglob("*.parquet"))


def test_a_file_is_written_and_its_messages_acknowledged_as_soon_as_it_has_enough_rows(
    tmp_path: Path, owner: Owner, sinks: list[_Spans]
) -> None:
    sink = sink_of(tmp_path, sinks, rows=4)
    add(sink, owner, batch("a", "b"), "m0")
    assert (rows_in(tmp_path), owner.acknowledged) == ([], [])
    add(sink, owner, batch("c", "d", "e"), "m1")
    add(sink, owner, batch("f"), "m2")
    assert rows_in(tmp_path) == [["a", "b", "c", "d", "e"]]
    assert owner.acknowledged == ["m0", "m1"]
    sink.finish()
    assert rows_in(tmp_path) == [["a", "b", "c", "d", "e"], ["f"]]
    assert owner.acknowledged == ["m0", "m1", "m2"]


def test_a_file_is_written_as_soon_as_it_has_enough_bytes(
    tmp_path: Path, owner: Owner, sinks: list[_Spans]
) -> None:
    sink = sink_of(tmp_path, sinks, size=10_000)
    for i in range(4):
        add(sink, owner, batch(str(i) * 6_000), f"m{i}")
    assert [[text[0] for text in ids] for ids in rows_in(tmp_path)] == [["0", "1"], ["2", "3"]]
    assert owner.acknowledged == ["m0", "m1", "m2", "m3"]


def test_small_batches_are_joined_while_they_wait(
    tmp_path: Path, owner: Owner, sinks: list[_Spans], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "_JOINED_BATCHES", 10)
    sink = sink_of(tmp_path, sinks)
    ids = [f"r{i:02}" for i in range(25)]
    for name in ids:
        add(sink, owner, batch(name), name)
    (rows,) = sink._waiting.values()
    assert [part.num_rows for part in rows.joined] == [10, 10]
    assert len(rows.fresh) == 5
    sink.finish()
    assert rows_in(tmp_path) == [ids]
    assert owner.acknowledged == ids


def test_each_file_has_a_manifest(tmp_path: Path, owner: Owner, sinks: list[_Spans]) -> None:
    sink = sink_of(tmp_path, sinks)
    add(sink, owner, batch("a"), "m0")
    add(sink, owner, pa.record_batch({"other": [1]}), "m1")
    sink.finish()
    listed = {json.loads(path.read_text())["path"] for path in tmp_path.rglob("_*.json")}
    assert listed == {str(path) for path in tmp_path.rglob("*.parquet")}
    assert len(listed) == 2


def test_an_error_of_a_full_file_ends_the_run_and_acknowledges_nothing(
    tmp_path: Path, owner: Owner, sinks: list[_Spans]
) -> None:
    (tmp_path / "file").write_text("")
    sink = sink_of(tmp_path / "file", sinks, rows=1)
    with pytest.raises(OutputError, match="Not a directory"):
        add(sink, owner, batch("a"), "m0")
    assert isinstance(owner.error, OutputError)
    assert owner.acknowledged == []


def test_rows_that_threads_add_at_once_are_each_in_one_file(
    tmp_path: Path, owner: Owner, sinks: list[_Spans]
) -> None:
    sink = sink_of(tmp_path, sinks, rows=7)

    def add_many(thread: int) -> None:
        for i in range(50):
            add(sink, owner, batch(f"{thread}-{i}"), f"{thread}-{i}")

    threads = [threading.Thread(target=add_many, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.finish()
    every = sorted(f"{thread}-{i}" for thread in range(4) for i in range(50))
    assert sorted(i for ids in rows_in(tmp_path) for i in ids) == every
    assert sorted(owner.acknowledged) == every
