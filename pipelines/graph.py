"""The graphs: how a source, a model handler and sinks are put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler

from model_handlers.contract import Manifest
from pipelines.progress import ShowProgress
from transforms.commit_files import DEAD_LETTERS, SCORES, RunFolder
from transforms.encode import EncodeRows, OutputFields
from transforms.failures import Provenance
from transforms.file_writers import OutputFormat
from transforms.predict import Predict
from transforms.read_files import ReadFiles
from transforms.reconcile import CommitRun, CountFailures, CountRows
from transforms.write_files import StageFiles


@dataclass
class ScoreFiles(beam.PTransform):
    """Nothing -> the report of a batch run from files to files."""

    source: ReadFiles
    handler: ModelHandler[pa.RecordBatch, pa.RecordBatch, Any]
    manifest: Manifest
    fields: OutputFields
    provenance: Provenance
    scores: RunFolder
    dead_letters: RunFolder
    output_format: OutputFormat
    facts: Mapping[str, Any]
    show_progress: bool = False

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[dict[str, Any]]:
        """source -> predict -> encode -> files, failures -> dead letters, all counted."""
        read = pipeline | "ReadFiles" >> self.source
        predicted = read.good | "Predict" >> Predict(self.handler, self.manifest, self.provenance)
        rows = predicted.good | "Encode" >> EncodeRows(self.fields, self.provenance)
        failures = (read.failures, predicted.failures) | "Failures" >> beam.Flatten()

        row_files = rows | "StageRows" >> StageFiles(self.scores, SCORES, self.output_format)
        failure_files = failures | "StageDeadLetters" >> StageFiles(
            self.dead_letters, DEAD_LETTERS, "jsonl"
        )
        staged = (row_files, failure_files) | "Staged" >> beam.Flatten()

        counts = (
            read.good | "CountRead" >> CountRows("read"),
            rows | "CountScored" >> CountRows("scored"),
            failures | "CountFailed" >> CountFailures(),
        ) | "Counts" >> beam.Flatten()
        if self.show_progress:
            rows | "Progress" >> ShowProgress()
        return (counts, staged) | "Commit" >> CommitRun(self.scores, self.dead_letters, self.facts)
