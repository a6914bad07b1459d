"""What a run's report says of the files of its result: which they are, and which went for them.

    "attempt": "3f0c2a71",
    "files": {"scores": [{"name": "scores/part-00000-of-00001-3f0c2a71.parquet", "rows": 990,
                          "bytes": 81220}], "dead_letters": [...]},
    "replaced": []

Names are below the report's folder, so that the folder can be moved; full paths elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from common.errors import OutputError
from transforms.files.run_folder import PARTS, is_part_file
from transforms.files.store import file_errors, is_remote, read_version


@dataclass(frozen=True)
class ResultFile:
    """A file of a result. size: in bytes."""

    path: str
    rows: int
    size: int


@dataclass(frozen=True)
class Listing:
    """What the report in a folder lists, by full paths.

    attempt: whose report it is, None where there is none. parts: files by part, those that went
    to folders; None where the report, of an earlier version, lists none. replaced: files of
    earlier attempts, which are gone or about to go.
    """

    place: str
    attempt: str | None = None
    parts: Mapping[str, Sequence[ResultFile]] | None = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()

    @property
    def paths(self) -> frozenset[str]:
        """All files of the result, as far as they are listed."""
        return frozenset(file.path for files in (self.parts or {}).values() for file in files)

    def facts(self) -> dict[str, Any]:
        """The listing as a report has it."""
        return {
            "attempt": self.attempt,
            "files": {
                part: [{"name": self._name(f.path), "rows": f.rows, "bytes": f.size} for f in files]
                for part, files in (self.parts or {}).items()
            },
            "replaced": sorted(map(self._name, self.replaced)),
        }

    def _name(self, path: str) -> str:
        below = f"{self.place.rstrip('/')}/"
        if path.startswith(below):
            return path[len(below) :]
        return path if is_remote(path) else os.path.abspath(path)


def superseded(paths: Iterable[str]) -> set[str]:
    """Paths -> those of files in a run's folder that are not of its result, as its report says.

    They are of an attempt that has ended half-way, or is about to end. Raises OutputError.
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
    """The path of a run's report -> the report. Raises OutputError."""
    with file_errors(f"report {path} cannot be read"):
        content = read_version(path).content
    if content is None:
        raise OutputError(f"report {path} does not exist")
    report: dict[str, Any] = orjson.loads(content)
    return report


def read_listing(place: str) -> Listing:
    """A folder -> what its report lists now. Raises OutputError."""
    return listing_of(place, read_version(f"{place.rstrip('/')}/report.json").content)


def listing_of(place: str, content: bytes | None) -> Listing:
    """A folder and what its report.json holds, None without one -> what is listed.

    Raises OutputError where it is no report of a run.
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
        is_report = "rows_in" in report
    except (ValueError, TypeError, KeyError, AttributeError):
        is_report = False
    if not is_report:
        raise OutputError(
            f"{place}/report.json is not the report of a run: move it away, or choose another "
            "--run_id"
        )
    return Listing(place, attempt, parts, replaced)
