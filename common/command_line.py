"""The parser of every command, and the argument types that several commands share.

An argument type takes the text of a flag and returns its value. It raises ArgumentTypeError for
other texts, which the parser turns into a UsageError that names the flag.
"""

from __future__ import annotations

import argparse
import math
from contextlib import suppress
from typing import Any, NoReturn

from common.command_names import as_typed
from common.errors import UsageError


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

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's message."""
        raise UsageError(f"{message}; see --help")


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


def names(text: str) -> tuple[str, ...]:
    """Split a text such as `A,B` into names, and reject empty names.

    An empty text, which a script passes if a variable is not set, would otherwise mean all or none.
    """
    if not all(text.split(",")):
        raise argparse.ArgumentTypeError(f"expected comma-separated names, got {text!r}")
    return tuple(text.split(","))
