"""What a user types to run a command: `python -m` and a module, or `millrace` and a name.

Usage lines and error messages pass the commands that they mention through `as_typed`, so that users
can copy them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_names: Mapping[str, str] = {}


def as_typed(command: str) -> str:
    """Return what the user types to run a command.

    Args:
        command: The module and arguments as `python -m` takes them, for example `serving status`.

    Returns:
        `python -m serving status`, or `millrace deploy status` if the process was started as
        `millrace`.
    """
    module, space, arguments = command.partition(" ")
    if command in _names:
        return _names[command]
    return _names.get(module, f"python -m {module}") + space + arguments


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Make `as_typed` use these names inside the block.

    The names hold for all threads, because a process has one command line.

    Args:
        names: What the user types, by the command as `python -m` takes it.
    """
    global _names
    before, _names = _names, names
    try:
        yield
    finally:
        _names = before
