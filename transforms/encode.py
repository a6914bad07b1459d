"""Predictions to output rows: id, score, chosen fields, and where they come from."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_handlers.contract import Manifest
from model_handlers.errors import UsageError, nearest
from transforms.cells import is_text
from transforms.failures import Provenance, utc_now
from transforms.record_batch import OUTPUTS, ROW_ID, SOURCE, struct_columns, typed

LINEAGE = ("model_name", "model_version", "model_digest", "run_id", "scored_at")
SCORE = "score"
_OWN = {ROW_ID, SCORE, *LINEAGE}


@dataclass(frozen=True)
class OutputFields:
    """What an output row holds beside its id and lineage.

    score: the model output written as `score`, None for none.
    outputs: model outputs, source: source columns, each under its own name.
    numbers: those of `source` that are features. Where the source has them as text
        (some batches of a CSV file, say) they are written as numbers all the same.
    """

    score: str | None
    outputs: tuple[str, ...]
    source: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        """The outputs a handler has to bring back."""
        score = () if self.score is None or self.score in self.outputs else (self.score,)
        return (*score, *self.outputs)


def choose_fields(manifest: Manifest, names: Sequence[str] | None = None) -> OutputFields:
    """A manifest and the names a user chose, or None -> OutputFields.

    A name is a model output, or else a source column. Without names the manifest's
    own output_fields are taken, and all outputs if it has none. Raises UsageError
    for a name of our own columns.
    """
    score = manifest.score_output
    every = tuple(spec.name for spec in manifest.outputs)
    own = _OWN if score is not None else _OWN - {SCORE}
    if names is None:
        chosen = manifest.output_fields or tuple(name for name in every if name != score)
        chosen = tuple(name for name in chosen if not name == score == SCORE)
        if taken := sorted(own.intersection(chosen)):
            raise UsageError(
                f"model {manifest.name} has outputs {', '.join(map(repr, taken))}, names that "
                "output rows use otherwise: choose others with --output_fields"
            )
        return OutputFields(score, chosen)
    for name in names:
        if name in own:
            raise UsageError(
                f"--output_fields: {name!r} is always written; leave it out (choose from the "
                f"outputs {', '.join(every)} and the source's columns)"
            )
    distinct = dict.fromkeys(names)
    return OutputFields(
        score,
        tuple(name for name in distinct if name in every),
        tuple(name for name in distinct if name not in every),
        tuple(n for n in distinct if n in manifest.features and n not in every),
    )


def check_fields(fields: OutputFields, manifest: Manifest, available: Sequence[str]) -> None:
    """Chosen fields and a source's columns -> nothing, or UsageError with the nearest names."""
    known = [spec.name for spec in manifest.outputs] + list(available)
    for name in fields.source:
        if name not in available:
            raise UsageError(
                f"--output_fields: {name!r} is neither an output of model {manifest.name} nor a "
                f"column of the source{nearest(name, known)}"
            )


def encode(
    batch: pa.RecordBatch,
    fields: OutputFields,
    provenance: Provenance,
    scored_at: datetime.datetime,
) -> pa.RecordBatch:
    """A batch with `outputs` -> output rows: row_id, score, fields, lineage columns."""
    outputs, every = struct_columns(batch, OUTPUTS), struct_columns(batch, SOURCE)
    source = {name: every[name] for name in fields.source}
    for name in fields.numbers:
        if is_text(source[name].type):
            source[name] = pc.utf8_trim_whitespace(source[name]).cast(pa.float64())
    columns = {ROW_ID: batch.column(ROW_ID)}
    if fields.score is not None:
        columns[SCORE] = outputs[fields.score]
    columns |= {name: outputs[name] for name in fields.outputs}
    columns |= source
    rows = batch.num_rows
    for name in LINEAGE[:-1]:
        columns[name] = _constant(getattr(provenance, name), rows)
    columns["scored_at"] = pa.repeat(pa.scalar(scored_at, pa.timestamp("us", tz="UTC")), rows)
    return pa.record_batch(columns)


def _constant(value: str, rows: int) -> pa.DictionaryArray:
    """One text for all rows -> a dictionary column: one byte a row, and almost none in a file."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int8)), [value])


@dataclass
class EncodeRows(beam.PTransform):
    """Batches with `outputs` -> batches of output rows."""

    fields: OutputFields
    provenance: Provenance

    def _encode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return encode(batch, self.fields, self.provenance, utc_now())

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        """One Map."""
        return typed(batches | beam.Map(self._encode))
