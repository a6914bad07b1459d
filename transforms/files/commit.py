"""The one step that puts a run's files in place, and never leaves less than there was.

A run's result is what its `report.json` lists. An attempt at a run

    1. reads the report in place, and makes sure that all it needs is there
    2. puts its files beside those in place; their names are its own
    3. replaces the report, if it still is the one that was read
    4. removes the files that the new report names as replaced, then what it had staged

Stopped anywhere, even by kill -9, the report in place lists files that are all there: those of
the earlier result, or of this one. On this machine a lock lets one attempt do this at a time. In
an object store step 3 is a conditional write, so of two attempts that read the same report one
fails. Step 4 removes what was there before step 3: files of attempts that must fail there, or
that find themselves among the replaced when they read the report.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import OutputError
from transforms.files.destination import Destination
from transforms.files.listing import Listing, ResultFile, listing_of, read_listing
from transforms.files.run_folder import PARTS, SCORES, RunFolder, StagedFile, is_part_file
from transforms.files.staging import (
    DEAD_SECONDS,
    commit_lock,
    discard,
    discard_dead,
)
from transforms.files.store import (
    FAULTS,
    Version,
    delete,
    entries,
    file_errors,
    is_remote,
    make_folder,
    put,
    read_version,
    replace,
    sizes,
)

# Whoever gives up does not wait longer for a commit that goes on in another thread.
ABANDON_SECONDS = 5.0
Report = Callable[[Mapping[str, Any]], bytes]


def commit(
    destinations: Sequence[Destination],
    staged: Sequence[StagedFile],
    report_folder: RunFolder,
    report: Report,
) -> None:
    """A run's finished files and its report -> in their places, earlier ones gone.

    report: what it shall say of files, `attempt`, `files` and `replaced` -> the report; asked
    for when all rows are in place. Can be repeated after it stopped half-way. Dead letters come
    first: a run whose scores are there has them all. Raises OutputError: then the result that
    was in place still is.
    """
    step = _Commit(destinations, staged, report_folder)
    folders = _folders(destinations, report_folder)
    with _file_errors(), commit_lock(folders):
        before = read_version(report_folder.report)
        found = listing_of(report_folder.place, before.content)
        if found.attempt != report_folder.token:
            found = step.replace(before, found, report)
        delete(filter(step.is_of_run, found.replaced))
    for destination in destinations:
        destination.discard()
    for folder in folders:
        discard(folder)
        discard_dead(folder)


@dataclass(frozen=True)
class _Commit:
    """The commit of one attempt."""

    destinations: Sequence[Destination]
    staged: Sequence[StagedFile]
    report_folder: RunFolder

    def replace(self, before: Version, found: Listing, report: Report) -> Listing:
        """The report in place and what it lists -> what the new one lists, which is in place."""
        targets = self._targets()
        earlier = self._check(found, targets)
        tables: list[str] = []
        for destination in sorted(self.destinations, key=lambda d: d.part == SCORES):
            if destination.targets(self._files_of(destination)) is None:
                # Rows in a table replace those of the attempt whose report is in place.
                if read_version(self.report_folder.report) != before:
                    raise self._lost(targets, tables)
                tables.append(destination.place)
            destination.commit(self._files_of(destination))
        listing = self._listing(targets, earlier, found.attempt, tables)
        folder = self.report_folder
        make_folder(folder.place)
        make_folder(folder.staging)
        content = report(listing.facts())
        replaced = replace(folder.report, content, before, folder.staged("report.json"))
        # Another has won, unless only the answer to a first request of ours was lost.
        if not replaced and not is_in_place(folder):
            raise self._lost(targets, tables)
        self._put_again(targets)
        return listing

    def _files_of(self, destination: Destination) -> list[StagedFile]:
        return [file for file in self.staged if file.destination == destination.name]

    def _targets(self) -> dict[str, StagedFile]:
        found = [d.targets(self._files_of(d)) for d in self.destinations]
        return {path: file for some in found for path, file in (some or {}).items()}

    def _check(self, found: Listing, targets: Mapping[str, StagedFile]) -> list[str]:
        """What is in place and what is to be -> the files that are replaced. Raises OutputError."""
        if not found.replaced.isdisjoint(targets):
            raise self._lost({})
        for folder in _folders(self.destinations, self.report_folder):
            folder.check()
        staged, placed = sizes(f.path for f in targets.values()), sizes(targets)
        for target, file in targets.items():
            size = placed.get(target, staged.get(file.path))
            if size is None:
                raise OutputError(
                    f"{file.path} vanished before the run was complete: run it again; what was "
                    "in place stays"
                )
            if file.size not in (None, size):
                raise OutputError(
                    f"{file.path} has {size:,} bytes: expected {file.size:,}, as were written; "
                    "run it again"
                )
        earlier = found.paths | found.replaced | set(self._seen())
        return sorted(filter(self.is_of_run, earlier - set(targets)))

    def is_of_run(self, path: str) -> bool:
        """Whether a path can be that of a file that an attempt at this run put in place."""
        part, name = os.path.split(path)
        run, part = os.path.split(part)
        ours = part in PARTS and os.path.basename(run) == self.report_folder.run_id
        return ours and is_part_file(name)

    def _seen(self) -> Iterator[str]:
        """The files of any attempt at the run that are in place."""
        for folder in _folders(self.destinations, self.report_folder):
            kept, before = frozenset[str](), math.inf
            if folder.place != self.report_folder.place:
                # Another run of the same id may have its result here, and in an object store an
                # attempt at that one is not stopped by this one's report.
                other = read_listing(folder.place)
                if other.parts is None:
                    continue
                kept = other.paths
                before = time.time() - DEAD_SECONDS if is_remote(folder.root) else math.inf
            for part in map(folder.part, PARTS):
                found = {f"{part}/{e.name}" for e in entries(part) if e.written < before}
                yield from found - kept

    def _listing(
        self,
        targets: Mapping[str, StagedFile],
        earlier: Sequence[str],
        before: str | None,
        tables: Sequence[str],
    ) -> Listing:
        """What was put in place and what it replaces -> the listing. Raises OutputError.

        before: the attempt whose report was read. If another's is there now, that one took the
        files that are gone. tables: those that have the rows of this attempt.
        """
        placed = sizes(targets)
        parts: dict[str, list[ResultFile]] = {}
        for destination in self.destinations:
            own = destination.targets(self._files_of(destination))
            if own is None:
                continue
            files = parts.setdefault(destination.part, [])
            for path, file in own.items():
                if path not in placed:
                    if read_listing(self.report_folder.place).attempt != before:
                        raise self._lost(targets, tables)
                    raise OutputError(f"{path} vanished before the run was complete: run it again")
                files.append(ResultFile(path, file.rows, placed[path]))
        folder = self.report_folder
        return Listing(folder.place, folder.token, parts, frozenset(earlier))

    def _put_again(self, targets: Mapping[str, StagedFile]) -> None:
        """A copy that another attempt took for one of a dead attempt is made again."""
        if not is_remote(self.report_folder.root):
            return
        there = sizes(targets)
        gone = {target: file for target, file in targets.items() if target not in there}
        for target, file in gone.items():
            put(file.path, target)
        # Unless that one has put its result in place, and removed what it replaced.
        if gone and not is_in_place(self.report_folder):
            delete(gone)

    def _lost(self, placed: Mapping[str, Any], tables: Sequence[str] = ()) -> OutputError:
        """An attempt that another has overtaken -> its own files are gone; the error.

        tables: those that this attempt has written.
        """
        with contextlib.suppress(*FAULTS):
            delete(placed)
        if tables:
            rest = f"but {' and '.join(tables)} may hold the rows of this attempt: run it again"
        else:
            rest = "and this one writes nothing"
        return OutputError(
            f"another attempt at run {self.report_folder.run_id} has put its result in place "
            f"meanwhile, in {self.report_folder.place}: it stays, {rest}"
        )


def abandon(destinations: Sequence[Destination], report_folder: RunFolder) -> None:
    """What an attempt that failed leaves -> nothing of it, unless its result is in place."""
    for destination in destinations:
        destination.discard()
    discard(report_folder)
    # In an object store a worker may be about to write the report: the next attempt removes them.
    folders = [f for f in _folders(destinations, report_folder) if os.path.isdir(f.place)]
    with contextlib.suppress(OutputError, *FAULTS):
        if folders:
            with commit_lock([*folders, report_folder], ABANDON_SECONDS):
                _take_back(folders, report_folder)


def _take_back(folders: Sequence[RunFolder], report_folder: RunFolder) -> None:
    """Folders of this machine -> no files of this attempt in place, unless they are the result."""
    if is_in_place(report_folder):
        return
    for folder in folders:
        for part in map(folder.part, PARTS):
            names = [entry.name for entry in entries(part) if f"-{folder.token}." in entry.name]
            delete(f"{part}/{name}" for name in names)
            with contextlib.suppress(OSError):
                os.rmdir(part)
        with contextlib.suppress(OSError):
            os.rmdir(folder.place)


def is_in_place(report_folder: RunFolder) -> bool:
    """A run's folder -> whether the result in place is this attempt's."""
    return read_listing(report_folder.place).attempt == report_folder.token


def _folders(destinations: Sequence[Destination], report_folder: RunFolder) -> list[RunFolder]:
    """The folders of a run in which files lie or are staged, each once."""
    found = [report_folder, *(destination.folder for destination in destinations)]
    return list({folder.place: folder for folder in found}.values())


def _file_errors() -> contextlib.AbstractContextManager[None]:
    return file_errors("the output cannot be put in place")
