"""Writes small tables of Delta Lake and Iceberg, also with parts that their libraries only read."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from libraries import need_library

DAYS = ("2026-11-19", "2026-11-20")


def rows(ids: str, day: str = DAYS[0], value: float = 1.0) -> pa.Table:
    columns = {name: [value] * len(ids) for name in "abc"}
    return pa.table({"id": list(ids), **columns, "day": [day] * len(ids)})


def write_delta(root: Path) -> None:
    """Write a table whose versions hold xy, xyz, yz, and then yzw with another column."""
    need_library("deltalake")
    from deltalake import DeltaTable, write_deltalake

    write_deltalake(root, rows("xy"), partition_by=["day"])
    write_deltalake(root, rows("z", DAYS[1]), mode="append")
    DeltaTable(root).delete("id = 'x'")
    more = rows("w", DAYS[1]).append_column("city", pa.array(["Ulm"]))
    write_deltalake(root, more, mode="append", schema_mode="merge")


def write_iceberg(location: str, **properties: str) -> None:
    """Write a table whose snapshots hold xy, y, and yz with a renamed column."""
    need_library("pyiceberg")
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("local", uri="sqlite://", warehouse=location, **properties)
    catalog.create_namespace("n")
    old = rows("xy").rename_columns(["id", "a", "b", "old", "day"])
    table = catalog.create_table("n.t", schema=old.schema, location=location)
    table.append(old)
    table.delete("id = 'x'")
    with table.update_schema() as update:
        update.rename_column("old", "c")
    table.append(rows("z", DAYS[1]))


def puffin(data_file: str, positions: list[int], snapshot: int) -> bytes:
    """Return a Puffin file with the deletion vector of a data file."""
    from pyroaring import BitMap

    vector = struct.pack("<qi", 1, 0) + BitMap(positions).serialize()
    body = b"\xd1\xd3\x39\x64" + vector
    blob = struct.pack(">i", len(body)) + body + struct.pack(">I", zlib.crc32(body))
    properties = {"referenced-data-file": data_file, "cardinality": str(len(positions))}
    entry = {
        "type": "deletion-vector-v1",
        "fields": [2147483545],
        "snapshot-id": snapshot,
        "sequence-number": 99,
        "offset": 4,
        "length": len(blob),
        "properties": properties,
    }
    footer = json.dumps({"blobs": [entry], "properties": {}}).encode()
    return b"PFA1" + blob + b"PFA1" + footer + struct.pack("<ii", len(footer), 0) + b"PFA1"


def add_deletes(root: Path, path: Path, count: int, *, version: int = 2, **fields: Any) -> None:
    """Add a snapshot to an Iceberg table whose delete file removes rows, as Spark and Flink do.

    Args:
        root: The folder of the table.
        path: The delete file, in Parquet, or a Puffin file.
        count: The number of its deletes.
        version: The version of the format that the table and the manifest get.
        fields: Fields of the delete file in the manifest.
    """
    from pyiceberg import manifest as m
    from pyiceberg.avro.file import AvroOutputFile
    from pyiceberg.io.pyarrow import PyArrowFileIO
    from pyiceberg.table import StaticTable
    from pyiceberg.typedef import Record

    class Deletes(m.ManifestWriterV2):
        def content(self) -> m.ManifestContent:
            return m.ManifestContent.DELETES

        @property
        def _meta(self) -> dict[str, str]:
            return {**super()._meta, "content": "deletes", "format-version": str(version)}

        def new_writer(self) -> Any:
            # The library itself writes version 2 only.
            schema = self._with_partition(version)
            return AvroOutputFile(self._output_file, schema, "manifest_entry", schema, self._meta)

    newest = max((root / "metadata").glob("*.metadata.json"))
    table, io = StaticTable.from_metadata(str(newest)), PyArrowFileIO()
    file = m.DataFile.from_args(
        version,
        file_path=str(path),
        partition=Record(),
        record_count=count,
        file_size_in_bytes=path.stat().st_size,
        **fields,
    )
    last, number, key = table.current_snapshot(), 99, 7
    assert last is not None
    output = io.new_output(str(root / "metadata/deletes.avro"))
    with Deletes(table.spec(), table.schema(), output, key, "null") as writer:
        status = m.ManifestEntryStatus.ADDED
        writer.add_entry(
            m.ManifestEntry.from_args(version, status=status, snapshot_id=key, data_file=file)
        )
    manifests = [*last.manifests(io), writer.to_manifest_file()]
    listed = str(root / "metadata/snap-7.avro")
    with m.write_manifest_list(2, io.new_output(listed), key, None, number, "null") as lists:
        lists.add_manifests(manifests)
    metadata = json.loads(newest.read_text())
    own = {"snapshot-id": key, "sequence-number": number, "manifest-list": listed}
    if version > 2:
        metadata["next-row-id"] = 0
    metadata["snapshots"].append(metadata["snapshots"][-1] | own)
    metadata |= {"current-snapshot-id": key, "last-sequence-number": number}
    metadata["format-version"] = version
    metadata["refs"]["main"]["snapshot-id"] = key
    (root / "metadata/00099-x.metadata.json").write_text(json.dumps(metadata))


def parquet_deletes(root: Path, content: str, deleted: pa.Table, **fields: Any) -> None:
    """Add a snapshot to an Iceberg table with a delete file in Parquet."""
    from pyiceberg.manifest import DataFileContent

    path = root / "data/deletes.parquet"
    pq.write_table(deleted, path)
    kind = DataFileContent[content]
    add_deletes(root, path, deleted.num_rows, content=kind, file_format="PARQUET", **fields)


def deletion_vector(root: Path, data_file: str, positions: list[int]) -> None:
    """Add a snapshot to an Iceberg table, in version 3 of the format, with a deletion vector."""
    from pyiceberg.manifest import DataFileContent, FileFormat

    path = root / "data/deletes.puffin"
    path.write_bytes(puffin(data_file, positions, 7))
    add_deletes(
        root,
        path,
        len(positions),
        version=3,
        content=DataFileContent.POSITION_DELETES,
        file_format=FileFormat.PUFFIN,
        referenced_data_file=data_file,
        content_offset=4,
        content_size_in_bytes=path.stat().st_size,
    )
