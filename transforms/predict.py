"""Predict: source batches in, predictions and failures out, whatever runs the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, RunInference

from common.record_batch import ERROR, OUTPUTS, typed
from model_handlers.manifest import Manifest
from transforms.dead_letters import Fault, failed_rows
from transforms.provenance import Provenance, utc_now
from transforms.split import Split, split_outputs
from transforms.validate import ValidateFeatures


def split_answer(
    batch: pa.RecordBatch, score_output: str | None = None
) -> tuple[pa.RecordBatch, pa.RecordBatch, list[Fault]]:
    """A handler's answer -> its good rows, its bad rows, and the bad rows' faults.

    A row fails where the handler says so, or where its score is NaN or infinite.
    """
    error, by_row = batch.column(ERROR), {}
    if error.null_count < len(error):
        failed = np.flatnonzero(np.asarray(error.is_valid())).tolist()
        for row, fault in zip(failed, error.drop_null().to_pylist(), strict=True):
            by_row[row] = Fault(fault["reason"], fault["message"])
    if score_output is not None:
        outputs = batch.column(OUTPUTS)
        score = outputs.field(score_output)
        finite = np.isfinite(score.to_numpy(zero_copy_only=False))
        if np.count_nonzero(finite) < len(finite):
            for row in np.flatnonzero(~finite).tolist():
                message = f"the model answered {score[row].as_py()} as {score_output}"
                by_row.setdefault(row, Fault("not_finite_score", message, score_output))
    if not by_row:
        return batch, batch.slice(0, 0), []
    bad = np.array(sorted(by_row))
    good = np.delete(np.arange(batch.num_rows), bad)
    return (
        batch.take(pa.array(good)),
        batch.take(pa.array(bad)),
        [by_row[row] for row in bad.tolist()],
    )


class _SplitDoFn(beam.DoFn):
    """A handler's answers -> good batches; failed rows go to the output `failures`."""

    def __init__(self, score_output: str | None, provenance: Provenance) -> None:
        self._score_output = score_output
        self._provenance = provenance

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        good, bad, faults = split_answer(batch, self._score_output)
        if good.num_rows:
            yield good
        if faults:
            failures = failed_rows(
                bad, faults, stage="infer", provenance=self._provenance, failed_at=utc_now()
            )
            yield beam.pvalue.TaggedOutput("failures", failures)


@dataclass
class SplitFailures(beam.PTransform):
    """A handler's answers -> batches with `outputs` alone, and failure records."""

    score_output: str | None
    provenance: Provenance

    def expand(self, answers: beam.PCollection[pa.RecordBatch]) -> Split:
        """One DoFn."""
        return split_outputs(answers, _SplitDoFn(self.score_output, self.provenance))


@dataclass
class Predict(beam.PTransform):
    """Source batches -> batches with `outputs`, and failure records: every row in one of them.

    handler: a ModelHandler over record batches that answers with as many rows as it
        got, failed ones marked in `error`.
    manifest: the model's contract; its score_output is the score that must be finite.
    provenance: what failure records say of the run; of the manifest alone by default.
    """

    handler: ModelHandler[pa.RecordBatch, pa.RecordBatch, Any]
    manifest: Manifest
    provenance: Provenance | None = None

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Split:
        """validate -> RunInference -> split."""
        provenance = self.provenance or Provenance.of(self.manifest)
        validated = batches | "Validate" >> ValidateFeatures(self.manifest, provenance)
        answers = validated.good | "RunInference" >> RunInference(self.handler)
        predicted = typed(answers) | "Split" >> SplitFailures(
            self.manifest.score_output, provenance
        )
        failures = (validated.failures, predicted.failures) | "Failures" >> beam.Flatten()
        return Split(predicted.good, failures)
