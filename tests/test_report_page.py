"""The page about a batch run shows the figures of its report, whatever the values of its rows."""

import html.parser
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chromium import look_at
from command_line import Result, RunCommand, assert_one_line_error
from hypothesis import given
from hypothesis import strategies as st
from libraries import need_library

from common.html_pages.page import write_page
from examples.transactions.data import FEATURES
from pipelines.batch.report_page import MOST_FILES, RunPage, sections
from pipelines.batch_local import COMMAND
from transforms.dead_letter_examples import PAYLOAD_CHARS, Example

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
HOSTILE = "</script><img src=x onerror=alert(1)>'\"&amp;\n<!--"
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | st.just(HOSTILE)


def report(text: str = "x", **changes: Any) -> dict[str, Any]:
    """Return the content of a report with a text wherever one comes from data or names."""
    return {
        "run_id": text,
        "pipeline": text,
        "attempt": "aaaaaaaa",
        "model": {"name": text, "version": text, "digest": text, "batch_dependence": 1e-6},
        "prepared_at": "worker",
        "precision": {text: 3},
        "score_output": text,
        "thresholds": {text: {"at": [0.5], "packaged": [0.4]}},
        "input": [text],
        "output": [text],
        "dead_letter_output": [text],
        "report": text,
        "started_at": "2026-11-30T05:45:41+00:00",
        "finished_at": "2026-11-30T05:45:44+00:00",
        "max_dead_letter_share": 0.5,
        "min_rows": 0,
        "scores": {"mean": 0.5, "std": 0.1, "min": 0.0, "max": 1.0},
        "decisions": {text: {"rows": {text: 2}, "others": 1}},
        "score_histogram": {"scale": "linear", "edges": [0.0, 0.5, 1.0], "rows": [1, 2]},
        "rows_over_time": {
            "start": "2026-11-30T05:45:41+00:00",
            "span_seconds": 0.25,
            "rows": [3],
        },
        "balanced": True,
        "rows_in": 4,
        "rows_scored": 3,
        "rows_dead_lettered": 1,
        "rows_expected": 4,
        "rows_expected_from": text,
        "rows_written": {text: 3},
        "dead_letters": [{"stage": text, "reason": text, "column": text, "rows": 1}],
        "too_few_rows": False,
        "too_many_dead_letters": False,
        "files": {"scores": [{"name": text, "rows": 3, "bytes": 10}]},
        **changes,
    }


class Tags(html.parser.HTMLParser):
    """Collects the tags of a page with their attributes, and its text outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        if self._open != "script":
            self.text.append(data)


def shown(text: str) -> Tags:
    examples = {(text, text): (Example(text, text, text, text),)}
    return Tags(write_page(text, sections(report(text), [examples]), "draw()"))


@given(TEXTS)
def test_no_text_of_data_or_names_becomes_a_part_of_the_page(text: str) -> None:
    assert shown(text).tags == shown("x").tags


def test_a_hostile_text_is_shown_as_it_is() -> None:
    assert shown(HOSTILE).text.count(HOSTILE) > 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"too_many_dead_letters": True}, "more than 50.00% of its rows are dead letters"),
        ({"too_few_rows": True, "min_rows": 9}, "expected at least 9 rows"),
        ({"files": {}}, "The run wrote no files."),
    ],
)
def test_the_page_says_what_is_unusual(changes: dict[str, Any], words: str) -> None:
    assert words in write_page("", sections(report(**changes)), "draw()")
    assert words not in write_page("", sections(report()), "draw()")


def test_a_page_about_a_run_without_rows_has_no_charts() -> None:
    nothing: dict[str, Any] = {
        "dead_letters": [],
        "scores": None,
        "score_histogram": None,
        "rows_over_time": None,
    }
    text = write_page("", sections(report(**nothing)))
    assert "<script" not in text
    assert "0 scored" in write_page("", sections(report(**nothing, rows_scored=0)))


def test_a_page_lists_a_limited_number_of_files() -> None:
    files = [{"name": f"f{i}", "rows": 1, "bytes": 1} for i in range(MOST_FILES + 1_000)]
    text = write_page("", sections(report(files={"scores": files})), "draw()")
    assert len(re.findall(r"<td>f\d", text)) == MOST_FILES
    assert "1,000 more files are listed in report.json." in text


@pytest.fixture
def run(example: Path, tmp_path: Path, run_command: RunCommand) -> Callable[..., Result]:
    """A function that runs batch_local with a page."""

    def call(**flags: Any) -> Result:
        need_library("vl_convert")
        own = {
            "input_files": example / "transactions.parquet",
            "model": example / "model",
            "output_files": tmp_path / "out",
            "id_column": "transaction_id",
            "run_id": "r",
            "report_html": "true",
            "direct_num_workers": 1,
        }
        return run_command(COMMAND, own | flags)

    return call


@pytest.mark.slow
def test_chromium_shows_the_figures_of_the_report(run: Any, tmp_path: Path) -> None:
    code, out, _ = run()
    assert code == 0
    assert "/out/r/report.html" in out
    written = json.loads((tmp_path / "out/r/report.json").read_text())
    found = look_at((tmp_path / "out/r/report.html").read_text(), tmp_path / "page.html")
    assert found["errors"] == []
    assert found["charts"] == found["drawn"] == 3
    rows = {row[0]: row[1:] for row in found["rows"] if len(row) == 2}
    for name in ("rows_in", "rows_scored", "rows_dead_lettered"):
        label = {"rows_in": "read", "rows_scored": "scored"}.get(name, "dead letters")
        assert f"{written[name]:,}" in [row[1] for row in found["rows"] if row[0] == label]
    assert rows["scores"] or rows["dead_letters"]
    for part, count in written["rows_written"].items():
        assert [part, f"{count:,}"] in found["rows"]
    for file in [file for files in written["files"].values() for file in files]:
        assert [file["name"], f"{file['rows']:,}", f"{file['bytes']:,}"] in found["rows"]
    for name in ("name", "version", "digest"):
        assert rows[name] == [written["model"][name]]
    for kind in written["dead_letters"][:10]:
        assert [kind["column"], kind["reason"], f"{kind['rows']:,}"] in found["rows"]


@pytest.mark.slow
def test_the_histograms_count_every_scored_row(run: Any, tmp_path: Path) -> None:
    run(batch_rows=100)
    written = json.loads((tmp_path / "out/r/report.json").read_text())
    histogram, scored = written["score_histogram"], written["rows_scored"]
    assert sum(histogram["rows"]) == sum(written["rows_over_time"]["rows"]) == scored
    values = pq.read_table(tmp_path / "out/r/scores")["score"].to_numpy()
    edges = histogram["edges"]
    exact = [int(((values >= a) & (values < b)).sum()) for a, b in itertools.pairwise(edges)]
    assert histogram["rows"] == exact


def bad_row() -> dict[str, Any]:
    return {"transaction_id": HOSTILE, **dict.fromkeys(FEATURES, 1.0)}


@pytest.mark.parametrize("examples", [0, 2])
@pytest.mark.slow
def test_values_of_rows_are_shown_only_if_asked_for(
    run: Any, tmp_path: Path, examples: int
) -> None:
    rows = [bad_row() | {FEATURES[1]: None, FEATURES[2]: 123454321.0} for _ in range(5)]
    pq.write_table(pa.Table.from_pylist([*rows, bad_row()]), tmp_path / "rows.parquet")
    given = {"report_examples": examples} if examples else {}
    code, _, _ = run(input_files=tmp_path / "rows.parquet", max_dead_letter_share=1, **given)
    assert code == 0
    text = (tmp_path / "out/r/report.html").read_text()
    assert text.count("123454321") == examples
    assert "<img src=x" not in text
    assert "123454321" not in (tmp_path / "out/r/report.json").read_text()
    if examples:
        found = look_at(text, tmp_path / "page.html")
        assert (found["errors"], found["images"]) == ([], 0)


@pytest.mark.slow
def test_a_failed_run_leaves_no_page(run: Any, tmp_path: Path, example: Path) -> None:
    table = pq.read_table(example / "transactions.parquet").slice(0, 10)
    (tmp_path / "rows").mkdir()
    pq.write_table(table, tmp_path / "rows/a.parquet")
    (tmp_path / "rows/b.csv").write_text("transaction_id\n1\n")
    code, _, _ = run(input_files=f"{tmp_path}/rows/*")
    assert code != 0
    assert not list(tmp_path.rglob("report.*"))


def test_a_missing_package_is_named_before_the_run(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = "pages need one more package: run pip install 'millrace[pages]'"
    monkeypatch.setattr("test_report_page.need_library", lambda name: None)
    assert_one_line_error(run(), 2, words)
    assert not (tmp_path / "out").exists()


def test_examples_need_a_page(run: Any) -> None:
    assert_one_line_error(run(report_html="false", report_examples=2), 2, "--report_html")


def test_a_long_payload_is_cut() -> None:
    from transforms.dead_letter_examples import _example

    letter = {"payload": b"x" * 2_000, "attributes": "{}", "row_id": None, "message": "m"}
    assert len(_example(letter).payload) == PAYLOAD_CHARS + 3


def test_a_page_travels_with_its_script() -> None:
    assert b"<script>draw()</script>" in RunPage("draw()")(report(), [])
