"""Steps on times and dates."""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_handlers.steps.raw_times import DATETIME, TIMESTAMP, in_years
from model_handlers.steps.step import Cells, Kind, Step, refuse_cells, vectors

Part = Literal["minute", "hour", "weekday", "day", "day_of_year", "month", "year"]
# The function of each part, its first value and after how many values it starts again.
_PARTS: Mapping[str, tuple[Callable[[pa.Array], pa.Array], int, int | None]] = {
    "minute": (pc.minute, 0, 60),
    "hour": (pc.hour, 0, 24),
    "weekday": (pc.day_of_week, 0, 7),
    "day": (pc.day, 1, 31),
    "day_of_year": (pc.day_of_year, 1, 366),
    "month": (pc.month, 1, 12),
    "year": (pc.year, 0, None),
}
_OF_CLOCK = ("minute", "hour")
_SECOND = 1_000_000
# Arrow knows the changes of clocks up to 2037, Python also those after it.
_LATE = pa.scalar(datetime.datetime(2037, 12, 30), DATETIME)
# On the day after 9999-12-30, clocks may show a time that Python cannot hold.
_LAST_DAY = 2_932_895


def _check_zone(step: Step, zone: str) -> None:
    try:
        zoneinfo.ZoneInfo(zone)
        # Arrow has time zones of its own.
        pc.hour(pa.array([0], pa.timestamp("us", zone)))
    except (zoneinfo.ZoneInfoNotFoundError, pa.ArrowException, ValueError, OSError):
        step.refuse("zone", "the name of a time zone, such as UTC or Europe/Berlin", zone)


@dataclass(frozen=True)
class TimePart(Step):
    """Returns a `part` of a time: minute, hour, weekday, day, day_of_year, month or year.

    The weekday is 0 on Mondays. The parts of a timestamp are those in the time zone `zone`. With
    `cyclic`, the result is the sine and the cosine of the part's place in its cycle, so that 23:00
    is close to 0:00.
    """

    NAME: ClassVar = "time_part"
    TAKES: ClassVar = (Kind.TIME,)
    GIVES: ClassVar = "integer; with `cyclic`, a vector of 2 numbers"

    part: Part
    zone: str | None = None
    cyclic: bool = False

    def __post_init__(self) -> None:
        if self.zone is not None:
            _check_zone(self, self.zone)
        if self.cyclic and _PARTS[self.part][2] is None:
            self.refuse("cyclic", "false, because years do not start again", self.cyclic)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return int64, or two numbers."""
        aware = pa.types.is_timestamp(type_) and type_.tz is not None
        if aware and self.zone is None:
            self.refuse("zone", "a time zone, such as UTC", None)
        if not aware and self.zone is not None:
            self.refuse("zone", "none, because the column has no time zone", self.zone)
        if pa.types.is_date(type_) and self.part in _OF_CLOCK:
            self.refuse("part", "a part that a date has", self.part)
        return pa.list_(pa.float64(), 2) if self.cyclic else pa.int64()

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the part of each time."""
        function, first, cycle = _PARTS[self.part]
        times = cells.values if self.zone is None else _on_clocks(cells.values, self.zone)
        found = function(times).cast(pa.int64())
        if not self.cyclic or cycle is None:
            return cells.become(found)
        angles = np.arange(cycle) * (2 * np.pi / cycle)
        circle = np.stack([np.sin(angles), np.cos(angles)], axis=1)
        return cells.become(vectors(circle[found.fill_null(first).to_numpy() - first], found))


def _on_clocks(times: pa.Array, zone: str) -> pa.Array:
    """Return the times that clocks in a zone show at some times, as times without a zone."""
    plain = times.cast(DATETIME)
    if zone == "UTC":
        return plain
    shown = pc.local_timestamp(times.cast(pa.timestamp("us", zone)))
    late = pc.greater(plain, _LATE)
    if not pc.any(late).as_py():
        return shown
    info = zoneinfo.ZoneInfo(zone)

    def offset_at(time: datetime.datetime) -> datetime.timedelta | None:
        return time.replace(tzinfo=datetime.UTC).astimezone(info).utcoffset()

    offsets = _offsets(plain.filter(late), offset_at)
    exact = pc.add(plain.filter(late), offsets)
    return pc.replace_with_mask(shown, late, exact)


def _offsets(
    times: pa.Array, offset_at: Callable[[datetime.datetime], datetime.timedelta | None]
) -> pa.Array:
    """Return the offsets of clocks at some times, which Python computes.

    They are computed once for all times of a day, unless clocks change on it.
    """
    days = times.cast(pa.date32())
    distinct, places = np.unique(days.cast(pa.int32()).to_numpy(), return_inverse=True)
    first, last = (
        np.array([offset_at(_at_day(day + more)) for day in distinct.tolist()], "m8[us]")
        for more in (0, 1)
    )
    offsets = first[places]
    changed = (first != last)[places]
    odd = times.filter(pa.array(changed)).to_pylist()
    offsets[changed] = np.array([offset_at(time) for time in odd], "m8[us]")
    return pa.array(offsets, pa.duration("us"))


def _at_day(day: int) -> datetime.datetime:
    """Return the start of a day, counted from 1970-01-01, but at most of _LAST_DAY."""
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(days=min(day, _LAST_DAY))


@dataclass(frozen=True)
class Epoch(Step):
    """Returns the seconds since 1970-01-01, with fractions. Times without a zone count as UTC."""

    NAME: ClassVar = "epoch"
    TAKES: ClassVar = (Kind.TIME,)
    GIVES: ClassVar = "number"

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return float64."""
        return pa.float64()

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the seconds of each time."""
        zone: dict[str, Any] = {"tz": cells.values.type.tz} if _is_aware(cells.values.type) else {}
        whole = cells.values.cast(pa.timestamp("us", **zone)).cast(pa.int64())
        return cells.become(pc.divide(whole.cast(pa.float64(), safe=False), float(_SECOND)))


@dataclass(frozen=True)
class AssumeZone(Step):
    """Turns a datetime, which has no zone, into a timestamp: a clock in `zone` showed it.

    If clocks showed a time twice, because they were set back, the first one is meant. If they never
    showed it, because they were set forward, it counts as if they had been set later: 2:30 is 3:30.
    """

    NAME: ClassVar = "assume_zone"
    TAKES: ClassVar = (Kind.TIME,)
    GIVES: ClassVar = "timestamp"
    REASONS: ClassVar = ("out_of_range",)

    zone: str

    def __post_init__(self) -> None:
        _check_zone(self, self.zone)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return a timestamp."""
        if _is_aware(type_):
            refuse_cells(self, "a datetime", type_, "its times have a zone already")
        if pa.types.is_date(type_):
            refuse_cells(self, "a datetime", type_)
        return TIMESTAMP

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the timestamps."""
        times = cells.values
        if self.zone == "UTC":
            return cells.become(times.cast(TIMESTAMP))
        known = pc.assume_timezone(times, self.zone, ambiguous="earliest", nonexistent="earliest")
        skipped = pc.not_equal(pc.local_timestamp(known), times)
        odd = pc.or_(skipped, pc.greater(times, _LATE))
        known = known.cast(TIMESTAMP)
        if pc.any(odd).as_py():
            info = zoneinfo.ZoneInfo(self.zone)
            offsets = _offsets(
                times.filter(odd), lambda time: time.replace(tzinfo=info).utcoffset()
            )
            exact = pc.subtract(times.filter(odd), offsets)
            known = pc.replace_with_mask(known, odd, exact.cast(TIMESTAMP))
        # The last hours of a zone are in the year 10000 of UTC.
        return in_years(cells.become(known))


def _is_aware(type_: pa.DataType) -> bool:
    return pa.types.is_timestamp(type_) and type_.tz is not None


TIME_STEPS = (TimePart, Epoch, AssumeZone)
