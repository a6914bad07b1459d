"""Write record batches to files in a staging folder, one or more per bundle.

The files become output only when the run is complete (commit.py). If a runner
retries a bundle, an unused staged file remains, but no row is duplicated.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindows

from common.errors import OutputError
from common.memory import check_memory
from common.record_batch import UTC_MICROSECONDS
from transforms.files.sink.destination import Destination
from transforms.files.sink.run_folder import StagedFile
from transforms.files.sink.staging import hold
from transforms.files.sink.writers import open_writer
from transforms.files.store import create_file

FILE_BYTES = 512 << 20
# The processes whose end also ends this process.
_watched: set[int] = set()


def end_with(launcher: int) -> None:
    """End this process when the process with a given id ends.

    Otherwise a worker would continue with its bundle, and commit it, while the next run is
    already in progress. The id of this process itself is ignored.
    """
    if launcher == os.getpid() or launcher in _watched:
        return
    _watched.add(launcher)
    try:
        handle = os.pidfd_open(launcher)
    except ProcessLookupError:
        os._exit(1)
    except (OSError, AttributeError):
        # pidfd_open needs a recent Linux. The guarantees of a commit also hold without it.
        return
    threading.Thread(target=_exit_after, args=(handle,), daemon=True).start()


def _exit_after(handle: int) -> None:
    select.select([handle], [], [])
    os._exit(1)


class StagedWriter:
    """A staged file that is being written.

    Args:
        destination: The destination; its folder was prepared before the run.
        rows: The schema of the rows.

    Raises:
        OutputError: The file cannot be created, or its format cannot hold the rows.
    """

    def __init__(self, destination: Destination, rows: pa.Schema) -> None:
        self._destination = destination
        self._schema = destination.file_schema(rows)
        self._times: tuple[int, int] | None = None
        self._rows, self.bytes = 0, 0
        kind = destination.output_format
        # The folder was created before the run (check_writable). If it is gone, the run was
        # aborted, and a worker that has not noticed must not create it again.
        self._path = destination.folder.staged(f"{destination.name}-{uuid.uuid4().hex}.{kind}")
        self._handle = create_file(self._path)
        try:
            self._writer = open_writer(self._handle, self._schema, kind)
        except pa.ArrowException as error:
            check_memory(error, self._path)
            raise OutputError(
                f"these rows cannot be written as {kind}: {error}; choose --output_format "
                "parquet or jsonl"
            ) from error

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows to the file.

        Raises:
            OutputError: The file cannot be written, or the rows differ from the first ones.
        """
        if not batch.schema.equals(self._schema):
            batch = conform_to_files(batch, self._schema)
        with self._errors():
            self._writer.write(batch)
        self._rows += batch.num_rows
        self.bytes += batch.nbytes
        if (time := self._destination.timed_by) is not None:
            self._times = _with_times(self._times, batch.column(time))

    def close(self) -> StagedFile:
        """Finish the file. Raise OutputError if it cannot be written."""
        with self._errors():
            self._writer.close()
            size = self._handle.tell()
            self._handle.close()
        return StagedFile(self._destination.name, self._path, self._rows, size, self._times)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            check_memory(error, self._path)
            raise OutputError(f"{self._path} cannot be written: {error}") from error


class _StageDoFn(beam.DoFn):
    """A DoFn that writes the record batches of a bundle to staged files, and yields these files."""

    def __init__(self, destination: Destination, launcher: int | None) -> None:
        self._destination, self._launcher = destination, launcher
        self._file: StagedWriter | None = None

    def setup(self) -> None:
        hold(self._destination.folder)
        if self._launcher is not None:
            end_with(self._launcher)

    def start_bundle(self) -> None:
        self._file = None

    def process(self, batch: pa.RecordBatch) -> Iterator[StagedFile]:
        if self._file is None:
            self._file = StagedWriter(self._destination, batch.schema)
        self._file.write(batch)
        if self._file.bytes >= FILE_BYTES:
            yield self._file.close()
            self._file = None

    def finish_bundle(self) -> Iterator[Any]:
        if self._file is not None:
            yield GlobalWindows.windowed_value_at_end_of_window(self._file.close())
            self._file = None


def _with_times(times: tuple[int, int] | None, column: pa.Array) -> tuple[int, int] | None:
    """Return the first and the last of some times and of those in a column of timestamps.

    Args:
        times: The first and the last time so far, in microseconds since 1970, if any.
        column: Further times.
    """
    found = pc.min_max(column.cast(UTC_MICROSECONDS).cast(pa.int64())).as_py()
    if found["min"] is None:
        return times
    first, last = times or (found["min"], found["max"])
    return min(first, found["min"]), max(last, found["max"])


def conform_to_files(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Cast a batch to a similar schema, for example int32 to int64.

    Input files may differ in the type of a column that is passed through.

    Raises:
        OutputError: The columns differ, or a value does not fit its type.
    """
    try:
        return batch.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError) as error:
        check_memory(error, "rows to be written")
        raise OutputError(
            "rows for the same output have different columns or types: first "
            f"{', '.join(schema.names)}, then {', '.join(batch.schema.names)}"
            f"{_other_types(batch.schema, schema)}; all input files need the columns of "
            "--output_fields, with the same types"
        ) from error


def _other_types(found: pa.Schema, expected: pa.Schema) -> str:
    """Return the part of a message that lists columns with different types."""
    file_errors = [
        f"column {field.name}: expected {field.type}, got {found.field(field.name).type}"
        for field in expected
        if field.name in found.names and found.field(field.name).type != field.type
    ]
    return f" ({'; '.join(file_errors[:3])})" if file_errors else ""


@dataclass
class StageFiles(beam.PTransform):
    """A transform that writes record batches to staged files, and returns these files.

    Attributes:
        destination: The destination; its folder was prepared before the run.
        launcher: The id of the process that started the run, if the workers are its children and
            have to end with it.
    """

    destination: Destination
    launcher: int | None = None

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[StagedFile]:
        """Apply one DoFn, which keeps a file open during a bundle."""
        return batches | beam.ParDo(_StageDoFn(self.destination, self.launcher))
