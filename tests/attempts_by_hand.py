"""Attempts at a run without a pipeline: they stage and commit files, and readers check them."""

import builtins
import fcntl
import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from examples.local_cloud import LocalCloud
from transforms.files.sink import staging
from transforms.files.sink.commit import commit
from transforms.files.sink.destination import Destination, FolderDestination
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder, StagedFile
from transforms.files.store import read_version
from transforms.results import open_result

FIRST, SECOND, THIRD = "aaaaaaaa", "bbbbbbbb", "cccccccc"
# The folders of the scores and of the dead letters.
ONE, TWO = ("out", "out"), ("out", "bad")
Layout = tuple[str, str]


class Killed(BaseException):
    """The process was killed."""


@dataclass
class Steps:
    """Counts every operation of a commit on files, and can stop at one of them.

    at: the last step, or None. done: whether that step still takes place. look: called before
    each step.
    """

    at: int | None = None
    done: bool = False
    look: Callable[[], None] = lambda: None
    count: int = 0
    paused: bool = False

    def watch(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that each call counts as a step."""

        def step(*args: Any, **kwargs: Any) -> Any:
            if self.paused or threading.current_thread() is not threading.main_thread():
                return real(*args, **kwargs)
            self.paused = True
            self.look()
            self.paused = False
            self.count += 1
            # A killed process does nothing any more.
            if self.at is not None and self.count > self.at - (not self.done):
                if self.count == self.at and self.done:
                    real(*args, **kwargs)
                raise Killed
            return real(*args, **kwargs)

        return step

    def takes_place(self) -> bool:
        return self.at is not None and self.count >= self.at


class Place(Protocol):
    """A place for results: folders on this machine, or in a bucket."""

    @property
    def root(self) -> str:
        """The folder that contains all others."""

    def write(self, path: str, content: bytes) -> None:
        """Write a file."""

    def names(self) -> set[str]:
        """Return the paths of all files, relative to the root."""

    def steps(self, steps: Steps) -> Any:
        """Count the operations in the block as steps."""


@dataclass(frozen=True)
class Disk:
    root: str

    def write(self, path: str, content: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)

    def names(self) -> set[str]:
        root = Path(self.root)
        return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}

    @contextmanager
    def steps(self, steps: Steps) -> Iterator[None]:
        of = [
            (os, n) for n in ("rename", "remove", "makedirs", "listdir", "lstat", "rmdir", "open")
        ]
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in [*of, (fcntl, "flock"), (builtins, "open")]:
                patch.setattr(owner, name, steps.watch(getattr(owner, name)))
            yield


@dataclass(frozen=True)
class Bucket:
    root: str
    servers: LocalCloud

    def write(self, path: str, content: bytes) -> None:
        name = path.removeprefix("gs://bucket/")
        self.servers.cloud.storage().bucket("bucket").blob(name).upload_from_string(content)

    def names(self) -> set[str]:
        prefix = self.root.removeprefix("gs://bucket/") + "/"
        blobs = self.servers.cloud.storage().list_blobs("bucket", prefix=prefix)
        return {blob.name.removeprefix(prefix) for blob in blobs}

    @contextmanager
    def steps(self, steps: Steps) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            send = requests.Session.send
            patch.setattr(requests.Session, "send", steps.watch(send))
            yield


def parquet(values: Sequence[int]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array(values, pa.int64())}), buffer)
    return buffer.getvalue()


def lines(values: Sequence[int]) -> bytes:
    return "".join(f'{{"a": {value}}}\n' for value in values).encode()


@dataclass(frozen=True)
class Attempt:
    """An attempt at run r, whose rows differ from those of other attempts.

    scores, letters: the numbers of files, with two rows each. page: whether it has a page, which
    names the attempt.
    """

    place: Place
    layout: Layout
    token: str
    scores: int
    letters: int
    page: bool = False

    def folder(self, name: str) -> RunFolder:
        return RunFolder(f"{self.place.root}/{name}", "r", self.token)

    @property
    def destinations(self) -> list[Destination]:
        scores, letters = map(self.folder, self.layout)
        kinds = ((SCORES, scores, "parquet"), (DEAD_LETTERS, letters, "jsonl"))
        return [FolderDestination(part, folder, kind) for part, folder, kind in kinds]  # type: ignore[arg-type]

    @property
    def rows(self) -> tuple[list[int], list[int]]:
        """The rows of the scores and of the dead letters."""
        start = 1000 * int(self.token[0], 16)
        scores = [start + i for i in range(2 * self.scores)]
        return scores, [start + 500 + i for i in range(2 * self.letters)]

    def stage(self) -> list[StagedFile]:
        files = []
        for destination, rows, write in zip(
            self.destinations, self.rows, (parquet, lines), strict=True
        ):
            staging.hold(destination.folder, create=True)
            for i in range(0, len(rows), 2):
                kind = destination.output_format
                path = destination.folder.staged(f"{destination.name}-{i:03}.{kind}")
                content = write(rows[i : i + 2])
                self.place.write(path, content)
                files.append(StagedFile(destination.name, path, 2, len(content)))
        return files

    def commit(self, files: list[StagedFile]) -> None:
        report = lambda listing: json.dumps({"rows_in": 0, **listing}).encode()  # noqa: E731
        page = (lambda content: json.loads(content)["attempt"].encode()) if self.page else None
        commit(self.destinations, files, self.folder(self.layout[0]), report, page)

    def die(self) -> None:
        """Release the locks, as the system does when a process ends."""
        for name in set(self.layout):
            staging._release(self.folder(name))


def read(place: Place, name: str = "out") -> tuple[list[int], list[int]]:
    """Read the rows of scores and dead letters that the report lists."""
    found = []
    for part in (SCORES, DEAD_LETTERS):
        table = open_result(f"{place.root}/{name}/r", part).to_table()
        found.append(sorted(table["a"].to_pylist()) if table.num_columns else [])
    return found[0], found[1]


def shown(place: Place, name: str = "out") -> tuple[str, str | None, str | None]:
    """Return the attempt of the report, the name of its page, and the attempt of the page."""
    report = json.loads(read_version(f"{place.root}/{name}/r/report.json").content or b"")
    page = read_version(f"{place.root}/{name}/r/report.html").content
    return report["attempt"], report.get("page"), None if page is None else page.decode()


def bare(place: Place, layout: Layout) -> set[str]:
    """Return the attempts whose files are in the run's folders."""
    folders = (f"{layout[0]}/r/scores/", f"{layout[1]}/r/dead_letters/")
    names = [name for name in place.names() if name.startswith(folders)]
    return {name.rsplit("-", 1)[-1].split(".")[0] for name in names}


def staged_by(place: Place) -> set[str]:
    names = [name.rsplit("/", 1)[-1] for name in place.names() if "/.staging/" in name]
    return {name.split("-")[0] for name in names}
