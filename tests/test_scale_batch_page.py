"""The page of a scale test of a batch shows its figures, and two results can be compared."""

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chromium import look_at
from command_line import assert_one_line_error
from libraries import need_library

from common.errors import InputError
from scale_tests.__main__ import main
from scale_tests.load.batch_plan import Batch, BatchGoal, BatchPlan, Offline
from scale_tests.measures.batch_runs import Accounts, BatchLevel, BatchOutcome, Run
from scale_tests.pages.batch_record import batch_result, write_batch
from scale_tests.pages.compare import Comparison, compare
from scale_tests.pages.differences import Change
from scale_tests.pages.page import write_report

SIZES = (1_000, 10_000, 100_000)
PLAN = BatchPlan(
    target="batch",
    send_to="./out",
    batch=Batch(max_seconds=1_000, flags=("--model", "</script><img src=x>")),
    goal=BatchGoal(rows=1_000_000, usd_per_hour=1),
    phases=(Offline(rows=SIZES, repeat=3),),
)


@pytest.fixture(autouse=True)
def _libraries() -> None:
    for library in ("hdrh", "psutil", "scipy", "vl_convert"):
        need_library(library)


def outcome(
    rate: float = 1_000.0,
    *,
    lost: int = 0,
    peak: float = 5e8,
    faults: tuple[str, ...] = (),
    repeat: int = 3,
) -> BatchOutcome:
    """Return a test of a batch with a fixed time of 5 seconds; its last level loses rows."""

    def run(rows: int, number: int) -> Run:
        gone = lost if rows == SIZES[-1] else 0
        return Run(
            round=number,
            started=1e9,
            seconds=(5 + rows / rate) * (1 + number / 1_000),
            accounts=Accounts(planned=rows, scored=rows - gone, lost=gone),
            affected=(f"lost: rows 0 to {gone - 1} ({gone})",) if gone else (),
            faults=faults,
            start_seconds=4.0,
            finish_seconds=0.5,
            cpu_seconds=6.0,
            peak_bytes=int(peak),
            read_bytes=100 * rows,
            written_bytes=50 * rows,
        )

    levels = tuple(
        BatchLevel(
            name=f"1 offline, {rows:,} rows",
            rows=rows,
            runs=tuple(run(rows, number) for number in range(1, repeat + 1)),
        )
        for rows in SIZES
    )
    return BatchOutcome(test_id="abc", plan=PLAN, levels=levels)


def stored(folder: Path, name: str, one: BatchOutcome) -> str:
    (folder / name).mkdir()
    write_batch(one, folder / name)
    return str(folder / name)


def test_chromium_draws_every_chart_and_shows_the_figures_of_the_result(tmp_path: Path) -> None:
    stored(tmp_path, "a", outcome(lost=7))
    page = write_report(tmp_path / "a").read_text()
    found = look_at(page, tmp_path / "page.html")
    assert found["errors"] == []
    assert found["charts"] == found["drawn"] == 4
    assert found["images"] == 0
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    accounts, figures = found["rows"][1:4], found["rows"][5:8]
    for level, row, others in zip(result["levels"], accounts, figures, strict=True):
        assert row[:5] == [
            level["name"],
            "failed" if level["rows"] == SIZES[-1] else "passed",
            "0 of 3" if level["rows"] == SIZES[-1] else "3 of 3",
            f"{3 * level['rows']:,}",
            f"{level['accounts']['scored']:,}",
        ]
        assert others[0] == level["name"]
    # A run that lost rows has no figures.
    assert figures[2][1:] == ["-"] * 9
    assert "lost: rows 0 to 6 (7)" in accounts[2][-1]


def test_a_test_without_runs_and_one_that_ended_early_have_a_page(tmp_path: Path) -> None:
    empty = BatchOutcome(
        test_id="abc", plan=PLAN, levels=(), ended="the test was interrupted", interrupted=True
    )
    stored(tmp_path, "a", empty)
    page = write_report(tmp_path / "a").read_text()
    assert "No run was measured." in page
    assert "This page is partial: the test was interrupted." in page


def found(before: BatchOutcome, after: BatchOutcome, limit: float = 0.1) -> dict[str, Change]:
    differences = compare(batch_result(before), batch_result(after), limit)
    return {f"{one.name} {one.unit}": one.change for one in differences}


def test_a_slower_batch_is_slower_and_a_faster_one_faster() -> None:
    slower = found(outcome(1_000), outcome(500))
    assert slower["1 offline, 100,000 rows, rate rows/s"] is Change.SLOWER
    # The fixed time hides the rate of a small run.
    assert slower["1 offline, 1,000 rows, rate rows/s"] is Change.SLOWER
    assert slower["1 offline, 100,000 rows, memory MB"] is Change.SAME
    faster = found(outcome(500), outcome(1_000))
    assert faster["1 offline, 100,000 rows, rate rows/s"] is Change.FASTER
    assert set(found(outcome(), outcome()).values()) == {Change.SAME}
    within = found(outcome(1_000), outcome(950))
    assert set(within.values()) == {Change.SAME}


def test_fewer_than_three_runs_do_not_say_that_a_batch_is_slower() -> None:
    changes = found(outcome(1_000), outcome(100, repeat=2))
    assert changes["1 offline, 100,000 rows, rate rows/s"] is Change.UNKNOWN


def test_a_comparison_says_how_many_figures_cannot_be_judged() -> None:
    results = (batch_result(outcome()), batch_result(outcome(repeat=2)))
    comparison = Comparison(compare(*results, 0.1))
    total = len(comparison.differences)
    assert comparison.said == f"no figure is worse; {total} of {total} have insufficient data"


def test_memory_that_grew_is_worse_and_less_memory_is_better() -> None:
    name = "1 offline, 10,000 rows, memory MB"
    assert found(outcome(peak=5e8), outcome(peak=6e8))[name] is Change.LARGER
    assert found(outcome(peak=6e8), outcome(peak=5e8))[name] is Change.SMALLER


def test_lost_rows_and_failed_runs_are_worse_whatever_the_rates_are() -> None:
    lost = found(outcome(500), outcome(1_000, lost=1))
    assert lost["1 offline, 100,000 rows lost rows"] is Change.WRONG
    failed = found(outcome(500), outcome(1_000, faults=("killed",)))
    assert failed["1 offline, 1,000 rows complete runs"] is Change.WRONG
    assert failed["1 offline, 1,000 rows, rate rows/s"] is Change.UNKNOWN
    assert Change.WRONG not in found(outcome(lost=1), outcome(lost=1)).values()
    assert Change.WRONG not in found(outcome(lost=1, repeat=1), outcome(lost=1)).values()
    assert Change.WRONG in found(outcome(lost=1), outcome(lost=2, repeat=1)).values()


def test_a_batch_is_not_compared_with_a_stream_or_with_other_sizes() -> None:
    before: dict[str, Any] = batch_result(outcome())
    stream = {**before, "plan": {"target": "stream"}}
    with pytest.raises(InputError, match="got those of target 'batch' and 'stream'"):
        compare(before, stream, 0.1)
    with pytest.raises(InputError, match="no level in common"):
        compare(before, {**before, "levels": []}, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "code"), [(500.0, 1), (1_000.0, 0)])
def test_the_command_writes_a_page_and_fails_if_a_figure_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: float, code: int
) -> None:
    folders = [stored(tmp_path, "a", outcome()), stored(tmp_path, "b", outcome(rate))]
    assert main(["compare", *folders, "--fail_if_slower", "10%"]) == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(
        "3 of 6 figures are worse" if code else "no figure is worse; see "
    )
    page = (tmp_path / "b" / "comparison.html").read_text()
    drawn = look_at(page, tmp_path / "page.html")
    assert (drawn["errors"], drawn["charts"], drawn["drawn"]) == ([], 1, 1)
    assert main(["compare", *folders, "--moved", "sink"]) == 2
    assert "--moved confirms the bottleneck of a stream" in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparison_says_what_it_does_not_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = outcome(repeat=1)
    stored(tmp_path, "before", one)
    after = stored(tmp_path, "after", replace(one, levels=one.levels[:2]))
    monkeypatch.chdir(tmp_path / "before")
    assert main(["compare", ".", after]) == 0
    said = "o figure is worse; 4 of 4 have insufficient data; only one result has "
    said += "'1 offline, 100,000 rows'"
    assert f"n{said}; see " in capsys.readouterr().out
    page = (tmp_path / "after" / "comparison.html").read_text()
    assert f"N{html.escape(said)}." in page
    assert "<h1>after compared with before</h1>" in page


@pytest.mark.parametrize(
    "change",
    [
        lambda _: [],
        lambda _: {},
        lambda result: {**result, "plan": 3},
        lambda result: {**result, "levels": [{**result["levels"][0], "runs": None}]},
        lambda result: {name: result[name] for name in result if name != "levels"},
    ],
)
def test_a_result_that_was_changed_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], Any],
) -> None:
    before, after = (stored(tmp_path, name, outcome()) for name in "ab")
    text = json.dumps(change(batch_result(outcome())))
    (tmp_path / "b" / "result.json").write_text(text)
    for argv in (["report", after], ["compare", before, after], ["compare", after, before]):
        code = main(argv)
        reason = f"{after} does not hold the result of a scale test, or it is of another version"
        if argv[1:] == [after, before]:
            reason = reason.replace(after, f"{after} or {before}")
        assert_one_line_error((code, *capsys.readouterr()), 1, reason)
    assert not [*tmp_path.rglob("*.html")]


def test_samples_that_are_not_those_of_the_result_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [stored(tmp_path, name, outcome()) for name in "ab"]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b" / "samples.parquet")
    code = main(["compare", *folders])
    assert_one_line_error((code, *capsys.readouterr()), 1, "does not hold the result of a scale")


def test_cloud_monitoring_is_not_added_to_the_page_of_a_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored(tmp_path, "a", outcome())
    assert main(["report", folder, "--project", "p", "--job_id", "j"]) == 1
    assert "is the result of a batch" in capsys.readouterr().err
    assert main(["report", folder]) == 0
