"""A step that calls the user's own function."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from common.errors import ContractBroken, MillraceError
from model_handlers.isolate import isolate
from model_handlers.steps.general import RawName
from model_handlers.steps.raw import RAW_TYPES
from model_handlers.steps.step import Apply, Cells, Context, Kind, Step, vectors

_PART_OF_NAME = "module:function"


class _Raised(Exception):
    """The function raised an exception, which is the cause of this one."""


@dataclass(frozen=True)
class Call(Step):
    """Calls your own function, `module:function`, on whole columns.

    The function gets the Arrow array of the column, and one array for each of `columns`. It returns
    an Arrow or NumPy array with a value for each row, of the type `returns`; with `width`, an array
    [rows, width] of numbers. Its module must be installed, and named in `--trusted_modules`. The
    value of a row must not depend on other rows. `source_sha256` is the digest of the module's
    source; a run warns if it differs.
    """

    NAME: ClassVar = "call"
    TAKES: ClassVar = tuple(Kind)
    GIVES: ClassVar = "`returns`"
    REASONS: ClassVar = ("function_error",)

    function: str
    columns: tuple[str, ...] = ()
    returns: RawName = field(default="float64", kw_only=True)
    width: int | None = field(default=None, kw_only=True)
    source_sha256: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        module, _, name = self.function.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), name)):
            self.refuse("function", _PART_OF_NAME, self.function)
        if self.width is not None and self.returns not in ("float64", "int64"):
            self.refuse("width", "none, because the function returns no numbers", self.width)
        if self.width is not None and not 1 <= self.width <= 1 << 20:
            self.refuse("width", "1 to 1,048,576", self.width)

    @property
    def operands(self) -> tuple[str, ...]:
        """The other columns that the function gets."""
        return self.columns

    @property
    def functions(self) -> tuple[str, ...]:
        """The function."""
        return (self.function,)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return the type that the function returns."""
        kind = RAW_TYPES[self.returns]
        return kind if self.width is None else pa.list_(kind, self.width)

    def bind(self, context: Context) -> Apply:
        """Return a call of the function."""
        function = context.load(self.function)

        def call(cells: Cells, *operands: Cells) -> Cells:
            arrays = [each.values for each in (cells, *operands)]
            rows = len(cells.values)
            refused = [r for each in (cells, *operands) for r in each.refused]
            if not rows:
                return Cells(pa.nulls(0, self.gives(cells.values.type)), tuple(refused))

            def run(part: slice) -> pa.Array:
                count = part.stop - part.start
                try:
                    answer = function(*(a.slice(part.start, count) for a in arrays))
                except (MillraceError, MemoryError):
                    raise
                except Exception as error:
                    raise _Raised(type(error).__name__) from error
                return self._checked(answer, count)

            parts, bad = [], np.zeros(rows, bool)
            why = ""
            for part, answer in isolate(run, slice(0, rows), (_Raised,)):
                if isinstance(answer, Exception):
                    count = part.stop - part.start
                    parts.append(pa.nulls(count, self.gives(cells.values.type)))
                    bad[part] = True
                    why = why or (str(answer) if isinstance(answer, _Raised) else "an exception")
                else:
                    parts.append(answer)
            result = Cells(pa.concat_arrays(parts), tuple(refused))
            return result.refuse(bad, "function_error", f"{self.function} raised {why}")

        return call

    def _checked(self, answer: Any, rows: int) -> pa.Array:
        """Return the answer of the function as an array. Raise ContractBroken if it is wrong."""
        expected = f"{rows:,} values of {self.returns}"
        if self.width is not None:
            expected = f"an array [{rows:,}, {self.width}] of {self.returns}"
        try:
            if isinstance(answer, pa.ChunkedArray):
                answer = answer.combine_chunks()
            if self.width is not None:
                numbers = answer if isinstance(answer, np.ndarray) else _rows_of(answer)
                if numbers.shape == (rows, self.width):
                    return vectors(numbers.astype(RAW_TYPES[self.returns].to_pandas_dtype()))
                got = f"the shape {list(numbers.shape)}"
            else:
                array = answer if isinstance(answer, pa.Array) else pa.array(answer)
                if len(array) == rows:
                    return array.cast(RAW_TYPES[self.returns])
                got = f"{len(array):,} values"
        except (pa.ArrowException, ValueError, TypeError, AttributeError) as error:
            got = f"a {type(answer).__name__} that cannot become that ({type(error).__name__})"
        raise ContractBroken(f"function {self.function}: expected {expected}, got {got}")


def _rows_of(answer: pa.Array) -> np.ndarray:
    size = answer.type.list_size
    return np.asarray(answer.flatten()).reshape(len(answer), size)


OWN_STEPS = (Call,)
