"""Predict: turn source batches into predictions and dead letters, with any model handler."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, RunInference

from common.record_batch import ERROR, OUTPUTS, struct_columns, typed
from model_handlers.manifests.manifest import Manifest
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.preparation import Preparation
from model_handlers.steps.step import Refused
from model_handlers.trusted_code import TrustedCode
from transforms.chain import Chain, Each
from transforms.dead_letters import Fault, failed_rows
from transforms.provenance import Provenance, utc_now
from transforms.split import Split, split_outputs
from transforms.validate import ValidateDoFn, ValidateFeatures


def field_faults(refused: Iterable[Refused]) -> dict[int, Fault]:
    """Return the first fault of each row, by its number, from the refusals of fields."""
    by_row: dict[int, Fault] = {}
    for some in refused:
        fault = Fault(some.reason, f"field {some.column}: {some.message}", some.column)
        for row in some.rows.tolist():
            by_row.setdefault(row, fault)
    return by_row


def split_answer(
    batch: pa.RecordBatch,
    score_output: str | None = None,
    preparation: Preparation | None = None,
    fields: Collection[str] | None = None,
) -> tuple[pa.RecordBatch, pa.RecordBatch, list[Fault]]:
    """Split the answer of a model handler into good and failed rows, and compute their fields.

    A row fails if the handler marks it as failed, if its score is null, NaN or infinite, or if a
    field cannot be computed from its outputs.

    Args:
        batch: The answer: a batch with the columns `outputs` and `error`.
        score_output: The output or field that holds the score, or None.
        preparation: The steps of the manifest if it has fields, or None.
        fields: The fields to compute; None for all.

    Returns:
        The good rows, whose column `outputs` also has the fields, the failed rows, and the fault of
        each failed row.
    """
    error, by_row = batch.column(ERROR), {}
    if error.null_count < len(error):
        failed = np.flatnonzero(np.asarray(error.is_valid())).tolist()
        for row, fault in zip(failed, error.drop_null().to_pylist(), strict=True):
            by_row[row] = Fault(fault["reason"], fault["message"])
    if preparation is not None:
        batch, refused = _with_fields(batch, preparation, fields)
        by_row = field_faults(refused) | by_row
    if score_output is not None:
        outputs = batch.column(OUTPUTS)
        score = outputs.field(score_output)
        finite = np.isfinite(score.to_numpy(zero_copy_only=False))
        if np.count_nonzero(finite) < len(finite):
            for row in np.flatnonzero(~finite).tolist():
                by_row.setdefault(row, _score_fault(score[row].as_py(), score_output))
    if not by_row:
        return batch, batch.slice(0, 0), []
    bad = np.array(sorted(by_row))
    good = np.delete(np.arange(batch.num_rows), bad)
    return (
        batch.take(pa.array(good)),
        batch.take(pa.array(bad)),
        [by_row[row] for row in bad.tolist()],
    )


def _score_fault(score: float | None, name: str) -> Fault:
    """Return the fault of a row whose score is no finite number."""
    if score is None:
        return Fault("null", f"field {name}: the score is null", name)
    return Fault("not_finite_score", f"the model returned {score} as {name}", name)


def _with_fields(
    batch: pa.RecordBatch, preparation: Preparation, names: Collection[str] | None
) -> tuple[pa.RecordBatch, list[Refused]]:
    """Add the fields to the outputs of a batch; also return which rows have none."""
    outputs = struct_columns(batch, OUTPUTS)
    outputs_of_failed = batch.column(OUTPUTS)
    if outputs_of_failed.null_count:
        # The children of a null struct are not null by themselves.
        outputs = dict(zip(outputs, outputs_of_failed.flatten(), strict=True))
    fields, refused = preparation.derive(outputs, names)
    whole = pa.StructArray.from_arrays(
        [*outputs.values(), *fields.values()], names=[*outputs, *fields]
    )
    field = batch.schema.field(OUTPUTS).with_type(whole.type)
    return batch.set_column(batch.schema.get_field_index(OUTPUTS), field, whole), refused


class SplitDoFn(beam.DoFn):
    """A DoFn that passes on the good rows of a handler's answers; others go to `failures`."""

    def __init__(
        self, steps: PackagedSteps, provenance: Provenance, fields: Collection[str] | None
    ) -> None:
        self._steps, self._score_output = steps, steps.manifest.score_output
        self._fields = fields
        self._preparation: Preparation | None = None
        self._provenance = provenance

    def setup(self) -> None:
        """Load the steps, if there are any for fields."""
        if self._steps.manifest.fields and (self._fields is None or self._fields):
            self._preparation = self._steps.load()

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """Yield the good rows of a batch, and the dead letters of the others."""
        good, bad, faults = split_answer(batch, self._score_output, self._preparation, self._fields)
        if good.num_rows:
            yield good
        if faults:
            failures = failed_rows(
                bad, faults, stage="infer", provenance=self._provenance, failed_at=utc_now()
            )
            yield beam.pvalue.TaggedOutput("failures", failures)


def packaged_steps(handler: Any, manifest: Manifest) -> PackagedSteps:
    """Return the steps of a manifest, whose files are in the package that a handler reads."""
    path, code = getattr(handler, "package", None), getattr(handler, "code", TrustedCode())
    return PackagedSteps(manifest, path, code)


@dataclass
class SplitFailures(beam.PTransform):
    """A transform from a handler's answers to batches of good rows, and dead letters.

    Attributes:
        steps: The manifest, and where workers find its steps.
        provenance: The run and the model that dead letters name.
        fields: The fields to compute, with those that they need; None for all.
    """

    steps: PackagedSteps
    provenance: Provenance
    fields: Collection[str] | None = None

    def expand(self, answers: beam.PCollection[pa.RecordBatch]) -> Split:
        """Apply one DoFn."""
        return split_outputs(answers, SplitDoFn(self.steps, self.provenance, self.fields))


@dataclass
class Predict(beam.PTransform):
    """A transform from source batches to batches with `outputs`, and dead letters.

    Every row ends up in exactly one of the two.

    Attributes:
        handler: A ModelHandler for record batches. It returns as many rows as it received, and
            marks failed ones in the column `error`.
        manifest: The manifest of the model. The score that its `score_output` names must be
            finite.
        provenance: The run and the model that dead letters name. By default the run and the
            pipeline are `unnamed`.
        written: The outputs and fields that are written. Other fields are not computed, unless
            these or the score need them. None for all.
    """

    handler: ModelHandler[pa.RecordBatch, pa.RecordBatch, Any]
    manifest: Manifest
    provenance: Provenance | None = None
    written: Sequence[str] | None = None

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Split:
        """Validate the rows, run the model, and separate the failed rows."""
        good, *failures = self._apart(batches)
        return Split(good, failures | "Failures" >> beam.Flatten())

    def _apart(
        self, batches: beam.PCollection[pa.RecordBatch]
    ) -> tuple[beam.PCollection[pa.RecordBatch], ...]:
        """Return the good rows, the dead letters before the model, and those after it."""
        provenance = self.provenance or Provenance.of(self.manifest)
        steps = packaged_steps(self.handler, self.manifest)
        validated = batches | "Validate" >> ValidateFeatures(self.manifest, provenance, steps)
        answers = validated.good | "RunInference" >> RunInference(self.handler)
        predicted = typed(answers) | "Split" >> SplitFailures(steps, provenance, self._fields)
        return predicted.good, validated.failures, predicted.failures

    @property
    def _fields(self) -> Collection[str] | None:
        """The fields to compute."""
        if self.written is None:
            return None
        score = self.manifest.score_output
        return self.manifest.fields_for([*self.written, *([] if score is None else [score])])


class PredictApart(Predict):
    """Predict without a Flatten, at which many runners end a stage.

    Beam's runner in this process keeps everything in memory that leaves a stage. The result is the
    good rows, the dead letters before the model, and those after it.
    """

    def expand(  # type: ignore[override]
        self, batches: beam.PCollection[pa.RecordBatch]
    ) -> tuple[beam.PCollection[pa.RecordBatch], ...]:
        """Validate the rows, run the model, and separate the failed rows."""
        return self._apart(batches)


@dataclass(kw_only=True)
class PredictBetween(Predict):
    """Predict for streams, whose bundles are small: with other work, in as few steps as possible.

    Batches are not gathered. The result is that of PredictApart.

    Attributes:
        before: DoFns that make source batches, of at most the handler's batch_rows. Their output
            `failures` is part of the dead letters before the model.
        ready: DoFns that take validated batches, right before the model does.
        after: DoFns that take batches with `outputs`.
        on_failures: A function to call with each batch of dead letters, or None.
    """

    before: Sequence[beam.DoFn] = ()
    ready: Sequence[beam.DoFn] = ()
    after: Sequence[beam.DoFn] = ()
    on_failures: Callable[[pa.RecordBatch], None] | None = None

    def expand(  # type: ignore[override]
        self, elements: beam.PCollection[Any]
    ) -> tuple[beam.PCollection[pa.RecordBatch], ...]:
        """Apply one step before RunInference, and one step after it."""
        provenance = self.provenance or Provenance.of(self.manifest)
        steps = packaged_steps(self.handler, self.manifest)
        prepare = Chain(
            *self.before,
            ValidateDoFn(steps, provenance),
            *self.ready,
            Each(_alone),
            on_failures=self.on_failures,
        )
        finish = Chain(
            SplitDoFn(steps, provenance, self._fields), *self.after, on_failures=self.on_failures
        )
        ready = elements | "Prepare" >> beam.ParDo(prepare).with_outputs("failures", main="good")
        ready.good.element_type = beam.typehints.List[pa.RecordBatch]
        answers = ready.good | "RunInference" >> RunInference(self.handler.with_no_batching())
        done = typed(answers) | "Finish" >> beam.ParDo(finish).with_outputs("failures", main="good")
        return typed(done.good), typed(ready.failures), typed(done.failures)


def _alone(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Return a batch as the list that a handler takes if it gathers no batches."""
    return [batch]
