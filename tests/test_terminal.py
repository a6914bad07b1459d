"""Output is plain text, and coloured on a terminal only."""

import io
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.errors import InputError, one_line
from common.terminal import (
    Progress,
    columns,
    facts,
    is_coloured,
    is_terminal,
    long_step,
    print_error,
    prints_to_stderr,
)

ROOT = Path(__file__).parent.parent
PROGRAM = (
    "import sys\n"
    "from common.errors import InputError\n"
    "from common.terminal import print_error, print_facts\n"
    "print_error(InputError('no file matches x'))\n"
    "print_facts([('balance', 'agrees'), ('output', '/tmp/' + 'x' * 200)], {'balance': 'green'})\n"
    "print('rich' in sys.modules)\n"
)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def on_a_terminal(**variables: str) -> str:
    """Run the program with a pseudo-terminal as its output, and return what it printed."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLORTERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment | {"TERM": "xterm", "PYTHONPATH": str(ROOT)} | variables,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    assert process.wait() == 0
    os.close(ours)
    return b"".join(parts).decode()


def test_a_terminal_gets_colours_and_lines_that_can_be_copied() -> None:
    out = on_a_terminal()
    assert "\x1b[1;31merror:\x1b[0m no file matches x" in out
    assert "\x1b[32magrees\x1b[0m" in out
    assert "/tmp/" + "x" * 200 in out
    assert out.endswith("True\r\n")


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_the_text_is_plain_and_rich_is_not_imported(
    variable: dict[str, str],
) -> None:
    out = on_a_terminal(**variable)
    assert "\x1b" not in out
    assert out.endswith("False\r\n")


def test_a_file_gets_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(InputError("no file matches x"))
    error = (
        "error: no file matches x "
        "[see docs/operate/input.md, or run: python -m millrace explain input]\n"
    )
    assert capsys.readouterr().err == error


def test_a_closed_stream_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        print_error(InputError("nobody reads this"), stream)
        # Closing it would flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


@pytest.mark.usefixtures("plain_environment")
def test_colours_depend_on_the_stream_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_coloured(Terminal())
    assert not is_coloured(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_coloured(Terminal())
    assert is_terminal(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Terminal())


def test_labels_and_cells_are_aligned() -> None:
    assert facts([("run", "x"), ("dead letters", "2"), ("empty", "")]) == (
        "run           x\ndead letters  2\nempty"
    )
    assert columns([("a", "bb"), ("ccc", "d")], indent="  ") == "  a    bb\n  ccc  d"
    assert columns([]) == ""


def test_progress_rewrites_one_line_of_a_terminal_and_erases_it() -> None:
    out, line = io.StringIO(), Terminal()
    progress = Progress(out, line)
    progress.now("one")
    progress.now("two")
    progress.say("done")
    assert out.getvalue() == "done\n"
    assert line.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"


def test_without_a_terminal_a_step_is_printed_once_per_key() -> None:
    line = io.StringIO()
    progress = Progress(io.StringIO(), line)
    for text, key in (("1 row", "running"), ("2 rows", "running"), ("3 rows", "done")):
        progress.now(text, key)
    progress.now("no key")
    assert line.getvalue() == "1 row\n3 rows\n"


def test_a_long_step_shows_its_seconds_and_leaves_nothing() -> None:
    line = Terminal()
    with long_step("reading model gs://b/m", line, every=0.01):
        while "reading model" not in line.getvalue():
            pass
    assert "reading model gs://b/m ... 0 s" in line.getvalue()
    assert line.getvalue().endswith("\r\x1b[K")


def test_a_short_step_and_a_log_show_nothing() -> None:
    terminal, log = Terminal(), io.StringIO()
    with long_step("quick", terminal), long_step("quick", log, every=0.0):
        pass
    assert (terminal.getvalue(), log.getvalue()) == ("", "")


def test_prints_of_threads_and_children_go_to_standard_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    print("before")
    with prints_to_stderr():
        print("ours")
        thread = threading.Thread(target=print, args=["of a thread"])
        thread.start()
        thread.join()
        subprocess.run(["echo", "of a child"], check=True)
    with prints_to_stderr(when=False):
        print("after")
    out, err = capfd.readouterr()
    assert out == "before\nafter\n"
    assert sorted(err.splitlines()) == ["of a child", "of a thread", "ours"]


def test_names_cannot_change_a_terminal() -> None:
    assert facts([("column", "a\x1b[31m\nerror: b\u2028c")]) == (
        "column        a\\x1b[31m\\nerror: b\\u2028c"
    )
    assert columns([["é\x07", "b\n"]]) == "é\\x07  b\\n"
    assert str(InputError("column \x1b]0;hi\x07 of\n  two lines")) == (
        "column \\x1b]0;hi\\x07 of\n  two lines"
    )
    assert one_line(Exception("a\x1b[2J\nb")) == "a\\x1b[2J b"
