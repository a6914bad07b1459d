"""What a model takes and gives: the manifest `model.json` of a model package.

The manifest is the contract between whoever trained the model and every worker
that runs it: which columns make up which tensor, in which order, and what comes
out. Nothing here reads a file or knows torch. manifest_json.py parses the text.
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
# Elements of a row; an image of 4,000 x 5,000 pixels has 60 million. Two rows are tried at once.
MAX_WIDTH = 1 << 26
# NumPy and Arrow take this many at least; every one is a list within a list.
MAX_DIMENSIONS = 30

DType = Literal["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
Format = Literal["torchscript", "pt2", "state_dict", "safetensors"]


@functools.cache
def arrow_type(dtype: str, shape: tuple[int, ...]) -> pa.DataType:
    """Element dtype and shape of one row -> Arrow type; each dimension is a fixed size list."""
    result = pa.bool_() if dtype == "bool" else pa.type_for_alias(dtype)
    for size in reversed(shape):
        result = pa.list_(result, size)
    return result


@dataclass(frozen=True)
class InputSpec:
    """One input tensor.

    columns: source columns in tensor order. One column per element of a row, or a
        single list column that holds the whole row of several elements.
    shape: of one row, without the batch dimension; () is one number.
    impute: feature -> "mean": what to put for a missing, null or NaN value. A
        feature that is not named here has its faulty rows dead-lettered.
    """

    name: str
    columns: tuple[str, ...]
    _: KW_ONLY
    dtype: DType = "float32"
    shape: tuple[int, ...] = ()
    impute: Mapping[str, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape)

    @property
    def is_list_column(self) -> bool:
        """Whether one list column holds the whole row."""
        return len(self.columns) == 1 and self.width > 1

    @property
    def arrow_type(self) -> pa.DataType:
        """The type a validated batch holds this tensor in: flat, one list a row."""
        return arrow_type(self.dtype, (self.width,) if self.shape else ())


@dataclass(frozen=True)
class OutputSpec:
    """One output tensor: name, dtype and the shape of one row; () is one number."""

    name: str
    dtype: DType = "float32"
    shape: tuple[int, ...] = ()

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of the output's column."""
        return arrow_type(self.dtype, self.shape)


@dataclass(frozen=True)
class GoldenRows:
    """Rows with known answers, run each time the model is loaded.

    inputs: tensor name -> rows, flat. outputs: output name -> rows.
    rtol, atol: how far an answer may lie from the expected one, see Tolerance.
    """

    inputs: Mapping[str, list[Any]]
    outputs: Mapping[str, list[Any]]
    rtol: float = RTOL
    atol: float = ATOL


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Of one feature over the training rows; quantiles maps "0.5" to the median."""

    count: int
    mean: float
    std: float
    min: float
    max: float
    quantiles: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A model package's `model.json`.

    file: the model file's name, beside the manifest. sha256: hex digest of that
    file. score_output: the output that is the score, None if there is none.
    output_fields: outputs written when the user names none; empty means all.
    architecture: `module:Class` of the torch.nn.Module a state dict belongs to, and
    architecture_args the keyword arguments it is built with. batch_dependence: how far the
    answer to a row may differ with the rows beside it, where somebody accepted that it does.
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
        """Every source column the model needs, in order."""
        return tuple(column for spec in self.inputs for column in spec.columns)

    @property
    def tolerance(self) -> Tolerance:
        """How far two answers to one row may lie apart, wherever and beside whichever rows."""
        own = Tolerance(self.golden.rtol, self.golden.atol) if self.golden else TOLERANCE
        return own.at_least(self.batch_dependence or 0.0)

    def output(self, name: str) -> OutputSpec:
        """An output's name -> its spec. Raises UsageError with the nearest names."""
        for spec in self.outputs:
            if spec.name == name:
                return spec
        names = [spec.name for spec in self.outputs]
        raise UsageError(
            f"model {self.name} has no output {name!r}{suggest(name, names)}; "
            f"its outputs are {', '.join(names)}"
        )

    def without_rows(self) -> Manifest:
        """This manifest without what some row held: golden rows, extremes and quantiles.

        A job carries it where others may read it.
        """
        means = {
            column: replace(found, min=found.mean, max=found.mean, quantiles={})
            for column, found in self.statistics.items()
        }
        return replace(self, golden=None, statistics=means)

    def choose(self, score_output: str | None) -> Manifest:
        """This manifest with another output as the score. Raises UsageError.

        A score is one number a row, so an output of any other shape is refused.
        """
        name = score_output or self.score_output
        if name is None:
            return self
        if self.output(name).shape != ():
            raise UsageError(
                f"output {name!r} has shape {list(self.output(name).shape)} a row and cannot be "
                f"the score, which is one number: {self.score_advice()}"
            )
        return replace(self, score_output=name)

    def score_advice(self) -> str:
        """Manifest -> what to do for a score: an output to choose, or how the model gets one."""
        scalars = [spec.name for spec in self.outputs if spec.shape == ()]
        if scalars:
            return f"--score_output takes {', '.join(scalars)}"
        if any(spec.shape == (1,) for spec in self.outputs):
            return "this model answers lists of one number; let it end in .squeeze(-1)"
        return "this model has no such output; let it return one, for instance one class's column"

    def to_json(self) -> str:
        """Manifest -> the text of `model.json`."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def refuse_manifest(where: str, expected: object, got: object, hint: str = "") -> NoReturn:
    """A place in the manifest and what is wrong there -> ManifestError, in one line."""
    shown = repr(got)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    message = f"{MANIFEST_NAME}: {where}: expected {expected}, got {shown}{hint}"
    raise ManifestError(" ".join(message.split()))


def _check(manifest: Manifest) -> None:
    """A manifest's parts must agree with each other. Raises ManifestError."""
    if manifest.schema_version != SCHEMA_VERSION:
        refuse_manifest("schema_version", SCHEMA_VERSION, manifest.schema_version)
    if "/" in manifest.file or "\\" in manifest.file or manifest.file in ("", ".", ".."):
        refuse_manifest("file", "a file name beside the manifest, without a folder", manifest.file)
    if len(manifest.sha256) != 64 or set(manifest.sha256) - set("0123456789abcdef"):
        refuse_manifest("sha256", "64 lower case hex digits", manifest.sha256)
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
        refuse_manifest("score_output", "an output of one number a row", manifest.score_output)
    if manifest.batch_dependence is not None and not manifest.batch_dependence > 0:
        refuse_manifest("batch_dependence", "a number above 0, or null", manifest.batch_dependence)
    if manifest.golden is not None:
        _check_golden(manifest.golden, manifest)


def _check_tensors(where: str, specs: tuple[InputSpec, ...] | tuple[OutputSpec, ...]) -> None:
    """At least one tensor, names that differ, sizes that fit a machine. Raises ManifestError."""
    names = [spec.name for spec in specs]
    if not names or len(set(names)) != len(names):
        refuse_manifest(where, "one or more, with names that differ", names)
    for spec in specs:
        if len(spec.shape) > MAX_DIMENSIONS:
            refuse_manifest(
                f"{where}.{spec.name}.shape", f"{MAX_DIMENSIONS} sizes at most", len(spec.shape)
            )
        if min(spec.shape, default=1) < 1 or math.prod(spec.shape) > MAX_WIDTH:
            expected = f"positive sizes without the batch, of {MAX_WIDTH:,} elements at most"
            refuse_manifest(f"{where}.{spec.name}.shape", expected, list(spec.shape))


def _check_columns(spec: InputSpec, statistics: Mapping[str, FeatureStatistics]) -> None:
    """An input's columns and shape must agree. Raises ManifestError."""
    where = f"inputs.{spec.name}"
    if len(set(spec.columns)) != len(spec.columns) or not spec.columns:
        refuse_manifest(f"{where}.columns", "one or more columns, each once", list(spec.columns))
    if not spec.is_list_column and len(spec.columns) != spec.width:
        expected = f"{spec.width} columns, for shape {list(spec.shape)}"
        refuse_manifest(f"{where}.columns", expected, len(spec.columns))
    for column, how in spec.impute.items():
        if column not in spec.columns or spec.is_list_column:
            refuse_manifest(f"{where}.impute", "columns of this input", column)
        if how != "mean" or column not in statistics:
            refuse_manifest(
                f"{where}.impute.{column}", "'mean', with statistics for the column", how
            )


def _check_golden(golden: GoldenRows, manifest: Manifest) -> None:
    """Golden rows must have the manifest's tensors and shapes. Raises ManifestError."""
    inputs = {spec.name for spec in manifest.inputs}
    outputs = {spec.name for spec in manifest.outputs}
    if set(golden.inputs) != inputs or not golden.outputs or set(golden.outputs) - outputs:
        expected = "rows of every input and of one or more outputs"
        refuse_manifest("golden", expected, [*golden.inputs, *golden.outputs])
    if not (golden.rtol >= 0 and golden.atol >= 0):
        refuse_manifest("golden", "rtol and atol from 0", [golden.rtol, golden.atol])
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
    except (ValueError, TypeError, OverflowError):
        numbers = False
    if not numbers or array.shape != shape or shape[0] < 1:
        refuse_manifest(where, f"one or more rows of {dtype}, {list(shape)} in all", rows)
