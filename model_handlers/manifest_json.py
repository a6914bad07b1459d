"""Parse `model.json` into a Manifest, check every value, and write a Manifest as JSON.

For any text, the result is either a Manifest that can be written again, or a ManifestError of one
line that names the place, the expected value and the actual value.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from common.errors import ManifestError, one_line, suggest
from model_handlers.manifest import MANIFEST_NAME, Manifest, refuse_manifest
from model_handlers.manifest_plain import PlainValues
from model_handlers.steps.catalog import STEPS
from model_handlers.steps.chain import Chain
from model_handlers.steps.step import Step
from model_handlers.unique_keys import DoubledKeyError, load_unique


def parse_manifest(text: str | bytes) -> Manifest:
    """Return the Manifest that a `model.json` describes.

    Args:
        text: The content of the file.

    Raises:
        ManifestError: The text is not valid JSON, or does not describe a manifest.
    """
    try:
        value = load_unique(text)
        # Python reads NaN, infinity and half a surrogate pair from JSON, but cannot write them.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except DoubledKeyError as error:
        raise ManifestError(f"{MANIFEST_NAME}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST_NAME} is not valid JSON: {one_line(error)}") from error
    manifest: Manifest = _parse(Manifest, value, "")
    return manifest


def _parse(kind: Any, value: Any, where: str) -> Any:
    """Convert decoded JSON to a type of the manifest. Raise ManifestError if it does not match."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Chain:
        return _parse_chain(value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return _parse_object(kind, value, where)
    if origin in (types.UnionType, Union):
        return _parse_union(args, value, where)
    if origin is Literal:
        if value not in args:
            refuse_manifest(where, f"one of {', '.join(args)}", value)
        return value
    if origin in (tuple, list):
        return origin(_parse(args[0], v, f"{where}[{i}]") for i, v in _items(value, where))
    if origin is Mapping:
        members = _members(value, where)
        return {name: _parse(args[1], v, f"{where}.{name}") for name, v in members.items()}
    return value if kind is Any else _parse_plain(kind, value, where)


def _parse_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Parse a value of one of several types, the first of which fits what is neither."""
    if value is None and type(None) in kinds:
        return None
    if type(value) in kinds:
        return value
    return _parse(kinds[0], value, where)


def _parse_chain(value: Any, where: str) -> Chain:
    """Parse a chain: a list of where it starts and of its steps."""
    links = [link for _, link in _items(value, where)]
    expected = '{"column": "..."} (in fields {"output": "..."} or {"field": "..."}), then steps'
    starts = ("output", "field") if where.startswith("fields") else ("column",)
    first = _members(links[0] if links else None, f"{where}[0]") if links else {}
    if len(first) != 1 or (name := next(iter(first))) not in starts:
        refuse_manifest(f"{where}[0]", expected, links[:1])
    start = _parse(str, first[name], f"{where}[0].{name}")
    steps = [_parse_step(link, f"{where}[{i}]") for i, link in enumerate(links[1:], 1)]
    return Chain(start, tuple(steps))


def _parse_step(value: Any, where: str) -> Step:
    members = _members(value, where)
    name = members.pop("step", None)
    if not isinstance(name, str) or name not in STEPS:
        hint = suggest(name, STEPS) if isinstance(name, str) else ""
        refuse_manifest(f"{where}.step", f"one of {', '.join(STEPS)}", name, hint)
    try:
        step: Step = _parse_object(STEPS[name], members, where)
    except ManifestError as error:
        if str(error).startswith(MANIFEST_NAME):
            raise
        raise ManifestError(f"{MANIFEST_NAME}: {where}: {error}") from error
    return step


def _parse_plain(kind: type, value: Any, where: str) -> Any:
    """Return a str, int or float; a float field also accepts a whole number."""
    if kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is not kind:
        names = {str: "a string", int: "an integer", float: "a finite number"}
        refuse_manifest(where, names[kind], value)
    return value


def _items(value: Any, where: str) -> Any:
    if not isinstance(value, list):
        refuse_manifest(where, "a list", value)
    return enumerate(value)


def _members(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse_manifest(where or "top level", "a JSON object", value)
    return dict(value)


def _parse_object(kind: type[Any], value: Any, where: str) -> Any:
    """Create an instance of a dataclass from a JSON object. Raise ManifestError if it is wrong."""
    members, types_ = _members(value, where), get_type_hints(kind)
    names = {f.metadata.get("name", f.name): f for f in fields(kind)}
    hints = {name: types_[f.name] for name, f in names.items()}
    prefix = f"{where}." if where else ""
    for name in members:
        if name not in hints:
            hint = f": unknown member {name!r}{suggest(name, hints)}"
            refuse_manifest(
                where or "top level", f"only the members {', '.join(hints)}", list(members), hint
            )
    for name, f in names.items():
        required = f.default is MISSING and f.default_factory is MISSING
        if required and name not in members:
            refuse_manifest(f"{prefix}{name}", "a value", None)
    return kind(**{names[n].name: _parse(hints[n], v, f"{prefix}{n}") for n, v in members.items()})


def write_manifest(manifest: Manifest) -> str:
    """Return the text of `model.json`.

    A manifest of version 1 has the members of version 1, for older programs.
    """
    return json.dumps(_plain(manifest, manifest), indent=1, allow_nan=False) + "\n"


def _plain(value: Any, manifest: Manifest) -> Any:
    """Return a part of a manifest as it is written in JSON."""
    outputs = [spec.name for spec in manifest.outputs]
    return PlainValues(manifest.schema_version, outputs).of(value)
