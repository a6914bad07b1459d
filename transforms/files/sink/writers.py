"""Write record batches to a Parquet, CSV or JSON Lines file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from common.cells import decoded
from common.json_objects import json_cells, json_objects
from common.record_batch import to_rows
from common.texts import is_binary
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.dead_letters import to_letter_line

OutputFormat = Literal["parquet", "csv", "jsonl"]

# Readers read a Parquet file in parallel by row groups.
ROW_GROUP_ROWS = 131_072


class BatchWriter(Protocol):
    """A writer of record batches of one schema to an open file."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a batch to the file, or to a buffer."""

    def close(self) -> None:
        """Write what is buffered, and a footer if the format has one."""


def open_writer(handle: Any, schema: pa.Schema, output_format: OutputFormat) -> BatchWriter:
    """Return a writer for a format.

    CSV cannot hold bytes. The other formats hold everything.

    Args:
        handle: A file that is open for writing bytes.
        schema: The schema of all batches.
        output_format: The format.

    Raises:
        pa.ArrowException: The format cannot hold the columns of the schema.
    """
    writers: dict[str, Callable[[Any, pa.Schema], BatchWriter]] = {
        "parquet": ParquetBatchWriter,
        "csv": CsvBatchWriter,
        "jsonl": JsonLinesBatchWriter,
    }
    return writers[output_format](handle, schema)


class ParquetBatchWriter:
    """A writer of Parquet that gathers batches into row groups of at least ROW_GROUP_ROWS rows."""

    def __init__(self, handle: Any, schema: pa.Schema) -> None:
        # Only the lineage columns repeat. A dictionary of scores costs time and saves no space.
        repeated = [f.name for f in schema if pa.types.is_dictionary(f.type)]
        self._writer = pq.ParquetWriter(
            handle, schema, use_dictionary=repeated or False, write_page_checksum=True
        )
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add a batch to the current row group."""
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_batches(self._waiting, self._schema)
            self._writer.write_table(table, row_group_size=self._rows)
            self._waiting, self._rows = [], 0

    def close(self) -> None:
        """Write the last row group and the footer."""
        self._flush()
        self._writer.close()


class JsonLinesBatchWriter:
    """A writer of JSON Lines: one object per line, in which bytes are base64.

    Only the payload of a dead letter is text if it can be (transforms/dead_letters.py).
    """

    def __init__(self, handle: Any, schema: pa.Schema) -> None:
        self._handle = handle
        self._encode = _letter_lines if schema.equals(FAILURE_SCHEMA) else _row_lines

    def write(self, batch: pa.RecordBatch) -> None:
        """Write one line per row."""
        self._handle.write(self._encode(batch))

    def close(self) -> None:
        """Do nothing, because nothing is buffered."""


def _row_lines(rows: pa.RecordBatch) -> bytes:
    return b"".join(line + b"\n" for line in json_objects(rows, nulls=True))


def _letter_lines(letters: pa.RecordBatch) -> bytes:
    return b"".join(map(to_letter_line, to_rows(letters)))


class CsvBatchWriter:
    """A writer of CSV with a header.

    A list of fixed size becomes one column per element; other lists and objects become JSON.
    """

    def __init__(self, handle: Any, schema: pa.Schema) -> None:
        flat = flatten(pa.RecordBatch.from_pylist([], schema=schema)).schema
        for field in flat:
            if is_binary(field.type):
                raise pa.ArrowInvalid(f"column {field.name!r} is {field.type}")
        self._writer = pa_csv.CSVWriter(handle, flat)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write one line per row."""
        self._writer.write_batch(flatten(batch))

    def close(self) -> None:
        """Write the last lines."""
        self._writer.close()


def flatten(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch of plain columns, as CSV has them.

    A list of fixed size becomes one column per element (`encoded_0`, `encoded_1`, ...). Other lists
    and objects become JSON. A dictionary column is decoded.
    """
    columns: dict[str, pa.Array] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        columns |= dict(_flat_columns(name, column))
    return pa.record_batch(columns)


def _flat_columns(name: str, column: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    if pa.types.is_dictionary(column.type):
        yield name, decoded(column)
    elif pa.types.is_fixed_size_list(column.type):
        for i in range(column.type.list_size):
            yield from _flat_columns(f"{name}_{i}", pc.list_element(column, i))
    elif pa.types.is_nested(column.type):
        yield name, pa.array(json_cells(column), pa.binary()).cast(pa.string())
    else:
        yield name, column
