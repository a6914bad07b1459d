"""Fuzzed Parquet files: features and passed-on columns of many types, in many row groups."""

from __future__ import annotations

import datetime
import io
import random
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzz.cases import Case, Row, in_folder, mutated
from common.arrow_values import to_values

LAST = datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999)
FIRST = datetime.datetime(1, 1, 1)
FEATURES: list[pa.DataType] = [
    pa.float64(), pa.float32(), pa.float16(), pa.int64(), pa.int8(), pa.uint64(), pa.bool_(),
    pa.decimal128(12, 3), pa.string(), pa.large_string(), pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
]  # fmt: skip
# The values that a passed-on column of each type has.
KEPT: dict[pa.DataType, list[Any]] = {
    pa.null(): [None],
    pa.bool_(): [True, False],
    pa.int8(): [-128, 127],
    pa.int64(): [2**63 - 1, -(2**63), 7],
    pa.uint64(): [2**64 - 1, 7],
    pa.float32(): [0.5, float("inf")],
    pa.float64(): [0.1, 2.0**60, -0.0],
    pa.decimal128(38, 9): [Decimal("0.1"), Decimal(7)],
    pa.decimal128(10, 2): [Decimal("0.25")],
    pa.string(): ["", "x", "é"],
    pa.large_string(): ["x"],
    pa.string_view(): ["x", "a string that is longer than twelve bytes"],
    pa.dictionary(pa.int32(), pa.string()): ["x", "y"],
    pa.list_(pa.string_view()): [["x"]],
    pa.binary_view(): [b"\xff"],
    pa.binary(): [b"\xff", b""],
    pa.date32(): [datetime.date(2020, 1, 2), datetime.date(9999, 12, 31)],
    pa.time64("us"): [datetime.time(1, 2, 3, 4)],
    pa.timestamp("ms"): [datetime.datetime(2020, 1, 2), FIRST],
    pa.timestamp("us"): [LAST, datetime.datetime(2020, 1, 2), FIRST],
    pa.timestamp("us", "UTC"): [LAST.replace(tzinfo=datetime.UTC)],
    pa.timestamp("ns"): [1_000, 1_001],
    pa.list_(pa.int64()): [[1], [], [None]],
    pa.list_(pa.float64()): [[0.1]],
    pa.struct([("a", pa.int64())]): [{"a": 1}, {"a": None}],
    pa.map_(pa.string(), pa.int64()): [[("x", 1)]],
}


def parquet_case(rng: random.Random) -> Case:
    """Return a Parquet file; a fifth of them is damaged."""
    folder, keys = in_folder(rng) if rng.random() < 0.1 else ("", {})
    count = rng.choice([0, 1, 2, 5, 40])
    a, values = _feature(rng, count)
    kind = rng.choice(list(KEPT))
    note = pa.array([rng.choice([*KEPT[kind], None]) for _ in range(count)], kind)
    columns = {
        "a": a,
        "b": pa.array(range(count), rng.choice([pa.int32(), pa.float64()])),
        "note": note,
        "extra": pa.array([["x", None]] * count, pa.list_(pa.string())),
    }
    names = list(columns)
    rng.shuffle(names)
    # Spark writes times in 96 bits. They hold no time before 1900 that Arrow could write.
    int96 = bool(pa.types.is_timestamp(kind) and kind.tz is None and rng.random() < 0.5)
    content = _stored(rng, pa.table({name: columns[name] for name in names}), int96)
    rows = [
        Row(value, i, kept)
        for i, (value, kept) in enumerate(zip(values, to_values(note), strict=True))
    ]
    good = rng.random() < 0.8
    if not good:
        content = mutated(rng, content, [b"\0", b"\xff", b"PAR1"])
    return Case(
        name=f"{folder}rows.{rng.choice(['parquet', 'pq'])}",
        content=content,
        kind=("" if good else "damaged ") + ("parquet int96" if int96 else "parquet"),
        rows=rows if good else None,
        refused=False if good else None,
        keys=keys,
    )


def _stored(rng: random.Random, table: pa.Table, int96: bool) -> bytes:
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        row_group_size=rng.choice([1, 3, 7, 100]),
        compression=rng.choice(["none", "snappy", "gzip", "zstd"]),
        use_dictionary=rng.random() < 0.5,
        data_page_version=rng.choice(["1.0", "2.0"]),
        store_schema=rng.random() < 0.8,
        use_deprecated_int96_timestamps=int96,
        write_page_checksum=True,
    )
    return out.getvalue()


def _feature(rng: random.Random, count: int) -> tuple[pa.Array, list[Any]]:
    """Return a column of features, and each as a number, or None if it is not one."""
    kind = rng.choice(FEATURES)
    is_text = kind == pa.string_view() or "string" in str(kind)
    values: list[Any] = [1.0, 0.0, 1.0, None]
    if pa.types.is_floating(kind):
        values += [0.5, -2.25, float("nan"), float("inf")]
    elif pa.types.is_decimal(kind):
        values += [Decimal("1.125"), Decimal(-7)]
    elif is_text:
        values += [0.5, "x", "", "1e5"]
    chosen = [rng.choice(values) for _ in range(count)]
    cells = [_cell(value, kind, is_text) for value in chosen]
    good = [
        None
        if not isinstance(value, (float, Decimal)) or not np.isfinite(float(value))
        else float(value)
        for value in chosen
    ]
    return pa.array(cells, kind), [
        ... if value == "1e5" else g for value, g in zip(chosen, good, strict=True)
    ]


def _cell(value: Any, kind: pa.DataType, is_text: bool) -> Any:
    if value is None:
        return None
    if is_text:
        return str(value)
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return int(value) if float(value).is_integer() else value
    if kind == pa.float16():
        return np.float16(value)
    return bool(value) if pa.types.is_boolean(kind) else float(value)
