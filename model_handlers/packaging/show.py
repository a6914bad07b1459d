"""Describe a model package for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa

from common.errors import ModelError
from common.terminal import columns, facts
from common.texts import is_one_line
from model_handlers.manifests.manifest import MANIFEST_NAME, Manifest
from model_handlers.read_package import ModelPackage
from model_handlers.steps.chain import Chain
from model_handlers.steps.step import Kind, Step, kind_of

_DIGITS = 12
_LONGEST = 60
_MOST_COLUMNS = 200
_INDENT = "  "


def show(package: ModelPackage, path: str) -> str:
    """Return the text that describes a package.

    Args:
        package: The package.
        path: The path of the package, for messages.

    Raises:
        ModelError: The package has no manifest.
    """
    manifest = package.manifest
    if manifest is None:
        raise ModelError(
            f"{path} is a model file without {MANIFEST_NAME}: pass the folder of a model package"
        )
    parts = [
        facts(_facts(package, manifest)),
        _section("takes", ("column", "type", "null", "input", "steps"), list(_takes(manifest))),
        _section("inputs", ("name", "dtype", "shape"), _tensors(manifest.inputs)),
        _section("outputs", ("name", "dtype", "shape"), _tensors(manifest.outputs)),
        _section("fields", ("name", "type", "from"), list(_fields(manifest))),
        _section("files", ("name", "bytes", "sha256"), _files(package, manifest)),
    ]
    return "\n\n".join(part for part in parts if part)


def _facts(package: ModelPackage, manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "model", f"{manifest.name} {manifest.version}"
    yield "file", f"{manifest.file}, {manifest.format}, {len(package.data):,} bytes"
    yield "sha256", manifest.sha256
    yield "manifest", f"version {manifest.schema_version}"
    if manifest.architecture:
        arguments = ", ".join(f"{k}={v!r}" for k, v in manifest.architecture_args.items())
        yield "architecture", f"{manifest.architecture}({arguments})"
    if manifest.functions:
        yield "functions", ", ".join(manifest.functions)
    yield "score", manifest.score_output or f"none; {manifest.score_advice()}"
    yield "writes", ", ".join(manifest.output_fields) or "all outputs and fields"
    yield "golden rows", _golden(manifest)
    yield "tolerance", str(manifest.tolerance)


def _golden(manifest: Manifest) -> str:
    golden = manifest.golden
    if golden is None:
        return "none, so workers cannot check the model"
    count = len(golden.rows or next(iter(golden.inputs.values())))
    return f"{count}, {'raw' if golden.rows else 'as tensors'}"


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    shown = rows[:_MOST_COLUMNS]
    more = f"\n{_INDENT}and {len(rows) - len(shown):,} more" if len(rows) > len(shown) else ""
    return f"{title}\n{columns([head, *shown], _INDENT)}{more}"


def _takes(manifest: Manifest) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield a line for each chain, and for each column that an input reads as it is."""
    shown: set[str] = set()
    for spec in manifest.inputs:
        for column in spec.columns:
            raw = f"list of {spec.width} numbers" if spec.is_list_column else "number"
            filled = f"fill {spec.impute[column]}" if column in spec.impute else ""
            yield (column, raw, "", spec.name, filled)
        for chain in spec.chains:
            column = chain.start
            is_new = column not in shown
            shown.add(column)
            yield (
                column if is_new else "",
                manifest.columns[column] if is_new else "",
                _nulls(manifest, column) if is_new else "",
                spec.name,
                steps_text(chain),
            )
    read = {chain.start for spec in manifest.inputs for chain in spec.chains}
    for column, raw in manifest.columns.items():
        if column not in read:
            yield (column, raw, _nulls(manifest, column), "", "")


def _nulls(manifest: Manifest, column: str) -> str:
    found = manifest.column_statistics.get(column)
    return "" if found is None else f"{found.nulls:.1%}"


def steps_text(chain: Chain) -> str:
    """Return the steps of a chain as text, such as `log1p, scale mean=3.1 std=1.2`."""
    return ", ".join(map(_step_text, chain.steps))


def _step_text(step: Step) -> str:
    members = (
        f"{member.name}={_short(getattr(step, member.name))}"
        for member in fields(step)
        if getattr(step, member.name) != member.default
    )
    return " ".join((step.NAME, *members))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = f"[{', '.join(map(_short, value))}]" if isinstance(value, tuple) else str(value)
    text = text if is_one_line(text) else repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _tensors(specs: Sequence[Any]) -> list[tuple[str, str, str]]:
    return [
        (spec.name, spec.dtype, f"[{', '.join(map(str, ('rows', *spec.shape)))}]") for spec in specs
    ]


def _fields(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    for spec in manifest.fields:
        steps = steps_text(spec.chain)
        source = f"{spec.chain.start}: {steps}" if steps else spec.chain.start
        yield spec.name, _type_text(manifest.results[spec.name]), source


def _type_text(type_: pa.DataType) -> str:
    kind = kind_of(type_)
    if kind is Kind.VECTOR:
        return f"{type_.list_size} numbers"
    if kind is Kind.LIST:
        return "list of names and numbers"
    return "integer" if pa.types.is_integer(type_) else str(kind)


def _files(package: ModelPackage, manifest: Manifest) -> list[tuple[str, str, str]]:
    return [
        (name, f"{len(package.files[name]):,}", digest[:_DIGITS])
        for name, digest in manifest.files.items()
    ]
