"""Turn predictions into output rows: the id, the score, the chosen fields and the lineage.

For tables that already exist, rows can also have the layout of the reference pipeline:
`instance_id, anomaly_score, encoded, timestamp`, where `instance_id` is the row id. Rows of a
stream also carry the times and the ids of their messages.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import FINE, cast_column, is_text, read_cells
from common.errors import InputError
from common.memory import check_memory
from common.record_batch import (
    MESSAGE,
    MESSAGE_TYPE,
    OUTPUTS,
    ROW_ID,
    SOURCE,
    UTC_MICROSECONDS,
    typed,
)
from model_handlers.manifests.manifest import Manifest
from model_handlers.steps.raw import RAW_TYPES
from transforms.output_fields import ENCODED, OutputFields
from transforms.provenance import Provenance, utc_now
from transforms.row_schemas import (
    CARRIED,
    LINEAGE,
    REFERENCE_SCHEMA,
    REFERENCE_STREAM_SCHEMA,
    SCORE,
    WINDOW,
)

# The column with the ordering keys of messages, for EncodeRows.
ORDERING_KEY = "millrace_ordering_key"


def encode(
    batch: pa.RecordBatch,
    fields: OutputFields,
    provenance: Provenance,
    scored_at: datetime.datetime,
) -> pa.RecordBatch:
    """Return the output rows of a batch of predictions.

    Args:
        batch: A batch with the column `outputs`.
        fields: The columns to write.
        provenance: The run and the model, for the lineage columns.
        scored_at: When the batch was scored.
    """
    outputs, every = batch.column(OUTPUTS), batch.column(SOURCE)
    rows = batch.num_rows
    time = pa.repeat(pa.scalar(scored_at, UTC_MICROSECONDS), rows)
    message = _message_columns(batch.column(MESSAGE), every, fields) if fields.stream else {}
    if fields.layout == "reference":
        if message:
            seconds = pa.repeat(pa.scalar(scored_at.timestamp()), rows)
            message = {name: message[name] for name in WINDOW} | {
                "pipeline_output_time": seconds,
                **{name: message[name] for name, _ in CARRIED},
            }
        return pa.record_batch(
            {
                "instance_id": batch.column(ROW_ID),
                "anomaly_score": outputs.field(fields.needed[0]).cast(pa.float64()),
                ENCODED: outputs.field(ENCODED).cast(pa.list_(pa.float64())),
                fields.time_column: time,
                **message,
            },
            schema=REFERENCE_STREAM_SCHEMA if message else REFERENCE_SCHEMA,
        )
    source = {name: every.field(name) for name in fields.source}
    for name in fields.numbers:
        if is_text(source[name].type):
            values, state = read_cells(source[name], "float64")
            source[name] = pa.array(values, mask=None if state is None else state != FINE)
    columns = {ROW_ID: batch.column(ROW_ID)}
    if fields.score is not None:
        columns[SCORE] = outputs.field(fields.score)
    columns |= {name: outputs.field(name) for name in fields.outputs}
    columns |= source
    for name in LINEAGE[:-1]:
        columns[name] = _constant(getattr(provenance, name), rows)
    columns[fields.time_column] = time
    if fields.window_seconds is None:
        message = {name: column for name, column in message.items() if name not in WINDOW}
    columns |= message | {name: batch.column(name) for name in fields.timings}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _message_columns(
    message: pa.StructArray, source: pa.StructArray, fields: OutputFields
) -> dict[str, pa.Array]:
    """Return the columns that describe the messages of rows, and their windows.

    A value from the sender takes precedence over the value from Pub/Sub.
    """
    columns = {name: message.field(name) for name in ("event_time", "received_at")}
    microseconds = columns["event_time"].view(pa.int64()).to_numpy()
    if fields.window_seconds is None:
        columns |= dict.fromkeys(WINDOW, pa.nulls(len(message), UTC_MICROSECONDS))
    else:
        length = fields.window_seconds * 1_000_000
        start = microseconds // length * length
        for name, edge in zip(WINDOW, (start, start + length), strict=True):
            columns[name] = pa.array(edge).view(UTC_MICROSECONDS)
    own = {
        "message_id": message.field("message_id"),
        "publish_time": pa.array(microseconds / 1e6),
    }
    for name, kind in CARRIED:
        index = source.type.get_field_index(name)
        given = source.field(index) if index >= 0 else None
        # A column of another type is a feature of the model, not a value that the sender set.
        if given is None or given.type != kind or given.null_count == len(given):
            columns[name] = own[name] if name in own else pa.nulls(len(message), kind)
        else:
            columns[name] = pc.coalesce(given, own[name]) if name in own else given
    return columns


def output_schema(
    fields: OutputFields, manifest: Manifest, provenance: Provenance, source: pa.Schema | None
) -> pa.Schema:
    """Return the schema of output rows.

    Args:
        fields: The columns to write.
        manifest: The manifest of the model.
        provenance: The run and the model.
        source: The columns of the source, or None if each row names its own columns. Then the
            columns passed through are strings, and features are numbers or lists of numbers.
    """
    if source is None:
        source = pa.schema([(name, read_type(name, manifest)) for name in fields.source])
    passed = [source.field(name) for name in fields.source]
    outputs = list(manifest.results.items())
    columns = [(ROW_ID, pa.string()), (SOURCE, pa.struct(passed)), (OUTPUTS, pa.struct(outputs))]
    times = [(name, UTC_MICROSECONDS) for name in fields.timings]
    empty = pa.schema([*columns, (MESSAGE, MESSAGE_TYPE), *times]).empty_table()
    batch = pa.RecordBatch.from_arrays(
        [column.combine_chunks() for column in empty.columns], schema=empty.schema
    )
    schema = encode(batch, fields, provenance, utc_now()).schema
    for field in passed:
        # The metadata of a column says what BigQuery type it has, if the Arrow type does not.
        index = schema.get_field_index(field.name)
        schema = schema.set(index, schema.field(index).with_metadata(field.metadata))
    return schema


def read_type(name: str, manifest: Manifest) -> pa.DataType:
    """Return the type with which a column is read if each row names its own columns."""
    if name in manifest.columns:
        return RAW_TYPES[manifest.columns[name]]
    for spec in manifest.inputs:
        if name in spec.columns:
            kind = pa.float64() if spec.dtype.startswith("float") else pa.int64()
            return pa.list_(kind) if spec.is_list_column else kind
    return pa.string()


@functools.lru_cache(maxsize=1024)
def _constant(value: str, rows: int) -> pa.DictionaryArray:
    """Return a dictionary column with one string for all rows.

    It takes one byte per row in memory, and almost nothing in a file.
    """
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int8)), [value])


def conform(
    rows: pa.RecordBatch, schema: pa.Schema, origins: Mapping[str, str] | None = None
) -> pa.RecordBatch:
    """Return output rows in the types of a schema, without changing a value.

    Args:
        rows: The rows.
        schema: The columns of the rows, in the same order.
        origins: For columns whose files differ in type, these types and files, for the message.

    Raises:
        InputError: A value does not fit its type.
    """
    columns = []
    for field, column in zip(schema, rows.columns, strict=True):
        try:
            columns.append(column if column.type == field.type else cast_column(column, field.type))
        except pa.ArrowException as error:
            check_memory(error, "rows to be written")
            origin = (origins or {}).get(field.name, f"{column.type} in a file")
            raise InputError(
                f"column {field.name!r} cannot be written as {field.type} without changing a "
                f"value: it is {origin}; convert one of the files, or choose --output_fields "
                "without it"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass
class EncodeRows(beam.PTransform):
    """A transform from batches with `outputs` to batches of output rows.

    Attributes:
        fields: The columns to write.
        provenance: The run and the model, for the lineage columns.
        schema: The schema of all output batches. It is needed if the type of a source column can
            differ between batches. None keeps the types of each batch.
        origins: For columns whose files differ in type, these types and files, for messages.
        ordering_keys: Whether to add the column ORDERING_KEY, with those of the messages that the
            rows come from.
    """

    fields: OutputFields
    provenance: Provenance
    schema: pa.Schema | None = None
    origins: Mapping[str, str] | None = None
    ordering_keys: bool = False

    def encode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the output rows of a batch."""
        rows = self._conformed(batch)
        if not self.ordering_keys:
            return rows
        return rows.append_column(ORDERING_KEY, batch.column(MESSAGE).field("ordering_key"))

    def _conformed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        rows = encode(batch, self.fields, self.provenance, utc_now())
        if self.schema is None or rows.schema.equals(self.schema):
            return rows
        if self.fields.stream:
            # An integer may become a float: features of messages are floats.
            return rows.cast(self.schema, safe=False)
        return conform(rows, self.schema, self.origins)

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        """Apply one Map."""
        return typed(batches | beam.Map(self.encode))


def without_ordering_keys(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows without the column ORDERING_KEY."""
    return rows.drop_columns(ORDERING_KEY)
