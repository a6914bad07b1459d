"""A commit stopped at any step, or watched between any two: the old result or the new one."""

import builtins
import fcntl
import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from apache_beam.internal.gcp import auth
from hypothesis import given
from hypothesis import strategies as st

from examples.local_cloud import LocalCloud
from model_handlers.errors import OutputError
from transforms import staging
from transforms.commit_files import abandon, commit
from transforms.destination import Destination, FolderDestination
from transforms.results import open_result
from transforms.run_folder import DEAD_LETTERS, SCORES, RunFolder, StagedFile

FIRST, SECOND, THIRD = "aaaaaaaa", "bbbbbbbb", "cccccccc"
# Where scores and dead letters go.
ONE, TWO = ("out", "out"), ("out", "bad")
Layout = tuple[str, str]


class Killed(BaseException):
    """The process is no more."""


@dataclass
class Steps:
    """Every way in which committing touches files. at: the step that is the last, or None.

    done: whether that one still takes place. look: called before each step.
    """

    at: int | None = None
    done: bool = False
    look: Callable[[], None] = lambda: None
    count: int = 0
    paused: bool = False

    def watch(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A function -> one that counts as a step."""

        def step(*args: Any, **kwargs: Any) -> Any:
            if self.paused or threading.current_thread() is not threading.main_thread():
                return real(*args, **kwargs)
            self.paused = True
            self.look()
            self.paused = False
            self.count += 1
            # A process that was killed does nothing any more.
            if self.at is not None and self.count > self.at - (not self.done):
                if self.count == self.at and self.done:
                    real(*args, **kwargs)
                raise Killed
            return real(*args, **kwargs)

        return step

    def takes_place(self) -> bool:
        return self.at is not None and self.count >= self.at


class Place(Protocol):
    """Where results lie: folders of this machine, or of a bucket."""

    @property
    def root(self) -> str:
        """The folder of all."""

    def write(self, path: str, content: bytes) -> None:
        """A file at a path."""

    def names(self) -> set[str]:
        """All files by their paths below the root."""

    def steps(self, steps: Steps) -> Any:
        """What is done in the block counts as steps."""


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


@pytest.fixture(scope="module")
def bucket(emulators: LocalCloud) -> Iterator[LocalCloud]:
    """The storage emulator as Beam finds it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulators.endpoints.storage or "")
        patch.setattr(auth._Credentials, "_credentials_init", True)
        yield emulators


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Place]:
    """A name -> an empty place."""
    if request.param == "disk":
        return lambda name: Disk(str(tmp_path / name))
    servers = request.getfixturevalue("bucket")
    return lambda name: Bucket(f"gs://bucket/{tmp_path.name}/{name}", servers)


def parquet(values: Sequence[int]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array(values, pa.int64())}), buffer)
    return buffer.getvalue()


def lines(values: Sequence[int]) -> bytes:
    return "".join(f'{{"a": {value}}}\n' for value in values).encode()


@dataclass(frozen=True)
class Attempt:
    """An attempt at run r, whose rows tell it from others. scores, letters: files of two rows."""

    place: Place
    layout: Layout
    token: str
    scores: int
    letters: int

    def folder(self, name: str) -> RunFolder:
        return RunFolder(f"{self.place.root}/{name}", "r", self.token)

    @property
    def destinations(self) -> list[Destination]:
        scores, letters = map(self.folder, self.layout)
        kinds = ((SCORES, scores, "parquet"), (DEAD_LETTERS, letters, "jsonl"))
        return [FolderDestination(part, folder, kind) for part, folder, kind in kinds]  # type: ignore[arg-type]

    @property
    def rows(self) -> tuple[list[int], list[int]]:
        """The rows of its scores and of its dead letters."""
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
        commit(self.destinations, files, self.folder(self.layout[0]), report)

    def die(self) -> None:
        """The system takes the locks back."""
        for name in set(self.layout):
            staging._release(self.folder(name))


def read(place: Place, name: str = "out") -> tuple[list[int], list[int]]:
    """A reader that follows the report -> the rows of scores and dead letters."""
    found = []
    for part in (SCORES, DEAD_LETTERS):
        table = open_result(f"{place.root}/{name}/r", part).to_table()
        found.append(sorted(table["a"].to_pylist()) if table.num_columns else [])
    return found[0], found[1]


def bare(place: Place, layout: Layout) -> set[str]:
    """The attempts whose files are in the run's folders."""
    folders = (f"{layout[0]}/r/scores/", f"{layout[1]}/r/dead_letters/")
    names = [name for name in place.names() if name.startswith(folders)]
    return {name.rsplit("-", 1)[-1].split(".")[0] for name in names}


def staged_by(place: Place) -> set[str]:
    names = [name.rsplit("/", 1)[-1] for name in place.names() if "/.staging/" in name]
    return {name.split("-")[0] for name in names}


def through_all_steps(most: int) -> Iterator[int]:
    yield from range(1, most)
    raise AssertionError("committing never came to its end")


@pytest.mark.parametrize(
    ("place", "layout", "done"),
    [("disk", layout, done) for layout in (ONE, TWO) for done in (False, True)]
    + [("bucket", ONE, True), ("bucket", TWO, False)],
    indirect=["place"],
)
def test_a_commit_killed_at_any_step_leaves_the_old_result_or_the_new_one(
    place: Callable[[str], Place], layout: Layout, done: bool
) -> None:
    slow = isinstance(place("new"), Bucket)
    for at in through_all_steps(400):
        # Of a bucket's steps each case takes every other one.
        if slow and at % 2 == done:
            continue
        here = place(f"at{at}")
        old, new = Attempt(here, layout, FIRST, 2, 1), Attempt(here, layout, SECOND, 1, 1)
        old.commit(old.stage())
        files = new.stage()
        steps = Steps(at, done)
        with here.steps(steps), suppress(Killed):
            new.commit(files)
        assert read(here) in (old.rows, new.rows)
        if not steps.takes_place():
            assert at > 15
            break
        # Either the runner repeats the step, or the user the run.
        again = ("step", "run")[(at + done) % 2]
        if again == "run":
            new.die()
            new = Attempt(here, layout, THIRD, 1, 3)
            files = new.stage()
        new.commit(files)
        assert read(here) == new.rows
        # In a bucket, what a killed attempt has staged or put beside no report goes a day later.
        later = {SECOND} if isinstance(here, Bucket) and again == "run" else set()
        assert staged_by(here) <= later
        assert bare(here, layout) <= {new.token} | (later if layout == TWO else set())


def test_who_looks_between_any_two_steps_finds_the_old_result_or_the_new_one(
    place: Callable[[str], Place],
) -> None:
    here, seen = place("out"), []
    old, new = Attempt(here, TWO, FIRST, 2, 1), Attempt(here, TWO, SECOND, 1, 1)
    old.commit(old.stage())
    files = new.stage()
    steps = Steps(look=lambda: seen.append(read(here)))
    with here.steps(steps):
        new.commit(files)
    assert steps.count == len(seen) > 15
    assert all(found in (old.rows, new.rows) for found in seen)
    # Once new, it stays so.
    assert seen == sorted(seen, key=lambda found: found == new.rows)


def test_who_looks_between_any_two_steps_finds_the_first_result_or_none(
    place: Callable[[str], Place],
) -> None:
    here, seen = place("new"), []

    def look() -> None:
        with suppress(Exception):
            seen.append(read(here))

    new = Attempt(here, ONE, SECOND, 2, 1)
    files = new.stage()
    steps = Steps(look=look)
    with here.steps(steps):
        new.commit(files)
    assert steps.count > len(seen) > 0
    assert all(found == new.rows for found in seen)


@given(data=st.data())
def test_whatever_attempts_do_one_after_the_other_the_report_lists_what_is_there(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Attempts of any number, each killed anywhere, given up, or repeated, in any order."""
    place = Disk(str(tmp_path_factory.mktemp("runs")))
    complete: list[tuple[list[int], list[int]]] = []
    waiting: list[tuple[Attempt, list[StagedFile]]] = []
    for i in range(data.draw(st.integers(1, 6))):
        repeats = data.draw(st.booleans())
        if waiting and repeats:
            attempt, files = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        else:
            layout = data.draw(st.sampled_from([ONE, TWO]))
            sizes = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
            attempt = Attempt(place, layout, "abcdef"[i] * 8, *sizes)
            files = attempt.stage()
        before = read(place) if complete else None
        steps = Steps(data.draw(st.integers(1, 120)), data.draw(st.booleans()))
        with place.steps(steps), suppress(Killed, OutputError):
            attempt.commit(files)
        fate = data.draw(st.sampled_from(["dies", "waits", "gives up"]))
        if fate == "gives up":
            abandon(attempt.destinations, attempt.folder("out"))
        elif fate == "dies":
            attempt.die()
        else:
            waiting.append((attempt, files))
        if before is None and not (Path(place.root) / "out/r/report.json").exists():
            continue
        assert read(place) in ([attempt.rows] if before is None else [before, attempt.rows])
        complete.append(read(place))
    for attempt, _ in waiting:
        attempt.die()
    last = Attempt(place, ONE, "99999999", 2, 2)
    last.commit(last.stage())
    assert read(place) == last.rows
    assert bare(place, ONE) == {last.token}
