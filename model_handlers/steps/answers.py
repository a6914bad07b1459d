"""Steps from the outputs of a model to fields for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.texts import is_one_line
from model_handlers.steps.categories import check_distinct, check_source, read_list
from model_handlers.steps.numeric import as_floats, ascending, without_nan
from model_handlers.steps.step import (
    Apply,
    Cells,
    Context,
    Kind,
    Step,
    as_mask,
    matrix,
    null_mask,
    vectors,
)


class _Vector(Step):
    """A step on vectors of numbers."""

    TAKES: ClassVar = (Kind.VECTOR,)
    REASONS: ClassVar[tuple[str, ...]] = ("not_finite_score",)

    def numbers(self, cells: Cells) -> tuple[Cells, np.ndarray]:
        """Refuse vectors with NaN; return the numbers [rows, items]."""
        values = matrix(cells.values)
        if values.dtype.kind != "f":
            return cells, values
        return _without_nan(cells, values)

    def number(self, cells: Cells, values: np.ndarray) -> Cells:
        """Return cells of one number [rows] each, null where the vectors are."""
        return cells.become(pa.array(values, mask=null_mask(cells.values)))


def _without_nan(
    cells: Cells, values: np.ndarray, message: str = "the model returned NaN"
) -> tuple[Cells, np.ndarray]:
    """Refuse vectors with NaN; return the numbers [rows, items] with 0 instead."""
    is_nan = np.isnan(values)
    if not is_nan.any():
        return cells, values
    wrong = is_nan.any(axis=1)
    present = as_mask(cells.values.is_valid())
    cells = cells.refuse(wrong & present, "not_finite_score", message)
    return cells, np.where(is_nan, 0.0, values)


@dataclass(frozen=True)
class Argmax(_Vector):
    """Returns the position of the largest number, the first one if several are equal."""

    NAME: ClassVar = "argmax"
    GIVES: ClassVar = "integer"

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return int64."""
        return pa.int64()

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the position in each vector."""
        cells, values = self.numbers(cells)
        return self.number(cells, values.argmax(axis=1).astype(np.int64))


@dataclass(frozen=True)
class Max(_Vector):
    """Returns the largest number."""

    NAME: ClassVar = "max"
    GIVES: ClassVar = "number"

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return float64."""
        return pa.float64()

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the largest number of each vector."""
        cells, values = self.numbers(cells)
        return self.number(cells, values.max(axis=1).astype(np.float64))


@dataclass(frozen=True)
class Element(_Vector):
    """Returns the number at the position `at`, counted from 0."""

    NAME: ClassVar = "element"
    GIVES: ClassVar = "number"
    REASONS: ClassVar = ()

    at: int

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return float64."""
        if not 0 <= self.at < type_.list_size:
            self.refuse("at", f"0 to {type_.list_size - 1}", self.at)
        return pa.float64()

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return one number of each vector."""
        values = matrix(cells.values)
        return self.number(cells, values[:, self.at].astype(np.float64))


@dataclass(frozen=True)
class Softmax(_Vector):
    """Turns logits into probabilities, which add up to 1."""

    NAME: ClassVar = "softmax"
    GIVES: ClassVar = "vector of numbers"

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return a vector of the same length."""
        return pa.list_(pa.float64(), type_.list_size)

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the probabilities of each vector."""
        cells, values = self.numbers(cells)
        # By columns, NumPy finds the largest of a few numbers many times faster.
        values = values.astype(np.float64, order="F")
        # The difference of two infinities is NaN, that of two large numbers may be infinite.
        with np.errstate(invalid="ignore", over="ignore"):
            powers = np.exp(values - values.max(axis=1, keepdims=True))
        cells, powers = _without_nan(cells, powers, "the model returned an infinite logit")
        sums = powers.sum(axis=1, keepdims=True)
        return cells.become(vectors(powers / np.where(sums == 0, 1, sums), cells.values))


@dataclass(frozen=True)
class _Named(Step):
    """A step that gives names to positions: the lines of `file`, or `values`."""

    file: str | None = None
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_source(self, self.file, self.values)
        _check_labels(self, "values", self.values)

    @property
    def files(self) -> tuple[str, ...]:
        """The file of the names, if there is one."""
        return () if self.file is None else (self.file,)

    def names(self, files: Mapping[str, bytes]) -> list[str]:
        """Return the names in order."""
        if self.file is None:
            return list(self.values)
        found = read_list(self.file, files)
        _check_labels(self, f"file {self.file}", found)
        return found


def _check_labels(step: Step, member: str, labels: Sequence[str]) -> None:
    """Raise ManifestError for a label that would break the line or the terminal of a report."""
    for label in labels:
        if not is_one_line(label):
            step.refuse(member, "names without line breaks and control characters", label)


@dataclass(frozen=True)
class Names(_Named):
    """Returns the name of a position, counted from 0.

    The names are in `file`, one in each line, or in `values`.
    """

    NAME: ClassVar = "names"
    TAKES: ClassVar = (Kind.NUMBER,)
    GIVES: ClassVar = "text"
    REASONS: ClassVar = ("out_of_range",)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return string."""
        return pa.string()

    def bind(self, context: Context) -> Apply:
        """Return the look-up of names."""
        known = pa.array(self.names(context.files), pa.string())

        def look_up(cells: Cells, *_: Cells) -> Cells:
            numbers = as_floats(cells.values)
            inside = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(known)))
            whole = pc.and_(inside, pc.equal(pc.trunc(numbers), numbers))
            wrong = pc.and_(numbers.is_valid(), pc.invert(whole))
            message = f"expected an integer from 0 to {len(known) - 1}, got another number"
            found = cells.become(numbers).refuse(wrong, "out_of_range", message)
            return found.become(known.take(found.values.cast(pa.int64())))

        return look_up


@dataclass(frozen=True)
class TopK(_Named, _Vector):
    """Returns the `k` largest numbers with the names of their positions, the largest first.

    The names are in `file`, one in each line, or in `values`. Each of the results has a `name` and
    a `value`.
    """

    NAME: ClassVar = "top_k"
    TAKES: ClassVar = (Kind.VECTOR,)
    GIVES: ClassVar = "list of names with their numbers"
    REASONS: ClassVar = ("not_finite_score",)

    k: int = 5

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return a list of structs of a name and a number."""
        if not 1 <= self.k <= type_.list_size:
            self.refuse("k", f"1 to {type_.list_size}", self.k)
        if self.file is None and len(self.values) != type_.list_size:
            self.refuse("values", f"{type_.list_size} names", list(self.values))
        return pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))

    def bind(self, context: Context) -> Apply:
        """Return the choice of the largest numbers."""
        known = pa.array(self.names(context.files), pa.string())

        def choose(cells: Cells, *_: Cells) -> Cells:
            cells, values = self.numbers(cells)
            if values.shape[1] != len(known):
                self.refuse("file", f"{values.shape[1]} names", len(known))
            # Sorted backwards and turned round, equal numbers keep the order of their positions.
            backwards = np.argsort(values[:, ::-1], axis=1, kind="stable")[:, : -self.k - 1 : -1]
            order = values.shape[1] - 1 - backwards
            chosen = np.take_along_axis(values, order, axis=1).astype(np.float64).reshape(-1)
            items = pa.StructArray.from_arrays(
                [known.take(pa.array(order.reshape(-1))), pa.array(chosen)], names=["name", "value"]
            )
            starts = pa.array(np.arange(0, len(items) + 1, self.k, dtype=np.int32))
            mask = cells.values.is_null() if cells.values.null_count else None
            return cells.become(pa.ListArray.from_arrays(starts, items, mask=mask))

        return choose


@dataclass(frozen=True)
class Cut(Step):
    """Turns a number into a decision: the first of `names` below the first number of `at`.

    A number that equals one of `at` gets the name above it. There is one name more than `at` has
    numbers. `--thresholds` of a run replaces `at`.
    """

    NAME: ClassVar = "cut"
    TAKES: ClassVar = (Kind.NUMBER,)
    GIVES: ClassVar = "text"
    REASONS: ClassVar = ("not_finite",)

    at: tuple[float, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not ascending(self.at):
            self.refuse("at", "one or more numbers in ascending order", list(self.at))
        if len(self.names) != len(self.at) + 1:
            self.refuse("names", f"{len(self.at) + 1} names, one more than at", list(self.names))
        check_distinct(self.names, f"step {self.NAME}: names")
        _check_labels(self, "names", self.names)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return string."""
        return pa.string()

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the decision of each number."""
        cells = without_nan(cells.become(as_floats(cells.values)))
        numbers = cells.values.to_numpy(zero_copy_only=False)
        places = np.searchsorted(self.at, numbers, side="right")
        places = pa.array(places, mask=null_mask(cells.values))
        return cells.become(pa.array(self.names, pa.string()).take(places))


ANSWER_STEPS = (Argmax, Max, Element, Softmax, Names, TopK, Cut)
