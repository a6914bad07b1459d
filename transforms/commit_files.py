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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from model_handlers.errors import OutputError, UsageError, one_line

SCORES = "scores"
DEAD_LETTERS = "dead_letters"


@dataclass(frozen=True)
class StagedFile:
    """A finished file in a staging folder: for which part, and how many rows it holds."""

    part: str
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

    @property
    def staging(self) -> str:
        """The folder of all unfinished files of this run id."""
        return FileSystems.join(self.root, ".staging", self.run_id)

    @property
    def report(self) -> str:
        """The report's path: the mark of a complete run."""
        return FileSystems.join(self.root, self.run_id, "report.json")


def commit(
    scores: RunFolder, dead_letters: RunFolder, staged: Sequence[StagedFile], report: bytes
) -> None:
    """A run's finished files and its report -> in their places, earlier ones gone.

    Can be repeated after it stopped half-way: what is in place already stays.
    Raises OutputError.
    """
    moves = dict(_moves({SCORES: scores, DEAD_LETTERS: dead_letters}, staged))
    kept = {os.path.basename(target) for target in moves.values()}
    # Dead letters of an earlier attempt may lie beside its scores, whatever was asked for now.
    parts = [scores.part(SCORES), scores.part(DEAD_LETTERS), dead_letters.part(DEAD_LETTERS)]
    try:
        _delete([scores.report])
        for part in parts:
            _delete(path for path in _files_in(part) if os.path.basename(path) not in kept)
        for source, target in moves.items():
            _move(source, target)
        make_folder(scores.staging)
        unfinished = FileSystems.join(scores.staging, f"{scores.token}-report.json")
        with create_file(unfinished) as handle:
            handle.write(report)
        _move(unfinished, scores.report)
    except (BeamIOError, OSError) as error:
        raise OutputError(f"the output cannot be put in place: {one_line(error)}") from error
    discard(scores)
    discard(dead_letters)


def _moves(
    folders: Mapping[str, RunFolder], staged: Iterable[StagedFile]
) -> Iterator[tuple[str, str]]:
    """Staged files -> (from, to), numbered within their part in the order of their names."""
    by_part: dict[str, list[str]] = {}
    for file in staged:
        by_part.setdefault(file.part, []).append(file.path)
    for part, paths in by_part.items():
        folder = folders[part]
        for i, path in enumerate(sorted(paths)):
            suffix = path.rsplit(".", 1)[-1]
            name = f"part-{i:05d}-of-{len(paths):05d}-{folder.token}.{suffix}"
            yield path, FileSystems.join(folder.part(part), name)


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


def check_writable(folder: RunFolder) -> None:
    """A run's folder -> nothing, or OutputError if no file can be made in it."""
    make_folder(folder.root)
    make_folder(folder.staging)
    probe = FileSystems.join(folder.staging, f"{folder.token}-probe")
    with create_file(probe) as handle:
        handle.write(b"")
    _delete([probe])
