"""A value of a source has one text, whatever type and whatever source it comes from."""

import datetime
import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.texts import id_column, text_column, to_id, to_text
from transforms.json_rows.decode import decode_json
from transforms.json_rows.row_format import RowFormat

INTEGERS = st.integers(-(2**63), 2**63 - 1)
DECIMALS = st.decimals(-(10**20), 10**20, places=9)
TIMES = st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30))
CELLS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): INTEGERS,
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats() | INTEGERS.map(float),
    pa.decimal128(38, 9): DECIMALS,
    pa.decimal256(76, 38): DECIMALS,
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=5),
    pa.large_string(): st.text(max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.large_binary(): st.binary(max_size=5),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.date32(): st.dates(),
    pa.timestamp("us"): TIMES,
    pa.timestamp("us", "UTC"): TIMES.map(lambda t: t.replace(tzinfo=datetime.UTC)),
    pa.timestamp("us", "Asia/Tokyo"): TIMES.map(lambda t: t.replace(tzinfo=datetime.UTC)),
    pa.time64("us"): st.times(),
    pa.list_(pa.int64()): st.lists(INTEGERS, max_size=3),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["", "x"]),
}


@given(
    st.sampled_from(list(CELLS)).flatmap(
        lambda kind: st.lists(st.none() | CELLS[kind], max_size=5).map(
            lambda values: pa.array(values, kind)
        )
    ),
    st.integers(0, 2),
)
@example(pa.array([0.0, 2.0**63, -(2.0**63), 1e-7, 123456789012.0, None, float("nan")]), 0)
@example(pa.array([Decimal("0E-9"), Decimal("1E-9"), None], pa.decimal128(38, 9)), 0)
def test_a_column_has_the_texts_of_its_values(column: pa.Array, skipped: int) -> None:
    column = column.slice(skipped)
    values = column.to_pylist()
    assert text_column(column).to_pylist() == [to_text(value) for value in values]
    assert id_column(column).to_pylist() == [to_id(value) for value in values]
    assert id_column(column).type == text_column(column).type == pa.string()


@given(st.integers(-(10**25), 10**25))
def test_an_integer_has_the_same_digits_in_every_type_that_holds_it(number: int) -> None:
    texts = {to_text(number), to_text(Decimal(number)), to_text(Decimal(number).scaleb(0))}
    texts |= set(text_column(pa.array([number], pa.decimal256(76, 9))).to_pylist())
    if float(number) == number:
        texts |= {to_text(float(number)), *text_column(pa.array([float(number)])).to_pylist()}
    if -(2**63) <= number < 2**63:
        texts |= set(text_column(pa.array([number], pa.int64())).to_pylist())
    assert texts == {str(number)}


def test_float32_and_float16_have_the_fewest_digits() -> None:
    assert text_column(pa.array([0.1, 3, None], pa.float32())).to_pylist() == ["0.1", "3", None]
    assert text_column(pa.array(np.array([0.5, 3], np.float16))).to_pylist() == ["0.5", "3"]


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, "1970-01-01 00:00:00"),
        (120_000, "1970-01-01 00:00:00.120"),
        (123_400, "1970-01-01 00:00:00.123400"),
        (100_000_000, "1970-01-01 00:01:40"),
    ],
)
def test_times_are_written_as_bigquery_writes_them(microseconds: int, text: str) -> None:
    for zone, end in (("UTC", "+00"), ("Europe/Berlin", "+00"), (None, "")):
        column = pa.array([microseconds], pa.timestamp("us", zone))
        assert text_column(column).to_pylist() == [text + end] == [to_text(column[0].as_py())]


def test_an_id_that_is_not_a_number_is_missing() -> None:
    column = pa.array([1.0, float("nan"), None])
    assert id_column(column).to_pylist() == ["1", None, None]
    assert [to_id(value) for value in column.to_pylist()] == ["1", None, None]


def test_uuids_have_their_usual_text() -> None:
    values = [uuid.UUID(int=2**100 + 7), None]
    column = pa.array([value and value.bytes for value in values], pa.uuid())
    texts = [value and str(value) for value in values]
    assert id_column(column).to_pylist() == texts == [to_id(value) for value in values]


@given(st.lists(st.integers(-(10**30), 10**30), min_size=1, max_size=4), st.booleans())
def test_integers_of_any_length_in_json_keep_their_digits(
    make_manifest: Callable[..., Any], numbers: list[int], nested: bool
) -> None:
    lines = [
        json.dumps({"a": 1, "b": 1, "c": 1, "id": n, "more": {"n": [n]} if nested else n}).encode()
        for n in numbers
    ]
    row_format = RowFormat(make_manifest(), "id", ("more",))
    batch = decode_json(lines, None, row_format).batch
    assert batch is not None
    assert batch.column("row_id").to_pylist() == [str(n) for n in numbers]
    for text, n in zip(batch.column("source").field("more").to_pylist(), numbers, strict=True):
        assert str(n) in text


def test_a_long_integer_in_deep_json_is_not_an_error(make_manifest: Callable[..., Any]) -> None:
    deep = b"[" * 900 + b"1" * 5_000 + b"]" * 900
    line = b'{"a":1,"b":1,"c":1,"more":' + deep + b"}"
    decoded = decode_json([line], ["x"], RowFormat(make_manifest(), None, ("more",)))
    assert decoded.rows == 1
