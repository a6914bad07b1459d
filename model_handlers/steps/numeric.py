"""Steps on numbers. All of them compute in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_handlers.steps.step import Cells, Kind, Step, kind_of, null_mask, words_for

_FLOAT, _INT = pa.float64(), pa.int64()


def as_floats(values: pa.Array) -> pa.Array:
    """Return numbers or booleans as float64."""
    if values.type == _FLOAT:
        return values
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return values.cast(_FLOAT, safe=False)


def ascending(numbers: Sequence[float]) -> bool:
    """Return whether there are numbers, each above the one before it."""
    return bool(numbers) and all(a < b for a, b in pairwise(numbers))


class _Number(Step):
    """A step from a number to a float64."""

    TAKES: ClassVar = (Kind.NUMBER,)
    GIVES: ClassVar = "number"
    EACH: ClassVar = True

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return float64."""
        return _FLOAT


@dataclass(frozen=True)
class Clip(_Number):
    """Limits numbers to the range from `min` to `max`; either may be left out."""

    NAME: ClassVar = "clip"

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            self.refuse("min", "min, max or both", None)
        if self.min is not None and self.max is not None and self.min > self.max:
            self.refuse("min", f"at most max, {self.max}", self.min)

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the numbers, limited. NaN, which earlier steps may have computed, stays NaN."""
        values = as_floats(cells.values)
        # Arrow's own functions would prefer the limit to NaN.
        limited = np.clip(values.to_numpy(zero_copy_only=False), self.min, self.max)
        return cells.become(pa.array(limited, mask=null_mask(values)))


@dataclass(frozen=True)
class Log1p(_Number):
    """Computes ln(1 + x). Refuses numbers of -1 and less."""

    NAME: ClassVar = "log1p"
    REASONS: ClassVar = ("out_of_range",)

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the logarithms."""
        values = as_floats(cells.values)
        low = pc.less_equal(values, -1.0)
        cells = cells.become(values).refuse(low, "out_of_range", "expected a number above -1")
        return cells.become(pc.log1p(cells.values))


@dataclass(frozen=True)
class Scale(_Number):
    """Computes (x - `mean`) / `std`. The values can be fitted on a sample."""

    NAME: ClassVar = "scale"

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not self.std > 0:
            self.refuse("std", "a number above 0", self.std)

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the scaled numbers."""
        return cells.become(pc.divide(pc.subtract(as_floats(cells.values), self.mean), self.std))


@dataclass(frozen=True)
class Sigmoid(_Number):
    """Computes 1 / (1 + exp(-x)), which turns a logit into a probability."""

    NAME: ClassVar = "sigmoid"

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the probabilities."""
        # tanh does not overflow.
        half = pc.multiply(as_floats(cells.values), 0.5)
        return cells.become(pc.multiply(pc.add(pc.tanh(half), 1.0), 0.5))


@dataclass(frozen=True)
class Bucket(Step):
    """Returns how many of the `edges` are at most x, an integer from 0.

    The edges can be fitted on a sample.
    """

    NAME: ClassVar = "bucket"
    TAKES: ClassVar = (Kind.NUMBER,)
    GIVES: ClassVar = "integer"
    REASONS: ClassVar = ("not_finite",)
    EACH: ClassVar = True

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        if not ascending(self.edges):
            self.refuse("edges", "one or more numbers in ascending order", list(self.edges))

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return int64."""
        return _INT

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the bucket of each number."""
        cells = without_nan(cells.become(as_floats(cells.values)))
        numbers = cells.values.to_numpy(zero_copy_only=False)
        found = np.searchsorted(self.edges, numbers, side="right")
        return cells.become(pa.array(found, _INT, mask=null_mask(cells.values)))


@dataclass(frozen=True)
class _Arithmetic(_Number):
    """An operation on a number and `other`, which Arrow knows by the name of the step."""

    other: float | str

    @property
    def operands(self) -> tuple[str, ...]:
        """The other column, if it is not a number."""
        return (self.other,) if isinstance(self.other, str) else ()

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return float64."""
        for operand in operands:
            if kind_of(operand) is not Kind.NUMBER:
                expected = "a number, or the name of numbers"
                self.refuse("other", expected, f"{self.other} ({words_for(operand)})")
        return _FLOAT

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the results, with the refusals of all cells that they were computed from."""
        right = as_floats(operands[0].values) if operands else pa.scalar(float(self.other))
        values = pc.call_function(self.NAME, [as_floats(cells.values), right])
        refused = [r for operand in operands for r in operand.refused]
        return Cells(values, (*cells.refused, *refused))


@dataclass(frozen=True)
class Add(_Arithmetic):
    """Computes x + `other`: a number, or the name of a column (in fields: of a field or output)."""

    NAME: ClassVar = "add"


@dataclass(frozen=True)
class Subtract(_Arithmetic):
    """Computes x - `other`: a number, or the name of a column (in fields: of a field or output)."""

    NAME: ClassVar = "subtract"


@dataclass(frozen=True)
class Multiply(_Arithmetic):
    """Computes x * `other`: a number, or the name of a column (in fields: of a field or output)."""

    NAME: ClassVar = "multiply"


@dataclass(frozen=True)
class Divide(_Arithmetic):
    """Computes x / `other`: a number, or the name of a column (in fields: of a field or output).

    `by_zero` is the result of a division by 0. Without it, such a row is refused.
    """

    NAME: ClassVar = "divide"
    REASONS: ClassVar = ("out_of_range",)

    by_zero: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.other == 0:
            self.refuse("other", "a number other than 0", self.other)

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the quotients."""
        # Arrow's division of floats by 0 is an infinity or NaN.
        result = super().apply(cells, *operands)
        if not operands:
            return result
        zero = pc.and_(pc.equal(as_floats(operands[0].values), 0.0), cells.values.is_valid())
        if self.by_zero is not None:
            return result.become(pc.if_else(zero, self.by_zero, result.values))
        return result.refuse(zero, "out_of_range", f"cannot be divided by {self.other}, which is 0")


def without_nan(cells: Cells) -> Cells:
    """Refuse numbers that are NaN, which earlier steps may have computed."""
    return cells.refuse(pc.is_nan(cells.values), "not_finite", "NaN")


def only_finite(cells: Cells) -> Cells:
    """Refuse numbers that are NaN or infinite."""
    return without_nan(cells).refuse(pc.is_inf(cells.values), "not_finite", "infinite")


NUMBER_STEPS = (Clip, Log1p, Scale, Bucket, Add, Subtract, Multiply, Divide, Sigmoid)
