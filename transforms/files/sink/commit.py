"""Commit a run: put its files in place in one step that never loses an earlier result.

The result of a run consists of the files that its `report.json` lists. An attempt at a run

    1. reads the current report, and checks that everything it needs exists
    2. puts its files next to the existing ones, under names that only this attempt uses
    3. replaces the report, if it is still the one that was read
    4. puts the page of the run beside the report, if it has one
    5. removes the files that the new report lists as replaced, then its staged files

Wherever the attempt is stopped, even by kill -9, all files that the current report lists exist:
those of the earlier result or those of the new one. On this machine a lock allows only one
attempt at a time to commit. In an object store step 3 is a conditional write, so if two attempts
read the same report, one of them fails. Step 5 removes files that existed before step 3. If they
belong to another attempt, that attempt fails at its own step 3, or finds its files listed as
replaced when it reads the report.

A page is never that of another report (page_file.py): the page of the earlier
result is removed just before step 3.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import AttemptConflict, OutputError
from transforms.files.sink.destination import Destination
from transforms.files.sink.listing import Listing, ResultFile, listing_of, read_listing
from transforms.files.sink.page_file import check_page, put_page, remove_page
from transforms.files.sink.run_folder import PARTS, SCORES, RunFolder, StagedFile, is_part_file
from transforms.files.sink.staging import (
    DEAD_SECONDS,
    commit_lock,
    discard,
    discard_dead,
)
from transforms.files.store import (
    FAULTS,
    Entry,
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

# How long a failed attempt waits for a commit that is still running in another thread.
ABANDON_SECONDS = 5.0
Report = Callable[[Mapping[str, Any]], bytes]
Page = Callable[[bytes], bytes]

# The report folders of the attempts that this process has abandoned. Their threads may still run.
_abandoned: set[RunFolder] = set()


def commit(
    destinations: Sequence[Destination],
    staged: Sequence[StagedFile],
    report_folder: RunFolder,
    report: Report,
    page: Page | None = None,
) -> None:
    """Put the finished files of a run and its report in place, and remove earlier ones.

    It can be called again after it was interrupted. Dead letters are put in place first, so a
    run whose scores exist also has all its dead letters.

    Args:
        destinations: Where the rows go.
        staged: The finished files of the attempt.
        report_folder: The folder of the report.
        report: Returns the content of the report, given its facts about files (`attempt`, `files`
            and `replaced`). It is called once all rows are in place.
        page: Returns the page about the run, given the content of its report, or None.

    Raises:
        OutputError: The commit failed. The earlier result is still in place.
    """
    step = _Commit(destinations, staged, report_folder, page)
    folders = _folders(destinations, report_folder)
    with _file_errors(), commit_lock(folders):
        if report_folder in _abandoned:
            raise AttemptConflict(f"the attempt at run {report_folder.run_id} has already failed")
        before = read_version(report_folder.report)
        found = listing_of(report_folder.place, before.content)
        if found.attempt != report_folder.token:
            found = step.replace(before, found, report)
        elif page is not None and before.content is not None:
            put_page(report_folder, page(before.content))
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
    page: Page | None

    def replace(self, before: Version, found: Listing, report: Report) -> Listing:
        """Replace the current report, and return what the new one lists.

        Args:
            before: The current report, as it was read.
            found: What the current report lists.
            report: Returns the content of the new report.
        """
        targets = self._targets()
        earlier = self._check(found, targets)
        tables: list[str] = []
        for destination in sorted(self.destinations, key=lambda d: d.part == SCORES):
            if destination.targets(self._files_of(destination)) is None:
                # Rows in a table replace the rows of the attempt whose report is in place.
                if read_version(self.report_folder.report) != before:
                    raise self._lost(targets, tables)
                tables.append(destination.place)
            destination.commit(self._files_of(destination))
        listing = self._listing(targets, earlier, found.attempt, tables)
        folder = self.report_folder
        make_folder(folder.place)
        make_folder(folder.staging)
        content = report(listing.facts())
        page = None if self.page is None else self.page(content)
        if found.page:
            remove_page(folder, before)
        replaced = replace(folder.report, content, before, folder.staged("report.json"))
        # Another attempt was faster, unless an earlier try of this request had succeeded and only
        # its response was lost.
        if not replaced and not is_in_place(folder):
            raise self._lost(targets, tables)
        self._put_again(targets)
        if page is not None:
            put_page(folder, page)
        return listing

    def _files_of(self, destination: Destination) -> list[StagedFile]:
        return [file for file in self.staged if file.destination == destination.name]

    def _targets(self) -> dict[str, StagedFile]:
        found = [d.targets(self._files_of(d)) for d in self.destinations]
        return {path: file for some in found for path, file in (some or {}).items()}

    def _check(self, found: Listing, targets: Mapping[str, StagedFile]) -> list[str]:
        """Check that all files exist with their sizes; return the files that are replaced."""
        if not found.replaced.isdisjoint(targets):
            raise self._lost({})
        # Each folder is listed once, because a list of 100,000 objects takes 100 requests.
        listed = functools.cache(entries)
        for folder in _folders(self.destinations, self.report_folder):
            folder.check(listed)
        if self.page is not None:
            check_page(self.report_folder, found)
        staged, placed = sizes((f.path for f in targets.values()), listed), sizes(targets, listed)
        for target, file in targets.items():
            size = placed.get(target, staged.get(file.path))
            if size is None:
                raise AttemptConflict(
                    f"{file.path} was removed before the run was complete: run it again; the "
                    "earlier result was not changed"
                )
            if file.size not in (None, size):
                raise AttemptConflict(
                    f"{file.path} has {size:,} bytes, but {file.size:,} were written: run it again"
                )
        replaced = self._still_replaced(found.replaced, listed)
        earlier = found.paths.union(replaced, self._seen(listed))
        return sorted(filter(self.is_of_run, earlier - set(targets)))

    def is_of_run(self, path: str) -> bool:
        """Return whether an attempt at this run can have put a file at a path."""
        part, name = os.path.split(path)
        run, part = os.path.split(part)
        ours = part in PARTS and os.path.basename(run) == self.report_folder.run_id
        return ours and is_part_file(name)

    def _still_replaced(
        self, replaced: frozenset[str], listed: Callable[[str], Sequence[Entry]]
    ) -> frozenset[str]:
        """Return the replaced files of a report that the next report lists again.

        If all were listed again, reports would grow with every run. So files that are gone are
        left out, except one of each attempt, by which a late attempt sees that it was replaced.
        """
        folders = _folders(self.destinations, self.report_folder)
        own = {folder.part(part) for folder in folders for part in PARTS}
        here = {path for path in replaced if os.path.split(path)[0] in own}
        one_each = {path.rsplit("-", 1)[-1]: path for path in sorted(replaced, reverse=True)}
        return (replaced - here).union(sizes(here, listed), one_each.values())

    def _seen(self, listed: Callable[[str], Sequence[Entry]]) -> Iterator[str]:
        """Yield the files in place of all attempts at the run."""
        for folder in _folders(self.destinations, self.report_folder):
            kept, before = frozenset[str](), math.inf
            if folder.place != self.report_folder.place:
                # Another run with the same id may have its result here. In an object store, an
                # attempt at that run is not stopped by the report of this one.
                other = read_listing(folder.place)
                if other.parts is None:
                    continue
                kept = other.paths
                before = time.time() - DEAD_SECONDS if is_remote(folder.root) else math.inf
            for part in map(folder.part, PARTS):
                found = {f"{part}/{e.name}" for e in listed(part) if e.written < before}
                yield from found - kept

    def _listing(
        self,
        targets: Mapping[str, StagedFile],
        earlier: Sequence[str],
        before: str | None,
        tables: Sequence[str],
    ) -> Listing:
        """Return the listing of what was put in place and what it replaces.

        Args:
            targets: The staged files by the paths at which they were put.
            earlier: The files that are replaced.
            before: The attempt whose report was read. If the report of another attempt has
                replaced it since, that other attempt has removed the missing files.
            tables: The tables that hold the rows of this attempt.

        Raises:
            AttemptConflict: A file is missing.
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
                    raise AttemptConflict(
                        f"{path} was removed before the run was complete: run it again"
                    )
                files.append(ResultFile(path, file.rows, placed[path]))
        folder = self.report_folder
        has_page = self.page is not None
        return Listing(folder.place, folder.token, parts, frozenset(earlier), has_page)

    def _put_again(self, targets: Mapping[str, StagedFile]) -> None:
        """Copy files again that another attempt removed because it took this one for dead."""
        if not is_remote(self.report_folder.root):
            return
        there = sizes(targets)
        gone = {target: f.path for target, f in targets.items() if target not in there}
        put(gone)
        # If the other attempt has finished first, it was right to remove them.
        if gone and not is_in_place(self.report_folder):
            delete(gone)

    def _lost(self, placed: Mapping[str, Any], tables: Sequence[str] = ()) -> AttemptConflict:
        """Remove the files of this attempt, which another has overtaken, and return the error.

        Args:
            placed: The paths at which this attempt put files.
            tables: The tables that this attempt has written.
        """
        with contextlib.suppress(*FAULTS):
            delete(placed)
        if tables:
            rest = (
                f"but {' and '.join(tables)} may hold the rows of this attempt instead: run the "
                "command again"
            )
        else:
            rest = "and this attempt has written nothing"
        return AttemptConflict(
            f"another attempt at run {self.report_folder.run_id} has finished first, and its "
            f"result in {self.report_folder.place} is kept, {rest}"
        )


def abandon(destinations: Sequence[Destination], report_folder: RunFolder) -> None:
    """Remove everything that a failed attempt left, unless its result is in place.

    Args:
        destinations: Where the rows of the attempt go.
        report_folder: The folder of its report.
    """
    _abandoned.add(report_folder)
    for destination in destinations:
        destination.discard()
    discard(report_folder)
    # Only local files are removed. In an object store a worker may be about to write the report;
    # there the next attempt removes the files.
    folders = [f for f in _folders(destinations, report_folder) if os.path.isdir(f.place)]
    with contextlib.suppress(OutputError, *FAULTS):
        if folders:
            with commit_lock([*folders, report_folder], ABANDON_SECONDS):
                _take_back(folders, report_folder)


def _take_back(folders: Sequence[RunFolder], report_folder: RunFolder) -> None:
    """Remove the files of this attempt from local folders, unless they are the result."""
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
    """Return whether the result in place is the result of this attempt."""
    return read_listing(report_folder.place).attempt == report_folder.token


def _folders(destinations: Sequence[Destination], report_folder: RunFolder) -> list[RunFolder]:
    """Return the folders of a run that hold final or staged files, without duplicates."""
    found = [report_folder, *(destination.folder for destination in destinations)]
    return list({folder.place: folder for folder in found}.values())


def _file_errors() -> contextlib.AbstractContextManager[None]:
    return file_errors("the output cannot be put in place")
