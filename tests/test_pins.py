"""An input file that changes during a run causes an error that names it."""

import bz2
import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from apache_beam.internal.gcp import auth

from common.errors import InputError
from examples.local_cloud import LocalCloud
from transforms.accounts import joined
from transforms.files import ranges as file_ranges
from transforms.files import text_lines
from transforms.files.columns import Columns
from transforms.files.pins import pin, unchanged
from transforms.files.ranges import FileRange, PlannedFile, match_files, plan_file, split_file
from transforms.files.read_range import read_range
from transforms.json_rows.decode import Decoded

ROWS = 2_000
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zstandard.compress,
}
NAMES = ["r.jsonl", "r.csv", "r.parquet", "r.jsonl.gz", "r.csv.zst", "r.jsonl.bz2"]


def content(name: str, rows: int = ROWS, value: int = 1) -> bytes:
    """Return the content of a file with rows a, b, c, in the format that its name says."""
    if name.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        table = pa.table({n: pa.array([float(value)] * rows) for n in "abc"})
        pq.write_table(table, sink, row_group_size=100)
        return sink.getvalue().to_pybytes()
    line = b'{"a":%d,"b":2,"c":3}\n' if ".jsonl" in name else b"%d,2,3\n"
    text = (b"" if ".jsonl" in name else b"a,b,c\n") + line % value * rows
    return COMPRESS.get(name.rsplit(".", 1)[-1], lambda data: data)(text)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(path.read_bytes()[-30:])


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(content(path.name, ROWS + 1))
    other.rename(path)


def rewrite(path: Path) -> None:
    """Write other rows, with the same size."""
    before = path.stat()
    changed = content(path.name, value=7)
    path.write_bytes(changed.ljust(before.st_size, b"\n")[: before.st_size])
    assert path.stat().st_size == before.st_size


CHANGES = pytest.mark.parametrize("change", [truncate, append, replace, rewrite, Path.unlink])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ranges and blocks so small that a file has several."""
    monkeypatch.setattr(file_ranges, "RANGE_BYTES", 20_000)
    monkeypatch.setattr(file_ranges, "RANGE_ROWS", 700)
    monkeypatch.setattr(text_lines, "BLOCK_BYTES", 1_000)


def planned(path: Path | str) -> PlannedFile:
    (file,) = match_files([str(path)])
    return plan_file(file, None)


def read_all(part: FileRange, columns: Columns) -> list[Decoded]:
    return list(read_range(part, columns, 64))


def changed(read: Callable[..., Any], path: Path | str, *given: Any) -> None:
    with pytest.raises(InputError) as caught:
        read(*given)
    message = str(caught.value)
    assert "\n" not in message
    assert f"input file {path} " in message
    assert "changed during the run" in message or "was removed during the run" in message
    assert "run again" in message


@pytest.mark.parametrize("name", NAMES)
def test_an_unchanged_file_is_read_completely(
    name: str, make_manifest: Any, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content(name))
    file = planned(path)
    parts = [d for r in split_file(file) for d in read_range(r, Columns(make_manifest()), 64)]
    assert sum(d.rows for d in parts) == ROWS
    assert joined(d.span for d in parts if d.span) == [(0, file.size)]
    assert file.size == (ROWS if name.endswith("parquet") else path.stat().st_size)


@CHANGES
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.exhaustive
def test_a_file_that_changes_while_it_is_read_is_an_error(
    name: str, change: Callable[[Path], None], make_manifest: Any, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content(name))
    first = next(split_file(planned(path)))
    decoded = read_range(first, Columns(make_manifest()), 64)
    next(decoded)
    change(path)
    changed(lambda: list(decoded), path)


@CHANGES
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.exhaustive
def test_a_file_that_changes_after_it_was_planned_is_an_error(
    name: str, change: Callable[[Path], None], make_manifest: Any, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content(name))
    ranges = list(split_file(planned(path)))
    change(path)
    for part in ranges:
        changed(read_all, path, part, Columns(make_manifest()))


@pytest.mark.parametrize("change", [truncate, append, Path.unlink])
def test_a_file_that_changes_after_it_was_matched_is_an_error(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content("r.jsonl"))
    (file,) = match_files([str(path)])
    change(path)
    changed(lambda: plan_file(file, None), path)


def test_a_file_that_is_added_after_the_folder_was_matched_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content("a.jsonl"))
    files = match_files([str(tmp_path)])
    (tmp_path / "b.jsonl").write_bytes(content("b.jsonl"))
    paths = {part.path for file in files for part in split_file(plan_file(file, None))}
    assert paths == {str(tmp_path / "a.jsonl")}


def test_an_error_while_reading_an_unchanged_file_is_raised_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(ValueError, match="mine"), unchanged(pin(str(tmp_path / "a"))):
        raise ValueError("mine")


def test_a_text_file_that_ends_before_its_range_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}\n" * 10)
    with pytest.raises(InputError, match=r"a\.jsonl ends at byte 30, expected at least 40"):
        list(text_lines.line_blocks(str(tmp_path / "a.jsonl"), 0, 40))


@pytest.fixture
def bucket(emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A bucket, configured for Beam, and the prefix of the test's objects."""
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    return emulators.cloud.storage().bucket("bucket"), f"pins/{tmp_path.name}"


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet", "r.csv.gz"])
@pytest.mark.parametrize("what", ["replaced", "the same size", "deleted"])
def test_an_object_that_changes_is_an_error(
    name: str, what: str, bucket: Any, make_manifest: Any
) -> None:
    blob = bucket[0].blob(f"{bucket[1]}/{name}")
    blob.upload_from_string(content(name))
    path = f"gs://bucket/{blob.name}"
    columns, file = Columns(make_manifest()), planned(path)
    ranges = list(split_file(file))
    parts = [d for part in ranges for d in read_range(part, columns, 64)]
    assert joined(d.span for d in parts if d.span) == [(0, file.size)]
    if what == "deleted":
        blob.delete()
    else:
        blob.upload_from_string(content(name, ROWS + (what == "replaced")))
    for part in ranges:
        changed(read_all, path, part, columns)
