"""A commit puts a run's files in place completely or not at all, and can be repeated."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.errors import OutputError, UsageError
from transforms.files.sink import staging
from transforms.files.sink.commit import abandon, commit
from transforms.files.sink.destination import Destination, FolderDestination
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder, StagedFile
from transforms.files.sink.staging import check_writable, commit_lock, discard, discard_dead, hold

FIRST, SECOND, THIRD = "aaaaaaaa", "bbbbbbbb", "cccccccc"
Tree = dict[str, str]


def tree(folder: Path) -> Tree:
    """Return the contents of the files in a folder by relative path; reports count as empty."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {n: "" if n.endswith("report.json") else p.read_text() for n, p in named.items()}


def stage(folder: RunFolder, target: str, names: str, suffix: str = "jsonl") -> list[StagedFile]:
    """Stage a file for each one-letter name; its content is the name."""
    hold(folder, create=True)
    files = []
    for name in names:
        path = Path(folder.staging) / f"{folder.token}-{target}-{name}.{suffix}"
        path.write_text(f"{folder.token} {target} {name}")
        files.append(StagedFile(target, str(path), 1, path.stat().st_size))
    return files


def report(listing: Mapping[str, Any]) -> bytes:
    return json.dumps({"rows_in": 0, **listing}).encode()


def folders(scores: RunFolder, letters: RunFolder | None = None) -> list[Destination]:
    """Return the destinations of scores and dead letters, by default in the same folder."""
    return [
        FolderDestination(SCORES, scores, "parquet"),
        FolderDestination(DEAD_LETTERS, letters or scores, "jsonl"),
    ]


def run(root: Path, token: str, scores: str, letters: str, suffix: str = "jsonl") -> RunFolder:
    folder = RunFolder(str(root), "r", token)
    files = stage(folder, SCORES, scores, suffix) + stage(folder, DEAD_LETTERS, letters)
    commit(folders(folder), files, folder, report)
    return folder


def test_files_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r", FIRST)
    files = stage(folder, SCORES, "cab", "parquet") + stage(folder, DEAD_LETTERS, "x")
    commit(folders(folder), files, folder, report)
    assert tree(tmp_path) == {
        f"r/scores/part-00000-of-00003-{FIRST}.parquet": f"{FIRST} scores a",
        f"r/scores/part-00001-of-00003-{FIRST}.parquet": f"{FIRST} scores b",
        f"r/scores/part-00002-of-00003-{FIRST}.parquet": f"{FIRST} scores c",
        f"r/dead_letters/part-00000-of-00001-{FIRST}.jsonl": f"{FIRST} dead_letters x",
        "r/report.json": "",
    }
    assert not (tmp_path / ".staging").exists()


def test_the_report_lists_the_files_of_the_result(tmp_path: Path) -> None:
    run(tmp_path, FIRST, "ab", "")
    size = len(f"{FIRST} scores a")
    assert json.loads((tmp_path / "r/report.json").read_text()) == {
        "rows_in": 0,
        "attempt": FIRST,
        "files": {
            "scores": [
                {"name": f"scores/part-{n}-of-00002-{FIRST}.jsonl", "rows": 1, "bytes": size}
                for n in ("00000", "00001")
            ],
            "dead_letters": [],
        },
        "replaced": [],
    }


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("scores", "letters"), [("abc", "x"), ("a", ""), ("", "xyz"), ("", "")])
def test_a_second_run_replaces_the_first(
    tmp_path: Path, scores: str, letters: str, suffix: str
) -> None:
    run(tmp_path / "out", FIRST, "pq", "yz")
    run(tmp_path / "out", SECOND, scores, letters, suffix)
    run(tmp_path / "other", SECOND, scores, letters, suffix)
    assert tree(tmp_path / "out") == tree(tmp_path / "other")


def test_a_result_of_an_earlier_version_is_replaced(tmp_path: Path) -> None:
    run(tmp_path, FIRST, "pq", "yz")
    (tmp_path / "r/report.json").write_text(json.dumps({"run_id": "r", "rows_in": 4}))
    run(tmp_path, SECOND, "a", "x")
    assert {path.split("-")[-1].split(".")[0] for path in tree(tmp_path)} == {
        SECOND,
        "r/report",
    }


def test_runs_with_other_ids_and_other_files_are_unchanged(tmp_path: Path) -> None:
    before = {"r2/scores/part-0.jsonl": "x", "notes.txt": "x", ".staging/r2/half.jsonl": "x"}
    before["r/scores.png"] = "a picture"
    for name, text in before.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    run(tmp_path, FIRST, "a", "b")
    assert before.items() <= tree(tmp_path).items()


def test_dead_letters_of_an_earlier_attempt_are_removed(tmp_path: Path) -> None:
    def elsewhere(token: str) -> None:
        scores = RunFolder(str(tmp_path / "out"), "r", token)
        letters = RunFolder(str(tmp_path / "bad"), "r", token)
        files = stage(scores, SCORES, "a") + stage(letters, DEAD_LETTERS, "x")
        commit(folders(scores, letters), files, scores, report)

    run(tmp_path / "out", FIRST, "a", "x")
    elsewhere(SECOND)
    assert sorted(tree(tmp_path)) == [
        f"bad/r/dead_letters/part-00000-of-00001-{SECOND}.jsonl",
        "out/r/report.json",
        f"out/r/scores/part-00000-of-00001-{SECOND}.jsonl",
    ]
    assert not (tmp_path / "out/.staging").exists()
    assert not (tmp_path / "bad/.staging").exists()
    run(tmp_path / "out", THIRD, "a", "")
    assert sorted(tree(tmp_path)) == [
        "out/r/report.json",
        f"out/r/scores/part-00000-of-00001-{THIRD}.jsonl",
    ]


def test_dead_letters_do_not_change_another_result_in_their_folder(tmp_path: Path) -> None:
    run(tmp_path / "bad", FIRST, "a", "x")
    before = tree(tmp_path / "bad")
    scores = RunFolder(str(tmp_path / "out"), "r", SECOND)
    letters = RunFolder(str(tmp_path / "bad"), "r", SECOND)
    files = stage(scores, SCORES, "a") + stage(letters, DEAD_LETTERS, "x")
    commit(folders(scores, letters), files, scores, report)
    assert before.items() <= tree(tmp_path / "bad").items()


@pytest.mark.parametrize("root", [".", "./out", "out/", "out//deep", "out [1]*", "päth"])
def test_a_folder_may_be_spelled_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for token in (FIRST, SECOND):
        folder = RunFolder(root, "r", token)
        check_writable(folder)
        files = stage(folder, SCORES, "ab")
        commit(folders(folder), files, folder, report)
        # A runner may retry the last step.
        commit(folders(folder), files, folder, report)
    names = [path.rsplit("/", 1)[-1] for path in tree(tmp_path)]
    assert sorted(names) == [
        f"part-00000-of-00002-{SECOND}.jsonl",
        f"part-00001-of-00002-{SECOND}.jsonl",
        "report.json",
    ]


@dataclass(frozen=True)
class Second(FolderDestination):
    """A second folder for the rows of a part."""

    @property
    def name(self) -> str:
        return f"{self.part}_again"


def test_each_of_two_destinations_of_a_part_gets_its_own_files(tmp_path: Path) -> None:
    out, again = (RunFolder(str(tmp_path / name), "r", FIRST) for name in ("out", "again"))
    files = stage(out, SCORES, "ab") + stage(out, DEAD_LETTERS, "x")
    files += stage(again, f"{SCORES}_again", "ab")
    commit([*folders(out), Second(SCORES, again, "jsonl")], files, out, report)
    assert tree(tmp_path) == {
        f"out/r/scores/part-00000-of-00002-{FIRST}.jsonl": f"{FIRST} scores a",
        f"out/r/scores/part-00001-of-00002-{FIRST}.jsonl": f"{FIRST} scores b",
        f"out/r/dead_letters/part-00000-of-00001-{FIRST}.jsonl": f"{FIRST} dead_letters x",
        "out/r/report.json": "",
        f"again/r/scores/part-00000-of-00002-{FIRST}.jsonl": f"{FIRST} scores_again a",
        f"again/r/scores/part-00001-of-00002-{FIRST}.jsonl": f"{FIRST} scores_again b",
    }
    assert not list(tmp_path.rglob(".staging"))


def test_a_folder_keeps_the_schema_of_rows_and_names_its_place(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "out"), "r", FIRST)
    destination = FolderDestination(DEAD_LETTERS, folder, "jsonl")
    assert destination.name == DEAD_LETTERS
    assert destination.place == f"{tmp_path}/out/r/dead_letters"
    schema = pa.schema([pa.field("a", pa.list_(pa.int8()), metadata={"k": "v"})])
    assert destination.file_schema(schema).equals(schema, check_metadata=True)


def test_preparing_a_folder_creates_a_lock_and_discarding_it_leaves_nothing(tmp_path: Path) -> None:
    destination = FolderDestination(SCORES, RunFolder(str(tmp_path / "out"), "r", FIRST), "csv")
    destination.prepare()
    assert tree(tmp_path) == {f"out/.staging/r/{FIRST}-lock": ""}
    stage(destination.folder, SCORES, "ab")
    destination.discard()
    assert list((tmp_path / "out").iterdir()) == []


# Attempts that are too late.


@pytest.mark.parametrize("gone", ["a", "ab"])
def test_an_attempt_whose_staged_files_are_gone_removes_nothing(tmp_path: Path, gone: str) -> None:
    late = RunFolder(str(tmp_path), "r", FIRST)
    files = stage(late, SCORES, "ab") + stage(late, DEAD_LETTERS, "x")
    run(tmp_path, SECOND, "pq", "y")
    complete = (tmp_path / "r/report.json").read_text()
    for name in gone:
        Path(files["ab".index(name)].path).unlink()
    before = tree(tmp_path / "r")
    with pytest.raises(OutputError, match=r"was removed before the run was complete.*run it again"):
        commit(folders(late), files, late, report)
    assert tree(tmp_path / "r") == before
    assert (tmp_path / "r/report.json").read_text() == complete


def test_a_truncated_staged_file_is_not_put_in_place(tmp_path: Path) -> None:
    run(tmp_path, FIRST, "pq", "y")
    folder = RunFolder(str(tmp_path), "r", SECOND)
    files = stage(folder, SCORES, "ab")
    os.truncate(files[1].path, 3)
    before = tree(tmp_path / "r")
    with pytest.raises(OutputError, match=r"-b\.jsonl has 3 bytes, but 17 were written"):
        commit(folders(folder), files, folder, report)
    assert tree(tmp_path / "r") == before


def test_a_commit_keeps_the_staged_files_of_a_running_attempt(tmp_path: Path) -> None:
    running = RunFolder(str(tmp_path), "r", FIRST)
    files = stage(running, SCORES, "ab")
    run(tmp_path, SECOND, "pq", "y")
    assert all(Path(file.path).exists() for file in files)
    commit(folders(running), files, running, report)
    assert sorted(tree(tmp_path)) == [
        "r/report.json",
        f"r/scores/part-00000-of-00002-{FIRST}.jsonl",
        f"r/scores/part-00001-of-00002-{FIRST}.jsonl",
    ]


def test_a_commit_removes_the_staged_files_of_a_killed_attempt(tmp_path: Path) -> None:
    killed = RunFolder(str(tmp_path), "r", FIRST)
    stage(killed, SCORES, "ab")
    staging._release(killed)
    run(tmp_path, SECOND, "pq", "y")
    assert not (tmp_path / ".staging").exists()


def test_staged_files_without_a_lock_are_removed_a_day_after_the_last_write(tmp_path: Path) -> None:
    other = RunFolder(str(tmp_path), "r", FIRST)
    files = stage(other, SCORES, "ab")
    os.remove(other.staged("lock"))
    for age, left in ((3600, 2), (25 * 3600, 2)):
        os.utime(files[0].path, times=(0, Path(files[1].path).stat().st_mtime - age))
        discard_dead(RunFolder(str(tmp_path), "r", SECOND))
        assert len(list((tmp_path / ".staging/r").iterdir())) == left
    for file in files:
        os.utime(file.path, times=(0, 0))
    discard_dead(RunFolder(str(tmp_path), "r", SECOND))
    assert not (tmp_path / ".staging").exists()


def test_an_attempt_that_was_replaced_by_another_cannot_commit_again(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r", FIRST)
    files = stage(folder, SCORES, "ab")
    commit(folders(folder), files, folder, report)
    run(tmp_path, SECOND, "pq", "y")
    before = tree(tmp_path)
    with pytest.raises(
        OutputError,
        match=r"another attempt at run r has finished first, and its result in .* is kept",
    ):
        commit(folders(folder), files, folder, report)
    assert tree(tmp_path) == before


def test_two_attempts_do_not_commit_at_the_same_time(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r", FIRST)
    other = RunFolder(str(tmp_path), "r", SECOND)
    with commit_lock([folder]):
        waiting = commit_lock([other], seconds=0.1)
        with pytest.raises(
            OutputError, match="another attempt at run r is still putting its result in place"
        ):
            waiting.__enter__()
        with commit_lock([RunFolder(str(tmp_path), "r2", SECOND)], seconds=0.1):
            pass
    with commit_lock([other], seconds=0.1):
        pass
    assert not (tmp_path / ".staging").exists()


def test_files_that_a_failed_attempt_has_put_in_place_are_removed(tmp_path: Path) -> None:
    run(tmp_path, FIRST, "pq", "y")
    before = tree(tmp_path)
    folder = RunFolder(str(tmp_path), "r", SECOND)
    files = stage(folder, SCORES, "ab")

    def fail(_: Any) -> bytes:
        raise OutputError("the report cannot be built")

    with pytest.raises(OutputError, match="cannot be built"):
        commit(folders(folder), files, folder, fail)
    assert before.items() < tree(tmp_path).items()
    abandon(folders(folder), folder)
    assert tree(tmp_path) == before
    assert not (tmp_path / ".staging").exists()


def test_abandoning_an_attempt_after_its_commit_keeps_its_result(tmp_path: Path) -> None:
    folder = run(tmp_path, FIRST, "pq", "y")
    before = tree(tmp_path)
    abandon(folders(folder), folder)
    assert tree(tmp_path) == before


def test_a_thread_of_an_abandoned_attempt_cannot_commit(tmp_path: Path) -> None:
    run(tmp_path, FIRST, "pq", "y")
    before = tree(tmp_path)
    folder = RunFolder(str(tmp_path), "r", SECOND)
    abandon(folders(folder), folder)
    with pytest.raises(OutputError, match="the attempt at run r has already failed"):
        commit(folders(folder), [], folder, report)
    assert tree(tmp_path) == before


# Files of other programs.


def refused(root: Path, pattern: str) -> None:
    """Check that preparing and committing a run fail, and change nothing."""
    before = tree(root)
    folder = RunFolder(str(root), "r", SECOND)
    with pytest.raises(OutputError, match=pattern):
        folders(folder)[0].prepare()
    files = stage(folder, SCORES, "a") if not (root / ".staging").is_symlink() else []
    with pytest.raises(OutputError, match=pattern):
        commit(folders(folder), files, folder, report)
    discard(folder)
    assert tree(root) == before


@pytest.mark.parametrize("part", [SCORES, DEAD_LETTERS])
@pytest.mark.parametrize(
    "name",
    [
        "thesis.docx",
        "labels.parquet",
        "part-0.parquet",
        "deep/part.parquet",
        ".hidden",
        "part-00000-of-00001-mine.parquet",
        f"part-00000-of-00001-{FIRST}.parquet.bak",
    ],
)
def test_a_file_that_no_run_wrote_is_named_and_kept(tmp_path: Path, part: str, name: str) -> None:
    run(tmp_path, FIRST, "a", "x")
    (tmp_path / "r" / part / name).parent.mkdir(exist_ok=True)
    (tmp_path / "r" / part / name).write_text("mine")
    refused(tmp_path, f"r/{part}/{Path(name).parts[0]} is not a file of a run")


@pytest.mark.parametrize("link", ["r", "r/scores", "r/dead_letters", ".staging", ".staging/r"])
def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path, link: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / f"part-00000-of-00001-{FIRST}.parquet").write_text("mine")
    (precious / f"{FIRST}-scores-a.parquet").write_text("mine")
    root = tmp_path / "out"
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(precious)
    before = tree(precious)
    refused(root, f"{link} is a symbolic link")
    assert tree(precious) == before


def test_a_link_among_the_files_of_a_part_is_not_a_file_of_a_run(tmp_path: Path) -> None:
    run(tmp_path, FIRST, "a", "x")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f"r/scores/part-00001-of-00002-{FIRST}.parquet").symlink_to(tmp_path / "mine")
    refused(tmp_path, "is not a file of a run")


def test_an_output_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for token in (FIRST, SECOND):
        folders(RunFolder(str(tmp_path / "out"), "r", token))[0].prepare()
        run(tmp_path / "out", token, "a", "x")
    assert len(tree(tmp_path / "disk")) == 3


@pytest.mark.parametrize("content", ["mine", "[]", "{}", '{"files": 3}', '{"run_id": "r"}'])
def test_a_report_that_no_run_wrote_is_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/report.json").write_text(content)
    folder = RunFolder(str(tmp_path), "r", FIRST)
    with pytest.raises(OutputError, match=r"report\.json is not the report of a run"):
        folders(folder)[0].prepare()
    with pytest.raises(OutputError, match=r"report\.json is not the report of a run"):
        commit(folders(folder), stage(folder, SCORES, "a"), folder, report)
    assert (tmp_path / "r/report.json").read_text() == content


def test_files_that_no_run_of_the_same_id_wrote_are_kept_even_if_a_report_lists_them(
    tmp_path: Path,
) -> None:
    run(tmp_path, FIRST, "a", "x")
    name = f"part-00000-of-00001-{FIRST}.parquet"
    others = [tmp_path / "mine.txt", tmp_path / f"r2/scores/{name}", tmp_path / f"r/plots/{name}"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    written = json.loads((tmp_path / "r/report.json").read_text())
    written["replaced"] = [str(others[0]), str(others[1])]
    written["files"]["scores"].append({"name": f"plots/{name}", "rows": 1, "bytes": 4})
    (tmp_path / "r/report.json").write_text(json.dumps(written))
    run(tmp_path, SECOND, "a", "x")
    assert all(path.read_text() == "mine" for path in others)


def test_a_file_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "scores").write_text("a file")
    folder = RunFolder(str(tmp_path), "r", FIRST)
    with pytest.raises(OutputError, match="scores"):
        commit(folders(folder), stage(folder, SCORES, "a"), folder, report)
    assert tree(tmp_path)["r/scores"] == "a file"


# Staging folders.


def test_discarding_removes_only_staged_files(tmp_path: Path) -> None:
    root = tmp_path / "out"
    committed = run(root, FIRST, "a", "x")
    before = tree(root)
    again = RunFolder(str(root), "r", SECOND)
    stage(again, SCORES, "abc")
    discard(again)
    assert tree(root) == before
    assert not (root / ".staging").exists()
    for folder in (RunFolder(str(root), "other", FIRST), RunFolder(str(root), "r", SECOND)):
        stage(folder, SCORES, "a")
    staged = {p for p in tree(root) if p.startswith(".staging")}
    discard(committed)
    assert tree(root).keys() - before.keys() == staged
    assert len(staged) == 4


def test_discarding_keeps_a_folder_that_existed_before(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "out"), "r", FIRST)
    discard(folder)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    check_writable(folder)
    discard(folder)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("run_id", ["", ".", "..", ".staging", "a/b", "a\\b", "r*", "r?", "r[1]"])
def test_a_run_id_must_be_the_name_of_one_folder(run_id: str) -> None:
    with pytest.raises(UsageError, match="run id"):
        RunFolder("out", run_id, "t")


def test_a_path_in_a_bucket_must_not_be_a_pattern() -> None:
    with pytest.raises(UsageError, match="without"):
        RunFolder("gs://bucket/out*", "r", "t")
    assert RunFolder("gs://bucket/out", "r", "t").report == "gs://bucket/out/r/report.json"


@pytest.mark.parametrize(
    "run_id", ["r", "20240101T000000Z", "scheduled__2024-01-01T00:00:00+00:00"]
)
def test_run_ids_of_other_systems_are_accepted(tmp_path: Path, run_id: str) -> None:
    folder = RunFolder(str(tmp_path), run_id, FIRST)
    commit(folders(folder), stage(folder, SCORES, "a"), folder, report)
    assert (tmp_path / run_id / "report.json").exists()
