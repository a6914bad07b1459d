"""Change a model package without touching its model: columns, fills, name and version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from common.errors import ManifestError, UsageError, suggest
from model_handlers.manifests.checks import check_label
from model_handlers.manifests.manifest import GoldenRows, InputSpec, Manifest, RawType
from model_handlers.manifests.model_json import parse_manifest, write_manifest
from model_handlers.packaging.builder import without_file_name
from model_handlers.steps.chain import Chain
from model_handlers.steps.general import Fill
from model_handlers.steps.step import Step


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be changed.

    Attributes:
        rename: The new name of each column to rename, by its name in the package.
        fill: What replaces null in a column, as text: a value, or in a package of version 1 also
            `mean`.
        name: The new name of the model, or None.
        version: The new version of the model, or None.
        score: The output or field that is the score from now on, or None.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    fill: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    version: str | None = None
    score: str | None = None


def change(manifest: Manifest, changes: Changes) -> Manifest:
    """Return a changed manifest.

    Args:
        manifest: The manifest of a package.
        changes: What is to be changed. Columns are filled first, under their old names.

    Raises:
        UsageError: A column is unknown, or the result would not be a valid manifest.
    """
    for flag, names in (("--fill", changes.fill), ("--rename", changes.rename)):
        for name in names:
            if name not in manifest.features:
                raise UsageError(
                    f"{flag}: the model reads no column {name!r}"
                    f"{suggest(name, manifest.features)}; it reads "
                    f"{', '.join(manifest.features[:40])}"
                )
    name = manifest.name if changes.name is None else changes.name
    version = manifest.version if changes.version is None else changes.version
    try:
        for flag, labels in (
            ("--name", [name]),
            ("--version", [version]),
            ("--rename", changes.rename.values()),
        ):
            for label in labels:
                check_label(label, flag)
        for column, value in changes.fill.items():
            manifest = _filled(manifest, column, value)
        manifest = replace(_renamed(manifest, changes.rename), name=name, version=version)
        return parse_manifest(write_manifest(manifest.choose(changes.score)))
    except ManifestError as error:
        raise UsageError(without_file_name(error)) from error


# Names of columns.


def _renamed(manifest: Manifest, names: Mapping[str, str]) -> Manifest:
    """Return a manifest that reads other columns."""
    after = [names.get(name, name) for name in manifest.features]
    for name in names.values():
        if after.count(name) > 1:
            raise UsageError(f"--rename: two columns would be called {name!r}")

    def by_column(values: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): value for name, value in values.items()}

    inputs = tuple(
        replace(
            spec,
            columns=tuple(names.get(name, name) for name in spec.columns),
            impute=by_column(spec.impute),
            chains=tuple(_renamed_chain(chain, names) for chain in spec.chains),
        )
        for spec in manifest.inputs
    )
    golden = manifest.golden
    return replace(
        manifest,
        inputs=inputs,
        columns=by_column(manifest.columns),
        statistics=by_column(manifest.statistics),
        column_statistics=by_column(manifest.column_statistics),
        golden=golden and replace(golden, rows=list(map(by_column, golden.rows))),
    )


def _renamed_chain(chain: Chain, names: Mapping[str, str]) -> Chain:
    steps = tuple(_renamed_step(step, names) for step in chain.steps)
    return Chain(names.get(chain.start, chain.start), steps)


def _renamed_step(step: Step, names: Mapping[str, str]) -> Step:
    """Return a step with the new names of the columns that it also takes."""
    members: dict[str, Any] = {}
    for member in fields(step):
        value = getattr(step, member.name)
        if isinstance(value, str) and value in step.operands:
            members[member.name] = names.get(value, value)
        if isinstance(value, tuple) and value and set(value) <= set(step.operands):
            members[member.name] = tuple(names.get(name, name) for name in value)
    changed: Any = step
    return replace(changed, **members) if members else step


# Nulls.


def _filled(manifest: Manifest, column: str, text: str) -> Manifest:
    """Return a manifest in which a value replaces null in a column."""
    plain = [spec for spec in manifest.inputs if column in spec.columns]
    if plain and text == "mean":
        inputs = tuple(
            replace(spec, impute={**spec.impute, column: "mean"}) if spec in plain else spec
            for spec in manifest.inputs
        )
        return replace(manifest, inputs=inputs)
    raw = manifest.columns.get(column, "")
    if raw.startswith("list<"):
        raise UsageError(
            f"--fill {column}: expected a column with one value in a row, got {raw}: a list that "
            "is null cannot be filled; to replace null within lists, package the model again with "
            "the step fill"
        )
    for spec in plain:
        manifest = _with_chains(manifest, spec)
    for chain in (chain for spec in manifest.inputs for chain in spec.chains):
        takers = [step.NAME for step in chain.steps if column in step.operands]
        if takers:
            raise UsageError(
                f"--fill {column}: the step {takers[0]} of column {chain.start!r} also takes the "
                "column, and fill does not reach it there: package the model again"
            )
    fill = Fill(_value(text, manifest.columns[column]))
    inputs = tuple(
        replace(spec, chains=tuple(_filled_chain(chain, column, fill) for chain in spec.chains))
        for spec in manifest.inputs
    )
    golden = manifest.golden
    if golden is not None:
        # What the model answers to a row that lacks the column is not known any more.
        kept = [i for i, row in enumerate(golden.rows) if row[column] is not None]
        if not kept:
            raise UsageError(
                f"--fill {column}: all known-good rows lack the column, so none would be left: "
                "package the model again"
            )
        golden = _some(golden, kept)
    return replace(manifest, inputs=inputs, golden=golden)


def _filled_chain(chain: Chain, column: str, fill: Fill) -> Chain:
    if chain.start != column:
        return chain
    has_fill = bool(chain.steps) and isinstance(chain.steps[0], Fill)
    return replace(chain, steps=(fill, *chain.steps[1 if has_fill else 0 :]))


def _value(text: str, raw: RawType) -> Any:
    """Return the value of a flag for a column of a raw type."""
    if raw not in ("string", "list<string>"):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _some(golden: GoldenRows, kept: Sequence[int]) -> GoldenRows:
    """Return some of the known-good rows."""

    def some(values: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: [rows[i] for i in kept] for name, rows in values.items()}

    return replace(
        golden,
        rows=[golden.rows[i] for i in kept],
        outputs=some(golden.outputs),
        fields=some(golden.fields),
    )


def _with_chains(manifest: Manifest, spec: InputSpec) -> Manifest:
    """Return a manifest of version 2 in which an input reads its columns through steps."""
    if spec.is_list_column:
        raise UsageError(
            f"--fill: the input {spec.name} reads one list column, in which null cannot be filled"
        )
    others = {name for other in manifest.inputs if other != spec for name in other.columns}
    if shared := others.intersection(spec.columns):
        raise UsageError(
            f"--fill: the column {min(shared)!r} is read by several inputs: package the model "
            "again, with --inputs"
        )
    raw: RawType = "float64" if spec.dtype.startswith("float") else "int64"
    chains = tuple(
        Chain(
            name,
            (Fill(manifest.statistics[name].mean),) if name in spec.impute else (),
        )
        for name in spec.columns
    )
    changed = InputSpec(spec.name, dtype=spec.dtype, shape=spec.shape, chains=chains)
    return replace(
        manifest,
        schema_version=2,
        inputs=tuple(changed if other == spec else other for other in manifest.inputs),
        columns={**manifest.columns, **dict.fromkeys(spec.columns, raw)},
        golden=manifest.golden and _raw_rows(manifest, manifest.golden),
    )


def _raw_rows(manifest: Manifest, golden: GoldenRows) -> GoldenRows:
    """Return the known-good rows as rows of the source."""
    if golden.rows:
        return golden
    count = len(next(iter(golden.inputs.values())))
    rows: list[Any] = [{} for _ in range(count)]
    for spec in manifest.inputs:
        for row, values in zip(rows, golden.inputs[spec.name], strict=True):
            if spec.is_list_column:
                row[spec.columns[0]] = values
                continue
            listed = values if isinstance(values, list) else [values]
            row |= dict(zip(spec.columns, listed, strict=True))
    return replace(golden, inputs={}, rows=rows)
