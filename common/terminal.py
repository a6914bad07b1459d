"""How the output of commands looks: facts, tables, progress, errors and colours.

Everything is plain text. On a terminal, rich adds colours, unless NO_COLOR is set
(https://no-color.org). It is imported only then, so that `--help` stays fast and the logs of
launchers and DAGs stay plain.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TextIO

from common.errors import MillraceError, visible
from common.interrupts import repeating
from common.pages import error_line

_LABEL_WIDTH = 13
_CLEAR = "\r\x1b[K"


@contextmanager
def output_may_close() -> Iterator[None]:
    """Ignore what the block prints after the reader of standard output, such as `head`, has gone.

    What a command did does not fail because nobody reads the rest of its output.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def prints_to_stderr(when: bool = True) -> Iterator[None]:
    """Send to standard error what the block prints on standard output.

    That includes what other threads, libraries and child processes print meanwhile.

    Args:
        when: Whether to do so; otherwise the block runs as usual.
    """
    if not when:
        yield
        return
    own, saved = sys.stdout, None
    with suppress(OSError, ValueError):
        own.flush()
        # Libraries and child processes know only the number of the file.
        saved = os.dup(1)
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = own
        with suppress(OSError, ValueError):
            own.flush()
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return one line for each label and value, with the values aligned."""
    return "\n".join(visible(f"{label:<{_LABEL_WIDTH}} {value}".rstrip()) for label, value in pairs)


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Return rows as lines of text with aligned columns.

    Args:
        rows: The cells of each row. All rows have the same length.
        indent: The text before each line.
    """
    if not rows:
        return ""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join((indent + "  ".join(map(str.ljust, row, widths))).rstrip() for row in rows)


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can rewrite lines."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def clear_line(stream: TextIO) -> None:
    """Erase the current line of a stream if it is a terminal, where progress may be shown."""
    if is_terminal(stream):
        stream.write(_CLEAR)


def is_coloured(stream: TextIO) -> bool:
    """Return whether output to a stream has colours."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def print_facts(pairs: Sequence[tuple[str, str]], styles: Mapping[str, str]) -> None:
    """Print labels and values on standard output.

    Args:
        pairs: The labels and values.
        styles: The style of rich in which the values of a label appear on a terminal.
    """
    if not is_coloured(sys.stdout):
        with output_may_close():
            print(facts(pairs))
        return
    from rich.text import Text

    for label, value in pairs:
        shown = visible(value), styles.get(label, "")
        line = Text.assemble((f"{label:<{_LABEL_WIDTH}} ", "bold"), shown)
        _print_rich(line, sys.stdout)


def print_error(error: MillraceError, stream: TextIO | None = None) -> None:
    """Print an error in one line on standard error, or on another stream.

    Nothing is printed if the stream is closed.
    """
    stream = stream or sys.stderr
    text = error_line(error)
    with suppress(OSError):
        if not is_coloured(stream):
            print(text, file=stream, flush=True)
            return
        from rich.text import Text

        line = Text(text)
        line.stylize("bold red", 0, len("error:"))
        line.stylize("dim", len(f"error: {error}"))
        _print_rich(line, stream)


def _print_rich(line: object, stream: TextIO) -> None:
    from rich.console import Console

    # A line that rich wraps could not be copied.
    Console(file=stream, highlight=False, soft_wrap=True).print(line)


@dataclass
class Progress:
    """The progress of a command.

    Attributes:
        out: The stream for lines that stay.
        line: The stream for the current step: on a terminal, one line that is rewritten.
    """

    out: TextIO = field(default_factory=lambda: sys.stdout)
    line: TextIO = field(default_factory=lambda: sys.stderr)
    _shown: bool = field(default=False, init=False)
    _last: str | None = field(default=None, init=False)

    def now(self, text: str, key: str | None = None) -> None:
        """Show the current step.

        Args:
            text: The line to show.
            key: If `line` is not a terminal, the text is printed when the key has changed, or not
                at all if there is no key.
        """
        if is_terminal(self.line):
            # A line that wraps cannot be rewritten.
            width = shutil.get_terminal_size().columns - 1
            self.line.write(f"{_CLEAR}{text[:width]}")
            self.line.flush()
            self._shown = True
        elif key is not None and key != self._last:
            print(text, file=self.line, flush=True)
        self._last = key

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        print(text, file=self.out, flush=True)

    def clear(self) -> None:
        """Erase the rewritten line."""
        if self._shown:
            self.line.write(_CLEAR)
            self.line.flush()
            self._shown = False


@contextmanager
def progressing() -> Iterator[Progress]:
    """Show progress on standard output and standard error, and erase the line at the end."""
    progress = Progress()
    try:
        yield progress
    finally:
        progress.clear()


@contextmanager
def long_step(text: str, stream: TextIO | None = None, every: float = 1.0) -> Iterator[None]:
    """Show on a terminal what the command waits for, with the seconds, while the block runs.

    Steps of less than a second show nothing. In other threads than the main one, such as those of
    Beam's workers, nothing is shown either.

    Args:
        text: What takes long, such as "reading model gs://...".
        stream: Standard error by default.
        every: How often to rewrite the line, in seconds.
    """
    stream = stream or sys.stderr
    if not is_terminal(stream) or threading.current_thread() is not threading.main_thread():
        yield
        return
    progress, started = Progress(line=stream), time.monotonic()

    def show() -> None:
        progress.now(f"{text} ... {time.monotonic() - started:.0f} s")

    try:
        with repeating(show, every):
            yield
    finally:
        progress.clear()
