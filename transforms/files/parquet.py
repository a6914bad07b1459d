"""Open Parquet files, of which each process reads the footer once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from common.errors import InputError, one_line
from common.memory import check_memory
from transforms.files.objects import ObjectFile, Span
from transforms.files.pins import Pin

# The footers that a process keeps, in bytes as they are stored. In memory they take several times
# as many. A footer has about 100 bytes for each column of each row group.
FOOTER_BYTES = 16 << 20


class ParquetSource(pq.ParquetFile):  # type: ignore[misc]
    """An open Parquet file.

    Args:
        source: The path of a local file, or a file object.
        footer: The footer, or None to read it.
        dictionaries: Columns of text that are read as dictionaries.
    """

    def __init__(
        self,
        source: Any,
        footer: pq.FileMetaData | None = None,
        dictionaries: Sequence[str] = (),
    ) -> None:
        self._object = source if isinstance(source, ObjectFile) else None
        # Arrow reads local files itself, without calling Python.
        other = self._object is None and not isinstance(source, str)
        super().__init__(
            source,
            metadata=footer,
            read_dictionary=list(dictionaries),
            # Buffering a row group ahead hides network latency. On a disk it only costs memory.
            pre_buffer=other,
            page_checksum_verification=True,
            # By default, INT96 times are read in nanoseconds, which wrap around after 2262.
            coerce_int96_timestamp_unit="us",
        )

    def batches(
        self, batch_rows: int, groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns of row groups as batches.

        Args:
            batch_rows: The maximum number of rows in a batch.
            groups: The row groups.
            columns: The names of the columns.
        """
        if self._object is not None:
            self._object.fetch(list(self._spans(groups, columns)))
        # Use one thread: Beam's workers provide the parallelism, and memory stays bounded.
        yield from self.iter_batches(batch_rows, groups, columns=list(columns), use_threads=False)

    def _spans(self, groups: Sequence[int], columns: Sequence[str]) -> Iterator[Span]:
        """Yield the bytes of columns, as Arrow reads them: one span in each row group."""
        paths = [self.schema.column(i).path for i in range(len(self.schema))]
        names, nested = {*columns}, tuple(f"{name}." for name in columns)
        wanted = [i for i, path in enumerate(paths) if path in names or path.startswith(nested)]
        for group in map(self.metadata.row_group, groups):
            for column in map(group.column, wanted):
                start = column.data_page_offset
                if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
                    start = column.dictionary_page_offset
                yield Span(start, start + column.total_compressed_size)


def open_parquet(
    path: str, pinned: Pin | None = None, dictionaries: Sequence[str] = ()
) -> ParquetSource:
    """Open a Parquet file and read its footer, unless this process has it already.

    Args:
        path: A path on any Beam filesystem.
        pinned: The state of the file that is read, or None to read the file as it is now.
        dictionaries: Columns of text that are read as dictionaries, if they are stored so.

    Raises:
        InputError: The file is not a readable Parquet file, or has changed.
    """
    try:
        source = _open(path, pinned)
        if pinned is None:
            return ParquetSource(source)
        footer = _footers.get(pinned, lambda: pq.read_metadata(source))
        stored = [name for name in dictionaries if _has_dictionaries(footer, name)]
        return ParquetSource(source, footer, stored)
    except (pa.ArrowException, BeamIOError, OSError, UnicodeError) as error:
        check_memory(error, path)
        raise InputError(
            f"{path} is not a readable Parquet file: {one_line(error).rstrip('.')}; it may be "
            "truncated, or have another format (--input_format)"
        ) from error


def _has_dictionaries(footer: pq.FileMetaData, name: str) -> bool:
    """Return whether a column is stored with a dictionary in each row group."""
    places = [i for i in range(footer.num_columns) if footer.schema.column(i).path == name]
    groups = map(footer.row_group, range(footer.num_row_groups))
    return bool(places) and all(group.column(places[0]).has_dictionary_page for group in groups)


def _open(path: str, pinned: Pin | None) -> Any:
    """Return a local path as it is, or a file object of another filesystem."""
    if path.startswith("gs://"):
        return ObjectFile(path, pinned)
    if "://" in path:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return path


class Footers:
    """The footers of the files that were used last; any number of threads may share them.

    Args:
        most_bytes: How many bytes all kept footers may have. The newest one is always kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Pin, Future[pq.FileMetaData]] = OrderedDict()

    def get(self, pinned: Pin, read: Callable[[], pq.FileMetaData]) -> pq.FileMetaData:
        """Return the footer of a file; read it unless it is kept or another thread is reading it.

        Args:
            pinned: The file in the state in which it is read.
            read: The function that reads the footer. What it raises is raised.
        """
        with self._lock:
            found = self._kept.get(pinned)
            ours = found is None
            if found is None:
                found = self._kept[pinned] = Future()
            self._kept.move_to_end(pinned)
        if ours:
            try:
                found.set_result(read())
            except BaseException as error:
                with self._lock:
                    self._kept.pop(pinned, None)
                found.set_exception(error)
            else:
                self._drop_oldest()
        return found.result()

    def _drop_oldest(self) -> None:
        """Drop the footers that were not used for longest, until the others are within bounds."""
        with self._lock:
            total = 0
            for pinned, found in list(reversed(self._kept.items())):
                total += found.result().serialized_size if found.done() else 0
                if total > self._most_bytes and pinned != next(reversed(self._kept)):
                    del self._kept[pinned]


_footers = Footers(FOOTER_BYTES)
