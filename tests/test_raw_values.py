"""The same value becomes the same cell, whichever source it comes from."""

import base64
import datetime as dt
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from property_tests import examples
from steps_reference import seen, shown

from common.texts import to_text
from model_handlers.steps.raw import RAW_TYPES, become, can_become, expected
from model_handlers.steps.raw_times import DATETIME, TIMESTAMP, read_texts
from model_handlers.steps.values import from_values

TIMES = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
DAY = 86_400
# The seconds from which on times can be used, and from which on they cannot.
FIRST, END = -719_162 * DAY, 2_932_897 * DAY


def itself(value: Any) -> Any:
    return value


def to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def spelled(value: Any, raw: str) -> str | None:
    """Return how CSV has a value of JSON."""
    exact = raw != "string" and value is not None and not isinstance(value, str)
    return json.dumps(value) if exact else to_text(value)


@dataclass(frozen=True)
class Source:
    """Values of a raw type.

    Attributes:
        values: The values, as Avro has them.
        kinds: The types that a column of a file may have.
        to_json: How JSON has a value.
        to_file: What a column of a file has for a value.
    """

    values: st.SearchStrategy[Any]
    kinds: tuple[pa.DataType, ...]
    to_json: Callable[[Any], Any] = itself
    to_file: Callable[[Any], Any] = itself


WHOLE = st.integers(-(2**53), 2**53)
SOURCES = {
    "float64": [
        Source(st.floats(allow_nan=False, allow_infinity=False), (pa.float64(),)),
        Source(st.floats(width=32, allow_nan=False, allow_infinity=False), (pa.float32(),)),
        Source(st.integers(-(2**63), 2**63 - 1), (pa.int64(), pa.decimal128(38, 0))),
        Source(WHOLE, (pa.float64(), pa.int64()), float, float),
        Source(
            st.decimals(-(10**20), 10**20, places=4),
            (pa.decimal128(38, 4), pa.decimal256(40, 4)),
            str,
        ),
    ],
    "int64": [
        Source(st.integers(-(2**63), 2**63 - 1), (pa.int64(), pa.decimal128(38, 2))),
        Source(st.integers(-(2**63), 2**63 - 1), (pa.int64(),), str),
        Source(WHOLE, (pa.float64(),), float, float),
        Source(st.integers(0, 255), (pa.uint8(), pa.int16(), pa.uint64(), pa.float32())),
    ],
    "bool": [
        Source(st.booleans(), (pa.bool_(),)),
        Source(st.booleans(), (pa.int8(), pa.float64(), pa.decimal128(5, 2)), int, int),
        Source(st.booleans(), (pa.string(),), str, str),
    ],
    "string": [
        Source(TEXTS, (pa.string(), pa.large_string(), pa.string_view())),
        Source(st.integers(-(2**63), 2**63 - 1), (pa.int64(),)),
        Source(st.floats(allow_nan=False, allow_infinity=False), (pa.float64(),)),
        Source(st.booleans(), (pa.bool_(),)),
        Source(TIMES, (pa.timestamp("us"),), lambda time: str(to_text(time))),
        Source(st.dates(), (pa.date32(),), str),
        Source(st.times(), (pa.time64("us"),), lambda time: str(to_text(time))),
    ],
    "timestamp": [
        Source(
            TIMES.map(lambda time: time.replace(tzinfo=dt.UTC)),
            (pa.timestamp("us", "UTC"), pa.timestamp("us", "America/New_York")),
            dt.datetime.isoformat,
        ),
        Source(
            st.integers(FIRST, END - 1).map(lambda s: dt.datetime.fromtimestamp(s, dt.UTC)),
            (pa.timestamp("s", "UTC"), pa.timestamp("ms", "+03:00")),
            lambda time: f"{time:%H:%M:%S}".join([time.date().isoformat() + " ", " UTC"]),
        ),
    ],
    "datetime": [
        Source(TIMES, (pa.timestamp("us"),), dt.datetime.isoformat),
        Source(st.dates(), (pa.date32(), pa.date64()), dt.date.isoformat),
    ],
    "date": [Source(st.dates(), (pa.date32(), pa.date64()), dt.date.isoformat)],
    "binary": [
        Source(
            st.binary(min_size=1, max_size=5),
            (pa.binary(), pa.large_binary(), pa.binary_view()),
            to_base64,
        ),
        Source(st.binary(min_size=3, max_size=3), (pa.binary(3),), to_base64),
    ],
}
CASES = [(raw, number) for raw, sources in SOURCES.items() for number in range(len(sources))]


@pytest.mark.parametrize(("raw", "number"), CASES)
@settings(deadline=None, max_examples=examples(60))
@given(data=st.data())
def test_a_value_becomes_the_same_cell_from_every_source(
    raw: str, number: int, data: st.DataObject
) -> None:
    source = SOURCES[raw][number]
    values = data.draw(st.lists(st.none() | source.values, max_size=6))
    in_json = [None if value is None else source.to_json(value) for value in values]
    in_file = [None if value is None else source.to_file(value) for value in values]
    found = {
        "JSON": from_values(json.loads(json.dumps(in_json)), raw),
        "Avro": from_values(values, raw),
        "CSV": become(pa.array([spelled(value, raw) for value in in_json], pa.string()), raw),
    }
    for kind in source.kinds:
        assert can_become(kind, raw)
        array = pa.array(in_file, kind)
        found[f"{kind}"] = become(array, raw)
        found[f"slice of {kind}"] = become(pa.concat_arrays([array, array]).slice(len(array)), raw)
        encoded = pa.array(range(len(array)), pa.int32())
        encoded = pa.DictionaryArray.from_arrays(encoded, array)
        found[f"dictionary of {kind}"] = become(encoded, raw)
    wanted = shown(found["JSON"])
    for name, cells in found.items():
        assert cells.values.type == RAW_TYPES[raw], name
        assert shown(cells) == wanted, name
        assert shown(become(cells.values, raw)) == wanted, "a second time"
        assert not cells.refused


ODD = st.sampled_from(
    [
        *("", " ", "nan", "NaN", "inf", "-Infinity", "1e400", "0x10", "1_000", "+5", " 7 ", "-0.0"),
        *("true", "TRUE", "yes", "5.0", "9007199254740993", "aGk=", " aGk= ", "aGk"),
        *("2026-02-29", "2024-02-29", "0000-01-01", "0001-01-01", "9999-12-31", "10000-01-01"),
        *("2025-11-20T12:00:00Z", "2025-11-20 12:00", "2025-11-20T12:00:00 +0100"),
        *("2025-11-20T24:00:00Z", "2025-11-20T23:59:60Z", "2025-11-20T12:00:00+99:99"),
        *("0001-01-01T00:00:00+14:00", "2025-11-20T12:00:00.123456789Z", "20261120", "now"),
    ]
)
JSON_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | ODD
    | st.text(max_size=4)
    | st.just([1])
    | st.just({"a": 1})
)


TIME_TEXTS = st.tuples(
    st.sampled_from(["2025-11-20", "20251120", "2025-1-2", "+2025-11-20", "12025-11-20", "2025"]),
    st.sampled_from(["", "T12", " 12:00", "T1200", "T12:00:00", "t12:00", "T12:00:00.1", "T12:0"]),
    st.sampled_from(["", "Z", "z", " Z", " UTC", "+01", "-0100", "+01:00", " +01:00", "+1", "UTC"]),
).map("".join)


@pytest.mark.parametrize("raw", ["timestamp", "datetime", "date"])
@settings(deadline=None, max_examples=examples(200))
@given(texts=st.lists(TIME_TEXTS | ODD, max_size=4))
def test_the_form_of_a_time_does_not_depend_on_the_times_beside_it(
    raw: str, texts: list[str]
) -> None:
    alone = [one for text in texts for one in shown(from_values([text], raw))]
    assert shown(from_values(texts, raw)) == alone
    # With a day that does not exist, Arrow cannot read the column as it is.
    assert shown(from_values([*texts, "2025-02-30"], raw))[:-1] == alone


@pytest.mark.parametrize("raw", RAW_TYPES)
@settings(deadline=None, max_examples=examples(200))
@given(values=st.lists(JSON_VALUES | st.lists(JSON_VALUES, max_size=3), max_size=6))
@example(values=["2023-02-29", "2024-02-29", "2025-01-31"])
@example(values=[2**70, 1.5, True])
@example(values=["\ud800", "a"])
def test_a_cell_does_not_depend_on_the_cells_beside_it(raw: str, values: list[Any]) -> None:
    cells = from_values(values, raw)
    assert cells.values.type == RAW_TYPES[raw]
    assert shown(cells) == [one for value in values for one in shown(from_values([value], raw))]
    messages = " ".join(refused.message for refused in cells.refused)
    assert "\n" not in messages
    assert not any(v in messages for v in values if isinstance(v, str) and len(v) > 6)


@settings(deadline=None, max_examples=examples(200))
@given(
    unit=st.sampled_from(["s", "ms", "us", "ns"]),
    numbers=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5),
    seconds=st.lists(st.integers(FIRST - 5, FIRST + 5) | st.integers(END - 5, END + 5), max_size=3),
    raw=st.sampled_from(["timestamp", "datetime"]),
)
@example("ns", [-1, -1000, -1001, 999, None], [], "timestamp")
@example("s", [10**15], [], "datetime")
def test_times_of_any_unit_are_cut_to_microseconds_or_out_of_range(
    unit: str, numbers: list[int | None], seconds: list[int], raw: str
) -> None:
    per = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    bounds = [n for s in seconds for n in (s * per, s * per - 1) if -(2**63) <= n < 2**63]
    counts = [*numbers, *bounds]
    kind = pa.timestamp(unit, "UTC" if raw == "timestamp" else None)
    cells = become(pa.array([None, *counts], pa.int64()).cast(kind).slice(1), raw)
    wanted: list[Any] = []
    for number in counts:
        if number is None:
            wanted.append(None)
        elif not FIRST * per <= number < END * per:
            wanted.append(("out_of_range",))
        else:
            wanted.append(number * 10**6 // per)
    found = seen(cells)
    micros = cells.values.cast(pa.int64()).to_pylist()
    assert [f if isinstance(f, tuple) else m for f, m in zip(found, micros, strict=True)] == wanted


def test_text_with_nanoseconds_is_cut_as_a_column_of_nanoseconds_is() -> None:
    text = from_values(
        ["1969-12-31T23:59:59.999999999Z", "2026-11-20T12:00:00.1234567Z"], "timestamp"
    )
    column = pa.array([-1, 1_795_176_000_123_456_700], pa.timestamp("ns", "UTC"))
    assert shown(text) == shown(become(column, "timestamp"))


@pytest.mark.parametrize(
    ("raw", "value", "reason"),
    [
        ("timestamp", "2026-11-20T12:00:00", "no_time_zone"),
        ("timestamp", "2026-11-20", "no_time_zone"),
        ("timestamp", "0000-01-01T00:00:00Z", "out_of_range"),
        ("timestamp", "0001-01-01T00:00:00+01:00", "out_of_range"),
        ("timestamp", "10000-01-01T00:00:00Z", "wrong_type"),
        ("timestamp", "2026-11-20T12:00:00+25:00", "wrong_type"),
        ("timestamp", 1_795_176_000, "wrong_type"),
        ("datetime", "2026-11-20T12:00:00Z", "wrong_type"),
        ("datetime", "0000-06-01", "out_of_range"),
        ("date", "0000-01-01", "out_of_range"),
        ("date", "2026-02-29", "wrong_type"),
        ("date", "2026-11-20T00:00:00", "wrong_type"),
        ("float64", True, "wrong_type"),
        ("float64", "true", "wrong_type"),
        ("float64", "1,5", "wrong_type"),
        ("int64", 2.5, "wrong_type"),
        ("int64", 2**63, "wrong_type"),
        ("int64", "1e300", "wrong_type"),
        ("bool", 2, "wrong_type"),
        ("string", {"a": 1}, "wrong_type"),
        ("string", math.inf, "not_finite"),
        ("string", "\udcff", "wrong_type"),
        ("binary", "a?", "wrong_type"),
        ("list<int64>", 5, "wrong_type"),
        ("list<int64>", [1, "x"], "wrong_type"),
        ("list<float64>", "[1, ", "wrong_type"),
        ("list<string>", ["a", ["b"]], "wrong_type"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_reason(
    raw: str, value: Any, reason: str
) -> None:
    cells = from_values([None, value], raw)
    assert seen(cells) == [None, (reason,)]
    assert cells.refused[0].message.startswith(("expected", "an item: expected"))


@pytest.mark.parametrize(
    ("raw", "value", "found"),
    [
        ("datetime", "2026-11-20T12:00:00Z", "a time with a zone"),
        ("datetime", "2026-11-20 12:00:00+01:00", "a time with a zone"),
        ("datetime", "2026-13-20 12:00:00", "other text"),
        ("date", "2026-11-20T12:00:00Z", "a time with a zone"),
        ("date", "2026-11-31", "other text"),
        ("timestamp", "2026-11-31T12:00:00Z", "other text"),
        ("list<int64>", "1;2", "text that is no JSON list"),
        ("list<int64>", "5", "text that is no JSON list"),
        ("list<int64>", 5, "a number"),
        ("list<string>", {"a": 1}, "an object"),
        ("list<string>", True, "a boolean"),
    ],
)
def test_a_message_says_what_a_value_is(raw: str, value: Any, found: str) -> None:
    cells = from_values([None, value], raw)
    assert [one.message for one in cells.refused] == [f"expected {expected(raw)}, got {found}"]
    assert seen(cells) == [None, ("wrong_type",)]


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (pa.bool_(), "float64"),
        (pa.bool_(), "int64"),
        (pa.timestamp("us"), "timestamp"),
        (pa.timestamp("us", "UTC"), "datetime"),
        (pa.timestamp("us"), "date"),
        (pa.duration("s"), "string"),
        (pa.month_day_nano_interval(), "string"),
        (pa.binary(), "string"),
        (pa.int64(), "list<int64>"),
        (pa.list_(pa.list_(pa.int64())), "list<int64>"),
        (pa.struct([("a", pa.int64())]), "string"),
    ],
)
def test_a_column_of_another_type_is_refused_as_a_whole(kind: pa.DataType, raw: str) -> None:
    assert not can_become(kind, raw)


ITEMS = {"float64": st.floats(allow_infinity=False), "int64": st.integers(-9, 9), "string": TEXTS}


@pytest.mark.parametrize("item", ITEMS)
@settings(deadline=None, max_examples=examples(60))
@given(data=st.data())
def test_lists_become_the_same_cells_from_every_kind_of_list(
    item: str, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, 3))
    items = st.none() | ITEMS[item]
    rows = data.draw(st.lists(st.none() | st.lists(items, min_size=size, max_size=size)))
    raw, kind = f"list<{item}>", pa.type_for_alias(item)
    wanted = shown(from_values(rows, raw))
    for type_ in (
        pa.list_(kind),
        pa.large_list(kind),
        pa.list_(kind, size),
        pa.list_(pa.field("element", kind, nullable=True)),
    ):
        array = pa.array(rows, type_)
        for some in (array, pa.concat_arrays([array, array]).slice(len(array))):
            cells = become(some, raw)
            assert cells.values.type == RAW_TYPES[raw]
            assert shown(cells) == wanted


def test_items_under_a_null_list_are_not_judged() -> None:
    items = pa.array(["1", "x", "3"])
    lists = pa.ListArray.from_arrays([0, 1, 2, 3], items, mask=pa.array([False, True, False]))
    assert seen(become(lists, "list<int64>")) == [[1], None, [3]]


@pytest.mark.parametrize("raw", RAW_TYPES)
def test_empty_columns_and_columns_of_nulls_have_the_type(raw: str) -> None:
    for array in (
        pa.nulls(3),
        pa.nulls(3, RAW_TYPES[raw]),
        pa.nulls(0),
        pa.nulls(0, RAW_TYPES[raw]),
    ):
        assert can_become(array.type, raw)
        cells = become(array, raw)
        assert cells.values.type == RAW_TYPES[raw]
        assert cells.values.to_pylist() == [None] * len(array)
        assert not cells.refused
    assert from_values([], raw).values.type == RAW_TYPES[raw]
    assert from_values([None, None], raw).values.to_pylist() == [None, None]


def test_nan_is_null_in_columns_and_in_lists() -> None:
    assert seen(become(pa.array([np.nan, 1.0]), "float64")) == [None, 1.0]
    assert seen(become(pa.array([[np.nan, 1.0]]), "list<float64>")) == [[None, 1.0]]
    assert seen(from_values([float("nan"), Decimal("NaN"), 1], "int64")) == [None, None, 1]


def test_no_category_is_made_of_what_no_text_of_a_source_spells() -> None:
    floats = pa.array([1.5, math.nan, -math.inf, None])
    found = [become(floats.cast(kind), "string") for kind in (pa.float64(), pa.float32())]
    # With a text beside them, each value is read by itself.
    found.append(from_values(floats.to_pylist(), "string"))
    mixed = from_values([*floats.to_pylist(), "nan", "inf"], "string")
    for cells in found:
        assert seen(cells) == ["1.5", None, ("not_finite",), None]
    assert seen(mixed) == ["1.5", None, ("not_finite",), None, "nan", "inf"]


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (pa.timestamp("s"), 10**17),
        (pa.timestamp("us", "UTC"), 4 * 10**17),
        (pa.date32(), -(10**6)),
        (pa.date64(), 10**15),
        (pa.time32("s"), 90_000),
        (pa.time64("us"), -5),
    ],
)
def test_a_time_out_of_range_is_no_text(kind: pa.DataType, number: int) -> None:
    integers = pa.array([0, number], pa.int32() if kind.bit_width == 32 else pa.int64())
    cells = become(integers.view(kind), "string")
    assert cells.values[0].is_valid
    assert seen(cells)[1] == ("out_of_range",)


YEARS = st.sampled_from(["0000", "1900", "2000", "2023", "2024", "9999"])
DIGITS = st.integers(0, 99).map("{:02}".format)


@settings(deadline=None, max_examples=examples(200))
@given(
    day=st.tuples(
        st.sampled_from(["0000", "1900", "2000", "2023", "2024", "9999"]), DIGITS, DIGITS
    ),
    clock=st.lists(DIGITS, min_size=1, max_size=3),
    fraction=st.text("0123456789", max_size=9),
    zone=st.sampled_from(["", "Z"]) | st.tuples(st.sampled_from("+-"), DIGITS, DIGITS).map("".join),
)
@example(("2024", "02", "29"), ["23", "59", "59"], "999999", "-2359")
def test_text_that_arrow_does_not_read_is_read_as_arrow_would(
    day: tuple[str, ...], clock: list[str], fraction: str, zone: str
) -> None:
    fraction = f".{fraction[:6]}" if fraction and len(clock) == 3 else ""
    text = f"{'-'.join(day)}T{':'.join(clock)}{fraction}{zone}"
    kind = TIMESTAMP if zone else DATETIME
    try:
        expected = pa.array([text]).cast(kind)
    except pa.ArrowInvalid:
        expected = pa.nulls(1, kind)
    # With a day that does not exist, Arrow cannot read the column as it is.
    found, *_ = read_texts(pa.array([text, "2025-02-30T00:00:00Z"]), kind)
    assert found[:1].equals(expected), text


def test_a_text_of_a_megabyte_is_kept_as_text_and_refused_as_anything_else() -> None:
    text = "9" * 1_000_000
    assert from_values([text], "string").values.to_pylist() == [text]
    assert seen(from_values([text], "float64")) == [float("inf")]
    for raw in ("int64", "bool", "timestamp", "date", "list<string>"):
        cells = from_values([text, None], raw)
        assert seen(cells) == [("wrong_type",), None]
        assert len(cells.refused[0].message) < 100
