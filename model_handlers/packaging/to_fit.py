"""Steps whose numbers or lists are still to be found on a sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import is_list
from common.errors import ManifestError
from common.texts import text_column
from model_handlers.steps.catalog import STEPS
from model_handlers.steps.categories import Vocabulary
from model_handlers.steps.general import Fill
from model_handlers.steps.numeric import Bucket, Scale, as_floats
from model_handlers.steps.step import Apply, Context, Step

FillFrom = Literal["mean", "median", "most_frequent"]
_FILL_FROM = ("mean", "median", "most_frequent")
_PLACEHOLDER = "<unknown>"
_DEFAULT_BUCKETS = 10
# A deviation of less than this share of the largest number is a rounding error.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ToFit(Step):
    """A step that a sample turns into the step of the same name."""

    def bind(self, context: Context) -> Apply:
        """Raise ManifestError, because the step is not fitted."""
        raise ManifestError(
            f"step {self.NAME} is to be fitted on a sample: pass a sample, or its members"
        )

    @abstractmethod
    def fitted(self, values: pa.Array) -> Step:
        """Return the step for values of the sample.

        Args:
            values: The values that the step gets in the rows of the sample, one or more, without
                null and NaN.

        Raises:
            ManifestError: The step cannot be fitted on such values.
        """

    def check_finite(self, *found: float) -> None:
        """Raise ManifestError if what was computed from numbers is not finite."""
        if not np.isfinite(found).all():
            raise ManifestError(
                f"step {self.NAME}: cannot be fitted, because the numbers of the sample are too "
                "large to add up: limit them by clip first, or pass another sample"
            )


@dataclass(frozen=True)
class FillToFit(ToFit):
    """Fills with the mean, the median or the most frequent value of a sample."""

    NAME: ClassVar = Fill.NAME
    TAKES: ClassVar = Fill.TAKES
    EACH: ClassVar = Fill.EACH

    value: FillFrom

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return the same type."""
        is_number = pa.types.is_floating(type_) or pa.types.is_integer(type_)
        if self.value != "most_frequent" and not is_number:
            self.refuse("value", f"most_frequent, or a value of the type {type_}", self.value)
        return type_

    def fitted(self, values: pa.Array) -> Step:
        """Return fill with a value of the sample."""
        if self.value == "most_frequent":
            return Fill(_plain(most_frequent(values)[0][0]))
        numbers = np.asarray(as_floats(values))
        with np.errstate(over="ignore"):
            found = float(numbers.mean() if self.value == "mean" else np.median(numbers))
        self.check_finite(found)
        return Fill(round(found) if pa.types.is_integer(values.type) else found)


@dataclass(frozen=True)
class ScaleToFit(ToFit):
    """Scales with the mean and the standard deviation of a sample."""

    NAME: ClassVar = Scale.NAME
    TAKES: ClassVar = Scale.TAKES
    EACH: ClassVar = Scale.EACH

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return float64."""
        return pa.float64()

    def fitted(self, values: pa.Array) -> Step:
        """Return scale with the mean and deviation; a constant is only shifted."""
        numbers = np.asarray(as_floats(values))
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = float(numbers.mean()), float(numbers.std())
        self.check_finite(mean, deviation)
        # The mean of equal numbers may differ from them in its last bits.
        constant = deviation <= _ROUNDING * float(np.abs(numbers).max())
        return Scale(mean, 1.0 if constant else deviation)


@dataclass(frozen=True)
class BucketToFit(ToFit):
    """Divides the values of a sample into `count` buckets of about the same size."""

    NAME: ClassVar = Bucket.NAME
    TAKES: ClassVar = Bucket.TAKES
    EACH: ClassVar = Bucket.EACH

    count: int = _DEFAULT_BUCKETS

    def __post_init__(self) -> None:
        if not 2 <= self.count <= 1 << 16:
            self.refuse("count", "2 to 65,536", self.count)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return int64."""
        return pa.int64()

    def fitted(self, values: pa.Array) -> Step:
        """Return bucket with the quantiles as edges; equal quantiles are one edge."""
        numbers = np.asarray(as_floats(values))
        shares = np.arange(1, self.count) / self.count
        with np.errstate(over="ignore", invalid="ignore"):
            edges = np.unique(np.quantile(numbers, shares)).tolist()
        self.check_finite(*edges)
        return Bucket(tuple(edges))


@dataclass(frozen=True)
class VocabularyToFit(ToFit):
    """Looks values up in the list of those that a sample has, the most frequent first.

    The list has at most `most` values. The position `unknown`, if it is within the list, is kept
    free for other values.
    """

    NAME: ClassVar = Vocabulary.NAME
    TAKES: ClassVar = Vocabulary.TAKES
    EACH: ClassVar = Vocabulary.EACH

    most: int | None = None
    unknown: int | None = field(default=None, kw_only=True)
    hash_unknown: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            self.refuse("most", "at least 1", self.most)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return int64."""
        return pa.int64()

    def fitted(self, values: pa.Array) -> Vocabulary:
        """Return vocabulary with its values; they are to be written to a file."""
        texts = [str(text) for text, _ in most_frequent(text_column(values))]
        # These cannot be lines of a file.
        texts = [t for t in texts if t and "\n" not in t and not t.endswith("\r")]
        found = [text for text in texts if text != _PLACEHOLDER or self.unknown is None]
        if not found:
            raise ManifestError(
                f"step {self.NAME}: cannot be fitted, because no text of the sample can be a line "
                "of a file: all are empty, or have line breaks"
            )
        most = len(found) + 1 if self.most is None else self.most
        if self.unknown is None and self.hash_unknown is None and len(found) > most:
            self.refuse("most", "unknown or hash_unknown for the other values", self.most)
        if self.unknown is not None and 0 <= self.unknown <= min(len(found), most - 1):
            found = [*found[: self.unknown], _PLACEHOLDER, *found[self.unknown :]]
        return Vocabulary(
            values=tuple(found[:most]), unknown=self.unknown, hash_unknown=self.hash_unknown
        )


TO_FIT: Mapping[str, type[ToFit]] = {
    step.NAME: step for step in (FillToFit, ScaleToFit, BucketToFit, VocabularyToFit)
}
# The members that make a step one that is not to be fitted.
GIVEN: Mapping[str, tuple[str, ...]] = {
    Scale.NAME: ("mean", "std"),
    Bucket.NAME: ("edges",),
    Vocabulary.NAME: ("file", "values"),
}


def step_classes(name: str, members: Mapping[str, Any]) -> Mapping[str, type[Step]]:
    """Return the classes of steps by name, for a step that has these members.

    A step without the members that a sample can give is to be fitted.

    Args:
        name: The name of the step.
        members: Its members.
    """
    is_fill = name == Fill.NAME and members.get("value") in _FILL_FROM
    if is_fill or (name in GIVEN and not members.keys() & set(GIVEN[name])):
        return {**STEPS, name: TO_FIT[name]}
    return STEPS


def present(values: pa.Array) -> pa.Array:
    """Return the values, or the items of lists, without null, NaN and infinity."""
    if is_list(values.type):
        values = values.drop_null().flatten()
    values = values.drop_null()
    if pa.types.is_floating(values.type):
        values = values.filter(pc.is_finite(values))
    return values


def most_frequent(values: pa.Array) -> list[tuple[Any, int]]:
    """Return the different values and how often each occurs, the most frequent first.

    Values that occur equally often are in their own order.
    """
    counted = pc.value_counts(values)
    table = pa.table({"value": counted.field(0), "count": counted.field(1)})
    table = table.sort_by([("count", "descending"), ("value", "ascending")])
    return list(
        zip(table.column("value").to_pylist(), table.column("count").to_pylist(), strict=True)
    )


def _plain(value: Any) -> Any:
    """Return a value of a column as the member of a step."""
    return value if isinstance(value, bool | str | int | float) else value.isoformat()
