"""Lists as the values of flags: how a text becomes a list, and a list becomes a text.

Commas and line ends separate the values, as in CSV. A text that has neither is separated at its
spaces. Double quotes keep a value together that contains a separator.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UsageError

# A tab between values, or a quoted value, which stays as it is.
_TAB = re.compile(r'("(?:[^"]|"")*")|\t')
_AROUND_OPERATOR = re.compile(r"[ \t]*([<>=!]+)[ \t]*")


@dataclass(frozen=True)
class Split:
    """A value of a flag that was split, for errors about its parts.

    Attributes:
        flag: The name of the flag.
        at: The separators, in words.
    """

    flag: str
    parts: tuple[str, ...]
    at: str

    def note(self, message: str) -> str:
        """Return what to add to an error if it is about one of the parts, else an empty text."""
        named = (rf"(?<!\w){re.escape(part)}(?!\w)" for part in self.parts)
        if not any(re.search(pattern, message) for pattern in named):
            return ""
        return (
            f"; the value of --{self.flag} was split at {self.at}: put a value that contains "
            'them into double quotes, as in "a, b"'
        )


def split_list(words: Sequence[str], *, conditions: bool = False) -> tuple[str, ...]:
    """Return the values of a list, without the white space around them.

    Args:
        words: The words of a command line, or the single text of a template's parameter.
        conditions: Whether the values are conditions such as `day > 9`, which are not split at the
            spaces around their operators.

    Raises:
        UsageError: A word cannot be read.
    """
    if conditions:
        words = [_AROUND_OPERATOR.sub(r"\1", word) for word in words]
    found = [part for word in words for part in _parts(word, ",")]
    if len(words) == 1 and len(found) == 1:
        # A shell separates words at spaces. The console and a quoted text leave it to this program.
        found = _parts(_TAB.sub(lambda tab: tab[1] or " ", words[0]), " ")
    return tuple(found)


def _parts(text: str, delimiter: str) -> list[str]:
    lines = text.strip().splitlines(keepends=True)
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise UsageError(f"expected a list separated by commas, got a text with {error}") from error
    return [part for row in rows for value in row if (part := value.strip())]


def join_list(values: Sequence[str]) -> str:
    """Return the text that `split_list` reads as these values."""
    return ",".join(map(_quoted, values))


def _quoted(value: str) -> str:
    if not re.search(r'[\s,"]', value):
        return value
    escaped = value.replace('"', '""')
    return f'"{escaped}"'
