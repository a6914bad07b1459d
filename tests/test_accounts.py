"""A run fails if rows are lost or duplicated between a source and its readers."""

import gzip
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import RunCommand
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BalanceError
from pipelines.batch_local import COMMAND
from transforms.accounts import (
    TABLE_ROWS,
    Entry,
    Span,
    check_source,
    difference,
    expect_rows,
    joined,
    promise,
    rows_read,
    settle,
    taken,
    unknown_rows,
)
from transforms.files import ranges as file_ranges
from transforms.files import read as read_files
from transforms.files.ranges import FileRange, PlannedFile
from transforms.files.read_range import read_range

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROWS = 2_000  # of the fixture `example`


def counts_of(*entries: Entry) -> dict[tuple[str, ...], int]:
    """Sum the counts of entries as the pipeline does."""
    sums: Counter[tuple[str, ...]] = Counter()
    places = sorted({place for place, _ in entries})
    for place in places:
        for key, count in settle(place, [part for other, part in entries if other == place]):
            sums[key] += count
    return dict(sums)


@st.composite
def tiles(draw: st.DrawFn) -> list[Span]:
    """Draw adjacent spans from 0 on, some of them empty."""
    bounds = [0, *itertools.accumulate(draw(st.lists(st.integers(0, 9), max_size=8)))]
    return list(itertools.pairwise(bounds))


@given(tiles(), st.randoms())
def test_spans_that_cover_everything_once_do_not_differ(spans: list[Span], random: Any) -> None:
    size = spans[-1][1] if spans else 0
    assert joined(spans) == ([(0, size)] if spans else [])
    random.shuffle(spans)
    assert difference(size, spans) is None


@given(tiles(), st.data())
def test_a_span_that_is_lost_duplicated_or_moved_is_found(
    spans: list[Span], data: st.DataObject
) -> None:
    size = spans[-1][1] if spans else 0
    full = [span for span in spans if span[0] < span[1]]
    for lost in full:
        others = [span for span in spans if span != lost]
        doubled = data.draw(st.sampled_from(full))
        moved = (lost[0] + 1, lost[1] + 1)
        for wrong in (others, [*spans, lost], [*others, moved], [*spans, (size, size + 1)]):
            assert difference(size, wrong)
        # The number of bytes is right, but they are not the right ones.
        if doubled != lost:
            assert difference(size, [*others, doubled])


def test_the_report_says_what_was_expected_and_what_counted_it() -> None:
    parquet = [promise("a", "files", 1), taken("a", "files", 0, 1), promise("a", "rows", 5)]
    parquet += [taken("a", "rows", 0, 5), rows_read("a", 5), expect_rows("a", 5, "Parquet footers")]
    assert check_source(counts_of(*parquet), 5) == {
        "rows_expected": 5,
        "rows_expected_from": "Parquet footers",
        "files_expected": 1,
        "files_read": 1,
    }
    text = [promise("b", "bytes", 9), taken("b", "bytes", 0, 9), rows_read("b", 2)]
    both = check_source(counts_of(*parquet, *text, unknown_rows("b", "text")), 7)
    assert (both["rows_expected"], both["rows_expected_from"]) == (None, "text")
    assert (both["bytes_expected"], both["bytes_read"]) == (9, 9)


@pytest.mark.parametrize(
    ("entries", "rows_in", "words"),
    [
        ([promise("a", "files", 1)], 0, "a: files 0 to 1 were not read"),
        ([taken("a", "bytes", 0, 9)], 0, "a: bytes 0 to 9 were read but not expected"),
        (
            [expect_rows("t", 9, TABLE_ROWS)],
            8,
            "9 rows were expected (from: row count of the table), but 8 arrived",
        ),
        ([expect_rows("t", 9, TABLE_ROWS)], 8, "row-level access policies"),
        ([rows_read("a", 9)], 8, "9 rows were read, but 8 arrived"),
    ],
)
def test_a_difference_is_reported_in_one_line(
    entries: list[Entry], rows_in: int, words: str
) -> None:
    with pytest.raises(BalanceError) as caught:
        check_source(counts_of(*entries), rows_in)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# In a run


@pytest.fixture
def source(example: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Write the example's rows to a file of a format, with several ranges if it can be split."""
    table = pq.read_table(example / "transactions.parquet")

    def write(kind: str) -> Path:
        path = tmp_path / f"rows.{kind}"
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=500)
            return path
        rows = table.to_pylist()
        lines = [json.dumps(row, default=str) for row in rows]
        if kind == "csv":
            cells = [["" if v is None else str(v) for v in row.values()] for row in rows]
            lines = [",".join(line) for line in [table.column_names, *cells]]
        text = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
        return path

    return write


@pytest.fixture
def run(
    example: Path,
    tmp_path: Path,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Path], tuple[int, str]]:
    """Run batch_local on a file; return the exit code and the standard error."""
    monkeypatch.setattr(file_ranges, "RANGE_ROWS", 500)
    monkeypatch.setattr(file_ranges, "RANGE_BYTES", 100_000)

    def call(path: Path, **more: Any) -> tuple[int, str]:
        flags = {
            "input_files": path,
            "model": example / "model",
            "output_files": tmp_path / "out",
            "run_id": "r",
            "direct_num_workers": 1,
        }
        code, _, err = run_command(COMMAND, flags | more)
        return code, err

    return call


KINDS = pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "jsonl.gz"])


@KINDS
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_run_reports_what_it_had_to_read(
    kind: str, source: Any, run: Callable[[Path], tuple[int, str]], tmp_path: Path
) -> None:
    path = source(kind)
    assert run(path) == (0, "")
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    assert report["rows_in"] == ROWS
    assert (report["files_expected"], report["files_read"]) == (1, 1)
    if kind == "parquet":
        assert (report["rows_expected"], report["rows_expected_from"]) == (ROWS, "Parquet footers")
    else:
        assert report["rows_expected"] is None
        assert "bytes are compared" in report["rows_expected_from"]
        assert report["bytes_expected"] == report["bytes_read"] == path.stat().st_size


def without_one(file: PlannedFile, *given: Any) -> Iterator[FileRange]:
    """Do the same as split_file, but lose one range."""
    ranges = list(file_ranges.split_file(file, *given))
    del ranges[len(ranges) // 2]
    yield from ranges


@pytest.mark.slow
def test_parts_of_row_groups_are_counted(
    source: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source("parquet")
    assert run(path, range_rows=170) == (0, "")
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    assert (report["rows_in"], report["rows_expected"]) == (ROWS, ROWS)
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(read_files, "split_file", without_one)
    code, err = run(path, range_rows=170)
    assert (code, err.count("\n")) == (1, 1)
    assert "rows of the source are missing or duplicated, so nothing was written" in err


def one_for_another(file: PlannedFile, *_: Any) -> Iterator[FileRange]:
    """Do the same as split_file, but return one range twice, and lose another of the same size."""
    ranges = list(file_ranges.split_file(file))
    yield from [*ranges[:1], *ranges[:1], *ranges[2:]]


@pytest.mark.parametrize(
    ("kind", "split"),
    [
        *[(kind, without_one) for kind in ("parquet", "csv", "jsonl", "jsonl.gz")],
        *[(kind, one_for_another) for kind in ("parquet", "csv")],
    ],
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_lost_range_fails_the_run_and_nothing_is_written(
    kind: str,
    split: Any,
    source: Any,
    run: Callable[[Path], tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(read_files, "split_file", split)
    path = source(kind)
    code, err = run(path)
    assert code == 1
    assert err.count("\n") == 1
    assert "rows of the source are missing or duplicated, so nothing was written" in err
    assert str(path) in err
    assert not (tmp_path / "out/r").exists()


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz"])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_reader_that_stops_early_fails_the_run(
    kind: str,
    source: Any,
    run: Callable[[Path], tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = read_range
    monkeypatch.setattr(read_files, "read_range", lambda *given: itertools.islice(whole(*given), 0))
    path = source(kind)
    code, err = run(path)
    assert (code, f"{path}: " in err, "were not read" in err) == (1, True, True)
    assert not (tmp_path / "out/r").exists()


@pytest.mark.slow
def test_a_lost_file_fails_the_run(
    source: Any,
    run: Callable[[Path], tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(read_files, "promise_file", lambda _: [])
    monkeypatch.setattr(read_files, "split_file", lambda *_: [])
    path = source("csv")
    code, err = run(path)
    assert (code, f"{path}: files 0 to 1 were not read" in err) == (1, True)
