"""Predictions to output rows: id, score, chosen fields, and where they come from.

Or, for tables that exist already, the rows of the reference pipeline: `instance_id,
anomaly_score, encoded, timestamp`, where instance_id is the row's id. Rows of a stream
carry what their message said of itself besides.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import UsageError, suggest
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
from transforms.cells import FINE, is_text, read_cells
from transforms.provenance import Provenance, utc_now
from transforms.row_schemas import CARRIED, REFERENCE_SCHEMA, REFERENCE_STREAM_SCHEMA, WINDOW

LINEAGE = ("model_name", "model_version", "model_digest", "run_id", "scored_at")
SCORE = "score"
_OWN = {ROW_ID, SCORE, *LINEAGE}
ENCODED = "encoded"

_OF_STREAMS = {"event_time", "received_at", *WINDOW, *(name for name, _ in CARRIED)}

OutputLayout = Literal["default", "reference"]


@dataclass(frozen=True, kw_only=True)
class OutputFields:
    """What an output row holds beside its id and lineage.

    score: the model output written as `score`, None for none.
    outputs: model outputs, source: source columns, each under its own name.
    numbers: those of `source` that are features. Where the source has them as text
        (some batches of a CSV file, say) they are written as numbers all the same.
    layout: `reference` for the rows of the reference pipeline.
    stream: whether rows come as messages. window_seconds: the length of the windows
        that WINDOW names, None for none.
    """

    score: str | None
    outputs: tuple[str, ...]
    source: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    layout: OutputLayout = "default"
    stream: bool = False
    window_seconds: int | None = None

    @property
    def time_column(self) -> str:
        """The column that says when a row was scored."""
        return "timestamp" if self.layout == "reference" else "scored_at"

    @property
    def score_column(self) -> str | None:
        """The column of the score, None for none."""
        if self.layout == "reference":
            return "anomaly_score"
        return None if self.score is None else SCORE

    @property
    def needed(self) -> tuple[str, ...]:
        """The outputs a handler has to bring back."""
        score = () if self.score is None or self.score in self.outputs else (self.score,)
        return (*score, *self.outputs)


def choose_fields(
    manifest: Manifest, names: Sequence[str] | None = None, *, stream: bool = False
) -> OutputFields:
    """A manifest and the names a user chose, or None -> OutputFields.

    A name is a model output, or else a source column. Without names the manifest's
    own output_fields are taken, and all outputs if it has none. Raises UsageError
    for a name of our own columns.
    """
    score = manifest.score_output
    every = tuple(spec.name for spec in manifest.outputs)
    own = (_OWN if score is not None else _OWN - {SCORE}) | (_OF_STREAMS if stream else set())
    if names is None:
        chosen = manifest.output_fields or tuple(name for name in every if name != score)
        chosen = tuple(name for name in chosen if not name == score == SCORE)
        if taken := sorted(own.intersection(chosen)):
            raise UsageError(
                f"model {manifest.name} has outputs {', '.join(map(repr, taken))}, names that "
                "output rows use otherwise: choose others with --output_fields"
            )
        return OutputFields(score=score, outputs=chosen, stream=stream)
    for name in names:
        if name in own:
            raise UsageError(
                f"--output_fields: {name!r} is always written; leave it out (choose from the "
                f"outputs {', '.join(every)} and the source's columns)"
            )
    distinct = dict.fromkeys(names)
    return OutputFields(
        score=score,
        outputs=tuple(name for name in distinct if name in every),
        source=tuple(name for name in distinct if name not in every),
        numbers=tuple(n for n in distinct if n in manifest.features and n not in every),
        stream=stream,
    )


def reference_fields(manifest: Manifest) -> OutputFields:
    """A manifest -> the fields of the reference's rows. Raises UsageError without such outputs."""
    latent = [spec for spec in manifest.outputs if spec.name == ENCODED and len(spec.shape) == 1]
    if manifest.score_output is None or not latent:
        raise UsageError(
            f"--output_schema reference: expected a score and an output {ENCODED!r} of one "
            f"dimension; model {manifest.name} has the score {manifest.score_output} and the "
            f"outputs {', '.join(spec.name for spec in manifest.outputs)}"
        )
    return OutputFields(score=manifest.score_output, outputs=(ENCODED,), layout="reference")


def check_fields(fields: OutputFields, manifest: Manifest, available: Sequence[str]) -> None:
    """Chosen fields and a source's columns -> nothing, or UsageError with the nearest names."""
    known = [spec.name for spec in manifest.outputs] + list(available)
    for name in fields.source:
        if name not in available:
            raise UsageError(
                f"--output_fields: {name!r} is neither an output of model {manifest.name} nor a "
                f"column of the source{suggest(name, known)}"
            )


def encode(
    batch: pa.RecordBatch,
    fields: OutputFields,
    provenance: Provenance,
    scored_at: datetime.datetime,
) -> pa.RecordBatch:
    """A batch with `outputs` -> output rows: row_id, score, fields, lineage columns."""
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
    columns |= message
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _message_columns(
    message: pa.StructArray, source: pa.StructArray, fields: OutputFields
) -> dict[str, pa.Array]:
    """The columns MESSAGE and SOURCE -> what messages say of themselves, and their windows.

    What a sender says goes before what Pub/Sub says.
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
        # A model's feature of that name is not what the sender says of the message.
        if given is None or given.type != kind or given.null_count == len(given):
            columns[name] = own[name] if name in own else pa.nulls(len(message), kind)
        else:
            columns[name] = pc.coalesce(given, own[name]) if name in own else given
    return columns


def output_schema(
    fields: OutputFields, manifest: Manifest, provenance: Provenance, source: pa.Schema | None
) -> pa.Schema:
    """What is written of which model, and the source's columns -> the schema of output rows.

    source: None where each row names its own columns; what is passed on of these is
    text, and features are numbers or lists of them.
    """
    if source is None:
        source = pa.schema([(name, _read_type(name, manifest)) for name in fields.source])
    passed = [source.field(name) for name in fields.source]
    outputs = [(spec.name, spec.arrow_type) for spec in manifest.outputs]
    columns = [(ROW_ID, pa.string()), (SOURCE, pa.struct(passed)), (OUTPUTS, pa.struct(outputs))]
    empty = pa.schema([*columns, (MESSAGE, MESSAGE_TYPE)]).empty_table()
    batch = pa.RecordBatch.from_arrays(
        [column.combine_chunks() for column in empty.columns], schema=empty.schema
    )
    schema = encode(batch, fields, provenance, utc_now()).schema
    for field in passed:
        # What a column is to BigQuery beside its Arrow type is told by its metadata.
        index = schema.get_field_index(field.name)
        schema = schema.set(index, schema.field(index).with_metadata(field.metadata))
    return schema


def _read_type(name: str, manifest: Manifest) -> pa.DataType:
    """A column of rows that name their own -> the type it is read as."""
    for spec in manifest.inputs:
        if name in spec.columns:
            kind = pa.float64() if spec.dtype.startswith("float") else pa.int64()
            return pa.list_(kind) if spec.is_list_column else kind
    return pa.string()


@functools.lru_cache(maxsize=1024)
def _constant(value: str, rows: int) -> pa.DictionaryArray:
    """One text for all rows -> a dictionary column: one byte a row, and almost none in a file."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int8)), [value])


@dataclass
class EncodeRows(beam.PTransform):
    """Batches with `outputs` -> batches of output rows.

    schema: that all of them shall have, where the source may have a column as one type in
        one batch and as another in the next.
    """

    fields: OutputFields
    provenance: Provenance
    schema: pa.Schema | None = None

    def _encode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        rows = encode(batch, self.fields, self.provenance, utc_now())
        if self.schema is None or rows.schema.equals(self.schema):
            return rows
        # Not safe: features were judged before, and an integer may become a float.
        return rows.cast(self.schema, safe=False)

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        """One Map."""
        return typed(batches | beam.Map(self._encode))
