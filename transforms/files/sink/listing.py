"""The part of a run's report that lists the files of its result, and the files they replaced.

    "attempt": "3f0c2a71",
    "files": {"scores": [{"name": "scores/part-00000-of-00001-3f0c2a71.parquet", "rows": 990,
                          "bytes": 81220}], "dead_letters": [...]},
    "replaced": []

Names of files in the report's folder are relative to it, so the folder can be moved. Other files
are listed with their full paths.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from common.errors import OutputError
from transforms.files.sink.run_folder import PAGE, PARTS, is_part_file
from transforms.files.store import file_errors, is_remote, read_version


@dataclass(frozen=True)
class ResultFile:
    """A file of a result.

    Attributes:
        path: The full path.
        rows: The number of rows in the file.
        size: The size in bytes.
    """

    path: str
    rows: int
    size: int


@dataclass(frozen=True)
class Listing:
    """The files that the report in a folder lists, by full paths.

    Attributes:
        place: The folder of the report.
        attempt: The attempt that wrote the report, or None if there is no report.
        parts: The files of each part that went to a folder; None if the report was written by an
            earlier version, which lists no files.
        replaced: Files of earlier attempts that have been, or are about to be, removed.
        page: Whether the run has a page.
    """

    place: str
    attempt: str | None = None
    parts: Mapping[str, Sequence[ResultFile]] | None = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()
    page: bool = False

    @property
    def paths(self) -> frozenset[str]:
        """All listed files of the result."""
        return frozenset(file.path for files in (self.parts or {}).values() for file in files)

    def facts(self) -> dict[str, Any]:
        """Return the listing in the form of the report."""
        return {
            "attempt": self.attempt,
            "files": {
                part: [{"name": self._name(f.path), "rows": f.rows, "bytes": f.size} for f in files]
                for part, files in (self.parts or {}).items()
            },
            "replaced": sorted(map(self._name, self.replaced)),
            **({"page": PAGE} if self.page else {}),
        }

    def _name(self, path: str) -> str:
        below = f"{self.place.rstrip('/')}/"
        if path.startswith(below):
            return path[len(below) :]
        return path if is_remote(path) else os.path.abspath(path)


def superseded(paths: Iterable[str]) -> set[str]:
    """Return those files among paths that lie in a run's folder but do not belong to its result.

    The report of the run does not list them: they were written by an attempt that was
    interrupted, or that has not finished yet.

    Raises:
        OutputError: A report cannot be read, or is not the report of a run.
    """
    found: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        place, part = os.path.split(folder)
        if part in PARTS and is_part_file(name):
            found.setdefault(place, set()).add(path)
    others = set()
    for place, files in found.items():
        listing = read_listing(place)
        if listing.attempt is not None and listing.parts is not None:
            names = {os.path.basename(path) for path in listing.paths}
            others |= {path for path in files if os.path.basename(path) not in names}
    return others


def read_report(path: str) -> dict[str, Any]:
    """Read the report of a run; raise OutputError if it does not exist or cannot be read."""
    with file_errors(f"report {path} cannot be read"):
        content = read_version(path).content
    if content is None:
        raise OutputError(f"report {path} does not exist")
    report: dict[str, Any] = orjson.loads(content)
    return report


def read_listing(place: str) -> Listing:
    """Return what the current report in a folder lists; raise OutputError if it is not a report."""
    return listing_of(place, read_version(f"{place.rstrip('/')}/report.json").content)


def listing_of(place: str, content: bytes | None) -> Listing:
    """Return what a report lists.

    Args:
        place: The folder of the report.
        content: The content of its `report.json`, or None if there is none.

    Raises:
        OutputError: The content is not the report of a run.
    """
    if content is None:
        return Listing(place)

    def full(name: str) -> str:
        elsewhere = is_remote(name) or os.path.isabs(name)
        return name if elsewhere else f"{place.rstrip('/')}/{name}"

    try:
        report = orjson.loads(content)
        attempt, files = report.get("attempt", ""), report.get("files")
        parts = (
            files
            if files is None
            else {
                part: [ResultFile(full(f["name"]), f["rows"], f["bytes"]) for f in listed]
                for part, listed in files.items()
            }
        )
        replaced = frozenset(map(full, report.get("replaced", ())))
        page = "page" in report
        is_report = "rows_in" in report
    except (ValueError, TypeError, KeyError, AttributeError):
        is_report = False
    if not is_report:
        raise OutputError(
            f"{place}/report.json is not the report of a run: move it away, or choose another "
            "--run_id"
        )
    return Listing(place, attempt, parts, replaced, page)
