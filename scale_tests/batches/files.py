"""The rows and the results of a test as files, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import csv, json

from common.errors import InputError, OutputError, one_line
from scale_tests.batches.place import (
    FILE_ROWS,
    Found,
    Input,
    Ints,
    discard_run,
    empty,
    remove_folder,
)
from scale_tests.load.arrow_rows import read_ids
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.files.sink.writers import OutputFormat, open_writer
from transforms.files.store import (
    arrow_storage,
    create_file,
    entries,
    file_errors,
    is_remote,
    make_folder,
)

# A line of JSON must fit.
LINE_BYTES = 64 << 20
_TIMES = {SCORES: "scored_at", DEAD_LETTERS: "failed_at"}


@dataclass(frozen=True)
class Files:
    """A folder of a test.

    Attributes:
        root: The folder, which no other test uses.
        test_id: The first part of the ids of rows.
        format: The format of rows and results.
    """

    root: str
    test_id: str
    format: OutputFormat

    def write(self, name: str, batches: Iterable[pa.RecordBatch]) -> Input:
        """Write rows that a batch can read.

        Raises:
            OutputError: A file cannot be written, for example because the disk is full, or the
                format cannot hold the rows.
        """
        folder = f"{self.root}/{name}"
        with file_errors(f"rows cannot be written to {folder}"):
            make_folder(folder)
            try:
                self._write(folder, batches)
            except pa.ArrowException as error:
                raise OutputError(
                    f"{folder}: batch.format {self.format} cannot hold the rows: {one_line(error)}"
                ) from error
            size = sum(entry.size for entry in entries(folder))
        # Quotes keep a folder together that contains spaces or commas.
        quoted = folder.replace('"', '""')
        return Input(flags=(f'--input_files="{quoted}"',), bytes=size)

    def _write(self, folder: str, batches: Iterable[pa.RecordBatch]) -> None:
        rows, number = FILE_ROWS, 0
        handle: Any = None
        writer: Any = None
        try:
            for batch in batches:
                if rows >= FILE_ROWS:
                    if writer is not None:
                        writer.close()
                        handle.close()
                    handle = create_file(f"{folder}/part-{number:05d}.{self.format}")
                    writer = open_writer(handle, batch.schema, self.format)
                    rows, number = 0, number + 1
                writer.write(batch)
                rows += batch.num_rows
            if writer is not None:
                writer.close()
        finally:
            if handle is not None:
                handle.close()

    def flags(self, run_id: str) -> tuple[str, ...]:
        """Return the flags of the output of a run."""
        return (f"--output_files={self.root}/out", "--output_format", self.format)

    def read(self, run_id: str) -> Found:
        """Return the results of a run that are in place, and what the run left elsewhere.

        Raises:
            InputError: The results cannot be read.
        """
        folder = RunFolder(f"{self.root}/out", run_id, "")
        with file_errors(f"the results in {folder.place} cannot be read", InputError):
            try:
                scored, times, size = self._part(folder, SCORES)
                dead, _, more = self._part(folder, DEAD_LETTERS)
            except pa.ArrowException as error:
                raise InputError(
                    f"the results in {folder.place} cannot be read: {one_line(error)}"
                ) from error
            staged = entries(folder.staging)
        left = f"{len(staged):,} unfinished files are left in {folder.staging}" if staged else ""
        return Found(scored=scored, dead=dead, times=times, bytes=size + more, left=left)

    def _part(self, folder: RunFolder, part: str) -> tuple[Ints, tuple[float, float] | None, int]:
        """Return the numbers of the rows of a part, its first and last time, and its bytes."""
        place = folder.part(part)
        listed = [entry for entry in entries(place) if entry.is_file]
        by_kind: dict[str, list[str]] = {}
        for entry in listed:
            by_kind.setdefault(entry.name.rpartition(".")[2], []).append(f"{place}/{entry.name}")
        numbers, times = [empty()], []
        for kind, paths in sorted(by_kind.items()):
            for batch in _open(paths, kind).to_batches(columns=["row_id", _TIMES[part]]):
                numbers.append(read_ids(batch.column(0), self.test_id))
                if batch.num_rows:
                    times += [*pc.min_max(batch.column(1)).as_py().values()]
        seconds = [_seconds(time) for time in times if time is not None]
        size = sum(entry.size for entry in listed)
        return np.concatenate(numbers), (min(seconds), max(seconds)) if seconds else None, size

    def discard(self, run_id: str) -> None:
        """Remove the results of a run."""
        discard_run(f"{self.root}/out", run_id)

    def drop(self, name: str) -> None:
        """Remove the rows of this name."""
        remove_folder(f"{self.root}/{name}")

    def remove(self) -> None:
        """Remove the folder of the test."""
        remove_folder(self.root)


def _open(paths: list[str], kind: str) -> ds.Dataset:
    formats: dict[str, ds.FileFormat] = {
        "parquet": ds.ParquetFileFormat(),
        "csv": ds.CsvFileFormat(
            convert_options=csv.ConvertOptions(column_types={"row_id": pa.string()})
        ),
        "jsonl": ds.JsonFileFormat(read_options=json.ReadOptions(block_size=LINE_BYTES)),
    }
    if not is_remote(paths[0]):
        return ds.dataset(paths, format=formats[kind])
    names = [path.removeprefix("gs://") for path in paths]
    return ds.dataset(names, format=formats[kind], filesystem=arrow_storage())


def _seconds(time: datetime | str) -> float:
    """Return a time in seconds since 1970. In JSON and CSV it may be text."""
    return (datetime.fromisoformat(time) if isinstance(time, str) else time).timestamp()
