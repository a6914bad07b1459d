"""Recognize the folders of Delta Lake, Apache Iceberg and Apache Hudi tables.

Such a folder also holds files whose rows were removed from the table. Only the table's own log
shows which rows are in it, so these files are never read as plain Parquet.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from common.errors import InputError
from transforms.files.store import is_remote

Kind = Literal["Delta Lake", "Apache Iceberg", "Apache Hudi"]
METADATA = ".metadata.json"
# Files that only such a table has, relative to its folder. A table may be both Delta Lake and
# Apache Iceberg; the former is the table that its writers know.
_MARKERS: dict[Kind, str] = {
    "Delta Lake": "_delta_log/*",
    "Apache Hudi": ".hoodie/*",
    "Apache Iceberg": f"metadata/*{METADATA}",
}
_MARKED: dict[Kind, re.Pattern[str]] = {
    "Delta Lake": re.compile(r"(.*?)/_delta_log/[^/]+"),
    "Apache Hudi": re.compile(r"(.*?)/\.hoodie/.+"),
    "Apache Iceberg": re.compile(r"(.*?)/metadata/[^/]+\.metadata\.json"),
}


@dataclass(frozen=True)
class LakeFolder:
    """The folder of a table.

    Attributes:
        root: The path of the folder.
        kind: Whose format the table has.
    """

    root: str
    kind: Kind


def lake_at(folder: str) -> LakeFolder | None:
    """Return the table whose folder this is, or None."""
    folder = folder.rstrip("/")
    if not folder or glob.has_magic(folder):
        return None
    try:
        for kind, marker in _MARKERS.items():
            if _exists(f"{folder}/{marker}"):
                return LakeFolder(folder, kind)
    except (BeamIOError, ValueError):
        # A path that cannot be listed is reported when it is read.
        pass
    return None


def _exists(pattern: str) -> bool:
    if not is_remote(pattern):
        return bool(glob.glob(pattern))
    return bool(FileSystems.match([pattern], limits=[1])[0].metadata_list)


def refuse_lakes_within(paths: Iterable[str]) -> None:
    """Raise InputError if a list of all files below a folder includes those of a table."""
    for path in paths:
        for kind, marked in _MARKED.items():
            if found := marked.fullmatch(path):
                raise refusal(LakeFolder(found[1], kind), found[1])


def refuse_lakes_around(paths: Iterable[str]) -> None:
    """Raise InputError if a file lies in the folder of a table, at any depth."""
    looked: set[str] = set()
    for path in paths:
        folder = path if is_remote(path) else os.path.abspath(path)
        while (above := os.path.dirname(folder)) not in (folder, "") and not above.endswith(":/"):
            folder = above
            if folder in looked:
                break
            looked.add(folder)
            # The folder of a partition is not the folder of a table.
            if "=" not in os.path.basename(folder) and (lake := lake_at(folder)):
                raise refusal(lake, path)


def refusal(lake: LakeFolder, path: str) -> InputError:
    """Return the error for a path in the folder of a table, which cannot be read as files."""
    place = "is" if path == lake.root else f"is in {lake.root},"
    if lake.kind == "Apache Hudi":
        return InputError(
            f"{path} {place} a table of Apache Hudi, which Millrace does not read: export the "
            "table to Parquet files"
        )
    return InputError(
        f"{path} {place} a table of {lake.kind}, whose folder also holds rows that were removed "
        f"from it: pass --input_files {lake.root} and nothing else, to read the table itself"
    )
