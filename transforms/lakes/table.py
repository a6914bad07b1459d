"""A table of Delta Lake or Apache Iceberg at one version, as files that can be read in parallel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import unquote

import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from cloud.errors import translate_errors
from common.errors import InputError, MillraceError, UsageError
from common.memory import check_memory
from transforms.files.lake_folders import METADATA, LakeFolder, lake_at, refusal
from transforms.files.store import READER, beam_causes, read_version
from transforms.lakes.storage import delta_options, explain, iceberg_files

# The library names types for columns of more than 2 GiB, which no batch has.
_SMALL = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}


@dataclass(frozen=True)
class TableFile:
    """A file with rows of a table.

    Attributes:
        path: The path of the file.
        rows: How many of its rows are in the table, or None if that is not known.
    """

    path: str
    rows: int | None


class LakeTable(Protocol):
    """A table at one version."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table at this version."""

    def files(self) -> list[TableFile]:
        """Return the files of the table, sorted by path."""

    def batches(self, path: str, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a file that are in the table, in batches of about `rows` rows."""


@dataclass(frozen=True, kw_only=True)
class LakeVersion:
    """The name of a table at one version.

    Attributes:
        folder: The folder of the table.
        version: The version of a Delta table, or the id of a snapshot of an Iceberg table.
        metadata: The metadata file of an Iceberg table that has the snapshot.
    """

    folder: LakeFolder
    version: int
    metadata: str = ""

    @property
    def place(self) -> str:
        """The name for messages."""
        noun = "version" if self.folder.kind == "Delta Lake" else "snapshot"
        return f"{self.folder.kind} table {self.folder.root} at {noun} {self.version}"

    def open(self) -> LakeTable:
        """Open the table.

        Raises:
            InputError: The table cannot be read, or needs something that Millrace does not have.
        """
        with lake_errors(self.place):
            if self.folder.kind == "Delta Lake":
                return DeltaTable(self)
            return IcebergTable(self)


def find_lake(pattern: str, version: int | None) -> LakeVersion | None:
    """Return the table that a path names, or None if it names something else.

    Args:
        pattern: The path of a table's folder, or of a metadata file of an Iceberg table.
        version: The version to read, or None for the latest.

    Raises:
        InputError: The table, or the version, cannot be read.
        UsageError: The library that reads it is not installed.
    """
    if pattern.endswith(METADATA):
        folder = LakeFolder(pattern.rpartition("/metadata/")[0] or pattern, "Apache Iceberg")
        return _iceberg_version(folder, pattern, version)
    folder_found = lake_at(pattern)
    if folder_found is None:
        return None
    if folder_found.kind == "Delta Lake":
        return _delta_version(folder_found, version)
    if folder_found.kind == "Apache Hudi":
        raise refusal(folder_found, folder_found.root)
    with lake_errors(f"Apache Iceberg table {folder_found.root}"):
        metadata = _latest_metadata(folder_found.root)
    return _iceberg_version(folder_found, metadata, version)


@contextmanager
def lake_errors(place: str) -> Iterator[None]:
    """Raise all errors of the libraries as InputError, which names the table."""
    try:
        with translate_errors(InputError, f"{place} cannot be read", READER), beam_causes():
            yield
    except MillraceError:
        raise
    except Exception as error:
        check_memory(error, place)
        raise InputError(f"{place} cannot be read: {explain(error)}") from error


def _library(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(
            f"reading this table needs the package {name.partition('.')[0]}: install "
            f"millrace[{extra}]"
        ) from error


def _delta_version(folder: LakeFolder, version: int | None) -> LakeVersion:
    deltalake = _library("deltalake", "delta")
    place = f"Delta Lake table {folder.root}"
    with lake_errors(place):
        options = delta_options(folder.root)
        table = deltalake.DeltaTable(folder.root, storage_options=options, without_files=True)
        latest = int(table.version())
    if version is not None and version > latest:
        raise InputError(f"{place} has no version {version}: --table_version may be up to {latest}")
    return LakeVersion(folder=folder, version=latest if version is None else version)


@dataclass
class DeltaTable:
    """A Delta Lake table. Partition columns and columns that a file lacks are filled in."""

    named: LakeVersion

    @cached_property
    def _table(self) -> Any:
        deltalake = _library("deltalake", "delta")
        root, version = self.named.folder.root, self.named.version
        table = deltalake.DeltaTable(root, version, storage_options=delta_options(root))
        if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            raise InputError(
                f"{self.named.place} renames columns by delta.columnMapping.mode, which Millrace "
                "does not read: export the table to Parquet files"
            )
        return table

    @cached_property
    def _dataset(self) -> Any:
        from pyarrow.dataset import ParquetReadOptions

        # Spark writes times as INT96, which have nanoseconds and overflow in the year 2262.
        options = ParquetReadOptions(coerce_int96_timestamp_unit="us")
        return self._table.to_pyarrow_dataset(parquet_read_options=options)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        return self._dataset.schema

    def files(self) -> list[TableFile]:
        """Return the files of the table, sorted by path."""
        actions = pa.table(self._table.get_add_actions(flatten=True))
        paths = actions.column("path").to_pylist()
        rows = actions.column("num_records").to_pylist()
        # The log of a table escapes paths, as in city=Neu%2520Ulm for the folder city=Neu%20Ulm.
        paths = [path if path in self._fragments else unquote(path) for path in paths]
        return [TableFile(path, count) for path, count in sorted(zip(paths, rows, strict=True))]

    @cached_property
    def _fragments(self) -> dict[str, Any]:
        return {fragment.path: fragment for fragment in self._dataset.get_fragments()}

    def batches(self, path: str, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a file."""
        yield from self._fragments[path].to_batches(
            schema=self.schema, columns=list(names), batch_size=rows, use_threads=False
        )


def _latest_metadata(root: str) -> str:
    """Return the newest metadata file of an Iceberg table, which its hint names if it has one."""
    folder = f"{root}/metadata"
    hint = (read_version(f"{folder}/version-hint.text").content or b"").decode().strip()
    if hint:
        return f"{folder}/{hint if hint.endswith(METADATA) else _hinted(hint)}"
    found = FileSystems.match([f"{folder}/*{METADATA}"])[0].metadata_list
    paths = sorted(file.path for file in found)
    newest = max(map(_number, paths))
    last = [path for path in paths if _number(path) == newest]
    if len(last) > 1:
        raise InputError(
            f"Iceberg table {root} has {len(last)} metadata files with the number {newest}, and no "
            f"version-hint.text says which is current: pass --input_files with one of them, such "
            f"as {last[0]}"
        )
    return last[0]


def _hinted(hint: str) -> str:
    return f"{f'v{hint}' if hint.isdigit() else hint}{METADATA}"


def _number(path: str) -> int:
    """Return the number of a metadata file such as v3.metadata.json or 00003-UUID.metadata.json."""
    found = re.match(r"v?(\d+)", path.rpartition("/")[2])
    return int(found[1]) if found else -1


def _iceberg_version(folder: LakeFolder, metadata: str, version: int | None) -> LakeVersion:
    place = f"Apache Iceberg table {folder.root}"
    with lake_errors(place):
        table = _static_table(metadata)
        found = table.current_snapshot() if version is None else table.snapshot_by_id(version)
        if found is None:
            known = ", ".join(str(one.snapshot_id) for one in table.snapshots()) or "none"
            raise InputError(
                f"{place} has no snapshot {version}: --table_version may be one of {known}"
                if version is not None
                else f"{place} has no snapshot, and so no rows"
            )
    return LakeVersion(folder=folder, version=int(found.snapshot_id), metadata=metadata)


def _static_table(metadata: str) -> Any:
    library = _library("pyiceberg.table", "iceberg")
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.serializers import FromInputFile

    files, name = iceberg_files(), "static-table"
    found = FromInputFile.table_metadata(files.new_input(metadata))
    return library.StaticTable((name, metadata), found, metadata, files, NoopCatalog(name))


@dataclass
class IcebergTable:
    """An Iceberg table. Renamed columns, and deletes of single rows, are followed."""

    named: LakeVersion

    @cached_property
    def _table(self) -> Any:
        return _static_table(self.named.metadata)

    def _scan(self, *names: str) -> Any:
        # A scan of a snapshot has the columns of its time, also if they have changed since then.
        current = self.named.version == self._table.metadata.current_snapshot_id
        snapshot = None if current else self.named.version
        return self._table.scan(snapshot_id=snapshot, selected_fields=names)

    @cached_property
    def _tasks(self) -> dict[str, Any]:
        scan = self._scan("*")
        return {task.file.file_path: task for task in scan.plan_files()}

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        scan = self._scan("*")
        found = schema_to_pyarrow(scan.projection(), include_field_ids=False)
        return pa.schema([f.with_type(_SMALL.get(f.type, f.type)) for f in found])

    def files(self) -> list[TableFile]:
        """Return the files of the table, sorted by path."""
        return [
            TableFile(path, None if task.delete_files else task.file.record_count)
            for path, task in sorted(self._tasks.items())
        ]

    def batches(self, path: str, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a file that were not deleted."""
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan

        scan = self._scan(*names)
        reader = ArrowScan(self._table.metadata, self._table.io, scan.projection(), AlwaysTrue())
        schema = pa.schema([self.schema.field(name) for name in names])
        for batch in reader.to_record_batches([self._tasks[path]]):
            yield batch.select(names).cast(schema)
