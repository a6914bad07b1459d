"""Find words that do not belong in the project's English.

python tools/words.py [FILE ...]

Without arguments it looks through all files that git tracks. It prints each place with what to say
instead, and exits with 1 if it found any. CONTRIBUTING.md describes the style; this program knows
only the patterns that once made the texts hard to read. A sentence can avoid them all and still be
bad.
"""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".ipynb", ""}

# A pattern, and what to say instead.
PATTERNS = {
    r"t(old|ells?|elling)(?! apart|\()": "report, print, say, name or state",
    r"tell(s|ing)? apart": "distinguish",
    r"wait(s|ed|ing)? out": "retry, or wait for",
    r"pass(es)? by (it|them)sel(f|ves)": "is transient, are transient",
    r"anew": "again",
    r"mend(s|ed|ing)?": "fix, or repair",
    r"broken off|breaks? off": "interrupted",
    r"shall": "must, should or will",
    r"(?<!there )(is|are) none": "does not exist, or is not a ...",
    r"of these(?= (is|are|was|were|has|have|can|may|fail)\b|\W*$|[^\w\s])": "name what is meant",
    r"who(ever)? reads|whoever": "the reader, or anyone who",
    r"no \w+ of ours|of ours": "of Millrace, or ours",
    r"(is|are) dear|dearer": "expensive",
    r"for ever": "forever, or without end",
    r"whence|thereby|hereby|therein|thereof|whereby": "a plain sentence",
    r"what (is|was) there": "name what exists",
    r"one's own": "your own",
}

# A picture in the output of a notebook.
PICTURE = re.compile('"image/png": ".*"')

# Deliberate exceptions: which files, which pattern, and why.
EXCEPTIONS = (
    ("tools/words.py", "*", "the list itself"),
    ("tests/test_words.py", "*", "examples of what is found"),
    ("LICENSE", "*", "the words of the Apache License"),
    ("*requirements-*.txt", "*", "names and hashes of packages"),
    ("benchmarks/results/*", "*", "measured and recorded as they were"),
)


class Place(NamedTuple):
    """A word that does not belong: its file, line, the word and what to say instead."""

    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word!r}: say {self.instead}"


def compiled(pattern: str) -> re.Pattern[str]:
    """Return the pattern as one of whole words, which `_` separates as a space does."""
    return re.compile(rf"(?<![^\W_])(?:{pattern.replace(' ', '[ _]')})(?![^\W_])", re.IGNORECASE)


PATTERNS_COMPILED = {pattern: compiled(pattern) for pattern in PATTERNS}


def is_allowed(path: str, pattern: str) -> bool:
    """Return whether the file may contain the pattern."""
    return any(
        fnmatch.fnmatch(path, files) and allowed in ("*", pattern)
        for files, allowed, _ in EXCEPTIONS
    )


def find(path: str, text: str) -> Iterator[Place]:
    """Yield each place of a text that contains a pattern which its file may not contain."""
    for pattern, regex in PATTERNS_COMPILED.items():
        if is_allowed(path, pattern):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            # The value None is not a word, and neither is anything in a picture.
            words = PICTURE.sub("", line.replace("None", "____"))
            for match in regex.finditer(words):
                yield Place(path, number, match[0], PATTERNS[pattern])


def tracked() -> list[str]:
    """Return the paths of all text files that git tracks, from the root of the checkout."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [path for path in listed if Path(path).suffix in SUFFIXES]


def main(argv: Sequence[str]) -> int:
    """Print each place and return the exit code: 0 if there was none, else 1."""
    places = [
        place
        for path in argv or tracked()
        for place in find(path, (ROOT / path).read_text(errors="replace"))
    ]
    for place in sorted(places):
        print(place)
    return 1 if places else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
