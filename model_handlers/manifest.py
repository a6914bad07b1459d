"""The manifest `model.json` of a model package, which describes the inputs and outputs of a model.

The manifest is the contract between the person who trained the model and the workers that run it.
It says which columns form which input tensor, in which order, and which outputs the model returns.
This module reads no files and does not import torch. manifest_json.py parses the text.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa

from common.errors import ManifestError, UsageError, suggest
from model_handlers.tolerance import ATOL, RTOL, TOLERANCE, Tolerance

MANIFEST_NAME = "model.json"
SCHEMA_VERSION = 1
# The maximum number of elements in a row. An image of 4,000 x 5,000 pixels in three colors has 60
# million. Two rows are in memory when a model is tried.
MAX_WIDTH = 1 << 26
# NumPy and Arrow support at least this many dimensions. Each dimension is a list within a list.
MAX_DIMENSIONS = 30

DType = Literal["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
Format = Literal["torchscript", "pt2", "state_dict", "safetensors"]


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

    Attributes:
        columns: The source columns in tensor order: one column per element of a row, or a single
            list column that contains all elements of a row.
        dtype: The dtype of the elements.
        shape: The shape of one row, without the batch dimension; () for a single number.
        impute: "mean" for each feature whose missing, null and NaN values are replaced by the mean
            in the manifest's statistics. For other features, a row with such a value becomes a
            dead letter.
    """

    name: str
    columns: tuple[str, ...]
    _: KW_ONLY
    dtype: DType = "float32"
    shape: tuple[int, ...] = ()
    impute: Mapping[str, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The number of elements of one row."""
        return math.prod(self.shape)

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
class GoldenRows:
    """Known-good rows: rows with known answers, which are run each time the model is loaded.

    Attributes:
        inputs: The rows of each input, by name. Each row is a flat list, or a number.
        outputs: The expected rows of each output, by name.
        rtol: The relative tolerance of answers; see Tolerance.
        atol: The absolute tolerance of answers; see Tolerance.
    """

    inputs: Mapping[str, list[Any]]
    outputs: Mapping[str, list[Any]]
    rtol: float = RTOL
    atol: float = ATOL


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
class Manifest:
    """The content of `model.json`.

    Attributes:
        file: The name of the model file, in the folder of the manifest.
        sha256: The hex digest of the model file.
        score_output: The output that is the score, or None.
        output_fields: The outputs to write if the user names none; empty for all.
        golden: The known-good rows, or None.
        statistics: Statistics of the training rows, by feature.
        architecture: `module:Class` of the torch.nn.Module that weights are loaded into; only for
            the formats state_dict and safetensors.
        architecture_args: The keyword arguments with which that class is created.
        batch_dependence: The accepted difference, absolute and relative, between answers to a row
            in different batches; None if the answer must not depend on the batch.
    """

    name: str
    version: str
    format: Format
    file: str
    sha256: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    score_output: str | None = None
    output_fields: tuple[str, ...] = ()
    golden: GoldenRows | None = None
    statistics: Mapping[str, FeatureStatistics] = field(default_factory=dict)
    architecture: str | None = None
    architecture_args: Mapping[str, Any] = field(default_factory=dict)
    batch_dependence: float | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check(self)

    @property
    def features(self) -> tuple[str, ...]:
        """All source columns that the model needs, in order."""
        return tuple(column for spec in self.inputs for column in spec.columns)

    @property
    def tolerance(self) -> Tolerance:
        """The largest difference between answers to one row, on any machine and in any batch."""
        own = Tolerance(self.golden.rtol, self.golden.atol) if self.golden else TOLERANCE
        return own.at_least(self.batch_dependence or 0.0)

    def output(self, name: str) -> OutputSpec:
        """Return the output with this name. Raise UsageError if there is none."""
        for spec in self.outputs:
            if spec.name == name:
                return spec
        names = [spec.name for spec in self.outputs]
        raise UsageError(
            f"model {self.name} has no output {name!r}{suggest(name, names)}; "
            f"its outputs are {', '.join(names)}"
        )

    def without_rows(self) -> Manifest:
        """Return this manifest without values of single rows.

        Known-good rows, extremes and quantiles are removed. A job carries this manifest to places
        where other people may read it.
        """
        means = {
            column: replace(found, min=found.mean, max=found.mean, quantiles={})
            for column, found in self.statistics.items()
        }
        return replace(self, golden=None, statistics=means)

    def choose(self, score_output: str | None) -> Manifest:
        """Return this manifest with another output as the score.

        Args:
            score_output: The name of the output, or None to keep the manifest's own.

        Raises:
            UsageError: There is no such output, or it has more than one number per row.
        """
        name = score_output or self.score_output
        if name is None:
            return self
        if self.output(name).shape != ():
            raise UsageError(
                f"output {name!r} has shape {list(self.output(name).shape)} per row, so it cannot "
                f"be the score, which is one number per row; {self.score_advice()}"
            )
        return replace(self, score_output=name)

    def score_advice(self) -> str:
        """Return advice for an error message: how to get an output that can be the score."""
        scalars = [spec.name for spec in self.outputs if spec.shape == ()]
        if scalars:
            return f"choose --score_output from {', '.join(scalars)}"
        return (
            "no output of this model has one number per row: return one, for example the column of "
            "one class"
        )

    def to_json(self) -> str:
        """Return the text of `model.json`."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


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
    if where.startswith(("golden.inputs", "golden.outputs")) or (
        where == "golden" and not isinstance(got, str)
    ):
        # Known-good rows may come from real data.
        shown = f"a value of type {type(got).__name__}"
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    message = f"{MANIFEST_NAME}: {where}: expected {expected}, got {shown}{hint}"
    raise ManifestError(" ".join(message.split()))


def _check(manifest: Manifest) -> None:
    """Raise ManifestError unless the parts of a manifest agree with each other."""
    if manifest.schema_version != SCHEMA_VERSION:
        refuse_manifest("schema_version", SCHEMA_VERSION, manifest.schema_version)
    if "/" in manifest.file or "\\" in manifest.file or manifest.file in ("", ".", ".."):
        refuse_manifest("file", "the name of a file in the manifest's folder", manifest.file)
    if len(manifest.sha256) != 64 or set(manifest.sha256) - set("0123456789abcdef"):
        refuse_manifest("sha256", "64 lowercase hex digits", manifest.sha256)
    _check_tensors("inputs", manifest.inputs)
    _check_tensors("outputs", manifest.outputs)
    for spec in manifest.inputs:
        _check_columns(spec, manifest.statistics)
    known = [spec.name for spec in manifest.outputs]
    for where, names in (
        ("score_output", filter(None, [manifest.score_output])),
        ("output_fields", manifest.output_fields),
    ):
        for name in names:
            if name not in known:
                refuse_manifest(
                    where, f"one of the outputs {', '.join(known)}", name, suggest(name, known)
                )
    if manifest.score_output and manifest.output(manifest.score_output).shape != ():
        refuse_manifest("score_output", "an output with one number per row", manifest.score_output)
    if manifest.batch_dependence is not None and not manifest.batch_dependence > 0:
        refuse_manifest("batch_dependence", "a number above 0, or null", manifest.batch_dependence)
    if manifest.golden is not None:
        _check_golden(manifest.golden, manifest)


def _check_tensors(where: str, specs: tuple[InputSpec, ...] | tuple[OutputSpec, ...]) -> None:
    """Raise ManifestError unless the names and shapes of tensors are valid."""
    names = [spec.name for spec in specs]
    if not names or len(set(names)) != len(names):
        refuse_manifest(where, "one or more tensors with different names", names)
    for spec in specs:
        if len(spec.shape) > MAX_DIMENSIONS:
            refuse_manifest(
                f"{where}.{spec.name}.shape", f"at most {MAX_DIMENSIONS} sizes", len(spec.shape)
            )
        if min(spec.shape, default=1) < 1 or math.prod(spec.shape) > MAX_WIDTH:
            expected = (
                f"positive sizes, without the batch dimension, of at most {MAX_WIDTH:,} elements"
            )
            refuse_manifest(f"{where}.{spec.name}.shape", expected, list(spec.shape))


def _check_columns(spec: InputSpec, statistics: Mapping[str, FeatureStatistics]) -> None:
    """Raise ManifestError unless the columns of an input match its shape."""
    where = f"inputs.{spec.name}"
    if len(set(spec.columns)) != len(spec.columns) or not spec.columns:
        refuse_manifest(
            f"{where}.columns", "one or more columns, none of them twice", list(spec.columns)
        )
    if not spec.is_list_column and len(spec.columns) != spec.width:
        expected = f"{spec.width} columns, for shape {list(spec.shape)}"
        refuse_manifest(f"{where}.columns", expected, len(spec.columns))
    for column, how in spec.impute.items():
        if column not in spec.columns or spec.is_list_column:
            refuse_manifest(
                f"{where}.impute", "a column of this input with one number per row", column
            )
        if how != "mean":
            refuse_manifest(f"{where}.impute.{column}", "'mean'", how)
        if column not in statistics:
            raise ManifestError(
                f"model.json: {where}.impute.{column}: statistics has no mean of the column: "
                "package the model with --sample"
            )


def _check_golden(golden: GoldenRows, manifest: Manifest) -> None:
    """Raise ManifestError unless the known-good rows have the manifest's tensors and shapes."""
    inputs = {spec.name for spec in manifest.inputs}
    outputs = {spec.name for spec in manifest.outputs}
    if set(golden.inputs) != inputs or not golden.outputs or set(golden.outputs) - outputs:
        expected = "rows for every input and for one or more outputs"
        refuse_manifest("golden", expected, ", ".join([*golden.inputs, *golden.outputs]))
    if not (golden.rtol >= 0 and golden.atol >= 0):
        refuse_manifest("golden", "rtol and atol of at least 0", f"{golden.rtol} and {golden.atol}")
    first = golden.inputs[manifest.inputs[0].name]
    for spec in manifest.inputs:
        shape = (spec.width,) if spec.shape else ()
        where = f"golden.inputs.{spec.name}"
        _check_rows(where, golden.inputs[spec.name], spec.dtype, (len(first), *shape))
    for output in manifest.outputs:
        if output.name in golden.outputs:
            where = f"golden.outputs.{output.name}"
            _check_rows(
                where, golden.outputs[output.name], output.dtype, (len(first), *output.shape)
            )


def _check_rows(where: str, rows: list[Any], dtype: str, shape: tuple[int, ...]) -> None:
    try:
        array = np.asarray(rows)
        numbers = array.dtype.kind in "biuf" and np.asarray(rows, dtype) is not None
        # Known-good rows may come from real data, so the message has no value of them.
        found = f"the shape {list(array.shape)}" if numbers else "other values"
    except (ValueError, TypeError, OverflowError):
        numbers, found = False, "rows of different lengths or other values"
    # A list of one number is one number.
    single = numbers and len(shape) == 1 and array.shape[:1] == shape and array.size == len(rows)
    if not numbers or not (single or array.shape == shape) or shape[0] < 1:
        raise ManifestError(
            f"{MANIFEST_NAME}: {where}: expected one or more rows of {dtype} in the shape "
            f"{list(shape)}, got {found}"
        )
