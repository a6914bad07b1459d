"""Destinations of the rows of a run: the protocol, and the destination that is a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from transforms.files.sink.listing import read_listing
from transforms.files.sink.run_folder import RunFolder, StagedFile
from transforms.files.sink.staging import check_writable, discard, discard_dead, hold
from transforms.files.sink.writers import OutputFormat
from transforms.files.store import file_errors, is_remote, make_folder, put, sizes


class Destination(Protocol):
    """A place for the rows of a part: a folder or a table.

    Any number of workers first stage the rows as files in `folder`. When all files are complete,
    one worker calls `commit`. It may be called again, and must then have the same result.
    """

    @property
    def name(self) -> str:
        """The name, which is unique among the destinations of the run."""

    @property
    def part(self) -> str:
        """The rows that it receives: SCORES or DEAD_LETTERS."""

    @property
    def folder(self) -> RunFolder:
        """The folders that hold its staged files."""

    @property
    def output_format(self) -> OutputFormat:
        """The format of its staged files."""

    @property
    def timed_by(self) -> str | None:
        """The column of times whose first and last value each staged file records, if any."""

    @property
    def place(self) -> str:
        """Where its rows are after the commit, for the report."""

    def file_schema(self, rows: pa.Schema) -> pa.Schema:
        """Return the schema of the staged files for the schema of the rows."""

    def look(self) -> None:
        """Raise an error now if the run would be refused; called before a dry run."""

    def prepare(self) -> None:
        """Raise an error now if the commit would fail later; called before the run."""

    def targets(self, files: Sequence[StagedFile]) -> dict[str, StagedFile] | None:
        """Return the attempt's files by their final paths, or None for a table."""

    def commit(self, files: Sequence[StagedFile]) -> None:
        """Put the rows of all the attempt's files in place; files of earlier attempts stay."""

    def discard(self) -> None:
        """Remove everything unfinished that the attempt left."""


@dataclass(frozen=True)
class FolderDestination:
    """A destination whose rows are files in a run's folder."""

    part: str
    folder: RunFolder
    output_format: OutputFormat

    @property
    def name(self) -> str:
        """The name of the part."""
        return self.part

    @property
    def timed_by(self) -> None:
        """None: the report names the files, so no time identifies their rows."""

    @property
    def place(self) -> str:
        """The folder of the part."""
        return self.folder.part(self.part)

    def file_schema(self, rows: pa.Schema) -> pa.Schema:
        """Return the schema of the rows unchanged."""
        return rows

    def look(self) -> None:
        """Do nothing: whether a folder is writable shows only when something is written."""

    def prepare(self) -> None:
        """Raise OutputError if the folder is not writable, or contains files of other programs."""
        remote = is_remote(self.folder.root)
        if remote:
            # This check reports a missing bucket; the listing below would only fail.
            check_writable(self.folder)
        with file_errors(f"output folder {self.folder.root} cannot be used"):
            self.folder.check()
            read_listing(self.folder.place)
        hold(self.folder, create=True)
        if not remote:
            # This comes after the check for links, so that nothing is written through a link.
            check_writable(self.folder)
        discard_dead(self.folder)

    def targets(self, files: Sequence[StagedFile]) -> dict[str, StagedFile]:
        """Return the files by their final paths, numbered in the order of their staged paths."""
        in_order = sorted(files, key=lambda file: file.path)
        return {
            self.folder.part_file(self.part, i, len(files), file.path.rsplit(".", 1)[-1]): file
            for i, file in enumerate(in_order)
        }

    def commit(self, files: Sequence[StagedFile]) -> None:
        """Put the files in place, unless an earlier try of this attempt has done so.

        Raises:
            OutputError: A file cannot be put in place.
        """
        targets = self.targets(files)
        with file_errors("the output cannot be put in place"):
            there = sizes(targets)
            left = {target: f.path for target, f in targets.items() if target not in there}
            if left:
                make_folder(self.place)
            put(left)

    def discard(self) -> None:
        """Remove the staged files of this attempt, and the staging folder if it is empty."""
        discard(self.folder)
