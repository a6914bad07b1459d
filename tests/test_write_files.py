"""Staging writes the rows of a bundle to finished files, and ignores other files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to

from common.errors import OutputError
from transforms.files.sink import stage as write_files
from transforms.files.sink.destination import FolderDestination
from transforms.files.sink.run_folder import SCORES, RunFolder, StagedFile
from transforms.files.sink.stage import StagedWriter, StageFiles, conform_to_files
from transforms.files.sink.staging import check_writable, discard
from transforms.files.sink.writers import OutputFormat


def batch_of(*values: Any, kind: pa.DataType | None = None) -> pa.RecordBatch:
    return pa.record_batch({"a": pa.array(values, kind)})


def stage(folder: RunFolder, batches: list[pa.RecordBatch], fmt: OutputFormat = "jsonl") -> None:
    """Stage one bundle of batches, and compare the returned elements with the files."""
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([None]) | beam.FlatMap(lambda _: batches)
        staged = rows | StageFiles(FolderDestination(SCORES, folder, fmt))
        assert_that(staged, as_on_disk(folder))


def as_on_disk(folder: RunFolder) -> Callable[[list[StagedFile]], None]:
    def check(staged: list[StagedFile]) -> None:
        assert sorted(file.path for file in staged) == sorted(map(str, files_of(folder)))
        assert {file.destination for file in staged} == {SCORES}
        for file in staged:
            assert file.rows == len(read(Path(file.path)))

    return check


def files_of(folder: RunFolder) -> list[Path]:
    return sorted(Path(folder.staging).iterdir())


def read(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path)["a"].to_pylist())
    return [json.loads(line)["a"] for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(str(tmp_path / "out"), "r", "token")
    check_writable(made)
    return made


def test_all_batches_of_a_bundle_go_to_one_file(folder: RunFolder) -> None:
    stage(folder, [batch_of(1, 2), batch_of(), batch_of(3)], "parquet")
    (file,) = files_of(folder)
    assert read(file) == [1, 2, 3]
    assert file.name.startswith("token-scores-")


@pytest.mark.slow
def test_a_large_bundle_is_split_into_files(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_files, "FILE_BYTES", 24)
    stage(folder, [batch_of(1, 2), batch_of(3), batch_of(4, 5, 6), batch_of(7)])
    assert sorted(map(read, files_of(folder))) == [[1, 2, 3], [4, 5, 6], [7]]


def test_batches_that_only_differ_in_the_width_of_a_type_share_a_file(folder: RunFolder) -> None:
    stage(folder, [batch_of(1.5), batch_of(2, kind=pa.int32())], "parquet")
    (file,) = files_of(folder)
    assert read(file) == [1.5, 2.0]


def fails_with(folder: RunFolder, batches: list[pa.RecordBatch], fmt: OutputFormat) -> str:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    rows = pipeline | beam.Create([None]) | beam.FlatMap(lambda _: batches)
    rows | StageFiles(FolderDestination(SCORES, folder, fmt))
    with pytest.raises(OutputError) as caught:
        pipeline.run()
    return str(caught.value)


def test_batches_with_different_types_are_an_error_that_says_so(folder: RunFolder) -> None:
    message = fails_with(folder, [batch_of(1), batch_of("x")], "jsonl")
    assert "rows for the same output have different columns or types" in message
    assert "--output_fields" in message


def test_a_type_that_a_format_cannot_hold_is_an_error_that_says_so(folder: RunFolder) -> None:
    message = fails_with(folder, [batch_of(b"\xff")], "csv")
    assert "cannot be written as csv" in message
    assert "parquet or jsonl" in message


def test_a_removed_staging_folder_is_not_created_again(folder: RunFolder) -> None:
    # Workers that are left of an aborted run must not write any more.
    discard(folder)
    assert "cannot be written" in fails_with(folder, [batch_of(1)], "jsonl")
    assert not Path(folder.staging).exists()


def test_conform_casts_or_raises() -> None:
    schema = pa.schema([("a", pa.int64())])
    assert conform_to_files(batch_of(1, kind=pa.int8()), schema).schema == schema
    assert conform_to_files(batch_of(2.0), schema).to_pydict() == {"a": [2]}
    for wrong in (batch_of(1.5), batch_of("x"), pa.record_batch({"b": [1]})):
        with pytest.raises(
            OutputError, match="rows for the same output have different columns or types"
        ):
            conform_to_files(wrong, schema)


class Timed(FolderDestination):
    """A destination that asks for the times of its files."""

    timed_by = "at"  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [pa.timestamp("us", tz="UTC"), pa.timestamp("ms", tz="UTC")])
def test_a_staged_file_records_its_first_and_last_time_if_the_destination_asks(
    folder: RunFolder, kind: pa.DataType
) -> None:
    first, last = 3_000, 9_000
    batches = [
        pa.record_batch({"at": pa.array(times, pa.timestamp("us", tz="UTC")).cast(kind)})
        for times in ([5_000, last], [], [None], [first])
    ]
    found = []
    for destination in (Timed(SCORES, folder, "parquet"), FolderDestination(SCORES, folder, "csv")):
        file = StagedWriter(destination, batches[0].schema)
        for batch in batches:
            file.write(batch)
        found.append(file.close().times)
    assert found == [(first, last), None]


class Narrow(FolderDestination):
    """A destination with two columns, in its own order and with its own types."""

    @property
    def name(self) -> str:
        return "narrow"

    def file_schema(self, rows: pa.Schema) -> pa.Schema:
        return pa.schema([("b", pa.string()), ("a", pa.float64())])


def test_rows_are_staged_with_the_schema_of_their_destination(folder: RunFolder) -> None:
    batches = [
        pa.record_batch({"a": [1], "c": [0], "b": ["x"]}),
        pa.record_batch({"a": [2.0], "c": [0], "b": pa.array(["y"]).dictionary_encode()}),
    ]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([None]) | beam.FlatMap(lambda _: batches)
        wide = rows | "Wide" >> StageFiles(FolderDestination(SCORES, folder, "jsonl"))
        narrow = rows | "Narrow" >> StageFiles(Narrow(SCORES, folder, "parquet"))
        staged = (wide, narrow) | beam.Flatten() | beam.Map(lambda f: (f.destination, f.rows))
        assert_that(staged, equal_to([("scores", 2), ("narrow", 2)]))
    found = {path.name.split("-")[1]: path for path in files_of(folder)}
    table = pq.read_table(found["narrow"])
    assert table.schema.equals(pa.schema([("b", pa.string()), ("a", pa.float64())]))
    assert table.to_pylist() == [{"b": "x", "a": 1.0}, {"b": "y", "a": 2.0}]
    assert len(found["scores"].read_text().splitlines()) == 2


class FailsOnce(beam.DoFn):
    """A DoFn that fails the first time, after the writer has received the bundle's batches."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def process(self, batch: pa.RecordBatch) -> Any:
        yield batch
        if not self.marker.exists():
            self.marker.touch()
            raise RuntimeError("the worker died")


def test_a_failed_bundle_leaves_no_row(folder: RunFolder, tmp_path: Path) -> None:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    rows = pipeline | beam.Create([batch_of(1, 2)]) | beam.ParDo(FailsOnce(tmp_path / "failed"))
    rows | StageFiles(FolderDestination(SCORES, folder, "jsonl"))
    with pytest.raises(Exception, match="the worker died"):
        pipeline.run()
    stray = files_of(folder)
    assert len(stray) == 1
    # When a runner retries the bundle, it writes another file, and only returns that one.
    pipeline = beam.Pipeline(runner="FnApiRunner")
    rows = pipeline | beam.Create([batch_of(1, 2)]) | beam.ParDo(FailsOnce(tmp_path / "failed"))
    staged = (
        rows
        | StageFiles(FolderDestination(SCORES, folder, "jsonl"))
        | beam.Map(lambda file: file.path)
    )
    assert_that(staged, lambda paths: _only_new(paths, stray))
    pipeline.run()


def _only_new(paths: list[str], stray: list[Path]) -> None:
    assert len(paths) == 1
    assert paths[0] not in map(str, stray)
    assert read(Path(paths[0])) == [1, 2]


def folder_destination(root: Path) -> FolderDestination:
    return FolderDestination(SCORES, RunFolder(str(root), "r", "t"), "jsonl")


def test_a_folder_that_cannot_be_written_is_reported_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file.*choose another folder"):
        folder_destination(tmp_path / "file" / "out").prepare()
    folder_destination(tmp_path / "new" / "out").prepare()
    assert [p.name for p in (tmp_path / "new/out/.staging/r").iterdir()] == ["t-lock"]
