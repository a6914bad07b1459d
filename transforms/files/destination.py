"""Destination: a place for the rows of a part of a run, and the one that is a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from transforms.files.listing import read_listing
from transforms.files.run_folder import RunFolder, StagedFile
from transforms.files.staging import check_writable, discard, discard_dead, hold
from transforms.files.store import file_errors, is_remote, make_folder, put, sizes
from transforms.files.writers import OutputFormat


class Destination(Protocol):
    """A place for the rows of a part: a folder, or a table.

    Rows are first staged as files in `folder`, by any number of workers; when all are
    there one worker calls `commit`, which must bear repeating.
    """

    @property
    def name(self) -> str:
        """What tells it from the other destinations of the run."""

    @property
    def part(self) -> str:
        """Which rows it gets: SCORES or DEAD_LETTERS."""

    @property
    def folder(self) -> RunFolder:
        """Where its staged files lie."""

    @property
    def output_format(self) -> OutputFormat:
        """The format of its staged files."""

    @property
    def place(self) -> str:
        """Where its rows are in the end, for the report."""

    def file_schema(self, rows: pa.Schema) -> pa.Schema:
        """The schema of rows -> that of the files they are staged in."""

    def check(self, rows: pa.RecordBatch) -> None:
        """While rows are staged: a value that would fail the commit is told now."""

    def prepare(self) -> None:
        """Before the run: whatever would fail its commit is told now."""

    def targets(self, files: Sequence[StagedFile]) -> dict[str, StagedFile] | None:
        """The attempt's files -> by the paths that they get in the end; None for a table."""

    def commit(self, files: Sequence[StagedFile]) -> None:
        """All of the attempt's files -> its rows in place; files of earlier attempts stay."""

    def discard(self) -> None:
        """Nothing unfinished of the attempt is left."""


@dataclass(frozen=True)
class FolderDestination:
    """Files in a run's folder."""

    part: str
    folder: RunFolder
    output_format: OutputFormat

    @property
    def name(self) -> str:
        """The part's."""
        return self.part

    @property
    def place(self) -> str:
        """The part's folder."""
        return self.folder.part(self.part)

    def file_schema(self, rows: pa.Schema) -> pa.Schema:
        """The rows' own."""
        return rows

    def check(self, rows: pa.RecordBatch) -> None:
        """Files hold whatever rows do."""

    def prepare(self) -> None:
        """Raises OutputError if no file can be made in the folder, or others' files are in it."""
        remote = is_remote(self.folder.root)
        if remote:
            # It says that there is no such bucket, where a listing only fails.
            check_writable(self.folder)
        with file_errors(f"output folder {self.folder.root} cannot be used"):
            self.folder.check()
            read_listing(self.folder.place)
        hold(self.folder, create=True)
        if not remote:
            # Only now: nothing is written through a link.
            check_writable(self.folder)
        discard_dead(self.folder)

    def targets(self, files: Sequence[StagedFile]) -> dict[str, StagedFile]:
        """Numbered in the order of their staged paths."""
        in_order = sorted(files, key=lambda file: file.path)
        return {
            self.folder.part_file(self.part, i, len(files), file.path.rsplit(".", 1)[-1]): file
            for i, file in enumerate(in_order)
        }

    def commit(self, files: Sequence[StagedFile]) -> None:
        """Puts the files in place. Raises OutputError.

        What an earlier step of this attempt has put in place already stays.
        """
        targets = self.targets(files)
        with file_errors("the output cannot be put in place"):
            there = sizes(targets)
            for target, file in targets.items():
                if target not in there:
                    make_folder(os.path.dirname(target))
                    put(file.path, target)

    def discard(self) -> None:
        """No staging files of this attempt are left, and no empty staging folder."""
        discard(self.folder)
