"""Finds Beam's runner Prism, and skips tests that need it if it is not installed."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

PRISM = Path(__file__).parent.parent / ".prism" / "prism"
NO_PRISM = "Beam's runner Prism is not installed: make prism (needs Go)"


def prism_flags() -> dict[str, str]:
    """Return the flags for a run on Prism, or skip the test if it is not installed."""
    if not PRISM.exists():
        pytest.skip(NO_PRISM)
    return {"runner": "PrismRunner", "prism_location": str(PRISM)}


def processes_of(program: str | Path) -> list[int]:
    """Return the ids of the processes that were started with this path of a program."""
    return list(_processes("cmdline", lambda words: words[0] == os.fsencode(program)))


def processes_with(variable: str) -> list[int]:
    """Return the ids of the processes that were started with NAME=VALUE in their environment."""
    return list(_processes("environ", lambda words: variable.encode() in words))


def _processes(file: str, wanted: Callable[[list[bytes]], bool]) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may have ended in the meantime.
        with suppress(OSError):
            if wanted((folder / file).read_bytes().split(b"\0")):
                yield int(folder.name)
