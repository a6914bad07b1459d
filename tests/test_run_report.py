"""The counts of a run balance, or the run fails and reports the difference."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BalanceError
from transforms.accounts import Count
from transforms.dead_letter_examples import Examples, KeepExamples
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.dead_letters import Fault, failure_batch
from transforms.decisions import CountDecisions
from transforms.files.sink.destination import Destination, FolderDestination
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder, StagedFile
from transforms.files.sink.stage import StageFiles
from transforms.provenance import Provenance, utc_now
from transforms.run_history import History, RecordHistory
from transforms.run_report import CommitRun, CountFailures, CountRows, build_report, count_failures
from transforms.score_figures import DescribeScores, Figures

Counts = dict[tuple[str, ...], int]
Run = tuple[Counts, list[StagedFile], list[Destination]]


@dataclass(frozen=True)
class Second(FolderDestination):
    """A second folder for the rows of a part."""

    @property
    def name(self) -> str:
        return f"{self.part}_again"


def destinations_of(folder: RunFolder, second: RunFolder | None = None) -> list[Destination]:
    """Return the destinations of a run in a folder, and in a second one for the same rows."""
    found: list[Destination] = []
    for part in (SCORES, DEAD_LETTERS):
        found.append(FolderDestination(part, folder, "jsonl"))
        if second is not None:
            found.append(Second(part, second, "parquet"))
    return found


KINDS = st.tuples(
    st.just("failed"),
    st.sampled_from(["decode", "validate", "infer"]),
    st.sampled_from(["null", "wrong_type"]),
    st.sampled_from(["", "a"]),
)


@st.composite
def balanced(draw: st.DrawFn) -> Run:
    failed: Counts = draw(st.dictionaries(KINDS, st.integers(1, 9), max_size=4))
    scored = draw(st.integers(0, 9))
    read = scored + sum(rows for kind, rows in failed.items() if kind[1] != "decode")
    counts: Counts = {("read",): read, ("scored",): scored, **failed}
    rows = {SCORES: scored, DEAD_LETTERS: sum(failed.values())}
    folder = RunFolder("out", "r", "t")
    destinations = destinations_of(folder, folder if draw(st.booleans()) else None)
    files = []
    for name, total in ((d.name, rows[d.part]) for d in destinations):
        cut = draw(st.integers(0, total))
        files += [StagedFile(name, f"{name}-{i}", n) for i, n in enumerate((cut, total - cut)) if n]
    return {key: n for key, n in counts.items() if n}, files, destinations


@given(balanced(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_the_report_says_whether_too_many_rows_failed(run: Run, limit: float) -> None:
    report = build_report(*run, {"max_dead_letter_share": limit})
    rows, dead = report["rows_in"], report["rows_dead_lettered"]
    assert not report["too_few_rows"]
    assert build_report(*run, {"min_rows": rows + 1})["too_few_rows"]
    none_scored = dead > 0 and report["rows_scored"] == 0
    assert report["too_many_dead_letters"] == (dead > limit * rows or none_scored)


@given(balanced())
def test_a_balanced_run_is_reported(run: Run) -> None:
    counts, files, destinations = run
    report = build_report(counts, files, destinations, {"run_id": "r"})
    assert report["run_id"] == "r"
    assert report["balanced"]
    assert report["rows_in"] == report["rows_scored"] + report["rows_dead_lettered"]
    assert report["rows_scored"] == counts.get(("scored",), 0)
    rows = {SCORES: report["rows_scored"], DEAD_LETTERS: report["rows_dead_lettered"]}
    assert report["rows_written"] == {d.name: rows[d.part] for d in destinations}
    letters = report["dead_letters"]
    assert sum(kind["rows"] for kind in letters) == report["rows_dead_lettered"]
    assert [kind["rows"] for kind in letters] == sorted((k["rows"] for k in letters), reverse=True)
    json.dumps(report)


@given(balanced(), st.data(), st.sampled_from([-1, 1, 7]))
def test_any_single_wrong_count_fails_the_run(run: Run, data: st.DataObject, change: int) -> None:
    counts, files, destinations = run
    wrong = list(files)
    keys = sorted({*counts, ("read",), ("scored",), ("failed", "decode", "null", "")})
    which = data.draw(st.integers(0, len(keys) + len(files) - 1))
    if which < len(keys):
        counts = {**counts, keys[which]: counts.get(keys[which], 0) + change}
    else:
        file = files[which - len(keys)]
        wrong[which - len(keys)] = StagedFile(file.destination, file.path, file.rows + change)
    with pytest.raises(BalanceError, match="rows are missing or duplicated"):
        build_report(counts, wrong, destinations, {})


@given(balanced())
def test_a_file_that_is_lost_duplicated_or_misplaced_fails_the_run(run: Run) -> None:
    counts, files, destinations = run
    for i, file in enumerate(files):
        others = files[:i] + files[i + 1 :]
        elsewhere = [d.name for d in destinations if d.name != file.destination]
        moved = [[*others, StagedFile(name, file.path, file.rows)] for name in elsewhere]
        for wrong in (others, [*files, file], *moved):
            with pytest.raises(BalanceError):
                build_report(counts, wrong, destinations, {})


def test_the_facts_do_not_hide_the_counts() -> None:
    facts = {"balanced": "?", "rows_in": "?", "rows_written": "?", "model": "tiny"}
    report = build_report({}, [], destinations_of(RunFolder("out", "r", "t")), facts)
    assert (report["balanced"], report["rows_in"], report["model"]) == (True, 0, "tiny")
    assert report["rows_written"] == {SCORES: 0, DEAD_LETTERS: 0}


def failures(faults: list[Fault], provenance: Provenance) -> pa.RecordBatch:
    return failure_batch(
        [None] * len(faults),
        [b""] * len(faults),
        faults,
        stage="validate",
        provenance=provenance,
        failed_at=utc_now(),
    )


@given(
    faults=st.lists(
        st.sampled_from(
            [
                Fault("null", "m", "a"),
                Fault("null", "n", "b"),
                Fault("null", "o"),
                Fault("wrong_type", "p", "a"),
            ]
        )
    )
)
def test_failures_are_counted_by_reason_and_column(
    faults: list[Fault], provenance: Provenance
) -> None:
    batch = failures(faults, provenance)
    assert batch.schema == FAILURE_SCHEMA
    expected = Counter(("failed", "validate", f.reason, f.column or "") for f in faults)
    assert dict(count_failures(batch)) == expected


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "out"), "r", "t")


def staged(folder: RunFolder, part: str, rows: int) -> StagedFile:
    Path(folder.staging).mkdir(parents=True, exist_ok=True)
    path = Path(folder.staging) / f"{part}.jsonl"
    path.write_text("{}\n" * rows)
    return StagedFile(part, str(path), rows)


def commit_run(
    pipeline: beam.Pipeline, folder: RunFolder, provenance: Provenance, rows: int, files: Any
) -> beam.PCollection[dict[str, Any]]:
    """Count rows in batches of 2 and one dead letter as a pipeline does, and commit them."""
    batches = [pa.record_batch({"a": [1, 2]})] * (rows // 2)
    good = pipeline | beam.Create(batches)
    bad = pipeline | "Bad" >> beam.Create([failures([Fault("null", "m", "a")], provenance)])
    one_more = pipeline | "One" >> beam.Create([pa.record_batch({"a": [3]})])
    counts = (
        good | CountRows("read"),
        one_more | "OneMore" >> CountRows("read"),
        good | "Scored" >> CountRows("scored"),
        bad | CountFailures(),
    ) | beam.Flatten()
    staged = pipeline | "Staged" >> beam.Create(files)
    return {"counts": counts, "staged": staged} | CommitRun(
        destinations_of(folder), folder, {"run_id": "r"}
    )


def test_a_run_that_balances_is_put_in_place(
    folder: RunFolder, provenance: Provenance, tmp_path: Path
) -> None:
    files = [staged(folder, SCORES, 6), staged(folder, DEAD_LETTERS, 1)]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        report = commit_run(pipeline, folder, provenance, 6, files)
        kinds = report | beam.Map(lambda r: (r["rows_in"], r["rows_scored"], r["dead_letters"]))
        letters = [{"stage": "validate", "reason": "null", "column": "a", "rows": 1}]
        assert_that(kinds, equal_to([(7, 6, letters)]))
    written = json.loads((tmp_path / "out/r/report.json").read_text())
    assert written["rows_in"] == 7
    assert sorted(p.parent.name for p in (tmp_path / "out/r").rglob("part-*")) == [
        DEAD_LETTERS,
        SCORES,
    ]


def test_a_run_that_does_not_balance_fails_and_writes_nothing(
    folder: RunFolder, provenance: Provenance, tmp_path: Path
) -> None:
    files = [staged(folder, SCORES, 5), staged(folder, DEAD_LETTERS, 1)]
    pipeline = beam.Pipeline(runner="FnApiRunner")
    commit_run(pipeline, folder, provenance, 6, files)
    with pytest.raises(BalanceError, match=r" 6 scored, .*in the files: 5 for scores, "):
        pipeline.run()
    assert not (tmp_path / "out/r").exists()


@pytest.mark.slow
def test_a_run_without_rows_balances(folder: RunFolder) -> None:
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        nothing = pipeline | beam.Create([]).with_output_types(Any)
        counts = nothing | CountRows("read")
        staged = nothing | beam.Map(lambda x: x)
        report = {"counts": counts, "staged": staged} | CommitRun(
            destinations_of(folder), folder, {}
        )
        assert_that(report | beam.Map(lambda r: r["rows_in"]), equal_to([0]))


@pytest.mark.slow
def test_each_destination_of_a_part_gets_all_its_rows(
    folder: RunFolder, provenance: Provenance, tmp_path: Path
) -> None:
    destinations = destinations_of(folder, RunFolder(str(tmp_path / "again"), "r", "t"))
    for destination in destinations:
        destination.prepare()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([pa.record_batch({"a": [1, 2]}), pa.record_batch({"a": [3]})])
        bad = pipeline | "Bad" >> beam.Create([failures([Fault("null", "m", "a")], provenance)])
        parts = {SCORES: rows, DEAD_LETTERS: bad}
        staged = [parts[d.part] | d.name >> StageFiles(d) for d in destinations] | beam.Flatten()
        counts = (
            (rows, bad) | "All" >> beam.Flatten() | CountRows("read"),
            rows | "Scored" >> CountRows("scored"),
            bad | CountFailures(),
        ) | "Counts" >> beam.Flatten()
        {"counts": counts, "staged": staged} | CommitRun(destinations, folder, {})
    found = {
        destination.name: sum(rows_in(path) for path in Path(destination.place).iterdir())
        for destination in destinations
    }
    assert found == {"scores": 3, "scores_again": 3, "dead_letters": 1, "dead_letters_again": 1}
    assert json.loads((tmp_path / "out/r/report.json").read_text())["rows_written"] == found
    assert not (tmp_path / "again/r/report.json").exists()


# What reached the commit of a run in this process: the sizes of its inputs.
arrived: list[tuple[int, ...]] = []


class CountingCommit(CommitRun):
    """A commit that notes how many counts, files and figures it receives."""

    def _commit(
        self,
        _: None,
        counts: Iterable[Count],
        staged: Iterable[StagedFile],
        scores: Iterable[Figures] = (),
        history: Iterable[History] = (),
        examples: Iterable[Examples] = (),
    ) -> dict[str, Any]:
        lists: list[Any] = [[*one] for one in (counts, staged, scores, history, examples)]
        arrived.append(tuple(len(elements) for elements in lists))
        return super()._commit(_, *lists)


@pytest.mark.parametrize("batches", [1, 4_000])
@pytest.mark.slow
def test_what_reaches_the_commit_does_not_grow_with_the_number_of_batches(
    folder: RunFolder, provenance: Provenance, batches: int
) -> None:
    arrived.clear()
    each = 8_000 // batches
    rows = pa.record_batch({"score": [0.0, 3.0] * (each // 2), "class": ["a", "b"] * (each // 2)})
    files = [staged(folder, SCORES, 8_000)]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        good = pipeline | beam.Create([batches]) | beam.FlatMap(lambda count: [rows] * count)
        counts = (
            good | CountRows("read"),
            good | "Scored" >> CountRows("scored"),
            good | CountDecisions(("class",)),
        ) | beam.Flatten()
        written = pipeline | "Staged" >> beam.Create(files)
        letters = pipeline | "Letter" >> beam.Create([failures([Fault("null", "m")], provenance)])
        given = {
            "counts": counts,
            "staged": written,
            "scores": good | DescribeScores("score"),
            "history": good | RecordHistory("score"),
            "examples": (letters | beam.FlatMap(lambda one: [one] * batches),) | KeepExamples(3),
        }
        commit = CountingCommit(destinations_of(folder), folder, {}, decisions=("class",))
        report = given | commit
        assert_that(report, lambda found: _check_figures(*found))
    assert arrived == [(4, 1, 1, 1, 1)]


def _check_figures(report: dict[str, Any]) -> None:
    assert report["rows_scored"] == 8_000
    assert report["decisions"] == {"class": {"rows": {"a": 4_000, "b": 4_000}, "others": 0}}
    scores = report["scores"]
    assert (scores["mean"], scores["min"], scores["max"]) == (1.5, 0.0, 3.0)
    assert scores["std"] == pytest.approx(1.5, rel=1e-4)


def rows_in(path: Path) -> int:
    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    return len(path.read_text().splitlines())
