"""A step that calls the user's own function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from common.errors import ContractBroken, MillraceError, class_name
from model_handlers.isolate import NotTried, isolate
from model_handlers.steps.general import RawName
from model_handlers.steps.raw import RAW_TYPES
from model_handlers.steps.raw_times import in_years, is_time
from model_handlers.steps.step import Apply, Cells, Context, Kind, Step, vectors


class _Raised(Exception):
    """The user's function raised an exception; the text is its class, which holds no value."""


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
    REASONS: ClassVar = ("function_error", "out_of_range")

    function: str
    columns: tuple[str, ...] = ()
    returns: RawName = field(default="float64", kw_only=True)
    width: int | None = field(default=None, kw_only=True)
    source_sha256: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        module, _, name = self.function.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), name)):
            self.refuse("function", "module:function", self.function)
        if self.width is not None and self.returns not in ("float64", "int64"):
            self.refuse("width", "none, because the function returns no numbers", self.width)
        if self.width is not None and not 1 <= self.width <= 1 << 20:
            self.refuse("width", "1 to 1,048,576", self.width)
        digest = self.source_sha256
        if digest is not None and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
            self.refuse("source_sha256", "64 lowercase hex digits", digest)

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
        """Import the function, and return a call of it."""
        function = context.load(self.function, self.source_sha256)
        return lambda *columns: self._call(function, columns)

    def _call(self, function: Callable[..., Any], columns: Sequence[Cells]) -> Cells:
        """Return what the function returns for the rows that no step before it refused."""
        refused = tuple(one for cells in columns for one in cells.refused)
        rows, type_ = len(columns[0].values), self.gives(columns[0].values.type)
        usable = np.ones(rows, bool)
        for one in refused:
            usable[one.rows] = False
        arrays = [cells.values for cells in columns]
        if not usable.all():
            arrays = [array.filter(pa.array(usable)) for array in arrays]
        count = len(arrays[0])
        if not count:
            return Cells(pa.nulls(rows, type_), refused)
        parts, faults = [], dict[str, list[slice]]()
        for part, answer in isolate(
            lambda part: self._answer(function, arrays, part), slice(0, count), (_Raised,)
        ):
            if isinstance(answer, Exception):
                faults.setdefault(self._message(answer), []).append(part)
                parts.append(pa.nulls(part.stop - part.start, type_))
            else:
                parts.append(answer)
        places = np.flatnonzero(usable)
        cells = Cells(_spread(pa.concat_arrays(parts), places, rows), refused)
        for message, found in faults.items():
            bad = np.zeros(rows, bool)
            for part in found:
                bad[places[part]] = True
            cells = cells.refuse(bad, "function_error", message)
        return in_years(cells) if is_time(type_) else cells

    def _answer(
        self, function: Callable[..., Any], arrays: Sequence[pa.Array], part: slice
    ) -> pa.Array:
        """Call the function on a range of rows. Raise _Raised if it raises an exception."""
        count = part.stop - part.start
        try:
            answer = function(*(array.slice(part.start, count) for array in arrays))
        except (MillraceError, MemoryError):
            raise
        except BaseException as error:
            # Ctrl-C interrupts the main thread. Another thread gets one only from the function.
            in_main = threading.current_thread() is threading.main_thread()
            if isinstance(error, KeyboardInterrupt) and in_main:
                raise
            raise _Raised(class_name(error)) from error
        return self._checked(answer, count)

    def _message(self, error: Exception) -> str:
        if isinstance(error, NotTried):
            return (
                f"{self.function} was not tried on its own, because most rows of its batch fail: "
                f"of {error.tried} rows chosen at random, {error.failed} failed, for example with "
                f"{error.example}"
            )
        return f"{self.function} raised {error}"

    def _checked(self, answer: Any, rows: int) -> pa.Array:
        """Return the answer of the function as an array. Raise ContractBroken if it is wrong."""
        expected = f"{rows:,} values of {self.returns}"
        if self.width is not None:
            expected = f"an array [{rows:,}, {self.width}] of {self.returns}"
        try:
            array = self._as_array(answer)
            if len(array) == rows:
                return array.cast(self.gives(array.type))
            got = f"{len(array):,} rows" if self.width is not None else f"{len(array):,} values"
        except (MillraceError, MemoryError):
            raise
        except Exception as error:
            # The answer may be an object that runs code of its own, and raises anything.
            got = f"a {class_name(answer)} that cannot become that ({class_name(error)})"
            if isinstance(answer, np.ndarray):
                got = f"an array {list(answer.shape)} of {answer.dtype}"
        raise ContractBroken(
            f"function {self.function}: expected {expected}, a value for each row, got {got}"
        )

    def _as_array(self, answer: Any) -> pa.Array:
        """Return an answer as an Arrow array. Raise TypeError or ValueError if it is not one."""
        if isinstance(answer, (str, bytes, dict)):
            raise TypeError(type(answer).__name__)
        if isinstance(answer, pa.ChunkedArray):
            return answer.combine_chunks()
        if isinstance(answer, pa.Array):
            return answer
        if self.width is None:
            return pa.array(answer)
        numbers = np.asarray(answer)
        if numbers.ndim != 2 or numbers.shape[1] != self.width:
            raise ValueError(f"shape {numbers.shape}")
        return vectors(numbers)


def _spread(values: pa.Array, places: np.ndarray, rows: int) -> pa.Array:
    """Return values at their places among all rows, with null at the other places."""
    if len(places) == rows:
        return values
    taken = np.full(rows, -1)
    taken[places] = np.arange(len(places))
    return values.take(pa.array(taken, mask=taken < 0))


OWN_STEPS = (Call,)
