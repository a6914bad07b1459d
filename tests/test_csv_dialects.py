"""CSV as programs write it: line breaks in quotes, other delimiters, quotes and encodings."""

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from property_tests import examples
from test_csv_lines import is_open

from common.errors import InputError
from model_handlers.manifests.manifest import InputSpec, Manifest
from transforms.files import ranges as file_ranges
from transforms.files import text_lines
from transforms.files.columns import Columns, id_prefix
from transforms.files.csv import parse
from transforms.files.csv.dialect import PLAIN, Dialect
from transforms.files.ranges import has_rows, match_files, plan_file, split_file
from transforms.files.read_range import read_range

MULTILINE = Dialect(multiline=True)
Rows = dict[int, dict[str, Any]]
Failed = dict[int, tuple[bytes, str]]


@pytest.fixture(scope="module")
def columns(make_manifest: Callable[..., Manifest]) -> Columns:
    return Columns(make_manifest(InputSpec("x", ("a",), shape=(1,))), None, ("note",))


def read(path: Path, columns: Columns, dialect: Dialect = PLAIN) -> tuple[Rows, Failed]:
    """Return the rows of a file, and the payload and reason of the others, by offset."""
    rows: Rows = {}
    failed: Failed = {}
    prefix = id_prefix(str(path))
    (file,) = match_files([str(path)])
    for part in split_file(plan_file(file, "csv", dialect)):
        for decoded in read_range(part, columns, 100):
            for row in [] if decoded.batch is None else decoded.batch.to_pylist():
                rows[int(row["row_id"].removeprefix(f"{prefix}-"))] = row["source"]
            others = zip(decoded.failed_ids, decoded.failed_payloads, decoded.faults, strict=True)
            for row_id, payload, fault in others:
                failed[int(row_id.removeprefix(f"{prefix}-"))] = (payload, fault.reason)
    return rows, failed


def test_a_line_inside_quotes_is_never_a_row(tmp_path: Path, columns: Columns) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,note\n1,"copied:\n7,old\nend"\n2,fine\n')
    with pytest.raises(InputError, match=r"rows\.csv: the line at byte 7 .*--csv_multiline") as no:
        read(path, columns)
    assert "\n" not in str(no.value)
    rows, failed = read(path, columns, MULTILINE)
    assert failed == {}
    assert rows == {
        7: {"a": 1.0, "note": "copied:\n7,old\nend"},
        29: {"a": 2.0, "note": "fine"},
    }


NOTES = st.text('",x\n\r;é\\', max_size=8)


@settings(max_examples=examples(100))
@given(
    st.lists(st.tuples(st.integers(0, 99), NOTES), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(['"', "'"]),
    st.sampled_from([None, "\\"]),
    st.sampled_from(["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"]),
    st.integers(1, 30),
    st.integers(1, 30),
)
@example([(1, '"'), (2, "\n")], "\n", ",", '"', None, "utf-8", 3, 30)
@example([(1, '\\"'), (2, "\\")], "\r\n", ";", "'", "\\", "cp1252", 3, 3)
def test_what_a_csv_writer_writes_is_read_back(
    columns: Columns,
    tmp_path_factory: pytest.TempPathFactory,
    table: list[tuple[int, str]],
    end: str,
    delimiter: str,
    quote: str,
    escape: str | None,
    encoding: str,
    block_bytes: int,
    range_bytes: int,
) -> None:
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=delimiter,
        quotechar=quote,
        escapechar=escape,
        doublequote=escape is None,
        quoting=csv.QUOTE_NONNUMERIC,
        lineterminator=end,
    )
    writer.writerows([("a", "note"), *table])
    path = tmp_path_factory.getbasetemp() / "dialect.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    dialect = Dialect(
        delimiter=delimiter,
        quote=quote,
        escape=escape,
        encoding=encoding.removesuffix("-sig"),
        multiline=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lines, "BLOCK_BYTES", block_bytes)
        patch.setattr(file_ranges, "RANGE_BYTES", range_bytes)
        rows, failed = read(path, columns, dialect)
    assert failed == {}
    assert [(row["a"], row["note"]) for row in rows.values()] == table
    # Ids are bytes of the file, or of its text in UTF-8 if ranges cannot be read alone.
    stored = text.getvalue().encode("utf-8" if encoding.startswith("utf-16") else encoding)
    if encoding in ("utf-8", "cp1252"):
        assert all(stored[:at].endswith(end.encode()) for at in rows)


@settings(max_examples=examples(100))
@given(st.text('",x\n', max_size=40))
def test_rows_over_several_lines_are_those_of_another_reader(
    columns: Columns, tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "several.csv"
    path.write_bytes(f"a,note\n{text}\n".encode())
    if is_open(text, field_ends=",\n"):
        with pytest.raises(InputError, match="does not end within"):
            read(path, columns, MULTILINE)
        return
    rows, failed = read(path, columns, MULTILINE)
    got = [(as_text(row["a"]), as_text(row["note"])) for row in rows.values()]
    read_by_python = csv.reader(io.StringIO(f"{text}\n", newline=""))
    expected = [tuple(map(as_text, row)) for row in read_by_python if len(row) == 2]
    if any(reason == "invalid_csv" for _, reason in failed.values()):
        # Python's reader accepts stray quotes.
        rest = iter(expected)
        assert all(row in rest for row in got)
    else:
        assert got == expected


def as_text(value: Any) -> str | None:
    return None if value in (None, "") else str(value).removesuffix(".0")


def test_a_stray_quote_costs_one_row_of_several_lines(tmp_path: Path, columns: Columns) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,note\n1,5" pipe\n2,"a\nb"\n3,"x"y\n4,"x\n"y"\n5,ok\n')
    rows, failed = read(path, columns, MULTILINE)
    assert [(row["a"], row["note"]) for row in rows.values()] == [(2.0, "a\nb"), (5.0, "ok")]
    assert list(failed.values()) == [
        (b'1,5" pipe', "invalid_csv"),
        (b'3,"x"y', "invalid_csv"),
        (b'4,"x\n"y"', "invalid_csv"),
    ]


def test_a_quote_that_never_closes_is_an_error(
    tmp_path: Path, columns: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,note\n1,x\n2,"open\n' + "3,y\n" * 100)
    for limit in (1 << 20, 50):
        monkeypatch.setattr(parse, "LONGEST_ROW", limit)
        with pytest.raises(InputError, match=r"byte 11 does not end within .*close its quote"):
            read(path, columns, MULTILINE)


def test_names_of_columns_may_contain_line_breaks(tmp_path: Path, columns: Columns) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,"two\nlines",note\n1,2,x\n')
    assert list(read(path, columns, MULTILINE)[0].values()) == [{"a": 1.0, "note": "x"}]


@pytest.mark.parametrize(("head", "rows"), [("sep=;\r\n", ";"), ("SEP=\t\n", "\t"), ("", ",")])
def test_a_separator_line_names_the_delimiter(
    tmp_path: Path, columns: Columns, head: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"\ufeff{head}a{rows}note\n1{rows}x\n".encode())
    for range_bytes in (1, 1 << 20):
        monkeypatch.setattr(file_ranges, "RANGE_BYTES", range_bytes)
        assert list(read(path, columns)[0].values()) == [{"a": 1.0, "note": "x"}]
    path.write_bytes(f"{head}a{rows}note\n\n".encode())
    assert not has_rows(str(path), "csv")


def test_no_quotes_at_all(tmp_path: Path, columns: Columns) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a\tnote\n1\t"5 inch\n2\t5"\n')
    rows, failed = read(path, columns, Dialect(delimiter="\t", quote=None))
    assert [row["note"] for row in rows.values()] == ['"5 inch', '5"']
    assert failed == {}


def test_an_escape_before_a_line_end_is_one_dead_letter(tmp_path: Path, columns: Columns) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,note\n1,x\\\r\n2,5\\" \\, pipe\n3,"say \\"hi\\""\n')
    rows, failed = read(path, columns, Dialect(escape="\\"))
    assert [row["note"] for row in rows.values()] == ['5" , pipe', 'say "hi"']
    assert list(failed.values()) == [(b"1,x\\", "invalid_csv")]


@pytest.mark.parametrize("multiline", [False, True])
def test_bytes_of_another_encoding_cost_one_row(
    tmp_path: Path, columns: Columns, multiline: bool
) -> None:
    path = tmp_path / "a.csv"
    text = b"a,note\n1,\xe9\n2,\x81\n3,\x80\n"
    path.write_bytes(text)
    rows, failed = read(path, columns, Dialect(encoding="cp1252", multiline=multiline))
    assert rows == {7: {"a": 1.0, "note": "é"}, 15: {"a": 3.0, "note": "€"}}
    assert failed == {11: (b"2,\x81", "invalid_csv")}


def test_bytes_of_another_encoding_leave_the_quotes_of_their_row(
    tmp_path: Path, columns: Columns
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,note\n1,"\xe9\x81\n7,old\nend"\n2,"\x80"\n3,"\x81"z"\n4,\xe9\n')
    dialect = Dialect(encoding="cp1252", multiline=True)
    rows, failed = read(path, columns, dialect)
    assert rows == {24: {"a": 2.0, "note": "€"}, 38: {"a": 4.0, "note": "é"}}
    assert failed == {
        7: (b'1,"\xe9\x81\n7,old\nend"', "invalid_csv"),
        30: (b'3,"\x81"z"', "invalid_csv"),
    }
    # In this encoding, these two bytes would be one character of UTF-8.
    path.write_bytes(b"a,note\n1,\xd2\xaa\n2,\xe1\n")
    rows, failed = read(path, columns, Dialect(encoding="cp1253"))
    assert rows == {12: {"a": 2.0, "note": "\u03b1"}}
    assert failed == {7: (b"1,\xd2\xaa", "invalid_csv")}


def test_text_in_utf_16_may_be_compressed(tmp_path: Path, columns: Columns) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress("a,note\n1,é\n".encode("utf-16")))
    assert read(path, columns, Dialect(encoding="utf-16"))[0] == {7: {"a": 1.0, "note": "é"}}
    path = tmp_path / "b.csv"
    path.write_bytes("a,note\n1,é\n".encode("utf-16")[:-3] + b"\x00\xd8")
    with pytest.raises(InputError, match="cannot be read"):
        read(path, columns, Dialect(encoding="utf-16"))
