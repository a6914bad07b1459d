"""The parts of a manifest: tensors, fields, known-good rows and statistics."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, NoReturn

import pyarrow as pa

from common.errors import ManifestError
from model_handlers.manifests.tolerance import ATOL, RTOL
from model_handlers.steps.chain import Chain

MANIFEST_NAME = "model.json"
# The maximum number of elements in a row. An image of 4,000 x 5,000 pixels in three colors has 60
# million. Two rows are in memory when a model is tried.
MAX_WIDTH = 1 << 26
# NumPy and Arrow support at least this many dimensions. Each dimension is a list within a list.
MAX_DIMENSIONS = 30

DType = Literal["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
Format = Literal["torchscript", "pt2", "state_dict", "safetensors"]
RawType = Literal[
    "float64",
    "int64",
    "bool",
    "string",
    "timestamp",
    "datetime",
    "date",
    "binary",
    "list<float64>",
    "list<int64>",
    "list<string>",
]


@functools.cache
def arrow_type(dtype: str, shape: tuple[int, ...]) -> pa.DataType:
    """Return the Arrow type of one row of a tensor; each dimension becomes a fixed size list.

    Args:
        dtype: The dtype of the elements.
        shape: The shape of one row, without the batch dimension; () for a single number.
    """
    result = pa.bool_() if dtype == "bool" else pa.type_for_alias(dtype)
    for size in reversed(shape):
        result = pa.list_(result, size)
    return result


@dataclass(frozen=True)
class InputSpec:
    """One input tensor of a model.

    An input is read from columns of numbers as they are, or from the results of chains.

    Attributes:
        columns: The source columns in tensor order: one column per element of a row, or a single
            list column that contains all elements of a row. Empty if the input has chains.
        dtype: The dtype of the elements.
        shape: The shape of one row, without the batch dimension; () for a single number.
        impute: "mean" for each feature whose missing, null and NaN values are replaced by the mean
            in the manifest's statistics. For other features, a row with such a value becomes a
            dead letter.
        chains: The chains whose results, one after the other, are the elements of a row. In
            `model.json` they are the member `from`, which a version 1 does not have.
    """

    name: str
    columns: tuple[str, ...] = ()
    _: KW_ONLY
    dtype: DType = "float32"
    shape: tuple[int, ...] = ()
    impute: Mapping[str, str] = field(default_factory=dict)
    chains: tuple[Chain, ...] = field(default=(), metadata={"name": "from", "since": 2})

    @property
    def width(self) -> int:
        """The number of elements of one row."""
        return math.prod(self.shape)

    @property
    def sources(self) -> tuple[str, ...]:
        """The source columns that the input is read from, each once."""
        read = (name for chain in self.chains for name in chain.names)
        return tuple(dict.fromkeys((*self.columns, *read)))

    @property
    def is_list_column(self) -> bool:
        """Whether one list column contains all elements of a row."""
        return len(self.columns) == 1 and self.width > 1

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of the input's column in a validated batch: a flat list per row, or a number."""
        return arrow_type(self.dtype, (self.width,) if self.shape else ())


@dataclass(frozen=True)
class OutputSpec:
    """One output tensor of a model.

    Attributes:
        shape: The shape of one row, without the batch dimension; () for a single number. A shape
            of one element, such as (1,), becomes ().
    """

    name: str
    dtype: DType = "float32"
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Most models end in a linear layer of width 1, which returns [rows, 1].
        if set(self.shape) == {1}:
            object.__setattr__(self, "shape", ())

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of the output's column."""
        return arrow_type(self.dtype, self.shape)


@dataclass(frozen=True)
class FieldSpec:
    """A field that is computed from the outputs of a model, such as a label or a decision.

    Attributes:
        chain: The chain that gives the field. It starts at an output or at an earlier field.
    """

    name: str
    chain: Chain = field(metadata={"name": "from", "since": 2})


@dataclass(frozen=True)
class GoldenRows:
    """Known-good rows: rows with known answers, which are run each time the model is loaded.

    Attributes:
        inputs: The rows of each input, by name. Each row is a flat list, or a number. Empty if the
            rows are raw.
        outputs: The expected rows of each output, by name.
        rtol: The relative tolerance of answers; see Tolerance.
        atol: The absolute tolerance of answers; see Tolerance.
        rows: The raw rows, as JSON objects with the columns of the source, if the manifest declares
            columns.
        fields: The expected value of each field for each row, by name.
    """

    inputs: Mapping[str, list[Any]] = field(default_factory=dict)
    outputs: Mapping[str, list[Any]] = field(default_factory=dict)
    rtol: float = RTOL
    atol: float = ATOL
    rows: list[Mapping[str, Any]] = field(default_factory=list, metadata={"since": 2})
    fields: Mapping[str, list[Any]] = field(default_factory=dict, metadata={"since": 2})


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Statistics of one feature over the training rows.

    Attributes:
        quantiles: The values of quantiles; "0.5" is the key of the median.
    """

    count: int
    mean: float
    std: float
    min: float
    max: float
    quantiles: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How numbers are spread.

    Attributes:
        quantiles: The values of quantiles; "0.5" is the key of the median. Empty, as the extremes,
            where the values of single rows must not appear.
    """

    mean: float
    std: float
    min: float | None = None
    max: float | None = None
    quantiles: Mapping[str, float] = field(default_factory=dict)

    def without_rows(self) -> Spread:
        """Return this without the values of single rows."""
        return Spread(mean=self.mean, std=self.std)


@dataclass(frozen=True, kw_only=True)
class ColumnStatistics:
    """Statistics of one raw column over the rows of the sample.

    Attributes:
        count: The number of rows.
        nulls: The share of rows without a value, 0 to 1.
        refused: The share of rows whose value is not of the declared type, 0 to 1.
        numbers: The spread of the numbers, of columns of numbers.
        lengths: The spread of the numbers of items, of columns of lists.
        distinct: The number of different values, of columns of text, booleans and integers.
        categories: The most frequent values of such a column and their numbers of rows, the most
            frequent first.
        earliest: The earliest time, of columns of times and dates.
        latest: The latest time.
    """

    count: int
    nulls: float = 0.0
    refused: float = 0.0
    numbers: Spread | None = None
    lengths: Spread | None = None
    distinct: int | None = None
    categories: Mapping[str, int] = field(default_factory=dict)
    earliest: str | None = None
    latest: str | None = None

    def without_rows(self) -> ColumnStatistics:
        """Return these statistics without the values of single rows."""
        return ColumnStatistics(
            count=self.count,
            nulls=self.nulls,
            refused=self.refused,
            numbers=self.numbers and self.numbers.without_rows(),
            lengths=self.lengths and self.lengths.without_rows(),
            distinct=self.distinct,
        )


def refuse_manifest(where: str, expected: object, got: object, hint: str = "") -> NoReturn:
    """Raise a ManifestError of one line.

    Args:
        where: The place in the manifest, such as `inputs.features.shape`.
        expected: What is allowed there.
        got: The value that was found; shortened in the message.
        hint: Text to add to the end of the message.

    Raises:
        ManifestError: Always.
    """
    shown = repr(got)
    if where.startswith(("golden.inputs", "golden.outputs", "golden.rows", "golden.fields")) or (
        where == "golden" and not isinstance(got, str)
    ):
        # Known-good rows may come from real data.
        shown = f"a value of type {type(got).__name__}"
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    message = f"{MANIFEST_NAME}: {where}: expected {expected}, got {shown}{hint}"
    raise ManifestError(" ".join(message.split()))
