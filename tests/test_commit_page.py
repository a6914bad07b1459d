"""The page of a run is there only beside the report from which it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.errors import AttemptConflict, OutputError
from transforms.files.sink import commit as commits
from transforms.files.sink.commit import abandon, commit
from transforms.files.sink.destination import Destination, FolderDestination
from transforms.files.sink.page_file import check_page, put_page
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.files.sink.staging import hold

FIRST, SECOND = "aaaaaaaa", "bbbbbbbb"


def report(listing: Mapping[str, Any]) -> bytes:
    return json.dumps({"rows_in": 0, **listing}).encode()


def page(content: bytes) -> bytes:
    return f"page of {json.loads(content)['attempt']}".encode()


def run(root: Path, token: str, *, with_page: bool = True) -> RunFolder:
    """Commit an attempt without rows."""
    folder = RunFolder(str(root), "r", token)
    hold(folder, create=True)
    parts: list[Destination] = [
        FolderDestination(SCORES, folder, "parquet"),
        FolderDestination(DEAD_LETTERS, folder, "jsonl"),
    ]
    commit(parts, [], folder, report, page if with_page else None)
    return folder


def found(root: Path) -> tuple[str | None, str | None]:
    """Return the attempts whose report and page are in place."""
    there, shown = root / "r/report.json", root / "r/report.html"
    attempt = json.loads(there.read_text())["attempt"] if there.exists() else None
    return attempt, shown.read_text().removeprefix("page of ") if shown.exists() else None


def test_the_page_is_replaced_with_its_report(tmp_path: Path) -> None:
    run(tmp_path, FIRST)
    assert found(tmp_path) == (FIRST, FIRST)
    assert json.loads((tmp_path / "r/report.json").read_text())["page"] == "report.html"
    run(tmp_path, SECOND)
    assert found(tmp_path) == (SECOND, SECOND)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "report.html",
        "report.json",
    ]


def test_a_run_without_a_page_removes_that_of_the_earlier_result(tmp_path: Path) -> None:
    run(tmp_path, FIRST)
    run(tmp_path, SECOND, with_page=False)
    assert found(tmp_path) == (SECOND, None)
    assert "page" not in json.loads((tmp_path / "r/report.json").read_text())


def test_a_commit_that_is_repeated_puts_its_page_in_place(tmp_path: Path) -> None:
    run(tmp_path, FIRST)
    (tmp_path / "r/report.html").unlink()
    run(tmp_path, FIRST)
    assert found(tmp_path) == (FIRST, FIRST)


@pytest.mark.parametrize(
    ("fails", "left"),
    [
        ("remove_page", (FIRST, FIRST)),
        ("replace", (FIRST, None)),
        ("put_page", (SECOND, None)),
    ],
)
def test_a_failed_attempt_leaves_no_page_of_another_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, left: tuple[str, str | None]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    run(tmp_path, FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(commits, fails, fail)
        with pytest.raises(OutputError, match="disk full"):
            run(tmp_path, SECOND)
    abandon([], RunFolder(str(tmp_path), "r", SECOND))
    assert found(tmp_path) == left
    assert not (tmp_path / ".staging").exists()
    run(tmp_path, "cccccccc")
    assert found(tmp_path) == ("cccccccc", "cccccccc")


def test_a_page_that_cannot_be_made_fails_the_attempt(tmp_path: Path) -> None:
    def fail(_: bytes) -> bytes:
        raise OutputError("no page")

    run(tmp_path, FIRST)
    folder = RunFolder(str(tmp_path), "r", SECOND)
    with pytest.raises(OutputError, match="no page"):
        commit([FolderDestination(SCORES, folder, "parquet")], [], folder, report, fail)
    assert found(tmp_path) == (FIRST, FIRST)


def test_an_attempt_that_is_overtaken_does_not_replace_the_page(tmp_path: Path) -> None:
    late = RunFolder(str(tmp_path), "r", FIRST)
    run(tmp_path, SECOND)
    put_page(late, b"page of aaaaaaaa")
    assert found(tmp_path) == (SECOND, SECOND)


@pytest.mark.parametrize("before", ["nothing", "run"])
def test_a_page_that_no_run_wrote_is_kept(tmp_path: Path, before: str) -> None:
    if before == "run":
        run(tmp_path, FIRST, with_page=False)
    (tmp_path / "r").mkdir(exist_ok=True)
    (tmp_path / "r/report.html").write_text("page of mine")
    words = "report.html is not the page of a run, but --report_html would replace it"
    with pytest.raises(AttemptConflict, match=words):
        check_page(RunFolder(str(tmp_path), "r", SECOND))
    with pytest.raises(AttemptConflict, match=words):
        run(tmp_path, SECOND)
    run(tmp_path, SECOND, with_page=False)
    assert found(tmp_path) == (SECOND, "mine")


def test_a_page_that_cannot_be_written_is_an_error_that_names_the_result(tmp_path: Path) -> None:
    folder = run(tmp_path, FIRST, with_page=False)
    (tmp_path / "r/report.html").mkdir()
    with pytest.raises(OutputError, match=r"complete, but its page .* run again") as e:
        put_page(folder, b"")
    assert "\n" not in str(e.value)


def test_a_link_in_place_of_the_page_is_refused(tmp_path: Path) -> None:
    run(tmp_path, FIRST)
    (tmp_path / "r/report.html").unlink()
    (tmp_path / "r/report.html").symlink_to(tmp_path / "other")
    with pytest.raises(AttemptConflict, match="symbolic link"):
        run(tmp_path, SECOND)
