"""Reading files returns every row once, with an id that depends only on the file."""

import datetime
import gzip
import json
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples

from common.errors import InputError
from common.record_batch import BATCH_BYTES, SOURCE
from model_handlers.manifests.manifest import InputSpec
from transforms.accounts import joined
from transforms.files import ranges as file_ranges
from transforms.files import text_lines
from transforms.files.columns import Columns, id_prefix
from transforms.files.ranges import (
    FileFormat,
    file_schema,
    has_rows,
    match_files,
    plan_file,
    split_file,
)
from transforms.files.read import ReadFiles
from transforms.files.read_range import read_range
from transforms.json_rows.decode import Decoded
from transforms.provenance import Provenance
from transforms.validate import validate

Make = Callable[..., Any]


def read_file(
    path: Path,
    columns: Columns,
    batch_rows: int = 8192,
    file_format: FileFormat | None = None,
    batch_bytes: int = BATCH_BYTES,
    *,
    cut_rows: int | None = None,
) -> Iterator[Decoded]:
    (file,) = match_files([str(path)])
    for part in split_file(plan_file(file, file_format), cut_rows):
        yield from read_range(part, columns, batch_rows, batch_bytes)


def rows_of(parts: Iterator[Decoded]) -> tuple[dict[str, Any], dict[str, tuple[bytes, str]]]:
    """Return the source columns of good rows by id, and (payload, reason) of the others by id."""
    rows: dict[str, Any] = {}
    failed: dict[str, tuple[bytes, str]] = {}
    for part in parts:
        if part.batch is not None:
            for row in part.batch.to_pylist():
                assert row["row_id"] not in rows | failed
                rows[row["row_id"]] = row["source"]
        payloads = zip(part.failed_payloads, part.faults, strict=True)
        for row_id, (payload, fault) in zip(part.failed_ids, payloads, strict=True):
            assert row_id not in rows | failed
            failed[row_id] = (payload, fault.reason)
    return rows, failed


def write(path: Path, lines: list[bytes], end: bytes = b"\n", ended: bool = True) -> Path:
    path.write_bytes(end.join(lines) + (end if ended else b""))
    return path


NUMBER = st.integers(0, 99).map(lambda n: f"{n}")
CSV_LINE = st.one_of(
    st.tuples(NUMBER, NUMBER, NUMBER).map(lambda t: ",".join(t).encode()),
    st.sampled_from([b"", b"1,2", b"1,2,3,4", b"x,2,3", b'"1","2","3"', b'1,2",3', b"\xff,1,2"]),
)
JSON_LINE = st.one_of(
    st.tuples(NUMBER, NUMBER, NUMBER).map(lambda t: f'{{"features":[{",".join(t)}]}}'.encode()),
    st.sampled_from([b"", b"  ", b"{", b"[]", b'{"a":1}', b"\xff", b'{"a":1,\r"b":2,"c":3}']),
)


@settings(max_examples=examples(60))
@given(
    st.sampled_from(["csv", "jsonl"]),
    st.data(),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.lists(
        st.tuples(st.integers(1, 80), st.integers(1, 40), st.integers(1, 4), st.integers(1, 90)),
        max_size=4,
    ),
)
def test_ids_and_rows_of_text_do_not_depend_on_how_it_is_split(
    make_manifest: Make,
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    data: st.DataObject,
    end: bytes,
    ended: bool,
    cuts: list[tuple[int, int, int, int]],
) -> None:
    lines = data.draw(st.lists(CSV_LINE if suffix == "csv" else JSON_LINE, max_size=8))
    head = [b"a,b,c"] if suffix == "csv" else []
    path = write(tmp_path_factory.getbasetemp() / f"cut.{suffix}", head + lines, end, ended)
    columns = Columns(make_manifest())
    whole = rows_of(read_file(path, columns))
    full = [line for line in lines if (line if suffix == "csv" else line.strip())]
    assert len(whole[0]) + len(whole[1]) == len(full)
    # Ids are offsets in the file.
    text = path.read_bytes()
    for row_id, (payload, _) in whole[1].items():
        prefix, offset = row_id.split("-")
        assert prefix == id_prefix(str(path))
        assert text[int(offset) :].lstrip().startswith(payload)
    for range_bytes, block_bytes, batch_rows, batch_bytes in cuts:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file_ranges, "RANGE_BYTES", range_bytes)
            patch.setattr(text_lines, "BLOCK_BYTES", block_bytes)
            rows, failed = rows_of(read_file(path, columns, batch_rows, None, batch_bytes))
        assert failed == whole[1]
        assert {i: as_numbers(row) for i, row in rows.items()} == {
            i: as_numbers(row) for i, row in whole[0].items()
        }


def test_no_more_of_a_wide_parquet_file_is_read_at_once_than_a_batch_may_have(
    make_manifest: Make, tmp_path: Path
) -> None:
    # Equal values take no space in the file, and texts none in the types of its columns.
    numbers = {name: pa.array([1.0] * 1_000) for name in "abc"}
    text = pa.array(["x" * 100 + str(i) for i in range(1_000)])
    pq.write_table(pa.table({**numbers, "long": text}), tmp_path / "rows.parquet")
    for keep, row in (((), 24), (("long",), 124)):
        columns = Columns(make_manifest(), None, keep)
        parts = read_file(tmp_path / "rows.parquet", columns, batch_bytes=10 * row)
        read = [part.batch.column(SOURCE) for part in parts if part.batch is not None]
        # The buffers are those that Arrow has read, of which a batch may be a slice.
        largest = max(sum(b.size for b in column.buffers() if b is not None) for column in read)
        assert largest < 20 * row + 1_000
        assert sum(len(column) for column in read) == 1_000


@pytest.mark.parametrize("document", [True, False])
def test_json_rows_are_cut_by_the_bytes_of_their_text(
    make_manifest: Make, tmp_path: Path, document: bool
) -> None:
    short = '{"a":1,"b":2,"c":3}'
    rows = [short, short[:-1] + ',"d":"' + "x" * 90 + '"}'] * 20
    text = "[\n" + ",\n".join(rows) + "\n]" if document else "\n".join(rows)
    path = tmp_path / "rows.json"
    path.write_text(text)
    parts = read_file(path, Columns(make_manifest()), batch_bytes=280)
    sizes = [part.batch.num_rows for part in parts if part.batch is not None]
    assert sum(sizes) == 40
    assert set(sizes) == {4}


def as_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """Make rows comparable: a CSV value in a block with a string is read as a string too."""
    return {name: str(value).removesuffix(".0") for name, value in row.items()}


@settings(max_examples=examples(40))
@given(
    st.lists(st.integers(0, 9), max_size=5),
    st.integers(1, 12),
    st.none() | st.integers(1, 10),
    st.integers(1, 10),
    st.integers(1, 200),
    st.sampled_from([None, "id"]),
)
def test_parquet_rows_are_read_once_and_in_order(
    make_manifest: Make,
    tmp_path_factory: pytest.TempPathFactory,
    groups: list[int],
    range_rows: int,
    cut_rows: int | None,
    batch_rows: int,
    batch_bytes: int,
    id_column: str | None,
) -> None:
    total = sum(groups)
    ids = [f"t{i}" if i % 3 else None for i in range(total)]
    table = pa.table(
        {
            "unread": pa.array(range(total), pa.int64()),
            "c": pa.array(range(total), pa.float64()),
            "id": pa.array(ids, pa.string()),
            "b": pa.array(range(total), pa.float32()),
            "a": pa.array(range(total), pa.int16()),
        }
    )
    path = tmp_path_factory.getbasetemp() / "rows.parquet"
    start = 0
    with pq.ParquetWriter(path, table.schema) as writer:
        for size in groups:
            writer.write_table(table.slice(start, size))
            start += size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_ranges, "RANGE_ROWS", range_rows)
        columns = Columns(make_manifest(), id_column)
        parts = list(read_file(path, columns, batch_rows, None, batch_bytes, cut_rows=cut_rows))
    assert joined(part.span for part in parts if part.span) == ([(0, total)] if total else [])
    batches = [part.batch for part in parts if part.batch is not None]
    assert all(batch.num_rows <= batch_rows for batch in batches)
    # The columns that are read take more than 14 bytes a row.
    assert all(batch.num_rows <= max(batch_bytes // 14, 1) for batch in batches)
    rows = [row for batch in batches for row in batch.to_pylist()]
    expected = ["c", "b", "a"] if id_column is None else ["c", "id", "b", "a"]
    assert all(list(row["source"]) == expected for row in rows)
    assert [row["source"]["a"] for row in rows] == list(range(total))
    prefix = id_prefix(str(path))
    assert [row["row_id"] for row in rows] == [
        own if id_column and own else f"{prefix}-{i}" for i, own in enumerate(ids)
    ]


def test_int96_times_beyond_the_range_of_nanoseconds_are_unchanged(
    make_manifest: Make, tmp_path: Path
) -> None:
    times = [
        datetime.datetime(9999, 12, 31),
        datetime.datetime(1, 1, 1),
        datetime.datetime(2020, 1, 2, 3, 4, 5, 678901),
        None,
    ]
    table = pa.table({n: [1.0] * 4 for n in "abc"} | {"t": pa.array(times, pa.timestamp("us"))})
    path = tmp_path / "spark.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    rows, _ = rows_of(read_file(path, Columns(make_manifest(), keep=("t",))))
    assert [row["t"] for row in rows.values()] == times
    schema = file_schema(str(path), "parquet")
    assert schema is not None
    assert schema.field("t").type == pa.timestamp("us")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([7, 0, None]), ["7", "0", "{}-2"]),
        (pa.array(["a", "", None]).dictionary_encode(), ["a", "", "{}-2"]),
        (pa.array(["a", "b", "c"], pa.large_string()), ["a", "b", "c"]),
        (pa.array([1.5, 2.0, None]), ["1.5", "2", "{}-2"]),
        (pa.array([0, 1, None], pa.date32()), ["1970-01-01", "1970-01-02", "{}-2"]),
        (pa.nulls(3), ["{}-0", "{}-1", "{}-2"]),
        (pa.array([123456789012.0, 2.0**70, None]), ["123456789012", str(2**70), "{}-2"]),
        (
            pa.array([Decimal("123"), Decimal("0"), None], pa.decimal128(38, 9)),
            ["123", "0", "{}-2"],
        ),
        (
            pa.array([Decimal("1.50"), Decimal("-7"), None], pa.decimal128(38, 9)),
            ["1.5", "-7", "{}-2"],
        ),
        (pa.array([b"\xff\x01", b"", None]), ["ff01", "", "{}-2"]),
        (
            pa.array([b"a" * 16, b"b" * 16, None], pa.binary(16)),
            ["61" * 16, "62" * 16, "{}-2"],
        ),
        (pa.array([b"\xff\x01", b"", None]).dictionary_encode(), ["ff01", "", "{}-2"]),
        (
            pa.array([uuid.UUID(int=1).bytes, uuid.UUID(int=2).bytes, None], pa.uuid()),
            [str(uuid.UUID(int=1)), str(uuid.UUID(int=2)), "{}-2"],
        ),
        (
            pa.array([0, 1_500_000, None], pa.timestamp("us", "Europe/Berlin")),
            ["1970-01-01 00:00:00+00", "1970-01-01 00:00:01.500+00", "{}-2"],
        ),
    ],
    ids=lambda v: str(getattr(v, "type", "")),
)
def test_ids_of_any_type_become_strings(
    make_manifest: Make, tmp_path: Path, column: pa.Array, expected: list[str]
) -> None:
    path = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"a": [1] * 3, "b": [1] * 3, "c": [1] * 3, "k": column}), path)
    rows, _ = rows_of(read_file(path, Columns(make_manifest(), "k")))
    assert list(rows) == [text.format(id_prefix(str(path))) for text in expected]


@pytest.mark.parametrize("column", [pa.array([[1]]), pa.array([{"u": 1}])])
def test_a_type_that_cannot_be_an_id_is_an_error(
    make_manifest: Make, tmp_path: Path, column: pa.Array
) -> None:
    path = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"a": [1], "b": [1], "c": [1], "k": column}), path)
    with pytest.raises(InputError, match="id column 'k': expected text, numbers, times"):
        list(read_file(path, Columns(make_manifest(), "k")))


def test_ids_by_content_depend_only_on_the_features(make_manifest: Make) -> None:
    columns = Columns(make_manifest(), "id", ("city",), ids_by_content=True)
    features = {"a": [1.5, 1.5, 2.0, None, 1.5], "b": [1, 1, 1, 1, 2], "c": ["x"] * 5}
    rows = pa.record_batch({**features, "id": ["own", None, None, None, None], "city": [*"stuvw"]})
    ids = columns.with_ids(rows, "here", np.arange(5)).column("row_id").to_pylist()
    assert ids[0] == "own"
    assert len(set(ids)) == 5
    # Change the file, the order of rows and columns, and the values of other columns.
    moved = pa.record_batch({name: rows.column(name) for name in ("city", "c", "id", "b", "a")})
    moved = moved.take(pa.array([3, 1, 4, 2])).set_column(0, "city", pa.array([*"zzzz"]))
    again = columns.with_ids(moved, "there", np.arange(4) + 7)
    assert again.column("row_id").to_pylist() == [ids[i] for i in (3, 1, 4, 2)]


def test_ids_of_files_are_positions_even_for_equal_rows(make_manifest: Make) -> None:
    rows = pa.record_batch({"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0]})
    batch = Columns(make_manifest()).with_ids(rows, "p", np.array([3, 8]))
    assert batch.column("row_id").to_pylist() == ["p-3", "p-8"]
    by_content = Columns(make_manifest(), ids_by_content=True)
    first, second = by_content.with_ids(rows, "p", np.array([3, 8])).column("row_id").to_pylist()
    assert first == second


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("columns", "missing", "near"),
    [({"id_column": "idd"}, "idd", "id"), ({"keep": ("citi",)}, "citi", "city"), ({}, "c", "cc")],
)
def test_a_missing_column_is_reported_with_similar_names(
    make_manifest: Make,
    tmp_path: Path,
    suffix: str,
    columns: dict[str, Any],
    missing: str,
    near: str,
) -> None:
    names = ["a", "b", "c" if columns else "cc", "id", "city"]
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        write(path, [",".join(names).encode(), b"1,1,1,1,1"])
    else:
        pq.write_table(pa.table({name: [1] for name in names}), path)
    manifest = make_manifest(InputSpec("x", ("a", "b", "c"), shape=(3,)))
    with pytest.raises(InputError, match=rf"{missing}'.*did you mean .*{near}") as caught:
        list(read_file(path, Columns(manifest, **columns)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_column_that_occurs_twice_is_an_error(
    make_manifest: Make, tmp_path: Path, suffix: str
) -> None:
    names = ["a", "b", "c", "b", "z", "z"]
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        write(path, [",".join(names).encode(), b"1,1,1,2,3,3"])
    else:
        pq.write_table(pa.Table.from_arrays([pa.array([1])] * 6, names=names), path)
    with pytest.raises(InputError, match="has 2 columns named 'b'"):
        list(read_file(path, Columns(make_manifest())))
    single = make_manifest(InputSpec("x", ("a", "c"), shape=(2,)))
    rows, _ = rows_of(read_file(path, Columns(single)))
    assert list(rows.values()) == [{"a": 1, "c": 1}]


def test_columns_with_dots_in_their_names_are_read(make_manifest: Make, tmp_path: Path) -> None:
    manifest = make_manifest(InputSpec("x", ("card.amount", "a b"), shape=(2,)))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"card.amount": [1.5], "a b": [2.0], "card": [{"amount": 9}]}), path)
    rows, _ = rows_of(read_file(path, Columns(manifest)))
    assert [row["card.amount"] for row in rows.values()] == [1.5]


def test_a_damaged_column_name_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"abcd": [1.0]}), path)
    path.write_bytes(path.read_bytes().replace(b"abcd", b"a\xffcd"))
    with pytest.raises(InputError, match=r"rows\.parquet is not a readable Parquet file") as caught:
        plan_file(match_files([str(path)])[0], None)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("cut_rows", [None, 1_000])
def test_a_damaged_page_is_an_error_of_one_line(
    make_manifest: Make, tmp_path: Path, cut_rows: int | None
) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({name: [float(i) for i in range(5000)] for name in "abc"})
    pq.write_table(table, path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[1000:1400] = b"\xff" * 400
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet is damaged in row group 0: ") as caught:
        list(read_file(path, Columns(make_manifest()), cut_rows=cut_rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["k", "a", "city"])
def test_text_that_is_not_utf_8_is_an_error_of_one_line(
    make_manifest: Make, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "latin-1.parquet"
    texts = pa.array([b"1", b"M\xfcller"]).view(pa.string())
    pq.write_table(
        pa.table({"a": [1, 2], "b": [1, 2], "c": [1, 2], "k": ["x", "y"]} | {name: texts}), path
    )
    columns = Columns(make_manifest(), "k", () if name != "city" else ("city",))
    with pytest.raises(InputError, match=r"damaged in row group 0: .*Invalid UTF8") as caught:
        list(read_file(path, columns))
    assert "ller" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl", "a.csv.gz"])
def test_empty_files_have_no_rows(make_manifest: Make, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({n: pa.array([], pa.float64()) for n in "abc"}), path)
    elif name == "a.csv.gz":
        path.write_bytes(gzip.compress(b"a,b,c"))
    else:
        path.write_bytes(b"a,b,c\r\n\n" if name == "a.csv" else b"\n \r\n")
    assert rows_of(read_file(path, Columns(make_manifest()))) == ({}, {})
    assert not has_rows(str(path), file_ranges.format_of(name))


def test_bad_lines_of_a_csv_file_fail_one_by_one(make_manifest: Make, tmp_path: Path) -> None:
    lines = [
        b"id,a,b,c,city",
        b'r1,1,2,3,"Ulm, D"',
        b"r2,1,2,3",
        b'r3,1,2,3,5" pipe',
        b'r3",1,2,3,x',
        b"r4,x,2,3,NA",
        b",4,,6,",
    ]
    path = write(tmp_path / "a.csv", lines, b"\r\n")
    rows, failed = rows_of(read_file(path, Columns(make_manifest(), "id", ("city",))))
    assert list(failed.values()) == [
        (lines[2], "wrong_width"),
        (lines[3], "invalid_csv"),
        (lines[4], "invalid_csv"),
    ]
    assert {i: row["city"] for i, row in rows.items()} == {
        "r1": "Ulm, D",
        "r4": "NA",
        f"{id_prefix(str(path))}-{path.read_bytes().index(b',4,,6,')}": None,
    }
    assert [str(row["a"]).removesuffix(".0") for row in rows.values()] == ["1", "x", "4"]


def test_a_kept_feature_of_a_csv_file_has_one_type(make_manifest: Make, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [b"a,b,c", b"1.50,2,3", b"x,2,3"])
    for cut in (1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_lines, "BLOCK_BYTES", cut)
            parts = list(read_file(path, Columns(make_manifest(), None, ("a",))))
        kinds = {p.batch.schema.field("source").type.field("a").type for p in parts if p.batch}
        assert kinds == {pa.string()}


def test_a_byte_order_mark_at_the_start_is_skipped(make_manifest: Make, tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    jsonl = write(tmp_path / "a.jsonl", [mark + b'{"a":1,"b":1,"c":1}', mark + b"{}"])
    rows, failed = rows_of(read_file(jsonl, Columns(make_manifest())))
    assert (len(rows), [reason for _, reason in failed.values()]) == (1, ["invalid_json"])
    table = write(tmp_path / "a.csv", [mark + b"a,b,c", b"1,1,1"])
    rows, failed = rows_of(read_file(table, Columns(make_manifest())))
    assert (list(rows.values()), failed) == ([{"a": 1, "b": 1, "c": 1}], {})


def test_columns_of_a_file_are_known_before_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [b"a,b"])
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "a.parquet")
    assert file_schema(str(tmp_path / "a.csv"), "csv") == pa.schema({"a": "string", "b": "string"})
    assert file_schema(str(tmp_path / "a.parquet"), "parquet") == pa.schema({"a": pa.float64()})
    assert file_schema("not looked at", "jsonl") is None


def test_files_of_all_formats_are_read_in_one_pipeline(
    make_manifest: Make, tmp_path: Path, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_ranges, "RANGE_BYTES", 64)
    monkeypatch.setattr(file_ranges, "RANGE_ROWS", 4)
    one = {"a": 1.0, "b": 2.0, "c": 3.0}
    table = pa.Table.from_pylist([{"id": f"p{i}", **one} for i in range(20)])
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    head = [b"id,c,b,a"]
    write(tmp_path / "x.csv", head + [b"c%d,3,2,1" % i for i in range(20)] + [b"bad"])
    lines = [json.dumps({"id": f"j{i}", "features": [1, 2, 3]}).encode() for i in range(20)]
    write(tmp_path / "x.jsonl", [*lines, b'{"id":"worse"}'])
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        columns = Columns(make_manifest(), "id")
        read = pipeline | ReadFiles(
            patterns=[str(tmp_path)], columns=columns, provenance=provenance, batch_rows=5
        )
        ids = read.good | beam.FlatMap(lambda b: b.column("row_id").to_pylist())
        sums = read.good | "Sums" >> beam.Map(
            lambda b: {row["source"]["a"] - row["source"]["c"] for row in b.to_pylist()}
        )
        assert_that(ids, equal_to([f"{kind}{i}" for kind in "pcj" for i in range(20)]), "ids")
        assert_that(sums, all_are({-2.0}), "sums")
        failed = read.failures | "Failed" >> beam.FlatMap(
            lambda b: [(r["stage"], r["reason"], r["payload"], r["run_id"]) for r in b.to_pylist()]
        )
        assert_that(
            failed,
            equal_to(
                [
                    ("decode", "wrong_width", b"bad", "run 1"),
                    ("decode", "missing_feature", b'{"id":"worse"}', "run 1"),
                ]
            ),
            "failed",
        )


def all_are(expected: Any) -> Callable[[list[Any]], None]:
    def check(found: list[Any]) -> None:
        assert found
        assert all(value == expected for value in found)

    return check


@pytest.mark.slow
def test_each_file_may_have_its_own_types_but_needs_all_columns(
    make_manifest: Make, tmp_path: Path, provenance: Provenance
) -> None:
    pq.write_table(pa.table({"a": [1], "b": [1], "c": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1.5], "b": ["2"], "c": [True]}), tmp_path / "2.parquet")
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        read = pipeline | ReadFiles(
            patterns=[str(tmp_path)], columns=Columns(make_manifest()), provenance=provenance
        )
        assert_that(read.good | beam.Map(lambda b: b.num_rows), equal_to([1, 1]))
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "3.parquet")
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pipeline | ReadFiles(
        patterns=[str(tmp_path)], columns=Columns(make_manifest()), provenance=provenance
    )
    with pytest.raises(Exception, match=r"3\.parquet: .* needs column 'c'"):
        pipeline.run()


def test_parquet_columns_of_views_are_read_as_plain_ones(
    tmp_path: Path, make_manifest: Make
) -> None:
    kinds = {"a": pa.string_view(), "text": pa.string_view(), "raw": pa.binary_view()}
    table = pa.table(
        {
            "a": pa.array(["1.5", "x", "2"], kinds["a"]),
            "text": pa.array(["x", None, "a text of more than twelve bytes"], kinds["text"]),
            "raw": pa.array([b"\xff", b"", None], kinds["raw"]),
            "list": pa.array([["x"], [], None], pa.list_(pa.string_view())),
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    assert pq.read_schema(path).field("text").type == pa.string_view()
    manifest = make_manifest(InputSpec("x", ("a",), shape=(1,)))
    (file,) = match_files([str(path)])
    (part,) = split_file(plan_file(file, None))
    (decoded,) = read_range(part, Columns(manifest, None, ("text", "raw", "list")), 10)
    assert decoded.batch is not None
    good, bad, faults = validate(decoded.batch, manifest)
    first, second, third = table.to_pylist()
    assert good.column("source").to_pylist() == [first, third]
    assert bad.column("source").to_pylist() == [second]
    assert [fault.reason for fault in faults] == ["wrong_type"]
