"""Parse `model.json` into a Manifest, check every value, and write a Manifest as JSON.

For any text, the result is either a Manifest that can be written again, or a ManifestError of one
line that names the place, the expected value and the actual value.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from common.errors import ManifestError, one_line, suggest
from model_handlers.manifests.manifest import MANIFEST_NAME, Manifest, refuse_manifest
from model_handlers.manifests.plain import PlainValues
from model_handlers.manifests.unique_keys import DoubledKeyError, load_unique
from model_handlers.steps.catalog import STEPS
from model_handlers.steps.chain import Chain
from model_handlers.steps.step import Step

_NAMES = {str: "a string", int: "an integer", float: "a finite number", bool: "true or false"}


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
    manifest: Manifest = parse_value(Manifest, value, "")
    return manifest


def parse_value(kind: Any, value: Any, where: str) -> Any:
    """Convert decoded JSON to a type of the manifest.

    Args:
        kind: A type, as in the annotations of the manifest's dataclasses.
        value: The decoded JSON.
        where: The place of the value in the manifest, such as `inputs[0].shape`.

    Raises:
        ManifestError: The value does not match.
    """
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
        items = _items(value, where)
        return origin(parse_value(args[0], v, f"{where}{_label(where, v, i)}") for i, v in items)
    if origin is Mapping:
        members = _members(value, where)
        return {name: parse_value(args[1], v, f"{where}.{name}") for name, v in members.items()}
    return value if kind is Any else _parse_plain(kind, value, where)


def _label(where: str, value: Any, number: int) -> str:
    """Return the label of an item of a list in messages: its name, or else its number."""
    # Only tensors and fields have a name; a known-good row may have a column of that name.
    named = where in ("inputs", "outputs", "fields") and isinstance(value, dict)
    name = value.get("name") if named else None
    return f".{name[:80]}" if isinstance(name, str) and name else f"[{number}]"


def _parse_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Parse a value of one of several types, the first of which fits what is neither."""
    if value is None and type(None) in kinds:
        return None
    if type(value) in kinds:
        return _parse_plain(type(value), value, where)
    several = [_NAMES[kind] for kind in kinds if kind in _NAMES]
    if len(several) > 1 and type(value) is not int:
        refuse_manifest(where, " or ".join(several), value)
    return parse_value(kinds[0], value, where)


def _parse_chain(value: Any, where: str) -> Chain:
    start, steps = split_chain(value, where)
    return Chain(start, tuple(parse_step(step, place, STEPS) for place, step in steps.items()))


def split_chain(value: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Return the name at which a chain starts, and the JSON of its steps by their places.

    Raises:
        ManifestError: The value is not a list that starts with a column, an output or a field.
    """
    links = [link for _, link in _items(value, where)]
    expected = '{"column": "..."} (in fields {"output": "..."} or {"field": "..."}), then steps'
    starts = ("output", "field") if where.startswith("fields") else ("column",)
    first = _members(links[0] if links else None, f"{where}[0]") if links else {}
    if len(first) != 1 or (name := next(iter(first))) not in starts:
        refuse_manifest(f"{where}[0]", expected, links[:1])
    start = parse_value(str, first[name], f"{where}[0].{name}")
    return start, {f"{where}[{i}]": link for i, link in enumerate(links[1:], 1)}


def parse_step(value: Any, where: str, known: Mapping[str, type[Step]]) -> Step:
    """Parse a step.

    Args:
        value: The decoded JSON.
        where: The place of the step in the manifest.
        known: The classes of steps by name.

    Raises:
        ManifestError: There is no such step, or its members are wrong.
    """
    members = _members(value, where)
    name = members.pop("step", None)
    if not isinstance(name, str) or name not in known:
        hint = suggest(name, known) if isinstance(name, str) else ""
        refuse_manifest(f"{where}.step", f"one of {', '.join(known)}", name, hint)
    try:
        step: Step = _parse_object(known[name], members, where)
    except ManifestError as error:
        if str(error).startswith(MANIFEST_NAME):
            raise
        raise ManifestError(" ".join(f"{MANIFEST_NAME}: {where}: {error}".split())) from error
    return step


def _parse_plain(kind: type[Any], value: Any, where: str) -> Any:
    """Return a str, int or float; a float field also accepts a whole number."""
    if kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    # Not JSON, but TOML and Python may have NaN and infinity.
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        refuse_manifest(where, _NAMES[kind], value)
    return value


def _items(value: Any, where: str) -> Any:
    if not isinstance(value, list):
        refuse_manifest(where, "a list", value)
    return enumerate(value)


def _members(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse_manifest(where or "top level", "a JSON object", value)
    return dict(value)


# Python evaluates the annotations each time.
_type_hints = functools.cache(get_type_hints)


def _parse_object(kind: Any, value: Any, where: str) -> Any:
    """Create an instance of a dataclass from a JSON object. Raise ManifestError if it is wrong."""
    members, types_ = _members(value, where), _type_hints(kind)
    names = {f.metadata.get("name", f.name): f for f in fields(kind)}
    hints = {name: types_[f.name] for name, f in names.items()}
    prefix = f"{where}." if where else ""
    for name in members:
        if name not in hints:
            expected = f"only the members {', '.join(hints)}"
            hint = f": unknown member{suggest(name, hints)}"
            refuse_manifest(where or "top level", expected, name, hint)
    for name, f in names.items():
        required = f.default is MISSING and f.default_factory is MISSING
        if required and name not in members:
            refuse_manifest(f"{prefix}{name}", "a value", None)
    return kind(
        **{names[n].name: parse_value(hints[n], v, f"{prefix}{n}") for n, v in members.items()}
    )


def write_manifest(manifest: Manifest) -> str:
    """Return the text of `model.json`.

    A manifest of version 1 has the members of version 1, for older programs.
    """
    return json.dumps(_plain(manifest, manifest), indent=1, allow_nan=False) + "\n"


def preparation_digest(manifest: Manifest) -> str | None:
    """Return the hex SHA-256 of all that decides how rows are prepared; None without steps.

    Fields are not part of it, because they are computed from the answers.
    """
    if not manifest.has_steps:
        return None
    parts = {"columns": manifest.columns, "files": manifest.files, "inputs": manifest.inputs}
    text = json.dumps(_plain(parts, manifest), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any, manifest: Manifest) -> Any:
    """Return a part of a manifest as it is written in JSON."""
    outputs = [spec.name for spec in manifest.outputs]
    return PlainValues(manifest.schema_version, outputs).of(value)
