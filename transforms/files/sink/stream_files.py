"""The files that a stream writes: one or more for each span of time and each worker process.

    FOLDER/scores/2026-11-20/12-34-00-060s-3f0c2a71-9b1d44e0.parquet
    FOLDER/scores/2026-11-20/_12-34-00-060s-3f0c2a71-9b1d44e0.json

The span is the one in which the rows came to the sink, right after they were scored, so no row is
late and none is dropped. Then the name has a token of the process that scored the rows, and one of
the attempt to write them: no two attempts use the same name. The second file is the manifest of the
first (`describe`). Readers skip it, because its name starts with `_`.
"""

from __future__ import annotations

import datetime
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from cloud.errors import translate_errors
from common.errors import OutputError, one_line
from common.measures import FILES
from common.memory import check_memory
from transforms.files.sink.unfinished import begun
from transforms.files.sink.writers import OutputFormat, open_writer
from transforms.files.store import create_file, make_folder

# A process uses one token for all its files: its rows share a file. Dataflow decides how many
# processes there are, and so into how many files the rows of a span are divided.
PROCESS = uuid.uuid4().hex[:8]

# The columns with the time at which rows were scored, or became dead letters.
_TIMES = ("scored_at", "failed_at", "timestamp")

Manifest = Mapping[str, Any]


class Span(NamedTuple):
    """A span of time, in seconds since 1970."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class StreamFiles:
    """The files of one part of a stream's result.

    Attributes:
        folder: The folder of the part.
        seconds: The length of a span in seconds.
        output_format: The format of the files.
        rows: A file is written early when it has this many rows.
        size: A file is written early when its rows take this many bytes in memory. It bounds the
            memory that a worker needs to write a file.
    """

    folder: str
    seconds: int
    output_format: OutputFormat
    rows: int = 1 << 20
    size: int = 64 << 20

    def span(self, moment: float) -> Span:
        """Return the span that contains a moment, in seconds since 1970."""
        start = int(moment // self.seconds) * self.seconds
        return Span(start, start + self.seconds)


def check_folder(folder: str) -> None:
    """Create a folder if it does not exist; raise OutputError unless files can be written to it."""
    make_folder(folder)
    probe = FileSystems.join(folder, f".probe-{uuid.uuid4().hex}")
    try:
        with create_file(probe) as handle:
            handle.write(b"probe")
        FileSystems.delete([probe])
    except OutputError:
        raise
    # The client of Cloud Storage raises exceptions of many kinds.
    except Exception as error:
        check_memory(error, folder)
        raise OutputError(
            f"folder {folder} cannot be written: {one_line(error)}; check its name and the roles "
            "of the account"
        ) from error


def file_name(span: Span, process: str, attempt: str, suffix: str) -> str:
    """Return the name of a file, relative to the folder of its part.

    Args:
        span: The span of the rows.
        process: The token of the process that scored the rows.
        attempt: The token of the attempt.
        suffix: The suffix of the file's format, without a dot.
    """
    moment = datetime.datetime.fromtimestamp(span.start, datetime.UTC)
    return (
        f"{moment:%Y-%m-%d}/{moment:%H-%M-%S}-{span.end - span.start:03d}s-{process}-{attempt}."
        f"{suffix}"
    )


def write_span(
    files: StreamFiles, span: Span, process: str, batches: Iterable[pa.RecordBatch]
) -> list[Manifest]:
    """Write rows of a span, and return the manifests of their files, which are not written yet.

    Batches of different schemas go to different files. After `--update`, the state of a stream may
    hold rows of the previous release.

    Args:
        files: The folder and the format.
        span: The span of the rows.
        process: The token of the process that scored the rows.
        batches: The rows.

    Raises:
        OutputError: A file cannot be written.
    """
    by_schema: dict[pa.Schema, list[pa.RecordBatch]] = {}
    for batch in batches:
        by_schema.setdefault(batch.schema.remove_metadata(), []).append(batch)
    manifests = []
    for alike in by_schema.values():
        name = file_name(span, process, uuid.uuid4().hex[:8], files.output_format)
        path = FileSystems.join(files.folder, name)
        with FILES.timed():
            size = write_file(path, alike, files.output_format)
        manifests.append(describe(path, size, span, alike))
    return manifests


def write_file(path: str, batches: Sequence[pa.RecordBatch], output_format: OutputFormat) -> int:
    """Write batches to a file and return its size in bytes.

    The file appears at its path only when it is complete.

    Args:
        path: The path of the file.
        batches: At least one batch; all have the same schema.
        output_format: The format of the file.

    Raises:
        OutputError: The file cannot be written.
    """
    make_folder(os.path.dirname(path))
    with _write_errors(path), begun(path) as handle:
        writer = open_writer(handle, batches[0].schema, output_format)
        for batch in batches:
            writer.write(batch)
        writer.close()
        return int(handle.tell())


def describe(path: str, size: int, span: Span, batches: Sequence[pa.RecordBatch]) -> Manifest:
    """Return the manifest of a file.

    Args:
        path: The path of the file.
        size: Its size in bytes.
        span: The span of its rows.
        batches: Its rows, all of the same schema.
    """
    table = pa.Table.from_batches(batches)
    manifest = {
        "path": path,
        "rows": table.num_rows,
        "bytes": size,
        "span_start": _iso(span.start),
        "span_end": _iso(span.end),
        "columns": [{"name": column.name, "type": str(column.type)} for column in table.schema],
    }
    times = next((n for n in _TIMES if n in table.schema.names), None)
    if times is not None:
        found = pc.min_max(table[times]).as_py()
        manifest |= {"first": found["min"].isoformat(), "last": found["max"].isoformat()}
    return manifest


def _iso(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def write_manifest(manifest: Manifest) -> None:
    """Write the manifest of a complete file beside it. Writing it again changes nothing.

    Raises:
        OutputError: The manifest cannot be written.
    """
    folder, name = os.path.split(manifest["path"])
    path = FileSystems.join(folder, f"_{os.path.splitext(name)[0]}.json")
    with _write_errors(path), begun(path) as handle:
        handle.write(orjson.dumps(manifest) + b"\n")


@contextmanager
def _write_errors(path: str) -> Iterator[None]:
    """Raise errors of writing a file in the block as OutputError."""
    with translate_errors(OutputError, f"{path} cannot be written"):
        try:
            yield
        except (OSError, BeamIOError, pa.ArrowException) as error:
            check_memory(error, path)
            raise OutputError(f"{path} cannot be written: {one_line(error)}") from error
