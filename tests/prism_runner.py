"""Finds Beam's runner Prism, and skips tests that need it if it is not installed."""

import os
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
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            # The process has ended in the meantime.
            continue
        if command[0] == os.fsencode(program):
            found.append(int(folder.name))
    return found
