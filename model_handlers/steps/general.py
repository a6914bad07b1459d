"""Steps on cells of any kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc

from model_handlers.steps.raw import RAW_TYPES, become, can_become
from model_handlers.steps.step import NUMBERS_FROM, Cells, Kind, Step, words_for
from model_handlers.steps.values import from_values

RawName = Literal["float64", "int64", "bool", "string", "timestamp", "datetime", "date"]


@dataclass(frozen=True)
class Cast(Step):
    """Converts cells to another type, as the values of a column are converted to its raw type."""

    NAME: ClassVar = "cast"
    TAKES: ClassVar = (Kind.NUMBER, Kind.TEXT, Kind.TIME)
    GIVES: ClassVar = "`to`"
    REASONS: ClassVar = ("wrong_type", "no_time_zone", "out_of_range", "not_finite")
    EACH: ClassVar = True

    to: RawName

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return the type `to`."""
        to_number = pa.types.is_boolean(type_) and self.to in ("float64", "int64")
        if not (to_number or can_become(type_, self.to)):
            hint = NUMBERS_FROM[Kind.TIME] if self.to in ("float64", "int64") else None
            if self.to == "timestamp":
                hint = "assume_zone turns a datetime into a timestamp"
            self.refuse("to", f"a type that {words_for(type_)} can become", self.to, hint)
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

    value: float | int | str | bool

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return the same type."""
        if self._scalar(type_) is None:
            self.refuse("value", f"{words_for(type_)}, as the column has", self.value)
        return type_

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the cells without nulls."""
        values = cells.values
        if not values.null_count:
            return cells
        return cells.become(pc.fill_null(values, self._scalar(values.type)))

    def _scalar(self, type_: pa.DataType) -> pa.Scalar | None:
        """Return the value as one of a type, or None if the type cannot hold it."""
        # The numbers of outputs may have fewer bits than those of columns.
        raw = next((name for name, known in RAW_TYPES.items() if known == type_), None)
        raw = raw or ("float64" if pa.types.is_floating(type_) else "int64")
        try:
            found = from_values([self.value], raw).values.cast(type_)[0]
        except pa.ArrowInvalid:
            return None
        number = found.as_py()
        is_finite = not isinstance(number, float) or math.isfinite(number)
        return found if found.is_valid and is_finite else None


GENERAL_STEPS = (Cast, Fill)
