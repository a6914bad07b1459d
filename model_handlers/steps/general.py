"""Steps on cells of any kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc

from model_handlers.steps.raw import RAW_TYPES, become, can_become
from model_handlers.steps.step import Cells, Kind, Step

RawName = Literal["float64", "int64", "bool", "string", "timestamp", "datetime", "date"]


@dataclass(frozen=True)
class Cast(Step):
    """Converts cells to another type, as the values of a column are converted to its raw type."""

    NAME: ClassVar = "cast"
    TAKES: ClassVar = (Kind.NUMBER, Kind.TEXT, Kind.TIME)
    GIVES: ClassVar = "`to`"
    REASONS: ClassVar = ("wrong_type", "no_time_zone")
    EACH: ClassVar = True

    to: RawName

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return the type `to`."""
        if not can_become(type_, self.to):
            self.refuse("to", f"a type that {type_} can become", self.to)
        return RAW_TYPES[self.to]

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the values in the other type."""
        found = become(cells.values, self.to)
        return Cells(found.values, (*cells.refused, *found.refused))


@dataclass(frozen=True)
class Fill(Step):
    """Puts `value` where a cell is null; NaN of the source counts as null.

    The value can be fitted on a sample: the mean, the median or the most frequent value.
    """

    NAME: ClassVar = "fill"
    TAKES: ClassVar = (Kind.NUMBER, Kind.TEXT, Kind.TIME)
    GIVES: ClassVar = "the same"
    EACH: ClassVar = True

    value: float | str | bool

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return the same type."""
        found = become(pa.array([self.value]), _name(type_))
        if found.refused or found.values.null_count:
            self.refuse("value", f"a value of the type {type_}", self.value)
        return type_

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the cells without nulls."""
        values = cells.values
        if not values.null_count:
            return cells
        filled = become(pa.array([self.value]), _name(values.type)).values[0]
        return cells.become(pc.fill_null(values, filled))


def _name(type_: pa.DataType) -> str:
    """Return the raw type that has an Arrow type."""
    return next(name for name, known in RAW_TYPES.items() if known == type_)


GENERAL_STEPS = (Cast, Fill)
