"""What a model takes and gives: the manifest `model.json` of a model package.

The manifest is the contract between whoever trained the model and every worker
that runs it: which columns make up which tensor, in which order, and what comes
out. Nothing here reads a file or knows torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

import pyarrow as pa

from model_handlers.errors import ManifestError, UsageError, nearest

MANIFEST_NAME = "model.json"
SCHEMA_VERSION = 1

DType = Literal["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
Format = Literal["torchscript", "pt2", "state_dict", "safetensors"]


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
        single list column that holds the whole row.
    shape: of one row, without the batch dimension; () is one number.
    impute: feature -> "mean": what to put for a missing, null or NaN value. A
        feature that is not named here has its faulty rows dead-lettered.
    """

    name: str
    columns: tuple[str, ...]
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
        return len(self.columns) == 1 and self.shape != ()

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
    A value passes when abs(got - expected) <= atol + rtol * abs(expected).
    """

    inputs: Mapping[str, list[Any]]
    outputs: Mapping[str, list[Any]]
    rtol: float = 1e-4
    atol: float = 1e-5


@dataclass(frozen=True)
class FeatureStatistics:
    """Of one feature over the training rows; quantiles maps "0.5" to the median."""

    count: int
    mean: float
    std: float
    min: float
    max: float
    quantiles: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A model package's `model.json`.

    file: the model file's name, beside the manifest. sha256: hex digest of that
    file. score_output: the output that is the score, None if there is none.
    output_fields: outputs written when the user names none; empty means all.
    architecture: `module:Class` of the torch.nn.Module a state dict belongs to, and
    architecture_args the keyword arguments it is built with.
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
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check(self)

    @property
    def features(self) -> tuple[str, ...]:
        """Every source column the model needs, in order."""
        return tuple(column for spec in self.inputs for column in spec.columns)

    def output(self, name: str) -> OutputSpec:
        """An output's name -> its spec. Raises UsageError with the nearest names."""
        for spec in self.outputs:
            if spec.name == name:
                return spec
        names = [spec.name for spec in self.outputs]
        raise UsageError(
            f"model {self.name} has no output {name!r}{nearest(name, names)}; "
            f"its outputs are {', '.join(names)}"
        )

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
                "the score: choose one that gives a single number with --score_output"
            )
        return replace(self, score_output=name)

    def to_json(self) -> str:
        """Manifest -> the text of `model.json`."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """The text of `model.json` -> Manifest. Raises ManifestError."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ManifestError(f"{MANIFEST_NAME} is not JSON: {error}") from error
        return _parse_manifest(value)


def _check(manifest: Manifest) -> None:
    """A manifest's parts must agree with each other. Raises ManifestError."""
    if manifest.schema_version != SCHEMA_VERSION:
        _refuse("schema_version", SCHEMA_VERSION, manifest.schema_version)
    if "/" in manifest.file or "\\" in manifest.file or manifest.file in ("", ".", ".."):
        _refuse("file", "a file name beside the manifest, without a folder", manifest.file)
    if len(manifest.sha256) != 64 or set(manifest.sha256) - set("0123456789abcdef"):
        _refuse("sha256", "64 lower case hex digits", manifest.sha256)
    if not manifest.inputs or not manifest.outputs:
        raise ManifestError(f"{MANIFEST_NAME}: at least one input and one output are expected")
    for kind, names in (
        ("inputs", [spec.name for spec in manifest.inputs]),
        ("outputs", [spec.name for spec in manifest.outputs]),
    ):
        if len(set(names)) != len(names):
            _refuse(kind, "names that differ", names)
    for spec in manifest.inputs:
        _check_input(spec, manifest.statistics)
    known = {spec.name for spec in manifest.outputs}
    chosen = (*manifest.output_fields, *filter(None, [manifest.score_output]))
    for name in chosen:
        if name not in known:
            _refuse("score_output and output_fields", f"one of the outputs {sorted(known)}", name)


def _check_input(spec: InputSpec, statistics: Mapping[str, FeatureStatistics]) -> None:
    """An input's columns and shape must agree. Raises ManifestError."""
    where = f"inputs.{spec.name}"
    if len(set(spec.columns)) != len(spec.columns) or not spec.columns:
        _refuse(f"{where}.columns", "one or more columns, each once", list(spec.columns))
    if not spec.is_list_column and len(spec.columns) != spec.width:
        _refuse(
            f"{where}.columns",
            f"{spec.width} columns, for shape {list(spec.shape)}",
            len(spec.columns),
        )
    for column, how in spec.impute.items():
        if column not in spec.columns or spec.is_list_column:
            _refuse(f"{where}.impute", "columns of this input", column)
        if how != "mean" or column not in statistics:
            _refuse(f"{where}.impute.{column}", "'mean', with statistics for the column", how)


def _refuse(where: str, expected: object, got: object) -> None:
    raise ManifestError(f"{MANIFEST_NAME}: {where}: expected {expected}, got {got!r}")


def _parse_manifest(value: Any) -> Manifest:
    """Decoded JSON -> Manifest. Raises ManifestError."""
    known = _members(Manifest, value, "")
    golden = known.get("golden")
    statistics = _mapping(known.get("statistics", {}), "statistics")
    return _build(
        Manifest,
        "",
        known
        | {
            "inputs": tuple(_parse_tensor(InputSpec, v, "inputs") for v in _items(known, "inputs")),
            "outputs": tuple(
                _parse_tensor(OutputSpec, v, "outputs") for v in _items(known, "outputs")
            ),
            "output_fields": tuple(_names(known, "output_fields")),
            "golden": None
            if golden is None
            else _build(GoldenRows, "golden", _members(GoldenRows, golden, "golden")),
            "statistics": {
                name: _build(FeatureStatistics, where, _members(FeatureStatistics, entry, where))
                for name, entry in statistics.items()
                for where in [f"statistics.{name}"]
            },
        },
    )


def _parse_tensor(kind: type[Any], value: Any, where: str) -> Any:
    """One decoded entry of inputs or outputs -> its spec. Raises ManifestError."""
    known = _members(kind, value, where)
    where = f"{where}.{known.get('name')}"
    dtype = known.get("dtype", "float32")
    if dtype not in get_args(DType):
        _refuse(f"{where}.dtype", f"one of {', '.join(get_args(DType))}", dtype)
    shape = _items(known, "shape")
    if not all(type(size) is int and size > 0 for size in shape):
        _refuse(f"{where}.shape", "a list of positive integers without the batch", shape)
    listed = {"shape": tuple(shape)}
    if "columns" in known:
        listed["columns"] = tuple(_names(known, "columns"))
    return _build(kind, where, known | listed)


def _items(known: Mapping[str, Any], key: str) -> list[Any]:
    value = known.get(key, [])
    if not isinstance(value, list):
        _refuse(key, "a list", value)
    return list(value)


def _names(known: Mapping[str, Any], key: str) -> list[str]:
    names = _items(known, key)
    if not all(isinstance(name, str) for name in names):
        _refuse(key, "a list of names", names)
    return names


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where or "the whole", "a JSON object", value)
    return dict(value)


def _members(kind: type[Any], value: Any, where: str) -> dict[str, Any]:
    """A JSON object -> its members, each a field of `kind`. Raises ManifestError."""
    members = _mapping(value, where)
    known = [f.name for f in fields(kind)]
    for name in members:
        if name not in known:
            raise ManifestError(
                f"{MANIFEST_NAME}: {where or 'top level'}: unknown member {name!r}"
                f"{nearest(name, known)}"
            )
    return members


_PLAIN: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "str | None": (str, type(None)),
}


def _build(kind: type[Any], where: str, members: Mapping[str, Any]) -> Any:
    """A dataclass and its members -> an instance, plain types checked. Raises ManifestError."""
    for f in fields(kind):
        expected = _PLAIN.get(str(f.type))
        if expected and f.name in members and not isinstance(members[f.name], expected):
            _refuse(f"{where}.{f.name}".lstrip("."), f"a {f.type}", members[f.name])
    if "format" in members and members["format"] not in get_args(Format):
        _refuse("format", f"one of {', '.join(get_args(Format))}", members["format"])
    try:
        return kind(**members)
    except TypeError as error:
        missing = str(error).split(":")[-1].strip()
        raise ManifestError(f"{MANIFEST_NAME}: {where or 'top level'} lacks {missing}") from error
