"""The page of a scale test shows its figures, and draws its charts without a network."""

import errno
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from chromium import look_at
from libraries import need_library
from virtual_server import level, open_loop

from common.errors import InputError, OutputError, UsageError
from scale_tests.load.plan import Bisection, Constant, Objective, Plan, Result
from scale_tests.load.schedule import due_times, probe
from scale_tests.measures.accounts import Fate
from scale_tests.measures.knee import find_knee
from scale_tests.measures.level import Judgement, Level, judge
from scale_tests.measures.outcome import Outcome
from scale_tests.measures.stamps import breakdown
from scale_tests.pages.charts import timeline
from scale_tests.pages.page import page, read_result, write_report
from scale_tests.pages.record import prepared, write

SEARCH = Bisection(lowest=50, highest=400, seconds=13.0, precision=0.05)
PLAN = Plan(
    target="stream",
    send_to="projects/p/topics/input",
    objective=Objective(latency_ms=200),
    result=Result(source="topic", name="output", dead_letters="dead"),
    phases=(Constant(rate=50, seconds=13.0), SEARCH),
)


@pytest.fixture(autouse=True)
def _libraries() -> None:
    for library in ("hdrh", "scipy", "vl_convert"):
        need_library(library)


def measured(name: str, rate: float, start: float, capacity: float = 200.0) -> Level:
    """Return a level against a server whose answers take random times."""
    due = due_times(probe(SEARCH, rate), "poisson", (int(rate),)) + start
    service = np.random.default_rng(int(rate)).exponential(1 / capacity, len(due))
    answered = open_loop(due, service)
    found = replace(level(due, answered, SEARCH.seconds), name=name, start=start)
    moments = {"due": due, "sent": due + 0.001, "arrived": answered}
    return replace(found, parts=breakdown(moments))


def outcome(*, ended: str = "") -> Outcome:
    levels: list[tuple[Level, Judgement]] = []

    def measure(rate: float) -> Judgement:
        one = measured(f"2 <bisection> {rate:,.4g}/s", rate, 1_000.0 + 20 * len(levels))
        levels.append((one, judge(one, PLAN.objective, PLAN.sender)))
        return levels[-1][1]

    knee = find_knee(measure, SEARCH)
    return Outcome(
        test_id="abc",
        levels=tuple(levels),
        knees=(knee,),
        strays=0,
        ended=ended,
    )


def written(folder: Path, **given: Any) -> dict[str, Any]:
    write(outcome(**given), PLAN, folder)
    result, _ = read_result(folder)
    return result


@pytest.mark.slow
def test_the_page_has_the_accounts_and_the_figures_of_the_result(tmp_path: Path) -> None:
    result = written(tmp_path)
    text = write_report(tmp_path).read_text()
    shown = text.partition("<script")[0]
    assert len(result["levels"]) > 2
    for one in result["levels"]:
        assert one["name"].replace("<", "&lt;").replace(">", "&gt;") in shown
        assert one["name"] not in shown
        for count in one["accounts"].values():
            assert f'<td class="number">{count:,}</td>' in shown
    assert "not sustained" in shown
    assert "partial" not in shown
    for address in ("http://", "https://", "//cdn"):
        assert f'src="{address}' not in text
        assert f'href="{address}' not in text


@pytest.mark.slow
def test_the_page_of_an_interrupted_test_says_that_it_is_partial(tmp_path: Path) -> None:
    written(tmp_path, ended="the test was interrupted")
    assert "This page is partial: the test was interrupted." in write_report(tmp_path).read_text()


def test_a_message_that_was_never_sent_waits_nowhere() -> None:
    samples = pa.table(
        {
            "due": [0.0, 1.0, 2.0, 3.0],
            "arrived": [0.5, None, 2.5, 3.5],
            "fate": [Fate.SCORED, Fate.UNSENT, Fate.SCORED, Fate.SCORED],
        }
    )
    _, waiting, _ = timeline(samples, "message")
    assert [row["value"] for row in waiting["data"]["values"]][-1] == 0


def test_a_test_without_levels_has_a_page(tmp_path: Path) -> None:
    empty = Outcome(test_id="abc", levels=(), knees=(), strays=0, ended="the test was interrupted")
    write(empty, PLAN, tmp_path)
    assert "No message was measured." in write_report(tmp_path).read_text()


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_folder_without_a_result_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    if damage != "missing":
        written(tmp_path)
    if damage == "cut":
        (tmp_path / "result.json").write_bytes(b'{"levels": [')
    if damage == "other":
        (tmp_path / "samples.parquet").write_bytes(b"PAR1")
    words = "has no result.json" if damage == "missing" else "does not hold the result of a scale"
    with pytest.raises(InputError, match=words) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "samples.parquet").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot be written: .*No space left") as caught:
        write(outcome(), PLAN, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["file/out", "/proc/out"])
def test_a_folder_that_cannot_be_created_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="out cannot be written: ") as caught,
        prepared(tmp_path / place),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_folder_without_permission_is_refused_before_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    # The superuser, who may run these tests, has all permissions.
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    match = r"cannot be written: .*Permission denied"
    with pytest.raises(OutputError, match=match) as caught, prepared(tmp_path):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("existed", "files", "left"), [(0, [], 0), (1, [], 1), (0, ["log"], 1)])
def test_a_refused_test_leaves_no_empty_folder_that_it_created(
    tmp_path: Path, existed: bool, files: list[str], left: bool
) -> None:
    folder = tmp_path / "out"
    if existed:
        folder.mkdir()

    def refuse() -> None:
        for name in files:
            (folder / name).touch()
        raise UsageError("refused")

    with pytest.raises(UsageError), prepared(folder):
        refuse()
    assert folder.exists() == left


@pytest.mark.slow
def test_a_value_of_a_row_cannot_end_the_script_that_holds_it(tmp_path: Path) -> None:
    result, samples = (written(tmp_path), read_result(tmp_path)[1])
    names = ["</script><img src=x onerror=alert(1)>"] * samples.num_rows
    text = page(result, samples.set_column(0, "level", [names]))
    assert "</script><img" not in text


def test_chromium_draws_every_chart_without_an_error(tmp_path: Path) -> None:
    written(tmp_path)
    found = look_at(write_report(tmp_path).read_text(), tmp_path / "page.html")
    assert found["errors"] == []
    assert found["charts"] == found["drawn"] == 7
    # It would be invisible on the dark page.
    assert found["black"] == 0
