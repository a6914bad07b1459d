"""Output formats: other readers read back what was written."""

import base64
import csv
import datetime
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.files.sink import writers as file_writers
from transforms.files.sink.writers import OutputFormat, flatten, open_writer

NOW = datetime.datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=datetime.UTC)


def rows_of(start: int, rows: int) -> pa.RecordBatch:
    """Return output rows as a pipeline writes them: id, score, a nested list, lineage."""
    numbers = pa.array(np.arange(start, start + rows, dtype=np.float32) / 7)
    flat = pa.array(np.arange(4 * start, 4 * (start + rows), dtype=np.float64))
    inner = pa.FixedSizeListArray.from_arrays(flat, 2)
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), ["tiny"])
    return pa.record_batch(
        {
            "row_id": pa.array([f'r"{i}, x' for i in range(start, start + rows)], pa.string()),
            "score": numbers,
            "code": pa.FixedSizeListArray.from_arrays(inner, 2),
            "model_name": name,
            "scored_at": pa.repeat(pa.scalar(NOW, pa.timestamp("us", "UTC")), rows),
        }
    )


def written(batches: list[pa.RecordBatch], output_format: OutputFormat) -> bytes:
    handle = io.BytesIO()
    writer = open_writer(handle, batches[0].schema, output_format)
    for batch in batches:
        writer.write(batch)
    writer.close()
    return handle.getvalue()


def read_parquet(data: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def read_jsonl(data: bytes) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in data.decode().splitlines()]
    for row in rows:
        row["scored_at"] = datetime.datetime.fromisoformat(row["scored_at"])
        row["score"] = float(np.float32(row["score"]))
    return rows


def read_csv(data: bytes) -> list[dict[str, Any]]:
    types = {"score": pa.float32(), "scored_at": pa.timestamp("us", "UTC")}
    options = pa_csv.ConvertOptions(column_types=types)
    rows = pa_csv.read_csv(io.BytesIO(data), convert_options=options).to_pylist()
    for row in rows:
        row["code"] = [[row.pop(f"code_{i}_{j}") for j in range(2)] for i in range(2)]
    return list(rows)


@pytest.mark.parametrize(
    ("output_format", "read"), [("parquet", read_parquet), ("jsonl", read_jsonl), ("csv", read_csv)]
)
def test_every_format_returns_what_was_written(
    output_format: OutputFormat, read: Callable[[bytes], list[dict[str, Any]]]
) -> None:
    batches = [rows_of(0, 3), rows_of(3, 1), rows_of(4, 0), rows_of(4, 2)]
    found = read(written(batches, output_format))
    expected = [row for batch in batches for row in batch.to_pylist()]
    assert [dict(sorted(row.items())) for row in found] == [
        dict(sorted(row.items())) for row in expected
    ]


@pytest.mark.parametrize("output_format", ["parquet", "jsonl", "csv"])
def test_a_file_without_rows_can_be_read(output_format: OutputFormat) -> None:
    data = written([rows_of(0, 0)], output_format)
    if output_format == "parquet":
        assert pq.read_table(io.BytesIO(data)).num_rows == 0
    else:
        assert data.decode().splitlines()[1:] == []


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 40))
def test_row_groups_have_a_useful_size(sizes: list[int], group_rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_writers, "ROW_GROUP_ROWS", group_rows)
        data = written([rows_of(0, size) for size in [0, *sizes]], "parquet")
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(groups) == sum(sizes)
    assert all(rows >= group_rows for rows in groups[:-1])
    assert all(rows < group_rows + 30 for rows in groups)


def test_pages_have_checksums_and_constants_take_almost_no_space() -> None:
    data = written([rows_of(0, 5000)], "parquet")
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    assert file.read().num_rows == 5000
    columns = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
    sizes = {c.path_in_schema: c.total_compressed_size for c in columns}
    assert sizes["model_name"] < 200


def test_json_lines_replace_values_that_json_cannot_hold() -> None:
    row = {
        "nan": pa.array([math.nan]),
        "infinite": pa.array([-math.inf]),
        "text": pa.array([b'{"a":1}']),
        "bytes": pa.array([b"\xff\x00"]),
        "in_a_list": pa.array([[b"abcd"]]),
        "time": pa.array([NOW]),
        "null": pa.nulls(1),
        "nested": pa.array([{"list": [1, None]}]),
    }
    line = written([pa.record_batch(row)], "jsonl")
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "nan": None,
        "infinite": None,
        "text": base64.b64encode(b'{"a":1}').decode(),
        "bytes": base64.b64encode(b"\xff\x00").decode(),
        "in_a_list": [base64.b64encode(b"abcd").decode()],
        "time": "2024-05-06T07:08:09.000010Z",
        "null": None,
        "nested": {"list": [1, None]},
    }


@given(st.lists(st.none() | st.binary(max_size=6), min_size=1, max_size=5))
def test_bytes_are_base64_under_one_name_in_every_row(values: list[bytes | None]) -> None:
    rows = written([pa.record_batch({"raw": pa.array(values, pa.binary())})], "jsonl")
    assert [json.loads(line) for line in rows.splitlines()] == [
        {"raw": None if value is None else base64.b64encode(value).decode()} for value in values
    ]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(2)], ids=str)
def test_csv_refuses_bytes(kind: pa.DataType) -> None:
    with pytest.raises(pa.ArrowInvalid, match="column 'raw' is"):
        written([pa.record_batch({"raw": pa.array([b"\xff\x00"], kind)})], "csv")


NANOSECOND = 1_001
TIMES: dict[pa.DataType, str] = {
    pa.timestamp("ns"): "1970-01-01T00:00:00.000001",
    pa.timestamp("ns", "UTC"): "1970-01-01T00:00:00.000001",
    pa.time64("ns"): "00:00:00.000001",
    pa.duration("ns"): "0:00:00.000001",
}


@pytest.mark.parametrize("kind", list(TIMES), ids=str)
def test_json_lines_cut_times_of_nanoseconds_at_every_level(kind: pa.DataType) -> None:
    time, text = pa.array([NANOSECOND], pa.int64()).view(kind), TIMES[kind]
    ends, keys = pa.array([0, 1], pa.int32()), pa.array(["k"])
    columns = {
        "plain": (time, text),
        "word": (time.dictionary_encode(), text),
        "list": (pa.ListArray.from_arrays(ends, time), [text]),
        "long": (pa.LargeListArray.from_arrays(ends.cast(pa.int64()), time), [text]),
        "fixed": (pa.FixedSizeListArray.from_arrays(time, 1), [text]),
        "struct": (pa.StructArray.from_arrays([time], names=["t"]), {"t": text}),
        "map": (pa.MapArray.from_arrays(ends, keys, time), [["k", text]]),
    }
    batch = pa.record_batch({name: column for name, (column, _) in columns.items()})
    found = json.loads(written([batch], "jsonl").replace(b'Z"', b'"').replace(b'+00:00"', b'"'))
    assert found == {name: expected for name, (_, expected) in columns.items()}


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pa.array([2**62], pa.timestamp("us")), "148108-07-06T14:00:27.387904"),
        (pa.array([2**60], pa.timestamp("s")), "36534630048-05-13T13:56:16"),
        (pa.array([-(2**40)], pa.timestamp("ms", "UTC")), "1935-02-28T04:06:12.224000Z"),
        (pa.array([2_932_897], pa.date32()), "10000-01-01"),
        (pa.array([0], pa.date64()), "1970-01-01"),
    ],
    ids=lambda v: str(getattr(v, "type", "")),
)
def test_json_lines_write_every_time_that_arrow_can_hold(column: pa.Array, text: str) -> None:
    nested = pa.StructArray.from_arrays([column], names=["t"])
    found = json.loads(written([pa.record_batch({"t": column, "s": nested})], "jsonl"))
    assert found["t"] == text
    assert isinstance(found["s"]["t"], str)


def test_lists_become_columns_and_nulls_keep_their_rows() -> None:
    lists = pa.array([[1.0, 2.0], None, [3.0, None], [4.0, 5.0]], pa.list_(pa.float64(), 2))
    flat = flatten(pa.record_batch({"v": lists}).slice(1))
    assert flat.to_pydict() == {"v_0": [None, 3.0, 4.0], "v_1": [None, None, 5.0]}
    assert written([pa.record_batch({"v": lists})], "csv") == b'"v_0","v_1"\n1,2\n,\n3,\n4,5\n'


def test_csv_distinguishes_null_from_an_empty_string() -> None:
    batch = pa.record_batch({"t": pa.array(["", None, "a\nb"]), "n": pa.array([1, 2, 3])})
    assert written([batch], "csv") == b'"t","n"\n"",1\n,2\n"a\nb",3\n'


def test_csv_has_lists_and_objects_as_json() -> None:
    best = [[{"name": 'a, "b"', "value": 0.5}, {"name": "c", "value": 0.25}], [], None]
    named = pa.struct([("name", pa.string()), ("value", pa.float64())])
    columns = {
        "best": pa.array(best, pa.list_(named)),
        "list": pa.array([[1, 2], None, []]),
        "object": pa.array([{"u": b"x"}, None, {"u": None}]),
    }
    batch = pa.record_batch(columns)
    found = list(csv.DictReader(written([batch], "csv").decode().splitlines()))
    texts = {name: [json.loads(row[name] or "null") for row in found] for name in columns}
    assert texts == {
        "best": best,
        "list": [[1, 2], None, []],
        "object": [{"u": "eA=="}, None, {"u": None}],
    }


def test_a_type_that_csv_cannot_hold_is_refused_before_the_first_row() -> None:
    with pytest.raises(pa.ArrowException):
        open_writer(io.BytesIO(), pa.schema([("c", pa.binary())]), "csv")
