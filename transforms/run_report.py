"""Reconciliation: rows counted as elements at each stage, and the report that must balance.

Counts travel through the pipeline like the rows do. Beam's metrics count a repeated
bundle twice; these do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam.metrics import Metrics

from common.errors import BalanceError
from transforms.accounts import Count, check_source
from transforms.files.commit import commit
from transforms.files.destination import Destination
from transforms.files.run_folder import DEAD_LETTERS, SCORES, RunFolder, StagedFile
from transforms.files.staging import discard, discard_dead
from transforms.provenance import utc_now
from transforms.score_figures import Figures, as_report, merge


@dataclass
class CountRows(beam.PTransform):
    """Record batches -> one ((stage,), rows) a batch."""

    stage: str

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Count]:
        """One Map, which only reads the length."""
        key = (self.stage,)
        return batches | "Count" >> beam.Map(lambda batch: (key, batch.num_rows))


@dataclass
class CountFailures(beam.PTransform):
    """Failure records -> ((`failed`, stage, reason, column), rows) for each kind in a batch."""

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Count]:
        """One FlatMap."""
        return batches | "Count" >> beam.FlatMap(count_failures)


def count_failures(batch: pa.RecordBatch) -> Iterator[Count]:
    """Failure records -> ((`failed`, stage, reason, column), rows) for each kind."""
    kinds = zip(
        batch.column("stage").to_pylist(),
        batch.column("reason").to_pylist(),
        (orjson.loads(text).get("column", "") for text in batch.column("attributes").to_pylist()),
        strict=True,
    )
    # For who watches the run; the report's counts are these elements.
    Metrics.counter("millrace", "rows_dead_lettered").inc(batch.num_rows)
    for kind, rows in Counter(kinds).items():
        yield ("failed", *kind), rows


def build_report(
    counts: Mapping[tuple[str, ...], int],
    staged: Sequence[StagedFile],
    destinations: Sequence[Destination],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Counts by stage, finished files, where they go and facts about the run -> the report.

    Raises BalanceError unless the source was read as it was found, rows read = scored +
    dead-lettered, and the files of each destination hold exactly these rows.
    """
    read, scored = counts.get(("read",), 0), counts.get(("scored",), 0)
    failed = {key[1:]: rows for key, rows in counts.items() if key[0] == "failed"}
    dead = sum(failed.values())
    # Rows that could not be decoded never became rows of a batch.
    rows_in = read + sum(rows for kind, rows in failed.items() if kind[0] == "decode")
    expected = {SCORES: scored, DEAD_LETTERS: dead}
    written = {
        d.name: sum(file.rows for file in staged if file.destination == d.name)
        for d in destinations
    }
    balance = {"rows_in": rows_in, "rows_scored": scored, "rows_dead_lettered": dead}
    if rows_in != scored + dead or any(written[d.name] != expected[d.part] for d in destinations):
        raise BalanceError(
            "rows are missing or doubled, so nothing was written: expected rows in = scored + "
            f"dead-lettered, and as many in the files; got {balance}, in the files {written}. "
            "Please report this"
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
        "too_many_dead_letters": too_many(dead, rows_in, facts.get("max_dead_letter_share", 1.0)),
    }


def too_many(dead: int, rows: int, limit: float) -> bool:
    """Dead letters, rows in and the largest share of these -> whether the run fails.

    One of which no row was scored always does, unless it had none.
    """
    return dead > 0 and (dead == rows or dead > limit * rows)


@dataclass
class CommitRun(beam.PTransform):
    """(counts, staged files) -> the report, once all is accounted for and in place.

    A third collection, of transforms.score_figures.Figures, tells the report of the scores.
    report_folder: where the report goes. facts: what else it says. temporary: folders of
    which nothing staged is needed any more. The rows of a run that does not balance stay in
    the staging folder, and the pipeline fails.
    """

    destinations: Sequence[Destination]
    report_folder: RunFolder
    facts: Mapping[str, Any]
    temporary: Sequence[RunFolder] = ()

    def _commit(
        self,
        _: None,
        counts: Iterable[Count],
        staged: Iterable[StagedFile],
        scores: Iterable[Figures] = (),
    ) -> dict[str, Any]:
        files = sorted(staged, key=lambda file: file.path)
        facts = {**self.facts, "scores": as_report(merge(scores))}
        report = build_report(dict(counts), files, self.destinations, facts)

        def finished(listing: Mapping[str, Any]) -> bytes:
            report.update(listing, finished_at=utc_now())
            return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

        commit(self.destinations, files, self.report_folder, finished)
        for folder in self.temporary:
            discard(folder)
            discard_dead(folder)
        return report

    def expand(
        self, collections: tuple[beam.PCollection[Any], ...]
    ) -> beam.PCollection[dict[str, Any]]:
        """Sum the counts, wait for all files, act once."""
        counts, staged, *scores = collections
        totals = counts | "SumCounts" >> beam.CombinePerKey(sum)
        # A runner may repeat a step whose input it can make again in another way; behind
        # a shuffle the names of the finished files are fixed.
        fixed = staged | "FixStaged" >> beam.Reshuffle()
        return (
            counts.pipeline
            | "Once" >> beam.Create([None])
            | "Commit"
            >> beam.Map(
                self._commit,
                counts=beam.pvalue.AsIter(totals),
                staged=beam.pvalue.AsIter(fixed),
                **({"scores": beam.pvalue.AsIter(scores[0])} if scores else {}),
            )
        )
