"""Where a run's files lie, what they are called, and what else must not lie beside them.

    ROOT/RUN_ID/scores/part-00000-of-00002-TOKEN.parquet
    ROOT/RUN_ID/dead_letters/part-00000-of-00001-TOKEN.jsonl
    ROOT/RUN_ID/report.json
    ROOT/.staging/RUN_ID/TOKEN-...             until the run is complete

TOKEN belongs to one attempt at the run, so no two attempts ever write the same file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from apache_beam.io.filesystems import FileSystems

from common.errors import OutputError, UsageError
from transforms.files.store import entries, is_remote

SCORES = "scores"
DEAD_LETTERS = "dead_letters"
PARTS = (SCORES, DEAD_LETTERS)
_PART_FILE = re.compile(r"part-\d{5,}-of-\d{5,}-([0-9a-f]{8})\.(?:parquet|csv|jsonl)")


@dataclass(frozen=True)
class StagedFile:
    """A finished file in a staging folder: for which destination, rows and bytes in it.

    size: None where its writer did not say.
    """

    destination: str
    path: str
    rows: int
    size: int | None = None


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files go. token: of this attempt, so that no two attempts mix."""

    root: str
    run_id: str
    token: str

    def __post_init__(self) -> None:
        if not self.run_id or self.run_id[0] == "." or set(self.run_id) & set("/\\*?[]"):
            raise UsageError(
                f"run id {self.run_id!r}: expected a folder's name, not empty, without a dot at "
                "its begin and without any of / \\ * ? [ ]"
            )
        if is_remote(self.root) and set(self.root) & set("*?[]"):
            raise UsageError(f"output folder {self.root!r}: expected one without * ? [ ]")

    @property
    def place(self) -> str:
        """The folder of the run's result."""
        return FileSystems.join(self.root, self.run_id)

    def part(self, name: str) -> str:
        """A part's name -> its folder."""
        return FileSystems.join(self.place, name)

    def staged(self, name: str) -> str:
        """A name -> the path of a staging file of this attempt."""
        return FileSystems.join(self.staging, f"{self.token}-{name}")

    @property
    def staging(self) -> str:
        """The folder of all unfinished files of this run id."""
        return FileSystems.join(self.root, ".staging", self.run_id)

    @property
    def report(self) -> str:
        """The report's path: the mark of a complete run."""
        return FileSystems.join(self.place, "report.json")

    def part_file(self, part: str, number: int, count: int, suffix: str) -> str:
        """A part, which of its files, how many there are, a suffix -> the file's path."""
        name = f"part-{number:05d}-of-{count:05d}-{self.token}.{suffix}"
        return FileSystems.join(self.part(part), name)

    def check(self) -> None:
        """Raises OutputError for a link, and for the first file in a part that is not a run's own.

        What somebody else wrote is never removed, and nothing through a link.
        """
        if not is_remote(self.root):
            parents = (self.staging, os.path.dirname(self.staging), self.place, self.report)
            for path in (*parents, *map(self.part, PARTS)):
                if os.path.islink(path):
                    raise OutputError(
                        f"{path} is a symbolic link, through which nothing is written or removed: "
                        "remove the link, or choose another --run_id"
                    )
        for part in PARTS:
            for entry in sorted(entries(self.part(part)), key=lambda found: found.name):
                if not (entry.is_file and self._is_run_file(entry.name)):
                    raise OutputError(
                        f"{FileSystems.join(self.part(part), entry.name)} is not a file of a run: "
                        f"expected nothing else in this folder, which a run with --run_id "
                        f"{self.run_id} replaces; move it away, or choose another --run_id"
                    )

    def _is_run_file(self, name: str) -> bool:
        return is_part_file(name) or f"-{self.token}." in name


def is_part_file(name: str) -> bool:
    """A file's name -> whether runs give such names to the files of their results."""
    return _PART_FILE.fullmatch(name) is not None
