"""Read the description of a package from a TOML file, which `--inputs` names."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import ManifestError, UsageError, one_line, suggest
from model_handlers.manifests.manifest import DType, RawType
from model_handlers.manifests.model_json import parse_value, split_chain
from model_handlers.packaging.builder import (
    Start,
    Steps,
    Tensor,
    column,
    make_step,
    without_file_name,
)


@dataclass(frozen=True)
class SpecFile:
    """The content of a file that describes inputs and fields.

    Attributes:
        inputs: The columns of each input, by name; empty if the file has none.
        columns: The raw types of columns.
        fields: What is computed from the outputs, by name.
        outputs: Names for outputs that have none.
        score: The output or field that is the score.
        output_fields: The outputs and fields to write if a run names none.
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, RawType] = field(default_factory=dict)
    fields: Mapping[str, Steps] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    score: str | None = None
    output_fields: tuple[str, ...] = ()


_MEMBERS: Mapping[str, Any] = {
    "columns": Mapping[str, RawType],
    "inputs": list[Any],
    "fields": list[Any],
    "outputs": tuple[str, ...],
    "score": str,
    "output_fields": tuple[str, ...],
}
_OF_INPUTS: Mapping[str, Any] = {
    "name": str,
    "from": list[Any],
    "columns": list[str],
    "dtype": DType,
    "shape": tuple[int, ...],
}
_OF_FIELDS: Mapping[str, Any] = {"name": str, "from": list[Any]}


def read_spec(path: str) -> SpecFile:
    """Read a description of inputs and fields.

    Args:
        path: The path of a TOML file. Its tables are those of a manifest: `[columns]`,
            `[[inputs]]` with `name` and `from`, and `[[fields]]`.

    Raises:
        UsageError: The file cannot be read, or does not describe inputs and fields.
    """
    try:
        value = tomllib.loads(Path(path).read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"--inputs: {path} cannot be read: {one_line(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--inputs: {path} is not valid TOML: {one_line(error)}") from error
    try:
        return parse_spec(value)
    except ManifestError as error:
        raise UsageError(f"--inputs: {path}: {without_file_name(error)}") from error


def parse_spec(value: Mapping[str, Any]) -> SpecFile:
    """Return the description that the tables of a file hold.

    Raises:
        ManifestError: A table or a value is wrong.
    """
    members = _members(value, _MEMBERS, "")
    inputs: dict[str, Tensor] = {}
    fields: dict[str, Steps] = {}
    for number, table in enumerate(members.pop("inputs", [])):
        where = f"inputs[{number}]"
        found = _members(table, _OF_INPUTS, where)
        name = _named(found, where, inputs)
        inputs[name] = _input(found, where)
    for number, table in enumerate(members.pop("fields", [])):
        where = f"fields[{number}]"
        found = _members(table, _OF_FIELDS, where)
        name = _named(found, where, fields)
        if "from" not in found:
            raise ManifestError(f"{where}.from: expected a list of an output and steps, got none")
        fields[name] = _steps(found["from"], f"{where}.from")
    return SpecFile(inputs, fields=fields, **members)


def _members(value: Any, kinds: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the members of a table, parsed. Raise ManifestError for unknown ones."""
    if not isinstance(value, Mapping):
        raise ManifestError(f"{where}: expected a table, got {type(value).__name__}")
    prefix = f"{where}." if where else ""
    for name in value:
        if name not in kinds:
            raise ManifestError(
                f"{prefix}{name}: unknown{suggest(name, kinds)}; expected {', '.join(kinds)}"
            )
    return {name: parse_value(kinds[name], item, prefix + name) for name, item in value.items()}


def _named(found: Mapping[str, Any], where: str, known: Mapping[str, Any]) -> str:
    name = found.get("name")
    if not name or name in known:
        raise ManifestError(f"{where}.name: expected a name that no other has, got {name!r}")
    return str(name)


def _input(found: Mapping[str, Any], where: str) -> Tensor:
    if ("from" in found) == ("columns" in found):
        raise ManifestError(f"{where}: expected from, a list of columns with steps, or columns")
    plain = [column(name) for name in found.get("columns", ())]
    chains = [
        _steps(chain, f"{where}.from[{number}]")
        for number, chain in enumerate(found.get("from", []))
    ]
    columns = (*plain, *chains)
    if not columns:
        raise ManifestError(f"{where}: expected one or more columns, got none")
    # One column is one number in a row, unless the model's file or `shape` says otherwise.
    return Tensor(
        columns,
        len(columns) > 1,
        dtype=found.get("dtype"),
        shape=found.get("shape"),
        as_numbers=bool(plain),
    )


def _steps(value: Any, where: str) -> Steps:
    """Return a column, output or field with its steps."""
    start, links = split_chain(value, where)
    kind: Start = next(iter(value[0]))
    steps = []
    for place, link in links.items():
        if not isinstance(link, Mapping) or not isinstance(link.get("step"), str):
            raise ManifestError(f'{place}: expected {{ step = "..." }}, got {type(link).__name__}')
        members = {name: item for name, item in link.items() if name != "step"}
        steps.append(make_step(link["step"], members, place))
    return Steps(kind, start, tuple(steps))
