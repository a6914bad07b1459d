"""CSV: each line is a row or a fault, independently of other lines."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import InputError
from transforms.files.csv.dialect import PLAIN, Dialect
from transforms.files.csv.header import read_header
from transforms.files.csv.parse import CsvRows, UnclosedQuote, read_lines

HEADER = ["name", "a", "b"]
TYPES = {"name": pa.string(), "b": pa.float64()}

FIELDS = st.one_of(
    st.integers(-99, 99).map(str),
    st.floats(allow_nan=False).map(str),
    st.sampled_from(["", "NA", "null", "x y", " 5 ", "a,b", 'say "hi"', "é", '"', "1e5"]),
)


def write_line(fields: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue().encode()


def is_open(text: str, field_ends: str = ",") -> bool:
    """Return whether a text ends inside a quoted value, found character by character."""
    state = "start"
    for c in text:
        if state == "value":
            state = "quote" if c == '"' else "value"
        elif c in field_ends:
            state = "start"
        elif c == '"' and state in ("start", "quote"):
            state = "value"
        else:
            state = "field"
    return state == "value"


GOOD = st.lists(FIELDS, min_size=3, max_size=3).map(write_line)
ODD = st.one_of(
    st.lists(FIELDS, max_size=5).map(write_line),
    st.sampled_from(
        [
            b'x"a,"1",2',
            b'5" pipe,1,2',
            b'x"a"b",1,2',
            b'"x"y,1,2',
            b'""',
            b"\xff,1,2",
            b"x,\xff,2",
            b"a\rb,1,2",
            b"  ",
            b"\xef\xbb\xbf1,2,3",
            b"a,b\x00,3",
            b",,",
            b'x,1,"2"',
            b'"a""b",1,2',
        ]
    ),
    st.binary(max_size=8)
    .map(lambda b: b.replace(b"\n", b""))
    .filter(lambda b: not is_open(b.decode("latin-1"))),
)
LINES = st.lists(GOOD | ODD, max_size=8)


def read_all(
    lines: list[bytes], end: bytes = b"\n", last: bytes = b"", dialect: Dialect = PLAIN
) -> tuple[list[Any], list[Any]]:
    """Return (offset, values) of each row, and (offset, line, reason) of each other line."""
    return parts_of(read_lines(end.join(lines) + last, 1000, HEADER, TYPES, dialect))


def parts_of(part: CsvRows) -> tuple[list[Any], list[Any]]:
    values = part.columns.to_pylist()
    assert len(values) == len(part.offsets)
    rows = list(zip(part.offsets.tolist(), map(as_text, values), strict=True))
    return rows, [(offset, line, fault.reason) for offset, line, fault in part.failed]


def as_text(row: dict[str, Any]) -> tuple[str | None, float | str | None]:
    """Return a row with its number as a float if it is one: some parts hold it as a string."""
    try:
        return row["name"], None if row["b"] in (None, "") else float(str(row["b"]).strip())
    except ValueError:
        return row["name"], row["b"]


def is_blank(line: bytes) -> bool:
    """Return whether a line is empty apart from its end, which may have up to two CRs."""
    return line.removesuffix(b"\n").removesuffix(b"\r").removesuffix(b"\r") == b""


@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r\r\n"]), st.booleans())
@example([b"0,0,0", b"\r", b"0,0,0"], b"\r\n", False)
@example([b'x"a,"1",2', b"y,1,2"], b"\n", True)
@example([b"y,1,2", b'x"a,"1",2'], b"\n", False)
@example([b'5" pipe,1,2', b'"a""b"c,1,2'], b"\n", True)
def test_every_line_is_a_row_or_a_fault(lines: list[bytes], end: bytes, ended: bool) -> None:
    rows, failed = read_all(lines, end, end if ended else b"")
    block = end.join(lines) + (end if ended else b"")
    texts, offset = {}, 1000
    for line in io.BytesIO(block):
        if not is_blank(line):
            texts[offset] = line
        offset += len(line)
    # Each non-blank line is found once, identified by the offset at which it starts.
    assert sorted([at for at, _ in rows] + [at for at, _, _ in failed]) == list(texts)
    assert all(line == texts[at].rstrip(b"\r\n") for at, line, _ in failed)
    assert {reason for _, _, reason in failed} <= {"wrong_width", "invalid_csv"}


@given(LINES)
def test_a_line_is_read_the_same_next_to_any_other_lines(lines: list[bytes]) -> None:
    together_rows, together_failed = read_all(lines)
    alone_rows, alone_failed = [], []
    for line in lines:
        rows, failed = read_all([line])
        alone_rows += [values for _, values in rows]
        alone_failed += [(text, reason) for _, text, reason in failed]
    assert [values for _, values in sorted(together_rows, key=lambda r: r[0])] == alone_rows
    assert [f[1:] for f in sorted(together_failed)] == alone_failed


@given(st.lists(st.lists(FIELDS, min_size=3, max_size=3), max_size=8))
def test_written_csv_is_read_back(table: list[list[str]]) -> None:
    rows, failed = read_all([write_line(fields) for fields in table])
    assert failed == []
    written = [{"name": fields[0] or None, "b": fields[2]} for fields in table]
    assert [values for _, values in rows] == [as_text(row) for row in written]


def test_a_column_is_read_as_strings_if_a_value_is_not_a_number() -> None:
    part = read_lines(b"x,1,2.5\ny,1,\n", 0, HEADER, TYPES)
    assert part.columns.to_pydict() == {"name": ["x", "y"], "b": [2.5, None]}
    part = read_lines(b"NA,1,2.5\nnull,1,NA\n", 0, HEADER, TYPES)
    assert part.columns.to_pydict() == {"name": ["NA", "null"], "b": ["2.5", "NA"]}
    assert part.columns.column("b").type == pa.string()


def test_only_the_column_at_fault_stays_a_string_column() -> None:
    types = {"name": pa.float64(), "a": pa.int64(), "b": pa.float64()}
    part = read_lines(b"1.5,7,2.5\n2.5,8,x\n", 0, HEADER, types)
    assert part.columns.to_pydict() == {"name": [1.5, 2.5], "a": [7, 8], "b": ["2.5", "x"]}


def test_whole_numbers_are_not_rounded() -> None:
    types = {"b": pa.int64()}
    part = read_lines(b"x,1,9007199254740993\n", 0, HEADER, types)
    assert part.columns.to_pydict() == {"b": [9007199254740993]}
    part = read_lines(b"x,1,9007199254740993\ny,1,0.5\n", 0, HEADER, types)
    assert part.columns.to_pydict() == {"b": ["9007199254740993", "0.5"]}


@pytest.mark.parametrize("others", [b"", b"y,1,7\n", b"y,1,0.5\n"])
def test_hexadecimal_digits_are_not_a_number(others: bytes) -> None:
    part = read_lines(b"0xa,1,0x10\n" + others, 0, HEADER, {"b": pa.int64()})
    assert part.columns.column("b").to_pylist()[0] == "0x10"
    part = read_lines(b"0xa,1,16\n", 0, HEADER, {"b": pa.int64()})
    assert part.columns.to_pydict() == {"b": [16]}


def test_an_empty_quoted_field_is_not_null() -> None:
    part = read_lines(b'"",1,2\n,1,2\n', 0, HEADER, TYPES)
    assert part.columns.column("name").to_pylist() == ["", None]


def test_faults_say_what_is_wrong() -> None:
    block = b'ok,1,2\nx,1\nz,1,2,3\n5" pipe,1,2\n\xff,1,2\nok,3,4\n'
    part = read_lines(block, 0, HEADER, TYPES)
    failed = part.failed
    assert [(line, fault.reason) for _, line, fault in failed] == [
        (b"x,1", "wrong_width"),
        (b"z,1,2,3", "wrong_width"),
        (b'5" pipe,1,2', "invalid_csv"),
        (b"\xff,1,2", "invalid_csv"),
    ]
    assert failed[0][2].message == "expected 3 columns, got 2"
    assert "quote" in failed[2][2].message
    assert failed[3][2].message == "expected UTF-8, got other bytes"
    assert part.columns.num_rows == 2


@pytest.mark.parametrize(
    "line", [b'"', b'x,"1,2', b'x,1,"a""', b'"a""b,1,2', b'x"y,1,"2', b'"a",1,"', b'"a"b,"1,2']
)
def test_a_line_whose_opening_quote_does_not_close_is_an_error(line: bytes) -> None:
    block = b"ok,1,2\n" + line + b'\nz,7,8\nend",1,2\n'
    with pytest.raises(UnclosedQuote, match=r"line at byte 107 .*--csv_multiline"):
        read_lines(block, 100, HEADER, TYPES)


@given(st.lists(st.text('",x\r é', max_size=12), max_size=6))
def test_open_quotes_are_found_as_they_are_character_by_character(texts: list[str]) -> None:
    lines = [text.encode() for text in texts]
    opened = [i for i, text in enumerate(texts) if is_open(text)]
    if opened:
        start = 1000 + sum(len(line) + 1 for line in lines[: opened[0]])
        with pytest.raises(UnclosedQuote, match=f"line at byte {start:,} "):
            read_all(lines)
    else:
        rows, failed = read_all(lines)
        assert len(rows) + len(failed) == sum(not is_blank(line) for line in lines)


@pytest.mark.slow
def test_a_large_block_keeps_the_offset_of_every_line() -> None:
    lines = [b"x,1,%d" % i for i in range(200_000)]
    broken = {5: b"x,1", 150_000: b'x",1,2', 199_999: b"\xff,1,2"}
    for i, line in broken.items():
        lines[i] = line
    rows, failed = read_all(lines)
    starts = np.cumsum([1000] + [len(line) + 1 for line in lines])
    assert sorted((at, line) for at, line, _ in failed) == [
        (starts[i], line) for i, line in broken.items()
    ]
    assert [(at, int(values[1])) for at, values in rows] == [
        (starts[i], i) for i in range(200_000) if i not in broken
    ]


def test_a_line_may_be_long() -> None:
    rows, failed = read_all([b"x,1,2", b"y" * 3_000_000 + b",1,2", b"x,1"])
    assert [len(values[0]) for _, values in rows] == [1, 3_000_000]
    assert [reason for _, _, reason in failed] == ["wrong_width"]


def test_blank_lines_are_not_rows() -> None:
    assert read_all([]) == read_all([b"", b"\r", b""]) == ([], [])
    rows, failed = read_all([b"", b"x,1,2", b"", b"", b"y,1", b""], b"\r\n")
    assert [at for at, _ in rows] == [1002]
    assert [at for at, _, _ in failed] == [1013]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"a,b\n1,2\n", ["a", "b"]),
        (b"a,b", ["a", "b"]),
        (b'\xef\xbb\xbf"a","b ""c"", d"\r\n1,2\r\n', ["a", 'b "c", d']),
        (b"a\n", ["a"]),
    ],
)
def test_the_header_is_read(tmp_path: Path, text: bytes, names: list[str]) -> None:
    (tmp_path / "h.csv").write_bytes(text)
    assert read_header(str(tmp_path / "h.csv")).names == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is empty"),
        (b"\n1,2\n", "starts with a blank line"),
        (b'"a\n', "not a CSV header.*--csv_multiline"),
        (b"\xff\n", "not a CSV header"),
        (b"a,b\r1,2\r", "CR alone"),
        (b"a;b\n1;2\n", "--csv_delimiter ';'"),
        (b"a\tb\tc\n", "--csv_delimiter tab"),
        (b'"a, b";c\n', "--csv_delimiter ';'"),
        ("a,b\n".encode("utf-16"), "--csv_encoding utf-16"),
        ("a,é\n".encode("cp1252"), "--csv_encoding cp1252"),
    ],
)
def test_a_line_that_is_not_a_header_is_an_error(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "h.csv").write_bytes(text)
    with pytest.raises(InputError, match=words):
        read_header(str(tmp_path / "h.csv"))
