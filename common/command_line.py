"""The parser of every command, and the argument types that several commands share.

An argument type takes the text of a flag and returns its value. It raises ArgumentTypeError for
other texts, which the parser turns into a UsageError that names the flag.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from common.command_names import as_typed
from common.errors import UsageError
from common.terminal import print_error

# The thresholds of fields, by field.
Thresholds = Mapping[str, tuple[float, ...]]

# What argparse says about a wrong command line, and what Millrace says instead.
_IN_WORDS = (
    (r"argument (.+?): expected one argument", r"\1 needs a value"),
    (r"argument (.+?): expected at least one argument", r"\1 needs at least one value"),
    (r"argument (.+?): ignored explicit argument (.+)", r"\1 takes no value, got \2"),
    (r"argument (.+?): invalid int value: (.+)", r"\1 must be a whole number, got \2"),
    (r"argument (.+?): invalid float value: (.+)", r"\1 must be a number, got \2"),
    (r"argument (.+?): invalid loads value: (.+)", r"\1 must be JSON, got \2"),
    (r"argument (.+?): invalid choice: (.+) \(choose from (.+)\)", r"\1 must be one of \3, got \2"),
    (r"argument (.+?): (.+)", r"\1: \2"),
    (r"the following arguments are required: (.+)", r"missing \1"),
    (r"unrecognized arguments: (.+)", r"unknown arguments \1"),
)


def in_words(message: str) -> str:
    """Return a message of argparse in words that do not assume that the reader knows argparse."""
    for pattern, words in _IN_WORDS:
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return found.expand(words)
    return message


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError instead of ending the process.

    Args:
        command: The command as `python -m` takes it; None for the parser of a subcommand.
        description: What the command does, for `--help`.
        options: Other arguments of ArgumentParser. Flags cannot be abbreviated.
    """

    def __init__(self, command: str | None = None, description: str = "", **options: Any) -> None:
        named = {"prog": as_typed(command)} if command else {}
        super().__init__(description=description, **{"allow_abbrev": False} | named | options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse a command line, and refuse `--flag=--`, which argparse takes for an empty list."""
        words = [*(sys.argv[1:] if args is None else args)]
        for word in words[: words.index("--") if "--" in words else None]:
            if word.startswith("-") and word.endswith("=--"):
                self.error(f"{word.removesuffix('=--')} cannot be '--'")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's message in words."""
        raise UsageError(f"{in_words(message)}; see --help")


def parse_or_exit(parser: CommandParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, or print what is wrong with it in one line and exit with code 2."""
    try:
        return parser.parse_args(argv)
    except UsageError as error:
        print_error(error)
        sys.exit(2)


def positive_integer(text: str) -> int:
    """Return the whole number, 1 or more, that the text spells."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def non_negative(text: str) -> float:
    """Return the finite number, 0 or more, that the text spells."""
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")


def positive(text: str) -> float:
    """Return the finite number above 0 that the text spells."""
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that the text spells."""
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    raise argparse.ArgumentTypeError("expected a JSON object, such as '{\"hidden\": 64}'")


def pair(text: str) -> tuple[str, str]:
    """Split a text such as `NAME=VALUE` at its first equals sign."""
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def names(text: str) -> tuple[str, ...]:
    """Split a text such as `A,B` into names, and reject empty names.

    An empty text, which a script passes if a variable is not set, would otherwise mean all or none.
    """
    if not all(text.split(",")):
        raise argparse.ArgumentTypeError(f"expected comma-separated names, got {text!r}")
    return tuple(text.split(","))


def parse_thresholds(parts: Sequence[str]) -> Thresholds:
    """Return the thresholds that the flag `--thresholds` sets, by field.

    Args:
        parts: The values of the flag, such as `decision=0.4`, `0.9`, `risk=0.5`: a number without a
            field belongs to the field before it.

    Raises:
        UsageError: A part is not a number, a field has none, or a field is named twice.
    """
    found: dict[str, tuple[float, ...]] = {}
    field = ""
    for part in parts:
        named, equals, number = part.rpartition("=")
        if equals:
            field = named.strip()
            if field in found:
                raise UsageError(f"--thresholds names the field {field!r} twice: name it once")
        if not field:
            raise UsageError(f"--thresholds: expected FIELD=NUMBER,NUMBER,..., got {part!r}")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"--thresholds {field}: expected a number, got {number.strip()!r}")
        found[field] = (*found.get(field, ()), value)
    return found
