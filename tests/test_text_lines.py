"""Blocks of lines: adjacent ranges yield each line once, however the file is split."""

import bz2
import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from transforms.accounts import joined
from transforms.files import text_lines
from transforms.files.text_lines import (
    compression_of,
    line_blocks,
    look_into,
    open_text,
    without_compression,
)

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zstandard.compress,
}


@given(
    st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")), max_size=12),
    st.booleans(),
    st.lists(st.integers(1, 60), max_size=5),
    st.integers(1, 20),
)
def test_adjacent_ranges_yield_each_line_once(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    ends: bool,
    cuts: list[int],
    block_bytes: int,
) -> None:
    text = b"\n".join(lines) + (b"\n" if ends else b"")
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(text)
    bounds = [0, *sorted(cut for cut in set(cuts) if cut < len(text)), len(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lines, "BLOCK_BYTES", block_bytes)
        ranges = itertools.pairwise(bounds)
        blocks = [block for start, stop in ranges for block in line_blocks(str(path), start, stop)]
    assert b"".join(block.lines for block in blocks) == text
    # An empty file has no blocks.
    assert joined(block.span for block in blocks) == ([(0, len(text))] if text else [])
    for offset, block, _ in blocks:
        assert text[offset : offset + len(block)] == block
        assert block.endswith(b"\n") or offset + len(block) == len(text)
        assert offset == 0 or text[offset - 1 : offset] == b"\n"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_is_read_to_its_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.csv.{suffix.upper()}"
    path.write_bytes(COMPRESS[suffix](b"one\ntwo\n") + COMPRESS[suffix](b"three\n"))
    with open_text(str(path)) as handle:
        assert list(iter(handle.readline, b"")) == [b"one\n", b"two\n", b"three\n"]
    blocks = list(line_blocks(str(path), 0, 1))
    assert b"".join(block.lines for block in blocks) == b"one\ntwo\nthree\n"
    assert joined(block.span for block in blocks) == [(0, path.stat().st_size)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_without_its_suffix_is_recognized(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(COMPRESS[suffix](b"one\ntwo\n"))
    with open_text(str(path)) as handle:
        assert handle.read() == b"one\ntwo\n"
    compression, start = look_into(str(path))
    assert start == b"one\ntwo\n"
    blocks = list(line_blocks(str(path), 0, 1, compression))
    assert b"".join(block.lines for block in blocks) == b"one\ntwo\n"


@pytest.mark.parametrize("parts", list(itertools.product([b"", b"one\n", b"two\n" * 99], repeat=3)))
@pytest.mark.parametrize("suffix", COMPRESS)
def test_parts_of_a_compressed_file_may_be_empty(
    tmp_path: Path, suffix: str, parts: tuple[bytes, ...]
) -> None:
    for name in (f"a.csv.{suffix}", "a.csv"):
        path = tmp_path / name
        path.write_bytes(b"".join(map(COMPRESS[suffix], parts)))
        with open_text(str(path)) as handle:
            assert handle.read() == b"".join(parts)


@pytest.mark.parametrize("level", range(1, 10))
def test_bz2_of_any_level_is_recognized(tmp_path: Path, level: int) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(bz2.compress(b"one\n", level))
    assert look_into(str(path)) == ("bz2", b"one\n")


def test_a_zstd_file_may_start_with_a_frame_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0size" + zstandard.compress(b"one\n"))
    assert look_into(str(path)) == ("zstd", b"one\n")


@given(
    st.lists(st.binary(max_size=2000), min_size=1, max_size=3),
    st.integers(0, 20_000),
    st.integers(1, 3000),
)
def test_zero_bytes_after_a_gzip_file_are_not_text(
    tmp_path_factory: pytest.TempPathFactory, members: list[bytes], zeros: int, block_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "padded.csv.gz"
    path.write_bytes(b"".join(map(gzip.compress, members)) + bytes(zeros))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lines, "BLOCK_BYTES", block_bytes)
        blocks = list(line_blocks(str(path), 0, 1))
    assert b"".join(block.lines for block in blocks) == b"".join(members)
    assert joined(block.span for block in blocks) == [(0, path.stat().st_size)]


def test_other_bytes_after_a_gzip_file_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"one\n") + bytes(9) + b"two\n")
    with pytest.raises(InputError, match=r"a\.csv\.gz cannot be read"):
        list(line_blocks(str(path), 0, 1))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    # The frames that zstandard writes by default hold no checksum.
    sorted({(s, d) for s in COMPRESS for d in ("cut", "changed", "plain")} - {("zst", "changed")}),
)
def test_a_damaged_compressed_file_is_an_error(tmp_path: Path, suffix: str, damage: str) -> None:
    text = b"".join(b"%d\n" % (i * i) for i in range(20_000))
    whole = COMPRESS[suffix](text)
    broken = {"cut": whole[:-9], "changed": whole[:200] + b"\0" * 99 + whole[299:], "plain": text}
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(broken[damage])
    words = r"a\.jsonl\.\w+ cannot be read: .*; check that it is complete, and compressed as its"
    with pytest.raises(InputError, match=words):
        list(line_blocks(str(path), 0, 1 << 62))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv cannot be read: .*No such file"):
        list(line_blocks(str(tmp_path / "gone.csv"), 0, 10))


def test_compression_is_detected_from_the_name() -> None:
    assert [compression_of(f"a{suffix}") for suffix in (".csv", ".csv.gz", ".GZ", ".zst")] == [
        None,
        "gzip",
        "gzip",
        "zstd",
    ]
    assert without_compression("gs://a/b.csv.BZ2") == "gs://a/b.csv"
    assert without_compression("b.csv") == "b.csv"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("cut", [1, 3, -1])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text_that_ends_in_the_middle_of_a_character_is_one_error_without_its_bytes(
    tmp_path: Path, encoding: str, cut: int, suffix: str
) -> None:
    whole = "id,a\nä,1\n😀".encode(encoding)
    data = whole + b"\0" if cut < 0 else whole[:-cut]
    path = tmp_path / f"rows.csv{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(InputError) as caught:
        list(line_blocks(str(path), 0, len(data), encoding=encoding))
    message = str(caught.value)
    assert f"{path} cannot be read: expected UTF-" in message
    assert "ends in the middle of a character: write the file again" in message
    assert "0x" not in message
