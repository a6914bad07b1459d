"""Reads the command line of `millrace`, and runs the command that it names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from common.command_names import naming
from common.errors import UsageError, suggest
from common.terminal import print_error
from millrace.commands import COMMANDS, NAMES, Entry


def run(argv: Sequence[str]) -> int:
    """Run a command line and return the exit code.

    Commands that run a pipeline do not return, but end the process.

    Args:
        argv: The arguments of `millrace`.

    Returns:
        The exit code of the command, or 2 if the command does not exist.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        from millrace.version import __version__

        print(f"millrace {__version__}")
        return 0
    try:
        name, rest = choose(argv)
    except UsageError as error:
        print_error(error)
        return 2
    start = _import(COMMANDS[name])
    arguments = [*COMMANDS[name].first, *rest]
    # Beam also reads the arguments of the process when it builds options itself.
    sys.argv[1:] = arguments
    with naming(NAMES):
        return start(arguments) or 0


def overview() -> str:
    """Return the help of `millrace` itself, with one line per command."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        (
            "usage: millrace COMMAND ...",
            "",
            "Score files, BigQuery tables and Pub/Sub streams with PyTorch models.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {entry.about}" for name, entry in COMMANDS.items()),
            "",
            "`millrace COMMAND --help` lists the flags of a command.",
            "`millrace --version` prints the version.",
        )
    )


def choose(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Split arguments into the name of a command and the arguments of that command.

    Raises:
        UsageError: The command does not exist.
    """
    pair = " ".join(argv[:2])
    if pair in COMMANDS and len(argv) > 1:
        return pair, argv[2:]
    name, rest = argv[0], argv[1:]
    has_commands = any(known.startswith(f"{name} ") for known in COMMANDS)
    if has_commands and rest and not rest[0].startswith("-"):
        name = pair
    if name not in COMMANDS:
        raise UsageError(
            f"unknown command {name!r}{suggest(name, COMMANDS)}: see `millrace --help`"
        )
    return name, rest


def _import(entry: Entry) -> Callable[[Sequence[str]], int | None]:
    """Import the function of a command."""
    module, _, function = entry.run.partition(":")
    found: Callable[[Sequence[str]], int | None]
    found = getattr(importlib.import_module(module), function)
    return found
