"""What is being done: a line that is rewritten on a terminal, and a plain line for what is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

_CLEAR = "\r\x1b[K"


@dataclass
class Progress:
    """out: for lines that stay. line: for the one that is rewritten, where it is a terminal."""

    out: TextIO
    line: TextIO
    _shown: bool = field(default=False, init=False)

    def now(self, text: str) -> None:
        """What is being done; of use to people only."""
        if self.line.isatty():
            self.line.write(f"{_CLEAR}{text} ...")
            self.line.flush()
            self._shown = True

    def say(self, text: str) -> None:
        """What is done."""
        self.clear()
        print(text, file=self.out, flush=True)

    def clear(self) -> None:
        """The rewritten line is gone."""
        if self._shown:
            self.line.write(_CLEAR)
            self.line.flush()
            self._shown = False


@contextmanager
def progressing() -> Iterator[Progress]:
    """Nothing -> progress of a command on its terminal, cleared at the end."""
    progress = Progress(sys.stdout, sys.stderr)
    try:
        yield progress
    finally:
        progress.clear()


def aligned(rows: Sequence[tuple[str, ...]], indent: str = "") -> str:
    """Rows of texts -> lines with their columns below one another."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip()
        for row in rows
    )
