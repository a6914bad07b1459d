"""Times and dates as cells of raw types: from other times, and from text."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_handlers.steps.step import Cells, null_mask

TIMESTAMP = pa.timestamp("us", tz="UTC")
DATETIME = pa.timestamp("us")
DATE = pa.date32()
# The days from 0001-01-01 to 10000-01-01, since 1970-01-01: the times that Python can hold.
_FIRST_DAY, _END_DAY = -719_162, 2_932_897
_A_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_SECOND = 1_000_000
_FORM = (
    "^(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    "(?P<clock>[T ](?P<hour>[0-9]{2})(?::(?P<minute>[0-9]{2})"
    "(?::(?P<second>[0-9]{2})(?:[.](?P<fraction>[0-9]{1,9}))?)?)?"
    "(?: ?(?P<zone>Z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?))?)?$"
)


def is_time(type_: pa.DataType) -> bool:
    """Return whether the cells of a type are times, dates or times of a day."""
    types = pa.types
    return bool(types.is_timestamp(type_) or types.is_date(type_) or types.is_time(type_))


def in_years(cells: Cells) -> Cells:
    """Refuse times outside the years 1 to 9999, which Python cannot hold, with `out_of_range`.

    Args:
        cells: Times, dates or times of a day; the latter are refused outside a day.
    """
    values = cells.values
    counts = values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())
    lowest, highest = _bounds(values.type)
    found = pc.min_max(counts).as_py()
    if found["min"] is None or (lowest <= found["min"] and found["max"] <= highest):
        return cells
    numbers = counts.fill_null(0).to_numpy()
    outside = (numbers < lowest) | (numbers > highest)
    expected = (
        "a time of a day" if pa.types.is_time(values.type) else "a time in the years 1 to 9999"
    )
    return cells.refuse(outside, "out_of_range", f"expected {expected}, got another")


def _bounds(type_: pa.DataType) -> tuple[int, int]:
    """Return the lowest and the highest number of a type of times, in its unit."""
    if pa.types.is_time(type_):
        return 0, _A_DAY[type_.unit] - 1
    unit = type_.unit if pa.types.is_timestamp(type_) else "ms"
    a_day = 1 if pa.types.is_date32(type_) else _A_DAY[unit]
    return _FIRST_DAY * a_day, _END_DAY * a_day - 1


def change_unit(values: pa.Array, kind: pa.DataType) -> Cells:
    """Return times in microseconds, or dates in days; a finer time is cut.

    Times outside the years 1 to 9999 are refused with `out_of_range`.

    Args:
        values: Times or dates.
        kind: TIMESTAMP, DATETIME or DATE.
    """
    if values.type == pa.date64():
        values = values.cast(DATE, safe=False)
    cells = in_years(Cells(values))
    if pa.types.is_timestamp(values.type) and values.type.unit == "ns":
        # Arrow's cast would round times before 1970 up.
        counts = values.view(pa.int64()).fill_null(0).to_numpy()
        return Cells(pa.array(counts // 1000, mask=null_mask(values)).view(kind))
    return cells.become(cells.values.cast(kind))


def read_texts(texts: pa.Array, kind: pa.DataType) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Return the times that texts spell, and which texts are times without and with a zone.

    Args:
        texts: Texts without white space around them, string [rows].
        kind: TIMESTAMP, whose times have a clock and a zone; DATETIME, whose times may have a
            clock, and have no zone; or DATE.

    Returns:
        The times, null for texts that spell none, such as a 30th of February, and those of all
        years; and whether each text has the form of a time or a date without a zone, and whether
        it has that of a time with a zone, bool [rows]. Both are False if all texts spell times.
    """
    # Arrow is fast. It reads no other form than those here, but not all of them.
    with suppress(pa.ArrowInvalid):
        return texts.cast(kind), np.zeros(len(texts), bool), np.zeros(len(texts), bool)
    parts = pc.extract_regex(texts, _FORM)
    formed = np.asarray(parts.is_valid())
    found = dict(
        zip(
            (field.name for field in parts.type),
            parts.filter(pa.array(formed)).flatten(),
            strict=True,
        )
    )
    has_zone, has_clock = (np.asarray(pc.not_equal(found[n], "")) for n in ("zone", "clock"))
    fits = has_clock & has_zone if kind == TIMESTAMP else ~has_zone
    if kind == DATE:
        fits &= ~has_clock
    counts, exists = _count(found)
    bare, zoned = np.zeros(len(texts), bool), np.zeros(len(texts), bool)
    bare[formed], zoned[formed] = ~has_zone, has_zone
    known, times = np.zeros(len(texts), bool), np.zeros(len(texts), np.int64)
    known[formed], times[formed] = fits & exists, counts
    read = pa.array(times, mask=~known)
    if kind == DATE:
        read = pc.divide(read, _A_DAY["us"]).cast(pa.int32())
    return read.view(kind), bare, zoned


def _count(parts: dict[str, pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Return the microseconds of times since 1970-01-01, and whether the times exist.

    Args:
        parts: The texts of the parts of times, empty for those that are missing.
    """
    year, month, day, hour, minute, second = (
        _number(parts[name]) for name in ("year", "month", "day", "hour", "minute", "second")
    )
    months = (year - 1970) * 12 + month - 1
    first, after = (
        (months + more).astype("M8[M]").astype("M8[D]").astype(np.int64) for more in (0, 1)
    )
    zone = pc.replace_substring_regex(parts["zone"], "^(?:Z|UTC|)$", "+0000")
    sign = np.where(np.asarray(pc.starts_with(zone, "-")), -1, 1)
    # The zones +01, +0100 and +01:00 are the same.
    digits = _number(pc.utf8_rpad(pc.replace_substring_regex(zone, "[:+-]", ""), 4, "0"))
    offset = sign * (digits // 100 * 3600 + digits % 100 * 60)
    exists = (month >= 1) & (month <= 12) & (day >= 1) & (day <= after - first)
    exists &= (hour < 24) & (minute < 60) & (second < 60) & (digits < 2400) & (digits % 100 < 60)
    seconds = (first + day - 1) * 86_400 + hour * 3600 + minute * 60 + second - offset
    fraction = _number(pc.utf8_slice_codeunits(pc.utf8_rpad(parts["fraction"], 6, "0"), 0, 6))
    return seconds * _SECOND + fraction, exists


def _number(digits: pa.Array) -> np.ndarray:
    """Return the numbers that digits spell, int64 [rows], 0 for no digits."""
    return pc.if_else(pc.equal(digits, ""), "0", digits).cast(pa.int64()).to_numpy()
