"""The check of words finds its patterns in prose and in names, and has no stale exception."""

import sys

import pytest
from docs_pages import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import words


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("# Nothing is told to a caller.", "told"),
        ("def test_a_fault_is_told_early() -> None:", "told"),
        ("It is waited out.", "waited out"),
        ("What passes by itself is asked again.", "passes by itself"),
        ("A call is dear.", "is dear"),
        ("a file that is none", "is none"),
        ("the first of these is read", "of these"),
        ("it can tell apart two rows", "tell apart"),
    ],
)
def test_a_pattern_is_found(line: str, word: str) -> None:
    assert [place.word for place in words.find("a.py", f"first\n{line}\n")] == [word]
    assert [place.line for place in words.find("a.py", f"first\n{line}\n")] == [2]


@pytest.mark.parametrize(
    "line",
    [
        "if value is None:",
        "stream.tell()",
        "an intelligent mendacious deary",
        '"image/png": "iVBORw0/anew/told+dear",',
    ],
)
def test_other_text_passes(line: str) -> None:
    assert list(words.find("a.py", line)) == []


def test_every_exception_names_a_file_with_a_pattern() -> None:
    for files, pattern, _ in words.EXCEPTIONS:
        assert pattern in ("*", *words.PATTERNS)
        assert list(ROOT.glob(files if "/" in files else f"**/{files}")), files
