"""Compare each step with a reference in plain Python that treats one row at a time."""

import bisect
import datetime as dt
import hashlib
import math
import zoneinfo
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples
from steps_reference import seen

from model_handlers.steps.answers import Argmax, Cut, Element, Max, Names, Softmax, TopK
from model_handlers.steps.catalog import STEPS
from model_handlers.steps.categories import Hash, Lower, OneHot, Strip, Vocabulary
from model_handlers.steps.chain import Chain
from model_handlers.steps.general import Cast, Fill
from model_handlers.steps.lists import Length, Mask, Pad
from model_handlers.steps.numeric import (
    Add,
    Bucket,
    Clip,
    Divide,
    Log1p,
    Multiply,
    Scale,
    Sigmoid,
    Subtract,
)
from model_handlers.steps.step import Cells, Context, Step, kind_of, vectors
from model_handlers.steps.times import AssumeZone, Epoch, TimePart

FILES = {"kinds.txt": "shop\nweb\r\nphone\nÄ b\n1\n-5\n".encode()}
KINDS = ["shop", "web", "phone", "Ä b", "1", "-5"]
# Also what arithmetic may have computed: infinities, NaN, the smallest numbers.
NUMBERS = st.floats() | st.sampled_from([-1.0, 0.0, -0.0, 1.0, 5e-324, math.inf, math.nan])
WHOLE = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5)
# Arrow writes one letter for each, but the lower case of the letter left out has two.
TEXTS = st.sampled_from([*KINDS, "SHOP", " web ", "\t", "", "ÄÖ", "ẞ", "fax"]) | st.text(
    st.characters(
        min_codepoint=32, max_codepoint=0x24F, exclude_categories=["Cc"], exclude_characters="İ"
    ),
    max_size=4,
)
TIMES = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Etc/GMT+5"])
TIMESTAMP, DATETIME = pa.timestamp("us", "UTC"), pa.timestamp("us")


@dataclass(frozen=True)
class Case:
    """Steps to try.

    Attributes:
        steps: The steps, with any members.
        type: The type of the cells.
        values: Their values, which are never None.
        reference: The result for one value: a value, or a tuple of the reason of the refusal.
        null: The result for None; None means null.
    """

    steps: st.SearchStrategy[Step]
    type: pa.DataType
    values: st.SearchStrategy[Any]
    reference: Callable[[Any, Any], Any]
    null: Callable[[Any], Any] = field(default=lambda step: None)


def run(step: Step, array: pa.Array, **others: pa.Array) -> Cells:
    """Run a chain of one step, and check that its type is what the step says."""
    columns = {"x": array, **others}
    chain = Chain("x", (step,))
    cells = chain.bind(Context(FILES)).run({name: Cells(one) for name, one in columns.items()})
    plain = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    types = {name: one.type for name, one in others.items()} | {"x": plain}
    assert cells.values.type == chain.gives(types)
    assert len(cells.values) == len(array)
    assert all(r.column == "x" and r.reason in step.REASONS for r in cells.refused)
    return cells


def alike(left: Any, right: Any) -> bool:
    """Compare results; floats may differ in their last digits."""
    if isinstance(left, float) and isinstance(right, float):
        both_nan = math.isnan(left) and math.isnan(right)
        return both_nan or math.isclose(left, right, rel_tol=1e-12, abs_tol=1e-15)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(alike, left, right))
    return type(left) is type(right) and left == right


def check(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    assert len(found) == len(wanted)
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert alike(one, other), (number, one, other)


def is_whole(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and value == int(value) and low <= value < high


def to_integer(step: Any, value: float) -> Any:
    if math.isnan(value):
        return None
    return int(value) if is_whole(value, -(2.0**63), 2.0**63) else ("wrong_type",)


def sigmoid(step: Any, value: float) -> float:
    if math.isnan(value):
        return value
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def clip(step: Clip, value: float) -> float:
    if math.isnan(value):
        return value
    value = value if step.min is None else max(value, step.min)
    return value if step.max is None else min(value, step.max)


def bucket(step: Bucket, value: float) -> Any:
    return ("not_finite",) if math.isnan(value) else bisect.bisect_right(step.edges, value)


def hashed(text: str, buckets: int) -> int:
    return (
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % buckets
    )


def position(step: Vocabulary, value: Any) -> Any:
    known = list(step.values) or KINDS
    if str(value) in known:
        return known.index(str(value))
    if step.unknown is not None:
        return step.unknown
    if step.hash_unknown is not None:
        return len(known) + hashed(str(value), step.hash_unknown)
    return ("unknown_value",)


def one_hot(step: OneHot, value: float) -> Any:
    if math.isnan(value):
        return ("not_finite",)
    if not is_whole(value, 0, step.size):
        return ("out_of_range",)
    return [int(place == value) for place in range(step.size)]


def part(step: TimePart, value: Any) -> Any:
    time = value if step.zone is None else value.astimezone(zoneinfo.ZoneInfo(step.zone))
    found, first, cycle = {
        "minute": lambda: (time.minute, 0, 60),
        "hour": lambda: (time.hour, 0, 24),
        "weekday": lambda: (time.weekday(), 0, 7),
        "day": lambda: (time.day, 1, 31),
        "day_of_year": lambda: (time.timetuple().tm_yday, 1, 366),
        "month": lambda: (time.month, 1, 12),
        "year": lambda: (time.year, 0, 1),
    }[step.part]()
    angle = 2 * math.pi * (found - first) / cycle
    return [math.sin(angle), math.cos(angle)] if step.cyclic else found


def epoch(step: Any, value: Any) -> float:
    if not isinstance(value, dt.datetime):
        value = dt.datetime.combine(value, dt.time())
    since = value.replace(tzinfo=dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return float(since // dt.timedelta(microseconds=1)) / 1e6


def assume(step: AssumeZone, value: dt.datetime) -> dt.datetime:
    return value.replace(tzinfo=zoneinfo.ZoneInfo(step.zone)).astimezone(dt.UTC)


def kept(step: Any, items: list[Any]) -> list[Any] | None:
    if len(items) <= step.to:
        return items
    return {None: None, "first": items[: step.to], "last": items[-step.to :]}[step.keep]


def at_side(step: Any, items: list[Any], other: Any) -> list[Any]:
    rest = [other] * (step.to - len(items))
    return items + rest if step.side == "end" else rest + items


def pad(step: Pad, items: list[Any]) -> Any:
    if None in items:
        return ("null",)
    few = kept(step, items)
    value = int(step.value) if all(isinstance(item, int) for item in items) else step.value
    return ("too_long",) if few is None else at_side(step, few, value)


def mask(step: Mask, items: list[Any]) -> Any:
    few = kept(step, items)
    return ("too_long",) if few is None else at_side(step, [1.0] * len(few), 0.0)


def length(step: Length, items: list[Any]) -> Any:
    few = kept(step, items)
    return ("too_long",) if few is None else len(few)


def without_nan(of: Callable[[Any, list[float]], Any]) -> Callable[[Any, list[float]], Any]:
    def reference(step: Any, items: list[float]) -> Any:
        return ("not_finite_score",) if any(map(math.isnan, items)) else of(step, items)

    return reference


def softmax(step: Any, items: list[float]) -> Any:
    if max(items) in (math.inf, -math.inf):
        return ("not_finite_score",)
    powers = [math.exp(item - max(items)) for item in items]
    return [power / sum(powers) for power in powers]


def top(step: TopK, items: list[float]) -> Any:
    order = sorted(range(len(items)), key=lambda place: (-items[place], place))[: step.k]
    return [{"name": step.values[place], "value": float(items[place])} for place in order]


def name(step: Names, value: float) -> Any:
    names = list(step.values) or KINDS
    return names[int(value)] if is_whole(value, 0, len(names)) else ("out_of_range",)


def cut(step: Cut, value: float) -> Any:
    return ("not_finite",) if math.isnan(value) else step.names[bisect.bisect_right(step.at, value)]


FINITE = st.floats(-1e9, 1e9)
EDGES = st.lists(FINITE, min_size=1, max_size=4, unique=True).map(lambda e: tuple(sorted(e)))
MEMBERS: dict[str, Any] = {
    "to": st.integers(1, 4),
    "keep": st.sampled_from([None, "first", "last"]),
    "side": st.sampled_from(["end", "start"]),
}
VOCABULARIES = (
    st.just(Vocabulary("kinds.txt"))
    | st.builds(Vocabulary, st.just("kinds.txt"), unknown=st.integers(-1, 9))
    | st.builds(Vocabulary, st.just("kinds.txt"), hash_unknown=st.integers(1, 9))
    | st.just(Vocabulary(values=("web", "fax")))
)
PARTS = st.sampled_from(["minute", "hour", "weekday", "day", "day_of_year", "month"])
DAYS = st.sampled_from(["weekday", "day", "day_of_year", "month"])
LISTS = st.lists(st.none() | st.integers(-9, 9), max_size=6)
ITEMS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, 1.0, math.inf, -math.inf])
VECTOR = st.lists(ITEMS, min_size=3, max_size=3)
VECTORS, ABC = pa.list_(pa.float32(), 3), ("a", "b", "c")
CUTS = EDGES.map(lambda at: Cut(at, tuple(f"n{i}" for i in range(len(at) + 1))))

CASES: dict[str, Case] = {
    "cast": Case(st.just(Cast("int64")), pa.float64(), NUMBERS, to_integer),
    "cast to text": Case(st.just(Cast("string")), pa.int64(), WHOLE, lambda s, v: str(v)),
    "fill": Case(
        st.builds(Fill, FINITE), pa.float64(), NUMBERS, lambda s, v: v, lambda s: float(s.value)
    ),
    "fill integers": Case(
        st.builds(Fill, WHOLE), pa.int64(), WHOLE, lambda s, v: v, lambda s: s.value
    ),
    "fill text": Case(
        st.builds(Fill, TEXTS), pa.string(), TEXTS, lambda s, v: v, lambda s: s.value
    ),
    "clip": Case(
        st.builds(Clip, st.floats(-5, 0), st.none() | st.floats(0, 5))
        | st.builds(Clip, st.none(), st.floats(-5, 5)),
        pa.float64(),
        NUMBERS,
        clip,
    ),
    "log1p": Case(
        st.just(Log1p()),
        pa.float64(),
        NUMBERS,
        lambda s, v: ("out_of_range",) if v <= -1 else math.log1p(v),
    ),
    "scale": Case(
        st.builds(Scale, FINITE, st.floats(1e-3, 1e3)),
        pa.float64(),
        NUMBERS,
        lambda s, v: (v - s.mean) / s.std,
    ),
    "scale of integers": Case(
        st.builds(Scale, FINITE, st.floats(1e-3, 1e3)),
        pa.int64(),
        WHOLE,
        lambda s, v: (float(v) - s.mean) / s.std,
    ),
    "scale of booleans": Case(
        st.just(Scale(1.0, 2.0)), pa.bool_(), st.booleans(), lambda s, v: (v - 1.0) / 2.0
    ),
    "sigmoid": Case(st.just(Sigmoid()), pa.float64(), st.floats(-30, 30), sigmoid),
    "bucket": Case(st.builds(Bucket, EDGES), pa.float64(), NUMBERS, bucket),
    "add": Case(st.builds(Add, FINITE), pa.float64(), NUMBERS, lambda s, v: v + s.other),
    "subtract": Case(st.builds(Subtract, FINITE), pa.float64(), NUMBERS, lambda s, v: v - s.other),
    "multiply": Case(st.builds(Multiply, FINITE), pa.float64(), NUMBERS, lambda s, v: v * s.other),
    "divide": Case(
        st.builds(Divide, FINITE.filter(bool)),
        pa.float64(),
        st.floats(-1e9, 1e9),
        lambda s, v: v / s.other,
    ),
    "lower": Case(st.just(Lower()), pa.string(), TEXTS, lambda s, v: v.lower()),
    "strip": Case(st.just(Strip()), pa.string(), TEXTS, lambda s, v: v.strip() or None),
    "vocabulary": Case(VOCABULARIES, pa.string(), TEXTS, position),
    "vocabulary of numbers": Case(VOCABULARIES, pa.int64(), WHOLE, position),
    "hash": Case(
        st.builds(Hash, st.integers(1, 2**31)),
        pa.string(),
        TEXTS,
        lambda s, v: hashed(v, s.buckets),
    ),
    "one_hot": Case(st.builds(OneHot, st.integers(1, 4)), pa.float64(), NUMBERS, one_hot),
    "one_hot of integers": Case(st.builds(OneHot, st.integers(1, 4)), pa.int64(), WHOLE, one_hot),
    "time_part": Case(
        st.builds(TimePart, PARTS, ZONES, st.booleans())
        | st.builds(TimePart, st.just("year"), ZONES),
        TIMESTAMP,
        TIMES.map(lambda time: time.replace(tzinfo=dt.UTC)),
        part,
    ),
    "time_part without a zone": Case(
        st.builds(TimePart, PARTS, cyclic=st.booleans()), DATETIME, TIMES, part
    ),
    "time_part of dates": Case(
        st.builds(TimePart, DAYS, cyclic=st.booleans()), pa.date32(), st.dates(), part
    ),
    "epoch": Case(
        st.just(Epoch()), TIMESTAMP, TIMES.map(lambda time: time.replace(tzinfo=dt.UTC)), epoch
    ),
    "epoch of dates": Case(st.just(Epoch()), pa.date32(), st.dates(), epoch),
    "assume_zone": Case(st.builds(AssumeZone, ZONES), DATETIME, TIMES, assume),
    "pad": Case(
        st.builds(Pad, value=st.integers(-3, 3).map(float), **MEMBERS),
        pa.list_(pa.int64()),
        LISTS,
        pad,
    ),
    "mask": Case(st.builds(Mask, **MEMBERS), pa.list_(pa.int64()), LISTS, mask),
    "length": Case(st.builds(Length, **MEMBERS), pa.list_(pa.int64()), LISTS, length),
    "argmax": Case(st.just(Argmax()), VECTORS, VECTOR, without_nan(lambda s, v: v.index(max(v)))),
    "max": Case(st.just(Max()), VECTORS, VECTOR, without_nan(lambda s, v: float(max(v)))),
    "element": Case(st.builds(Element, st.integers(0, 2)), VECTORS, VECTOR, lambda s, v: v[s.at]),
    "softmax": Case(st.just(Softmax()), VECTORS, VECTOR, without_nan(softmax)),
    "top_k": Case(
        st.builds(TopK, values=st.just(ABC), k=st.integers(1, 3)), VECTORS, VECTOR, without_nan(top)
    ),
    "names": Case(
        st.just(Names("kinds.txt")) | st.just(Names(values=ABC)), pa.float64(), NUMBERS, name
    ),
    "names of integers": Case(st.just(Names(values=ABC)), pa.int64(), WHOLE, name),
    "cut": Case(CUTS, pa.float64(), NUMBERS, cut),
}


def test_every_step_has_a_case() -> None:
    # Calls of the user's functions have tests of their own.
    assert {title.split()[0] for title in CASES} == STEPS.keys() - {"call"}


@pytest.mark.parametrize("title", CASES)
@settings(deadline=None, max_examples=examples(100))
@given(data=st.data())
def test_a_step_gives_what_the_reference_gives(title: str, data: st.DataObject) -> None:
    case = CASES[title]
    step = data.draw(case.steps)
    values = data.draw(st.lists(st.none() | case.values, max_size=8))
    wanted = [case.null(step) if v is None else case.reference(step, v) for v in values]
    array = pa.array(values, case.type)
    check(seen(run(step, array)), wanted)
    # A slice of a larger array gives the same.
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(values))] * 2)))
    check(seen(run(step, array.slice(start, stop - start))), wanted[start:stop])
    if case.type == pa.string():
        check(seen(run(step, array.dictionary_encode().slice(start))), wanted[start:])
    if step.EACH:
        check_lists(step, values, wanted, case.type)


def check_lists(step: Step, values: list[Any], wanted: list[Any], kind: pa.DataType) -> None:
    """Check that a step treats the items of lists as it treats cells."""
    if kind_of(step.gives(kind)) in ("vector", "list"):
        return
    rows = [[], *([value] for value in values), None, values]
    reasons = [one[:1] for one in wanted if isinstance(one, tuple)]
    each = [one if isinstance(one, tuple) else [one] for one in wanted]
    cells = run(step, pa.array(rows, pa.list_(kind)))
    found = seen(cells)
    check(found[:-1], [[], *each, None])
    if reasons:
        assert found[-1] in reasons
    else:
        check(found[-1], wanted)
    if len(values):
        fixed = pa.array([None, values, values], pa.list_(kind, len(values))).slice(1)
        assert repr(seen(run(step, fixed))) == repr([found[-1]] * 2)


@pytest.mark.filterwarnings("error")
def test_infinite_logits_are_called_so() -> None:
    cells = Cells(
        vectors(np.array([[1e308, -1e308], [math.inf, 0], [-math.inf] * 2, [0, math.nan]]))
    )
    found = Softmax().apply(cells)
    assert found.values[0].as_py() == [1.0, 0.0]
    assert {one.message: one.rows.tolist() for one in found.refused} == {
        "the model returned NaN": [3],
        "the model returned an infinite logit": [1, 2],
    }


@pytest.mark.parametrize("step", [Vocabulary(values=("inf", "nan"), unknown=0), Hash(buckets=2)])
def test_no_number_that_is_not_finite_is_a_category(step: Step) -> None:
    cells = Cells(pa.array([1.0, math.inf, math.nan, None]))
    found = seen(step.bind(Context())(cells))
    assert found[1:] == [("not_finite",), ("not_finite",), None]


@pytest.mark.parametrize(
    ("zone", "time"),
    [("America/New_York", "9999-12-31T23:00:00"), ("Asia/Tokyo", "0001-01-01T00:00:00")],
)
def test_a_time_outside_the_years_of_utc_costs_its_row(zone: str, time: str) -> None:
    times = pa.array([time, "2026-01-01"]).cast(pa.timestamp("us"))
    cells = AssumeZone(zone).apply(Cells(times))
    assert [(one.reason, one.rows.tolist()) for one in cells.refused] == [("out_of_range", [0])]
    assert TimePart("hour", zone).apply(cells).values.to_pylist() == [None, 0]


@given(st.integers(0, 400), st.sampled_from(["Europe/Berlin", "Australia/Lord_Howe"]))
def test_clocks_that_change_after_2037_are_known_to_the_minute(start: int, zone: str) -> None:
    first = dt.datetime(2040, 1, 1) + dt.timedelta(days=start)
    times = [first + dt.timedelta(minutes=10 * i) for i in range(300)]
    info = zoneinfo.ZoneInfo(zone)
    hours = [time.replace(tzinfo=dt.UTC).astimezone(info).hour for time in times]
    cells = Cells(pa.array(times, pa.timestamp("us", "UTC")))
    assert TimePart("hour", zone).apply(cells).values.to_pylist() == hours
    known = AssumeZone(zone).apply(Cells(pa.array(times, pa.timestamp("us")))).values
    assert known.to_pylist() == [time.replace(tzinfo=info).astimezone(dt.UTC) for time in times]
