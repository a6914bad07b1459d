"""Files are found by patterns, and split into ranges that cover each row once."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError, UsageError
from transforms.files import ranges as file_ranges
from transforms.files.csv.dialect import PLAIN, Dialect
from transforms.files.parquet import open_parquet
from transforms.files.pins import Pin
from transforms.files.ranges import PlannedFile, format_of, match_files, plan_file, split_file


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "in/b.parquet",
        "in/a.csv",
        "in/deep/er/c.jsonl",
        "in/_SUCCESS",
        "in/.hidden.csv",
        "in/_temporary/d.csv",
        "in/deep/.git/e.csv",
        "other/a.csv",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["in"], ["in/a.csv", "in/b.parquet", "in/deep/er/c.jsonl"]),
        (["in/"], ["in/a.csv", "in/b.parquet", "in/deep/er/c.jsonl"]),
        (["in/*"], ["in/a.csv", "in/b.parquet"]),
        (["in/**"], ["in/a.csv", "in/b.parquet", "in/deep/er/c.jsonl"]),
        (["in/*.csv"], ["in/a.csv"]),
        (["in/?.parquet", "in/a.csv"], ["in/a.csv", "in/b.parquet"]),
        (["in/a.csv", "in", "./in/a.csv"], ["in/a.csv", "in/b.parquet", "in/deep/er/c.jsonl"]),
        (["in/.hidden.csv"], ["in/.hidden.csv"]),
        (["in/_*"], ["in/_SUCCESS"]),
        (["in/_temporary"], ["in/_temporary/d.csv"]),
        (["in/_temp*/*.csv"], ["in/_temporary/d.csv"]),
        (["*/*.csv"], ["./in/a.csv", "./other/a.csv"]),
    ],
)
def test_patterns_name_files(tree: Path, patterns: list[str], found: list[str]) -> None:
    assert [f.path for f in match_files(patterns)] == found


@pytest.mark.parametrize("pattern", ["in/*.txt", "none", "none/", "none/*.csv", ""])
def test_a_pattern_without_a_file_is_an_error(tree: Path, pattern: str) -> None:
    (tree / "none").mkdir()
    with pytest.raises(InputError, match="no input file matches"):
        match_files([pattern, "in"])


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a.parquet", "parquet"),
        ("gs://b/A.PARQUET", "parquet"),
        ("x.pq", "parquet"),
        ("a.csv", "csv"),
        ("a.csv.gz", "csv"),
        ("a.json", "jsonl"),
        ("a.ndjson.zst", "jsonl"),
        ("a.b.JSONL.BZ2", "jsonl"),
    ],
)
def test_the_format_is_detected_from_the_name(path: str, kind: str) -> None:
    assert format_of(path) == kind


@pytest.mark.parametrize("path", ["a", "a.txt", "a.gz", "csv", "a.csv.zip", "parquet/part-0"])
def test_a_name_without_a_known_format_is_an_error(path: str) -> None:
    with pytest.raises(UsageError, match="--input_format"):
        format_of(path)


@given(st.integers(0, 200), st.integers(1, 70))
def test_text_is_split_into_ranges_that_cover_it(
    tmp_path_factory: pytest.TempPathFactory, size: int, range_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.csv"
    path.write_bytes(b"x" * size)
    (file,) = match_files([str(path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_ranges, "RANGE_BYTES", range_bytes)
        ranges = list(split_file(plan_file(file, None)))
    assert [i for r in ranges for i in range(r.start, r.stop)] == list(range(size))
    assert {r.format for r in ranges} <= {"csv"}


def test_compressed_text_is_one_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_ranges, "RANGE_BYTES", 3)
    packed = {
        "a.csv.gz": gzip.compress(b"a\n1\n"),
        "b.jsonl.ZST": zstandard.compress(b"{}\n"),
        "c.csv": gzip.compress(b"a\n1\n"),
    }
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
    ranges = [list(split_file(plan_file(file, None))) for file in match_files([str(tmp_path)])]
    assert [[(r.start, r.stop) for r in parts] for parts in ranges] == [
        [(0, len(content))] for content in packed.values()
    ]
    assert [parts[0].compression for parts in ranges] == ["gzip", "zstd", "gzip"]


def test_files_that_can_only_be_read_from_their_start_are_one_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_ranges, "RANGE_BYTES", 3)
    (tmp_path / "a.csv").write_text("a\n1\n2\n3\n")
    (tmp_path / "b.json").write_text('[{"a": 1}]')
    a, b = match_files([str(tmp_path)])
    counts = [
        len(list(split_file(plan_file(a, None, dialect))))
        for dialect in (PLAIN, Dialect(multiline=True), Dialect(encoding="utf-16-le"))
    ]
    assert counts == [3, 1, 1]
    assert len(list(split_file(plan_file(b, None)))) == 1


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 12))
def test_parquet_is_split_between_row_groups(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], range_rows: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "groups.parquet"
    with pq.ParquetWriter(path, pa.schema([("a", pa.int64())])) as writer:
        for rows in groups:
            writer.write_table(pa.table({"a": range(rows)}).cast(writer.schema))
    (file,) = match_files([str(path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_ranges, "RANGE_ROWS", range_rows)
        ranges = list(split_file(plan_file(file, None)))
    assert [i for r in ranges for i in range(r.start, r.stop)] == list(range(len(groups)))
    first_rows = [r.first_row for r in ranges]
    assert first_rows == [sum(groups[: r.start]) for r in ranges]
    assert sum(r.rows for r in ranges) == sum(groups)
    assert all(r.rows >= range_rows for r in ranges[:-1])


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 50), st.integers(1, 8))
def test_row_groups_are_cut_into_ranges_that_cover_them(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], range_rows: int, most_cuts: int
) -> None:
    pinned = Pin(str(tmp_path_factory.getbasetemp()), 1, "1")
    file = PlannedFile(pinned, "parquet", sum(groups), tuple(groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_ranges, "MOST_CUTS", most_cuts)
        ranges = list(split_file(file, range_rows))
    starts = [sum(groups[:i]) for i in range(len(groups) + 1)]
    covered = [(starts[r.start] + (r.skip or 0), r.rows) for r in ranges]
    assert [i for first, rows in covered for i in range(first, first + rows)] == [*range(file.size)]
    assert [r.first_row for r in ranges] == [first for first, _ in covered]
    assert {i for r in ranges for i in range(r.start, r.stop)} == {*range(len(groups))}
    for part in ranges:
        if part.skip is not None:
            parts = [r for r in ranges if r.start == part.start]
            size = groups[part.start]
            assert part.stop == part.start + 1
            assert 2 <= len(parts) <= most_cuts
            assert part.rows <= range_rows or part.rows <= -(-size // most_cuts)
        elif part.stop > part.start + 1:
            assert starts[part.stop - 1] - starts[part.start] < range_rows


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    changed: dict[str, Any] = {
        "cut": data[:-20],
        "half": data[: len(data) // 2],
        "empty": b"",
        "text": b"a,b\n1,2\n",
        "footer": data[:-60] + b"\xff" * 40 + data[-20:],
    }
    path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["cut", "half", "empty", "text", "footer"])
def test_a_file_that_is_not_parquet_is_an_error_of_one_line(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": range(100)}), path)
    damage(path, how)
    with pytest.raises(InputError, match=r"a\.parquet is not a readable Parquet file") as caught:
        open_parquet(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_parquet_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.parquet"):
        open_parquet(str(tmp_path / "gone.parquet"))
