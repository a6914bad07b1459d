"""The folders and the names of a run's files, and the check that no other files are among them.

    ROOT/RUN_ID/scores/part-00000-of-00002-TOKEN.parquet
    ROOT/RUN_ID/dead_letters/part-00000-of-00001-TOKEN.jsonl
    ROOT/RUN_ID/report.json
    ROOT/RUN_ID/report.html                    with --report_html
    ROOT/.staging/RUN_ID/TOKEN-...             until the run is complete

TOKEN belongs to one attempt at the run, so no two attempts ever write the same file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apache_beam.io.filesystems import FileSystems

from common.errors import AttemptConflict, UsageError
from transforms.files.store import Entry, entries, is_remote

SCORES = "scores"
DEAD_LETTERS = "dead_letters"
PAGE = "report.html"
PARTS = (SCORES, DEAD_LETTERS)
_PART_FILE = re.compile(r"part-\d{5,}-of-\d{5,}-([0-9a-f]{8})\.(?:parquet|csv|jsonl)")


@dataclass(frozen=True)
class StagedFile:
    """A finished file in a staging folder.

    Attributes:
        destination: The name of the destination that the file is for.
        path: The path of the file.
        rows: The number of rows in the file.
        size: The size in bytes, or None if it is not known.
        times: The first and the last time in the destination's time column, in microseconds since
            1970, if the destination asks for them.
    """

    destination: str
    path: str
    rows: int
    size: int | None = None
    times: tuple[int, int] | None = None


@dataclass(frozen=True)
class RunFolder:
    """The folders of a run.

    Attributes:
        root: The folder that the user chose, which can hold several runs.
        run_id: The id of the run, which names its folder.
        token: A token of this attempt, which keeps the files of two attempts apart.

    Raises:
        UsageError: The run id or the root cannot be part of a path.
    """

    root: str
    run_id: str
    token: str

    def __post_init__(self) -> None:
        if not self.run_id or self.run_id[0] == "." or set(self.run_id) & set("/\\*?[]"):
            raise UsageError(
                f"run id {self.run_id!r}: expected the name of a folder, which is not empty, does "
                "not start with a dot and contains none of / \\ * ? [ ]"
            )
        if is_remote(self.root) and set(self.root) & set("*?[]"):
            raise UsageError(f"output folder {self.root!r}: expected a path without * ? [ ]")

    @property
    def place(self) -> str:
        """The folder of the run's result."""
        return FileSystems.join(self.root, self.run_id)

    def part(self, name: str) -> str:
        """Return the folder of a part."""
        return FileSystems.join(self.place, name)

    def staged(self, name: str) -> str:
        """Return the path of a staged file of this attempt."""
        return FileSystems.join(self.staging, f"{self.token}-{name}")

    @property
    def staging(self) -> str:
        """The folder of the staged files of all attempts at this run."""
        return FileSystems.join(self.root, ".staging", self.run_id)

    @property
    def report(self) -> str:
        """The path of the report, which exists only if the run is complete."""
        return FileSystems.join(self.place, "report.json")

    @property
    def page(self) -> str:
        """The path of the page about the run, which exists only beside the report it shows."""
        return FileSystems.join(self.place, PAGE)

    def part_file(self, part: str, number: int, count: int, suffix: str) -> str:
        """Return the path of a file of the result.

        Args:
            part: The name of the part.
            number: The number of the file, from 0.
            count: How many files the part has.
            suffix: The suffix of the file's format, without a dot.
        """
        name = f"part-{number:05d}-of-{count:05d}-{self.token}.{suffix}"
        return FileSystems.join(self.part(part), name)

    def check(self, listed: Callable[[str], Sequence[Entry]] = entries) -> None:
        """Raise AttemptConflict if a folder is a link, or a part has a file that is not a run's.

        Files that other programs wrote are never removed, and nothing is removed through a link.

        Args:
            listed: Returns the entries of a folder.
        """
        if not is_remote(self.root):
            parents = (self.staging, os.path.dirname(self.staging), self.place)
            files = (self.report, self.page)
            for path in (*parents, *files, *map(self.part, PARTS)):
                if os.path.islink(path):
                    raise AttemptConflict(
                        f"{path} is a symbolic link, and runs do not write or remove anything "
                        "through links: remove the link, or choose another --run_id"
                    )
        for part in PARTS:
            for entry in sorted(listed(self.part(part)), key=lambda found: found.name):
                if not (entry.is_file and self._is_run_file(entry.name)):
                    raise AttemptConflict(
                        f"{FileSystems.join(self.part(part), entry.name)} is not a file of a run, "
                        f"but --run_id {self.run_id} replaces all files in this folder: move it "
                        "away, or choose another --run_id"
                    )

    def _is_run_file(self, name: str) -> bool:
        return is_part_file(name) or f"-{self.token}." in name


def is_part_file(name: str) -> bool:
    """Return whether a name is one that runs give to the files of their results."""
    return _PART_FILE.fullmatch(name) is not None
