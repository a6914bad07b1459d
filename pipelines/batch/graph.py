"""The graph of a batch run: how a source, a model handler and destinations are connected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler

from cloud.clients import Cloud
from model_handlers.manifests.manifest import Manifest
from model_handlers.trials.choose_precision import AUTO
from pipelines.batch.progress import ShowProgress
from transforms.bigquery.destination import TableDestination
from transforms.bigquery.query_table import QueryTable
from transforms.bigquery.unfit import RefuseUnfit
from transforms.dead_letter_examples import KeepExamples
from transforms.decisions import CountDecisions
from transforms.encode import EncodeRows
from transforms.files.sink.destination import Destination
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.files.sink.stage import StageFiles
from transforms.messages.publish import PublishBatches
from transforms.output_fields import OutputFields
from transforms.predict import PredictApart
from transforms.provenance import Provenance
from transforms.run_history import RecordHistory
from transforms.run_report import CommitRun, CountFailures, CountPrecision, CountRows, Page
from transforms.score_figures import DescribeScores
from transforms.spread import SpreadBatches

# What PublishBatches calls the rows of each part.
KINDS: dict[str, Literal["rows", "failures"]] = {SCORES: "rows", DEAD_LETTERS: "failures"}


@dataclass(kw_only=True)
class ScoreRows(beam.PTransform):
    """A PTransform that scores the rows of a source and returns the report of the batch run.

    Attributes:
        source: A PTransform that returns transforms.files.read.Read.
        facts: What the report states besides its counts.
        topics: A Pub/Sub topic for each part (scores or dead letters) that is also published. Its
            rows are published at least once, before the commit.
        cloud: The Cloud that publishes. Needed only for topics.
        temporary: Folders whose staged files are deleted after the commit.
        schema: The schema of the rows if files may differ in the type of a column, else None.
        origins: For columns whose files differ in type, these types and files.
        launcher: The id of this process if the workers are its threads or children, else None.
        results: The table of the result of a query, which is deleted after the commit.
        spread: The shuffle between reading and predicting, or None to score rows as they are read.
        page: Writes the page of the run, or None.
        examples: How many dead letters of each reason the page shows.
    """

    source: beam.PTransform
    handler: ModelHandler[pa.RecordBatch, pa.RecordBatch, Any]
    manifest: Manifest
    fields: OutputFields
    provenance: Provenance
    destinations: Sequence[Destination]
    report_folder: RunFolder
    facts: Mapping[str, Any]
    show_progress: bool = False
    topics: Mapping[str, str] = field(default_factory=dict)
    cloud: Cloud | None = None
    temporary: Sequence[RunFolder] = ()
    schema: pa.Schema | None = None
    origins: Mapping[str, str] | None = None
    launcher: int | None = None
    results: QueryTable | None = None
    spread: SpreadBatches | None = None
    page: Page | None = None
    examples: int = 0

    @property
    def _tables(self) -> list[str]:
        """The tables that receive the scores."""
        tables = (d for d in self.destinations if isinstance(d, TableDestination))
        return [table.place for table in tables if table.part == SCORES]

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[dict[str, Any]]:
        """Read, predict, encode and stage the rows; stage the failures; count both and commit."""
        read = pipeline | "Read" >> self.source
        predict = PredictApart(self.handler, self.manifest, self.provenance, self.fields.needed)
        predicted, *failed = self._spread(read.good) | "Predict" >> predict
        failed.append(read.failures)
        scored = predicted
        for table in self._tables if self.fields.source else ():
            names = self.fields.source
            held = scored | f"Fit {table}" >> RefuseUnfit(table, names, self.provenance)
            scored = held.good
            failed.append(held.failures)
        encode = EncodeRows(self.fields, self.provenance, self.schema, self.origins)
        rows = scored | "Encode" >> encode
        # Each collection of dead letters has steps of its own. Beam's runner in this process would
        # keep all dead letters in memory for steps behind a Flatten.
        parts = {SCORES: [rows], DEAD_LETTERS: failed}
        staged = [
            one | f"Stage {destination.name}{i or ''}" >> StageFiles(destination, self.launcher)
            for destination in self.destinations
            for i, one in enumerate(parts[destination.part])
        ] | "Staged" >> beam.Flatten()
        for part, topic in self.topics.items():
            publish = PublishBatches(self.cloud, topic, KINDS[part])
            for i, one in enumerate(parts[part]):
                one | f"Publish {part}{i or ''}" >> publish

        decisions = self.fields.decisions(self.manifest)
        decided = (rows | "Decisions" >> CountDecisions(decisions),) if decisions else ()
        # A worker that chooses the precision says so in the batches that it scores.
        chosen = getattr(self.handler, "precision", None) == AUTO
        precisions = (predicted | "Precisions" >> CountPrecision(),) if chosen else ()
        counts = (
            read.good | "CountRead" >> CountRows("read"),
            rows | "CountScored" >> CountRows("scored"),
            *(one | f"CountFailed{i or ''}" >> CountFailures() for i, one in enumerate(failed)),
            read.counts,
            *decided,
            *precisions,
        ) | "Counts" >> beam.Flatten()
        figures = self._figures(rows, failed)
        if self.show_progress:
            rows | "Progress" >> ShowProgress()
        return {"counts": counts, "staged": staged} | figures | "Commit" >> self._commit(decisions)

    def _figures(
        self,
        rows: beam.PCollection[pa.RecordBatch],
        failed: Sequence[beam.PCollection[pa.RecordBatch]],
    ) -> dict[str, beam.PCollection[Any]]:
        """Return what the report and the page show beside the counts."""
        score = self.fields.score_column
        found: dict[str, beam.PCollection[Any]] = {}
        if score is not None:
            found["scores"] = rows | "Scores" >> DescribeScores(score)
        if self.page is not None:
            found["history"] = rows | "History" >> RecordHistory(score)
            if self.examples:
                found["examples"] = tuple(failed) | "Examples" >> KeepExamples(self.examples)
        return found

    def _spread(
        self, batches: beam.PCollection[pa.RecordBatch]
    ) -> beam.PCollection[pa.RecordBatch]:
        """Separate reading from predicting, if the run does that."""
        return batches if self.spread is None else batches | "Spread" >> self.spread

    def _commit(self, decisions: tuple[str, ...]) -> CommitRun:
        """Return the last step, which counts the decisions of these fields."""
        return CommitRun(
            self.destinations,
            self.report_folder,
            self.facts,
            self.temporary,
            decisions,
            self.results,
            self.page,
        )
