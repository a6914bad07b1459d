"""What a user types for a command: `python -m` and its module, or a name of the `millrace` command.

Usage lines and the advice of errors name commands by `as_typed`, so that they can be copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_names: Mapping[str, str] = {}


def as_typed(command: str) -> str:
    """A command as `python -m` takes it -> what the user types for it, arguments included.

    `serving status` is `python -m serving status`, or `millrace deploy status` where the process
    was started as `millrace`.
    """
    module, space, arguments = command.partition(" ")
    if command in _names:
        return _names[command]
    return _names.get(module, f"python -m {module}") + space + arguments


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Commands as `python -m` takes them, and what is typed for them -> `as_typed` in the block.

    It holds for all threads: a process has one command line.
    """
    global _names
    before, _names = _names, names
    try:
        yield
    finally:
        _names = before
