"""Where a test puts its rows, and what it finds there after a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from transforms.files.sink.run_folder import RunFolder
from transforms.files.store import delete, entries, file_errors, is_remote

Ints = NDArray[np.int64]
# Rows of a file, or of a job that loads a table.
FILE_ROWS = 1_000_000


def empty() -> Ints:
    """Return the numbers of no rows."""
    return np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Input:
    """Rows that a batch can read.

    Attributes:
        flags: The flags that name them.
        bytes: Their size where they are.
    """

    flags: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """The results of a run.

    Attributes:
        scored: The numbers of the scored rows, in any order; -1 for a row that is not of the test.
        dead: Those of the dead letters.
        times: When the first and the last batch was scored, in seconds since 1970; None if no row
            was.
        bytes: The size of the results.
        left: What the run left besides its results, in words.
    """

    scored: Ints
    dead: Ints
    times: tuple[float, float] | None
    bytes: int
    left: str = ""


class Place(Protocol):
    """Where the rows and the results of a test are."""

    def write(self, name: str, batches: Iterable[pa.RecordBatch]) -> Input:
        """Write rows under a name; raise OutputError if that fails."""

    def flags(self, run_id: str) -> tuple[str, ...]:
        """Return the flags of the output of a run."""

    def read(self, run_id: str) -> Found:
        """Return the results of a run; raise InputError if they cannot be read."""

    def discard(self, run_id: str) -> None:
        """Remove the results of a run."""

    def drop(self, name: str) -> None:
        """Remove the rows of a name."""

    def remove(self) -> None:
        """Remove everything of the test."""


def discard_run(root: str, run_id: str) -> None:
    """Remove what a run wrote into the folder of its runs, also if it has not ended well."""
    folder = RunFolder(root, run_id, "")
    for place in (folder.place, folder.staging):
        remove_folder(place)


def remove_folder(folder: str) -> None:
    """Remove a folder with everything in it, local or in a bucket; raise OutputError if it stays.

    A folder that does not exist is fine.
    """
    with file_errors(f"{folder} cannot be removed"):
        if is_remote(folder):
            delete(f"{folder}/{entry.name}" for entry in entries(folder))
        elif os.path.exists(folder):
            shutil.rmtree(folder)
