"""Count the rows of each stage, and build the report, whose counts must balance.

Counts travel through the pipeline as elements, like the rows. Beam's metrics count a retried
bundle twice; these counts do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam.metrics import Metrics

from common.errors import BalanceError
from common.record_batch import OUTPUTS
from model_handlers.batch_handler import PRECISION
from transforms.accounts import Count, check_source
from transforms.bigquery.query_table import QueryTable
from transforms.dead_letter_examples import Examples
from transforms.decisions import report_decisions
from transforms.files.sink.commit import commit
from transforms.files.sink.destination import Destination
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder, StagedFile
from transforms.files.sink.staging import discard, discard_dead
from transforms.provenance import utc_now
from transforms.run_history import History, merge_histories, report_history
from transforms.score_figures import Figures, as_report, merge


@dataclass
class CountRows(beam.PTransform):
    """A transform from record batches to one count, `((stage,), rows)`, per batch."""

    stage: str

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Count]:
        """Apply one Map, which only reads the length of the batches."""
        key = (self.stage,)
        return batches | "Count" >> beam.Map(lambda batch: (key, batch.num_rows))


@dataclass
class CountPrecision(beam.PTransform):
    """A transform from predicted batches to one count per batch and precision of its worker."""

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Count]:
        """Apply one FlatMap, which only reads the schema and the length of the batches."""
        return batches | "Count" >> beam.FlatMap(_count_precision)


def _count_precision(batch: pa.RecordBatch) -> Iterator[Count]:
    said = batch.schema.field(OUTPUTS).metadata or {}
    if (precision := said.get(PRECISION.encode())) is not None:
        yield (PRECISION, precision.decode()), batch.num_rows


@dataclass
class CountFailures(beam.PTransform):
    """A transform from batches of dead letters to one count per kind and batch."""

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Count]:
        """Apply one FlatMap."""
        return batches | "Count" >> beam.FlatMap(count_failures)


def count_failures(batch: pa.RecordBatch) -> Iterator[Count]:
    """Yield the count `(("failed", stage, reason, column), rows)` of each kind of dead letter."""
    kinds = zip(
        batch.column("stage").to_pylist(),
        batch.column("reason").to_pylist(),
        (orjson.loads(text).get("column", "") for text in batch.column("attributes").to_pylist()),
        strict=True,
    )
    # This counter is for watching the run. The report uses the elements.
    Metrics.counter("millrace", "rows_dead_lettered").inc(batch.num_rows)
    for kind, rows in Counter(kinds).items():
        yield ("failed", *kind), rows


def build_report(
    counts: Mapping[tuple[str, ...], int],
    staged: Sequence[StagedFile],
    destinations: Sequence[Destination],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the report of a run, after checking that its counts balance.

    Args:
        counts: The sums of all counts of the run.
        staged: The finished files.
        destinations: Where the files go.
        facts: What else the report says about the run.

    Raises:
        BalanceError: The source was not read exactly as it was found, the rows read differ from
            the rows scored plus the dead letters, or the files of a destination do not hold
            exactly these rows.
    """
    read, scored = counts.get(("read",), 0), counts.get(("scored",), 0)
    failed = {key[1:]: rows for key, rows in counts.items() if key[0] == "failed"}
    dead = sum(failed.values())
    # Rows that could not be decoded are in no batch, so they were not counted as read.
    rows_in = read + sum(rows for kind, rows in failed.items() if kind[0] == "decode")
    expected = {SCORES: scored, DEAD_LETTERS: dead}
    written = {
        d.name: sum(file.rows for file in staged if file.destination == d.name)
        for d in destinations
    }
    balance = {"rows_in": rows_in, "rows_scored": scored, "rows_dead_lettered": dead}
    if rows_in != scored + dead or any(written[d.name] != expected[d.part] for d in destinations):
        in_files = ", ".join(f"{rows:,} for {name}" for name, rows in written.items())
        raise BalanceError(
            "rows are missing or duplicated, so nothing was written: expected rows in = scored + "
            f"dead letters, and the same numbers in the files; got {rows_in:,} rows in, {scored:,} "
            f"scored, {dead:,} dead-lettered; rows in the files: {in_files}; run again, and report "
            "this if it happens again"
        )
    source = check_source(counts, rows_in)
    letters = [
        {"stage": stage, "reason": reason, "column": column or None, "rows": rows}
        for (stage, reason, column), rows in sorted(failed.items(), key=lambda kv: (-kv[1], kv[0]))
    ]
    return {
        **facts,
        "balanced": True,
        **balance,
        **source,
        "rows_written": written,
        "dead_letters": letters,
        "too_few_rows": rows_in < facts.get("min_rows", 0),
        "too_many_dead_letters": too_many(dead, rows_in, facts.get("max_dead_letter_share", 1.0)),
    }


def too_many(dead: int, rows: int, limit: float) -> bool:
    """Return whether a run has too many dead letters, and therefore fails.

    A run in which no row was scored always fails, unless it had no rows.

    Args:
        dead: The number of dead letters.
        rows: The number of rows that the run read.
        limit: The largest share of dead letters that is allowed, from 0 to 1.
    """
    return dead > 0 and (dead == rows or dead > limit * rows)


class Page(Protocol):
    """Writes the page about a run."""

    def __call__(self, report: Mapping[str, Any], examples: Sequence[Examples]) -> bytes:
        """Return the HTML.

        Args:
            report: The report of the run, as its file has it.
            examples: Examples of dead letters.
        """


def _write_page(page: Page, examples: Sequence[Examples], report: bytes) -> bytes:
    return page(orjson.loads(report), examples)


@dataclass
class CommitRun(beam.PTransform):
    """A transform that commits a run once its counts balance, and returns its report.

    The input is a mapping of collections: `counts` and `staged`, the finished files. `scores`, of
    transforms.score_figures.Figures, adds statistics of the scores to the report, and `history`,
    of transforms.run_history.History, the histograms that a page shows. `examples` are shown only
    on the page. One worker receives the sums of the counts, the names of the files and the
    figures, but nothing for each batch. If the counts do not balance, the rows stay in the staging
    folder and the pipeline fails.

    Attributes:
        destinations: Where the staged files go.
        report_folder: Where the report goes.
        facts: What else the report says about the run.
        temporary: Folders whose staged files are not needed after the commit.
        decisions: The fields whose decisions are counted.
        results: The table of the result of a query, which is not needed after the commit.
        page: Writes the page beside the report, or None.
    """

    destinations: Sequence[Destination]
    report_folder: RunFolder
    facts: Mapping[str, Any]
    temporary: Sequence[RunFolder] = ()
    decisions: tuple[str, ...] = ()
    results: QueryTable | None = None
    page: Page | None = None

    def _commit(
        self,
        _: None,
        counts: Iterable[Count],
        staged: Iterable[StagedFile],
        scores: Iterable[Figures] = (),
        history: Iterable[History] = (),
        examples: Iterable[Examples] = (),
    ) -> dict[str, Any]:
        files = sorted(staged, key=lambda file: file.path)
        sums = dict(counts)
        facts = {**self.facts, "scores": as_report(merge(scores))}
        if self.decisions:
            facts["decisions"] = report_decisions(sums, self.decisions)
        if precisions := {key[1]: n for key, n in sums.items() if key[0] == PRECISION}:
            facts["precision"] = precisions
        if self.page is not None:
            facts |= report_history(merge_histories(history))
        report = build_report(sums, files, self.destinations, facts)

        def finished(listing: Mapping[str, Any]) -> bytes:
            report.update(listing, finished_at=utc_now())
            return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

        page = None if self.page is None else partial(_write_page, self.page, [*examples])
        commit(self.destinations, files, self.report_folder, finished, page)
        for folder in self.temporary:
            discard(folder)
            discard_dead(folder)
        if self.results is not None:
            self.results.discard()
        return report

    def expand(
        self, collections: Mapping[str, beam.PCollection[Any]]
    ) -> beam.PCollection[dict[str, Any]]:
        """Sum the counts, wait for all files, then commit once."""
        counts = collections["counts"]
        others = {name: beam.pvalue.AsIter(one) for name, one in collections.items()}
        totals = counts | "SumCounts" >> beam.CombinePerKey(sum)
        # If a runner retries a step, it may compute its input again, with other file names.
        # After a shuffle the names of the finished files are fixed.
        fixed = collections["staged"] | "FixStaged" >> beam.Reshuffle()
        return (
            counts.pipeline
            | "Once" >> beam.Create([None])
            | "Commit"
            >> beam.Map(
                self._commit,
                **others
                | {"counts": beam.pvalue.AsIter(totals), "staged": beam.pvalue.AsIter(fixed)},
            )
        )
