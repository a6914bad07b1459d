"""Every error leads to a page of the operating guide, which `millrace explain` prints."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from common import errors, pages
from common.command_names import naming
from common.errors import InputError, MillraceError, UsageError
from common.pages import codes, error_line, read_page
from millrace.commands import NAMES
from millrace.explain import main

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, MillraceError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_of_exit_code_1_has_a_page(kind: type[MillraceError]) -> None:
    if kind is not UsageError:
        assert kind.page in codes()
    else:
        assert kind.page == ""


def test_the_line_of_an_error_ends_with_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    error = InputError("no file matches rows/*.parquet")
    line = "error: no file matches rows/*.parquet [see docs/operate/input.md, or run: {} input]"
    assert error_line(error) == line.format("python -m millrace explain")
    with naming(NAMES):
        assert error_line(error) == line.format("millrace explain")
    monkeypatch.setattr(pages, "SITE", "https://example.org/millrace")
    assert "[see https://example.org/millrace/operate/input.html, or run:" in error_line(error)


def test_a_wrong_flag_explains_itself() -> None:
    error = UsageError("--batch_rows must be at least 1, got 0")
    assert error_line(error) == "error: --batch_rows must be at least 1, got 0"


@pytest.mark.parametrize("code", codes())
def test_a_page_says_what_to_do(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([code]) == 0
    text = capsys.readouterr().out
    assert text == read_page(code)
    assert re.match(r"# \w", text)
    assert "**Fix" in text or "](" in text


def test_without_a_code_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == codes()
    assert "attempts               Two attempts at the same run" in lines
    assert "index" not in codes()


def test_an_unknown_code_is_an_error_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inputs"]) == 2
    assert "unknown code 'inputs' (did you mean 'input'" in capsys.readouterr().err


def test_the_pages_come_with_the_wheel(distribution: Path, tmp_path: Path) -> None:
    (wheel,) = distribution.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "millrace", "explain", "attempts"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == read_page("attempts"), done.stderr
