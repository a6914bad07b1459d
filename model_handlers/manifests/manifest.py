"""The manifest `model.json` of a model package, which describes the inputs and outputs of a model.

The manifest is the contract between the person who trained the model and the workers that run it.
It says which columns form which input tensor, in which order, and which outputs the model returns.
A manifest of version 2 also declares the raw columns of the source, and the steps from them to
tensors and from outputs to fields. This module reads no files and does not import torch.
manifest_json.py parses the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

import pyarrow as pa

from common.errors import UsageError, suggest
from model_handlers.manifests.checks import (
    check_chains,
    check_columns,
    check_declared,
    check_fields,
    check_files,
    check_golden,
    check_label,
    check_names,
    check_tensors,
    is_digest,
    is_file_name,
)
from model_handlers.manifests.parts import (
    MANIFEST_NAME,
    ColumnStatistics,
    DType,
    FeatureStatistics,
    FieldSpec,
    Format,
    GoldenRows,
    InputSpec,
    OutputSpec,
    RawType,
    Spread,
    arrow_type,
    refuse_manifest,
)
from model_handlers.manifests.plain import PlainValues, digest_of
from model_handlers.manifests.tolerance import TOLERANCE, Tolerance
from model_handlers.steps.answers import Cut, Names
from model_handlers.steps.chain import Chain
from model_handlers.steps.own_function import Call
from model_handlers.steps.raw import RAW_TYPES
from model_handlers.steps.step import Kind, kind_of

__all__ = [
    "MANIFEST_NAME",
    "ColumnStatistics",
    "DType",
    "FeatureStatistics",
    "FieldSpec",
    "Format",
    "GoldenRows",
    "InputSpec",
    "Manifest",
    "OutputSpec",
    "RawType",
    "Spread",
    "arrow_type",
    "refuse_manifest",
]

SCHEMA_VERSIONS = (1, 2)
_SINCE_2: Mapping[str, Any] = {"since": 2}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `model.json`.

    Attributes:
        file: The name of the model file, in the folder of the manifest.
        sha256: The hex digest of the model file.
        score_output: The output or field that is the score, or None.
        output_fields: The outputs and fields to write if the user names none; empty for all.
        golden: The known-good rows, or None.
        statistics: Statistics of the training rows, by feature.
        architecture: `module:Class` of the torch.nn.Module that weights are loaded into; only for
            the formats state_dict and safetensors.
        architecture_args: The keyword arguments with which that class is created.
        batch_dependence: The accepted difference, absolute and relative, between answers to a row
            in different batches; None if the answer must not depend on the batch.
        columns: The raw type of each column that chains read, by name. Version 2, like the next
            three.
        files: The hex sha256 of each other file of the package, such as a vocabulary, by name.
        fields: What is computed from the outputs, in order.
        column_statistics: Statistics of the declared columns in the rows of the sample, by name.
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
    schema_version: int = 1
    columns: Mapping[str, RawType] = field(default_factory=dict, metadata=_SINCE_2)
    files: Mapping[str, str] = field(default_factory=dict, metadata=_SINCE_2)
    fields: tuple[FieldSpec, ...] = field(default=(), metadata=_SINCE_2)
    column_statistics: Mapping[str, ColumnStatistics] = field(
        default_factory=dict, metadata=_SINCE_2
    )

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def digest(self) -> str:
        """The hex sha256 that names the model in predictions.

        In version 1, it is that of the model file. In version 2, it covers everything that
        determines predictions: also the steps and the files that they read, but not the name, the
        version, the choice of the score, the known-good rows and other statistics than the means
        that replace missing values.
        """
        if self.schema_version == 1:
            return self.sha256
        imputed = [column for spec in self.inputs for column in spec.impute]
        parts = {
            "sha256": self.sha256,
            "architecture": self.architecture,
            "architecture_args": self.architecture_args,
            "columns": self.columns,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "fields": self.fields,
            "files": {name: self.files[name] for chain in self.chains for name in chain.files},
            "means": {column: self.statistics[column].mean for column in imputed},
        }
        values = PlainValues(self.schema_version, [spec.name for spec in self.outputs], brief=True)
        return digest_of({name: values.of(part) for name, part in parts.items() if part})

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names of all files of the package, `model.json` first and the model file second."""
        return (MANIFEST_NAME, self.file, *self.files)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """All source columns that the model needs, in order, each once."""
        return tuple(dict.fromkeys(name for spec in self.inputs for name in spec.sources))

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chains of all inputs and fields."""
        of_inputs = [chain for spec in self.inputs for chain in spec.chains]
        return (*of_inputs, *(spec.chain for spec in self.fields))

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions of the user that steps call, each once."""
        return tuple(dict.fromkeys(name for chain in self.chains for name in chain.functions))

    @property
    def sources(self) -> dict[str, str]:
        """The digest that the source of each function had when the model was packaged, by name."""
        calls = (step for chain in self.chains for step in chain.steps if isinstance(step, Call))
        return {call.function: call.source_sha256 for call in calls if call.source_sha256}

    @cached_property
    def optional(self) -> frozenset[str]:
        """The declared columns that a row may lack, because all chains fill them."""
        types = {name: RAW_TYPES[raw] for name, raw in self.columns.items()}
        chains = [chain for spec in self.inputs for chain in spec.chains]
        needed = {
            name
            for chain in chains
            for name in chain.names
            if name != chain.start or not chain.fills(types)
        }
        return frozenset(set(self.columns) - needed)

    @property
    def has_steps(self) -> bool:
        """Whether rows are prepared by steps."""
        return any(spec.chains for spec in self.inputs)

    @property
    def prepared(self) -> Manifest:
        """This manifest for rows that were prepared: each input with chains is a column."""
        inputs = tuple(
            replace(spec, columns=(spec.name,), chains=()) if spec.chains else spec
            for spec in self.inputs
        )
        return replace(self, inputs=inputs, columns={}, column_statistics={}, golden=None)

    @cached_property
    def results(self) -> dict[str, pa.DataType]:
        """The Arrow type of each output and field, by name, in order."""
        return check_fields(self.fields, self.outputs)

    def outputs_for(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the outputs that are needed for some outputs and fields, each once.

        Raises:
            UsageError: A name is neither an output nor a field.
        """
        own = {spec.name for spec in self.fields}
        return tuple(name for name in self._needed(names) if name not in own)

    def fields_for(self, names: Iterable[str]) -> frozenset[str]:
        """Return the fields that are needed for some outputs and fields, these fields included.

        Raises:
            UsageError: A name is neither an output nor a field.
        """
        own = {spec.name for spec in self.fields}
        return frozenset(name for name in self._needed(names) if name in own)

    def _needed(self, names: Iterable[str]) -> dict[str, None]:
        """Return names of outputs and fields, and those from which the fields are computed."""
        needed: dict[str, None] = {}
        chains = {spec.name: spec.chain for spec in self.fields}
        waiting = deque(names)
        while waiting:
            name = waiting.popleft()
            if name in needed:
                continue
            if name in chains:
                waiting += chains[name].names
            elif name not in self.results:
                self._refuse_name(name, list(self.results))
            needed[name] = None
        return needed

    @property
    def kind(self) -> str:
        """What a name in `results` is, for messages."""
        return "output or field" if self.fields else "output"

    @property
    def kinds(self) -> str:
        """What the names in `results` are, for messages."""
        return "outputs and fields" if self.fields else "outputs"

    @property
    def decisions(self) -> tuple[str, ...]:
        """The fields whose values are names of decisions or classes."""
        return tuple(
            spec.name
            for spec in self.fields
            if any(isinstance(step, Cut | Names) for step in spec.chain.steps[-1:])
        )

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
        self._refuse_name(name, [spec.name for spec in self.outputs])

    def result_type(self, name: str) -> pa.DataType:
        """Return the type of an output or field. Raise UsageError if it does not exist."""
        if name not in self.results:
            self._refuse_name(name, list(self.results))
        return self.results[name]

    def _refuse_name(self, name: str, names: Sequence[str]) -> NoReturn:
        raise UsageError(
            f"model {self.name} has no {self.kind} {name!r}{suggest(name, names)}; "
            f"its {self.kinds} are {', '.join(names)}"
        )

    def without_rows(self) -> Manifest:
        """Return this manifest without values of single rows.

        Known-good rows, extremes, quantiles and categories are removed. A job carries this manifest
        to places where other people may read it.
        """
        means = {
            column: replace(found, min=found.mean, max=found.mean, quantiles={})
            for column, found in self.statistics.items()
        }
        columns = {name: found.without_rows() for name, found in self.column_statistics.items()}
        return replace(self, golden=None, statistics=means, column_statistics=columns)

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
        type_ = self.result_type(name)
        if kind_of(type_) is not Kind.NUMBER:
            is_output = any(spec.name == name for spec in self.outputs)
            has = f"shape {list(self.output(name).shape)} per row" if is_output else f"type {type_}"
            raise UsageError(
                f"{'output' if is_output else 'field'} {name!r} has {has}, so it cannot "
                f"be the score, which is one number per row; {self.score_advice()}"
            )
        return replace(self, score_output=name)

    def score_advice(self) -> str:
        """Return advice for an error message: how to get an output that can be the score."""
        scalars = [name for name, type_ in self.results.items() if kind_of(type_) is Kind.NUMBER]
        if scalars:
            return f"choose --score_output from {', '.join(scalars)}"
        return (
            "no output of this model has one number per row: return one, for example the column of "
            "one class"
        )


def _check(manifest: Manifest) -> None:
    """Raise ManifestError unless the parts of a manifest agree with each other."""
    _check_version(manifest)
    if not is_file_name(manifest.file):
        refuse_manifest("file", "the name of a file in the manifest's folder", manifest.file)
    if not is_digest(manifest.sha256):
        refuse_manifest("sha256", "64 lowercase hex digits", manifest.sha256)
    check_tensors("inputs", manifest.inputs)
    check_tensors("outputs", manifest.outputs)
    check_names(manifest.inputs, manifest.columns)
    for spec in manifest.inputs:
        if not spec.chains:
            check_columns(spec, manifest.statistics)
    check_chains(manifest.inputs, manifest.columns)
    check_declared(manifest.inputs, manifest.columns, manifest.column_statistics)
    used = [name for chain in manifest.chains for name in chain.files]
    check_files(manifest.files, used, manifest.file_names[:2])
    known = list(manifest.results)
    for where, names in (
        ("score_output", filter(None, [manifest.score_output])),
        ("output_fields", manifest.output_fields),
    ):
        for name in names:
            if name not in known:
                expected = f"one of the {manifest.kinds} {', '.join(known)}"
                refuse_manifest(where, expected, name, suggest(name, known))
    score = manifest.score_output
    if score and kind_of(manifest.results[score]) is not Kind.NUMBER:
        expected = f"an {manifest.kind} with one number per row"
        refuse_manifest("score_output", expected, score)
    if manifest.batch_dependence is not None and not manifest.batch_dependence > 0:
        refuse_manifest("batch_dependence", "a number above 0, or null", manifest.batch_dependence)
    if manifest.golden is not None:
        check_golden(
            manifest.golden, manifest.inputs, manifest.outputs, manifest.fields, manifest.columns
        )


def _check_version(manifest: Manifest) -> None:
    """Raise ManifestError unless the version is known, and the manifest has only its members.

    Since version 2, names have to be words that messages and tables can show.
    """
    version = manifest.schema_version
    if version not in SCHEMA_VERSIONS:
        hint = ": a newer Millrace made this package; upgrade" if version > 2 else ""
        refuse_manifest("schema_version", "1 or 2", version, hint)
    if version == 1:
        newer = (manifest.columns, manifest.files, manifest.fields, manifest.column_statistics)
        if manifest.has_steps or any(newer):
            expected = "2, because of columns, files, fields, from or column_statistics"
            refuse_manifest("schema_version", expected, version)
        return
    check_label(manifest.name, "name")
    check_label(manifest.version, "version")
    for where, specs in (
        ("inputs", manifest.inputs),
        ("outputs", manifest.outputs),
        ("fields", manifest.fields),
    ):
        for spec in specs:
            check_label(spec.name, where)
    for name in (*manifest.features, *manifest.columns):
        check_label(name, "columns")
