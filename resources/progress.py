"""Shows progress: one rewritten line on a terminal, and a plain line for each finished step."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

_CLEAR = "\r\x1b[K"


@dataclass
class Progress:
    """The progress of a command.

    Attributes:
        out: The stream for lines that stay.
        line: The stream for the rewritten line, which is shown only if this is a terminal.
    """

    out: TextIO
    line: TextIO
    _shown: bool = field(default=False, init=False)

    def now(self, text: str) -> None:
        """Show the current step on the rewritten line."""
        if self.line.isatty():
            self.line.write(f"{_CLEAR}{text} ...")
            self.line.flush()
            self._shown = True

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
    progress = Progress(sys.stdout, sys.stderr)
    try:
        yield progress
    finally:
        progress.clear()


def aligned(rows: Sequence[tuple[str, ...]], indent: str = "") -> str:
    """Return rows as lines of text with aligned columns.

    Args:
        rows: The cells of each row. All rows have the same length.
        indent: The text before each line.
    """
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip()
        for row in rows
    )
