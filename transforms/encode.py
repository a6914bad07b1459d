"""Turn predictions into output rows: the id, the score, the chosen fields and the lineage.

For tables that already exist, rows can also have the layout of the reference pipeline:
`instance_id, anomaly_score, encoded, timestamp`, where `instance_id` is the row id. Rows of a
stream also carry the times and the ids of their messages.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import FINE, cast_column, is_text, read_cells
from common.errors import InputError, UsageError, suggest
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
from model_handlers.manifest import Manifest
from model_handlers.steps.raw import RAW_TYPES
from transforms.provenance import Provenance, utc_now
from transforms.row_schemas import (
    CARRIED,
    LINEAGE,
    REFERENCE_SCHEMA,
    REFERENCE_STREAM_SCHEMA,
    SCORE,
    WINDOW,
)

_OWN = {ROW_ID, SCORE, *LINEAGE}
ENCODED = "encoded"
# The column with the ordering keys of messages, for EncodeRows.
ORDERING_KEY = "millrace_ordering_key"

_OF_STREAMS = {"event_time", "received_at", *WINDOW, *(name for name, _ in CARRIED)}

OutputLayout = Literal["default", "reference"]


@dataclass(frozen=True, kw_only=True)
class OutputFields:
    """The columns of an output row besides its id and lineage.

    Attributes:
        score: The output or field that is written as `score`, or None.
        outputs: The outputs and fields to write, each under its own name.
        source: The source columns to write, each under its own name.
        numbers: The columns of `source` that are features. They are written as numbers even if
            the source has them as strings, for example in some batches of a CSV file.
        layout: `reference` for the rows of the reference pipeline.
        stream: Whether rows arrive as messages.
        window_seconds: The length in seconds of the windows in the columns WINDOW, or None to
            leave out these columns.
        timings: The columns of the batch with times at which it passed a step of the stream.
    """

    score: str | None
    outputs: tuple[str, ...]
    source: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    layout: OutputLayout = "default"
    stream: bool = False
    window_seconds: int | None = None
    timings: tuple[str, ...] = ()

    @property
    def time_column(self) -> str:
        """The column with the time at which a row was scored."""
        return "timestamp" if self.layout == "reference" else "scored_at"

    @property
    def score_column(self) -> str | None:
        """The column of the score, or None if the rows have no score."""
        if self.layout == "reference":
            return "anomaly_score"
        return None if self.score is None else SCORE

    def decisions(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the columns whose values are names of decisions or classes."""
        return tuple(name for name in manifest.decisions if name in self.outputs)

    @property
    def needed(self) -> tuple[str, ...]:
        """The outputs and fields of the model that a row needs."""
        score = () if self.score is None or self.score in self.outputs else (self.score,)
        return (*score, *self.outputs)


def choose_fields(
    manifest: Manifest,
    names: Sequence[str] | None = None,
    *,
    stream: bool = False,
    timings: tuple[str, ...] = (),
) -> OutputFields:
    """Return the output fields for the names that a user chose.

    Args:
        manifest: The manifest of the model.
        names: Names of outputs and fields of the model; other names are source columns. None means
            the `output_fields` of the manifest, or all outputs and fields if the manifest has none.
        stream: Whether rows arrive as messages.
        timings: As in OutputFields.

    Raises:
        UsageError: A name is one that output rows always use.
    """
    score = manifest.score_output
    every = tuple(manifest.results)
    own = (_OWN if score is not None else _OWN - {SCORE}) | (_OF_STREAMS if stream else set())
    own = own.union(timings)
    if names is None:
        chosen = manifest.output_fields or tuple(name for name in every if name != score)
        chosen = tuple(name for name in chosen if not name == score == SCORE)
        if taken := sorted(own.intersection(chosen)):
            raise UsageError(
                f"model {manifest.name} has {manifest.kinds} {', '.join(map(repr, taken))}, but "
                "output rows already have other columns with these names: choose other "
                f"{manifest.kinds} with --output_fields"
            )
        return OutputFields(score=score, outputs=chosen, stream=stream, timings=timings)
    for name in names:
        if name in own:
            raise UsageError(
                f"--output_fields: {name!r} is always written, so leave it out; choose from the "
                f"{manifest.kinds} {', '.join(every)}, and the columns of the source"
            )
    distinct = dict.fromkeys(names)
    return OutputFields(
        score=score,
        outputs=tuple(name for name in distinct if name in every),
        source=tuple(name for name in distinct if name not in every),
        numbers=tuple(n for n in distinct if _is_number(n, manifest) and n not in every),
        stream=stream,
        timings=timings,
    )


def _is_number(name: str, manifest: Manifest) -> bool:
    """Return whether a source column is a feature of numbers."""
    if name in manifest.columns:
        return manifest.columns[name] in ("float64", "int64")
    return name in manifest.features


def reference_fields(manifest: Manifest) -> OutputFields:
    """Return the fields of the reference rows; raise UsageError if the model lacks the outputs."""
    latent = [spec for spec in manifest.outputs if spec.name == ENCODED and len(spec.shape) == 1]
    if manifest.score_output is None or not latent:
        score = manifest.score_output
        raise UsageError(
            f"--output_schema reference: expected a model with a score and a one-dimensional "
            f"output {ENCODED!r}; model {manifest.name} has "
            f"{'no score' if score is None else f'the score {score}'} and the outputs "
            f"{', '.join(spec.name for spec in manifest.outputs)}"
        )
    return OutputFields(score=manifest.score_output, outputs=(ENCODED,), layout="reference")


def check_fields(fields: OutputFields, manifest: Manifest, available: Sequence[str]) -> None:
    """Raise UsageError unless the source has all columns that were chosen.

    Args:
        fields: The chosen fields.
        manifest: The manifest of the model.
        available: The columns of the source.

    Raises:
        UsageError: A name is neither an output nor a column; the message suggests similar names.
    """
    known = [*manifest.results, *available]
    for name in fields.source:
        if name not in available:
            raise UsageError(
                f"--output_fields: {name!r} is neither an output"
                f"{' nor a field' if manifest.fields else ''} of model {manifest.name} nor a "
                f"column of the source{suggest(name, known)}"
            )


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
