"""Putting a run's files in place: whole or absent, repeatable, never mixed with another run's."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from apache_beam.io.filesystems import FileSystems

from model_handlers.errors import OutputError, UsageError
from transforms import commit_files
from transforms.commit_files import (
    DEAD_LETTERS,
    SCORES,
    Destination,
    FolderDestination,
    RunFolder,
    StagedFile,
    check_writable,
    commit,
    discard,
)

Tree = dict[str, str]


def tree(folder: Path) -> Tree:
    """A folder -> its files by path below it, and what they hold."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def stage(folder: RunFolder, target: str, names: str, suffix: str = "jsonl") -> list[StagedFile]:
    """A destination's name, and names of one letter each -> staged files that hold their names."""
    Path(folder.staging).mkdir(parents=True, exist_ok=True)
    files = []
    for name in names:
        path = Path(folder.staging) / f"{folder.token}-{target}-{name}.{suffix}"
        path.write_text(f"{folder.token} {target} {name}")
        files.append(StagedFile(target, str(path), 1))
    return files


def folders(scores: RunFolder, letters: RunFolder | None = None) -> list[Destination]:
    """Where the scores go, and the dead letters if elsewhere -> both destinations."""
    return [
        FolderDestination(SCORES, scores, "parquet"),
        FolderDestination(DEAD_LETTERS, letters or scores, "jsonl"),
    ]


def run(root: Path, token: str, scores: str, letters: str, suffix: str = "jsonl") -> RunFolder:
    folder = RunFolder(str(root), "r", token)
    files = stage(folder, SCORES, scores, suffix) + stage(folder, DEAD_LETTERS, letters)
    commit(folders(folder), files, folder, f"report {token}".encode)
    return folder


def test_files_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r", "t")
    files = stage(folder, SCORES, "cab", "parquet") + stage(folder, DEAD_LETTERS, "x")
    commit(folders(folder), files, folder, lambda: b"the report")
    assert tree(tmp_path) == {
        "r/scores/part-00000-of-00003-t.parquet": "t scores a",
        "r/scores/part-00001-of-00003-t.parquet": "t scores b",
        "r/scores/part-00002-of-00003-t.parquet": "t scores c",
        "r/dead_letters/part-00000-of-00001-t.jsonl": "t dead_letters x",
        "r/report.json": "the report",
    }
    assert not (tmp_path / ".staging").exists()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("scores", "letters"), [("abc", "x"), ("a", ""), ("", "xyz"), ("", "")])
def test_a_second_run_replaces_the_first(
    tmp_path: Path, scores: str, letters: str, suffix: str
) -> None:
    run(tmp_path, "first", "pq", "yz")
    run(tmp_path, "second", scores, letters, suffix)
    other = tmp_path / "other"
    run(other, "second", scores, letters, suffix)
    found = tree(tmp_path)
    assert {p: t for p, t in found.items() if not p.startswith("other/")} == tree(other)


def test_runs_of_other_ids_and_other_files_are_left_alone(tmp_path: Path) -> None:
    before = {"r2/scores/part-0.jsonl": "x", "notes.txt": "x", ".staging/r2/half.jsonl": "x"}
    for name, text in before.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    run(tmp_path, "t", "a", "b")
    assert before.items() <= tree(tmp_path).items()


def test_dead_letters_of_an_earlier_run_do_not_stay_beside_its_successor(tmp_path: Path) -> None:
    run(tmp_path / "out", "first", "a", "x")
    scores = RunFolder(str(tmp_path / "out"), "r", "second")
    letters = RunFolder(str(tmp_path / "bad"), "r", "second")
    files = stage(scores, SCORES, "a") + stage(letters, DEAD_LETTERS, "x")
    commit(folders(scores, letters), files, scores, lambda: b"report")
    assert sorted(tree(tmp_path)) == [
        "bad/r/dead_letters/part-00000-of-00001-second.jsonl",
        "out/r/report.json",
        "out/r/scores/part-00000-of-00001-second.jsonl",
    ]
    assert not (tmp_path / "out/.staging").exists()
    assert not (tmp_path / "bad/.staging").exists()


@pytest.mark.parametrize("root", [".", "./out", "out/", "out//deep", "out [1]*", "päth"])
def test_a_folder_may_be_spelled_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for token in ("first", "second"):
        folder = RunFolder(root, "r", token)
        check_writable(folder)
        commit(folders(folder), stage(folder, SCORES, "ab"), folder, lambda: b"report")
        # A runner may repeat the last step.
        commit(folders(folder), _staged(folder), folder, lambda: b"report")
    names = [path.rsplit("/", 1)[-1] for path in tree(tmp_path)]
    assert sorted(names) == [
        "part-00000-of-00002-second.jsonl",
        "part-00001-of-00002-second.jsonl",
        "report.json",
    ]


def _staged(folder: RunFolder) -> list[StagedFile]:
    paths = [f"{folder.staging}/{folder.token}-{SCORES}-{name}.jsonl" for name in "ab"]
    return [StagedFile(SCORES, path, 1) for path in paths]


# Every way in which committing touches the filesystem.
STEPS: list[tuple[Any, str]] = [
    (FileSystems, "exists"),
    (FileSystems, "rename"),
    (os, "remove"),
    (os, "makedirs"),
    (os, "listdir"),
    (os, "rmdir"),
    (commit_files, "create_file"),
]


def stopping(patch: pytest.MonkeyPatch, at: int, when: str) -> Callable[[], int]:
    """Patches STEPS so that call number `at` fails; returns how many calls there were."""
    calls = 0

    def watch(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at and when == "before":
                raise OSError("stopped")
            result = real(*args, **kwargs)
            if calls == at:
                raise OSError("stopped")
            return result

        return step

    for owner, name in STEPS:
        patch.setattr(owner, name, watch(getattr(owner, name)))
    return lambda: calls


@pytest.mark.parametrize("when", ["before", "after"])
def test_committing_can_be_repeated_after_stopping_anywhere(tmp_path: Path, when: str) -> None:
    expected_root = tmp_path / "expected"
    run(expected_root, "first", "pqr", "yz", "parquet")
    run(expected_root, "second", "ab", "x")
    expected = tree(expected_root)
    for at in _numbers():
        root = tmp_path / f"at{at}"
        old = tree(root / "r" / SCORES) or tree_of_first(root)
        folder = RunFolder(str(root), "r", "second")
        files = stage(folder, SCORES, "ab") + stage(folder, DEAD_LETTERS, "x")
        with pytest.MonkeyPatch.context() as patch:
            count = stopping(patch, at, when)
            with suppress(OutputError):
                commit(folders(folder), files, folder, lambda: b"report second")
        stopped = tree(root)
        scores = {p: t for p, t in stopped.items() if p.startswith("r/scores/")}
        new = {p: t for p, t in expected.items() if p.startswith("r/scores/")}
        # Never both; and whoever sees a report sees its files.
        assert scores.items() <= old.items() or scores.items() <= new.items()
        if stopped.get("r/report.json") == "report second":
            assert scores == new
        elif "r/report.json" in stopped:
            assert scores == old
        commit(folders(folder), files, folder, lambda: b"report second")
        assert tree(root) == expected
        if count() < at:
            assert at > 15
            break
        assert (
            not list((root / ".staging").rglob("*.jsonl")) if (root / ".staging").exists() else True
        )


def _numbers() -> Iterator[int]:
    yield from range(1, 200)
    raise AssertionError("committing never came to its end")


def tree_of_first(root: Path) -> Tree:
    run(root, "first", "pqr", "yz", "parquet")
    return {p: t for p, t in tree(root).items() if p.startswith("r/scores/")}


@dataclass(frozen=True)
class Second(FolderDestination):
    """One more folder for the rows of a part."""

    @property
    def name(self) -> str:
        return f"{self.part}_again"


def staged_for_two(root: Path, token: str, scores: str, letters: str) -> Callable[[], None]:
    """Files staged for two folders of scores, one of dead letters -> what commits them."""
    out, again = (RunFolder(str(root / name), "r", token) for name in ("out", "again"))
    files = stage(out, SCORES, scores) + stage(out, DEAD_LETTERS, letters)
    files += stage(again, f"{SCORES}_again", scores)
    destinations = [*folders(out), Second(SCORES, again, "jsonl")]
    return lambda: commit(destinations, files, out, f"report {token}".encode)


def test_two_destinations_of_a_part_get_each_its_own_files(tmp_path: Path) -> None:
    staged_for_two(tmp_path, "t", "ab", "x")()
    assert tree(tmp_path) == {
        "out/r/scores/part-00000-of-00002-t.jsonl": "t scores a",
        "out/r/scores/part-00001-of-00002-t.jsonl": "t scores b",
        "out/r/dead_letters/part-00000-of-00001-t.jsonl": "t dead_letters x",
        "out/r/report.json": "report t",
        "again/r/scores/part-00000-of-00002-t.jsonl": "t scores_again a",
        "again/r/scores/part-00001-of-00002-t.jsonl": "t scores_again b",
    }
    assert not list(tmp_path.rglob(".staging"))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_report_stands_for_every_destination_wherever_committing_stopped(
    tmp_path: Path, when: str
) -> None:
    staged_for_two(tmp_path / "whole", "first", "pqr", "yz")()
    staged_for_two(tmp_path / "whole", "second", "ab", "x")()
    expected = tree(tmp_path / "whole")
    letters = {path for path in expected if "dead_letters" in path}
    for at in _numbers():
        root = tmp_path / f"at{at}"
        staged_for_two(root, "first", "pqr", "yz")()
        commit_second = staged_for_two(root, "second", "ab", "x")
        with pytest.MonkeyPatch.context() as patch:
            count = stopping(patch, at, when)
            with suppress(OutputError):
                commit_second()
        in_place = {p: t for p, t in tree(root).items() if ".staging" not in p}
        if in_place.get("out/r/report.json") == "report second":
            assert in_place == expected
        # Whoever sees a score of the run finds all of its dead letters.
        if any("-second." in path and "scores" in path for path in in_place):
            assert letters <= in_place.keys()
        for folder in ("out/r/scores/", "again/r/scores/", "out/r/dead_letters/"):
            parts = [path for path in in_place if path.startswith(folder)]
            assert len({path.rsplit("-", 1)[-1] for path in parts}) <= 1
        commit_second()
        assert tree(root) == expected
        if count() < at:
            assert at > 25
            break


def test_a_folder_takes_rows_as_they_are_and_says_where_they_go(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "out"), "r", "t")
    destination = FolderDestination(DEAD_LETTERS, folder, "jsonl")
    assert destination.name == DEAD_LETTERS
    assert destination.place == f"{tmp_path}/out/r/dead_letters"
    schema = pa.schema([pa.field("a", pa.list_(pa.int8()), metadata={"k": "v"})])
    assert destination.file_schema(schema).equals(schema, check_metadata=True)


def test_preparing_a_folder_leaves_no_file_and_discarding_it_nothing(tmp_path: Path) -> None:
    destination = FolderDestination(SCORES, RunFolder(str(tmp_path / "out"), "r", "t"), "csv")
    destination.prepare()
    assert tree(tmp_path) == {}
    assert Path(destination.folder.staging).is_dir()
    stage(destination.folder, SCORES, "ab")
    destination.discard()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_staged_file_that_vanished_fails_the_run(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r", "t")
    files = stage(folder, SCORES, "ab")
    Path(files[1].path).unlink()
    with pytest.raises(OutputError, match=r"-b\.jsonl vanished .*run it again"):
        commit(folders(folder), files, folder, lambda: b"report")
    assert not (tmp_path / "r/report.json").exists()


def test_what_is_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "scores").write_text("a file")
    folder = RunFolder(str(tmp_path), "r", "t")
    with pytest.raises(OutputError, match="scores"):
        commit(folders(folder), stage(folder, SCORES, "a"), folder, lambda: b"report")
    assert tree(tmp_path)["r/scores"] == "a file"


def test_discarding_removes_what_is_staged_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "out"
    committed = run(root, "first", "a", "x")
    before = tree(root)
    again = RunFolder(str(root), "r", "second")
    stage(again, SCORES, "abc")
    discard(again)
    assert tree(root) == before
    assert not (root / ".staging").exists()
    stage(RunFolder(str(root), "other", "t"), SCORES, "a")
    discard(committed)
    assert set(tree(root)) - set(before) == {".staging/other/t-scores-a.jsonl"}


def test_discarding_keeps_a_folder_that_was_there_before(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "out"), "r", "t")
    discard(folder)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    check_writable(folder)
    discard(folder)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("run_id", ["", ".", "..", ".staging", "a/b", "a\\b", "r*", "r?", "r[1]"])
def test_a_run_id_is_one_folder(run_id: str) -> None:
    with pytest.raises(UsageError, match="run id"):
        RunFolder("out", run_id, "t")


def test_a_bucket_is_no_pattern() -> None:
    with pytest.raises(UsageError, match="without"):
        RunFolder("gs://bucket/out*", "r", "t")
    assert RunFolder("gs://bucket/out", "r", "t").report == "gs://bucket/out/r/report.json"


@pytest.mark.parametrize(
    "run_id", ["r", "20240101T000000Z", "scheduled__2024-01-01T00:00:00+00:00"]
)
def test_run_ids_of_other_systems_are_taken(tmp_path: Path, run_id: str) -> None:
    folder = RunFolder(str(tmp_path), run_id, "t")
    commit(folders(folder), stage(folder, SCORES, "a"), folder, lambda: b"report")
    assert (tmp_path / run_id / "report.json").exists()
