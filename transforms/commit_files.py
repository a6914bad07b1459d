"""Where a run's files lie, and the one step that puts them there.

A run is complete if and only if its `report.json` exists: it is written last. Files
of an earlier attempt with the same run id are gone before the first new one is in
place, so no reader ever sees both.

    ROOT/RUN_ID/scores/part-00000-of-00002-TOKEN.parquet
    ROOT/RUN_ID/dead_letters/part-00000-of-00001-TOKEN.jsonl
    ROOT/RUN_ID/report.json
    ROOT/.staging/RUN_ID/                      until the run is complete
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from cloud.errors import told_as
from model_handlers.errors import OutputError, UsageError, one_line
from model_handlers.memory import check_memory
from transforms.file_writers import OutputFormat

_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9_.-]+(/|$)")
SCORES = "scores"
DEAD_LETTERS = "dead_letters"


@dataclass(frozen=True)
class StagedFile:
    """A finished file in a staging folder: for which destination, and how many rows it holds."""

    destination: str
    path: str
    rows: int


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
        if _is_remote(self.root) and set(self.root) & set("*?[]"):
            raise UsageError(f"output folder {self.root!r}: expected one without * ? [ ]")

    def part(self, name: str) -> str:
        """A part's name -> its folder."""
        return FileSystems.join(self.root, self.run_id, name)

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
        return FileSystems.join(self.root, self.run_id, "report.json")


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

    def commit(self, files: Sequence[StagedFile]) -> None:
        """All of the attempt's files -> its rows in place, those of earlier attempts gone."""

    def discard(self) -> None:
        """Nothing unfinished of the run is left."""


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
        """Raises OutputError if no file can be made in the folder."""
        check_writable(self.folder)

    def commit(self, files: Sequence[StagedFile]) -> None:
        """Moves the files into place. Raises OutputError.

        What an earlier step of this attempt has put in place already stays.
        """
        with _told():
            _delete_others(self.folder, self.part)
            for i, path in enumerate(sorted(file.path for file in files)):
                suffix = path.rsplit(".", 1)[-1]
                name = f"part-{i:05d}-of-{len(files):05d}-{self.folder.token}.{suffix}"
                _move(path, FileSystems.join(self.place, name))

    def discard(self) -> None:
        """No staging files of this run id are left, and no empty staging folder."""
        discard(self.folder)


def commit(
    destinations: Sequence[Destination],
    staged: Sequence[StagedFile],
    report_folder: RunFolder,
    report: Callable[[], bytes],
) -> None:
    """A run's finished files and its report -> in their places, earlier ones gone.

    report: asked for when all rows are in place.
    Can be repeated after it stopped half-way. Dead letters come first: a run whose
    scores are there has them all. Raises OutputError.
    """
    with _told():
        _delete([report_folder.report])
        # An earlier attempt may have written here what goes elsewhere now.
        for part in (SCORES, DEAD_LETTERS):
            _delete_others(report_folder, part)
    for destination in sorted(destinations, key=lambda d: d.part == SCORES):
        destination.commit([file for file in staged if file.destination == destination.name])
    with _told():
        make_folder(report_folder.staging)
        with create_file(report_folder.staged("report.json")) as handle:
            handle.write(report())
        _move(report_folder.staged("report.json"), report_folder.report)
    for destination in destinations:
        destination.discard()
    discard(report_folder)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (BeamIOError, OSError) as error:
        raise OutputError(f"the output cannot be put in place: {one_line(error)}") from error


def _delete_others(folder: RunFolder, part: str) -> None:
    """A run's folder and a part -> no files of other attempts in it."""
    _delete(
        path
        for path in _files_in(folder.part(part))
        if f"-{folder.token}." not in os.path.basename(path)
    )


def _move(source: str, target: str) -> None:
    if FileSystems.exists(source):
        make_folder(os.path.dirname(target))
        FileSystems.rename([source], [target])
    elif not FileSystems.exists(target):
        raise OutputError(f"{source} vanished before the run was complete: run it again")


def discard(folder: RunFolder) -> None:
    """A run's folder -> no staging files of this run id, and no empty staging folder."""
    with contextlib.suppress(BeamIOError, OSError):
        _delete(_files_in(folder.staging))
        if not _is_remote(folder.root):
            os.rmdir(folder.staging)
            os.rmdir(os.path.dirname(folder.staging))


def _is_remote(path: str) -> bool:
    return "://" in path


# On the local filesystem not by Beam, which takes each path for a glob: in a folder
# called `out*` it would delete the files of others.
def _files_in(folder: str) -> list[str]:
    """A folder -> the files right in it; none if there is no such folder."""
    if _is_remote(folder):
        found = FileSystems.match([FileSystems.join(folder, "*")])[0].metadata_list
        return [file.path for file in found]
    names = os.listdir(folder) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in names]
    return [path for path in paths if not os.path.isdir(path)]


def _delete(paths: Iterable[str]) -> None:
    for path in paths:
        if not FileSystems.exists(path):
            continue
        if _is_remote(path):
            FileSystems.delete([path])
        else:
            os.remove(path)


def create_file(path: str) -> Any:
    """A path on any Beam filesystem -> a file open for writing. Raises OutputError."""
    try:
        if not _is_remote(path):
            return open(path, "wb")
        return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except (BeamIOError, OSError) as error:
        check_memory(error, path)
        raise OutputError(f"{path} cannot be written: {error}; choose another folder") from error


def make_folder(path: str) -> None:
    """A folder's path -> it exists, on filesystems that have folders. Raises OutputError."""
    if _is_remote(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder {path} cannot be made: {error.strerror}; choose another folder"
        ) from error


def check_writable(folder: RunFolder, what: str | None = None) -> None:
    """A run's folder -> nothing, or OutputError if no file can be made in it.

    what: the folder as its user named it.
    """
    if not folder.root.startswith("gs://"):
        return _probe(folder)
    from google.api_core import exceptions
    from google.cloud.storage.exceptions import InvalidResponse

    what = what or folder.root
    if not _BUCKET.match(folder.root):
        raise UsageError(f"{what}: expected gs://BUCKET/FOLDER")
    with told_as(OutputError, f"{what} cannot be written"):
        try:
            try:
                _probe(folder)
            except InvalidResponse as error:
                raise exceptions.from_http_response(error.response) from error
        except exceptions.NotFound as error:
            name = folder.root.removeprefix("gs://").split("/")[0]
            raise OutputError(
                f"{what}: there is no bucket {name}: make it, or name another"
            ) from error


def _probe(folder: RunFolder) -> None:
    make_folder(folder.root)
    make_folder(folder.staging)
    probe = folder.staged("probe")
    with create_file(probe) as handle:
        handle.write(b"")
    _delete([probe])
