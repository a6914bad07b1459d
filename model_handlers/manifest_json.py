"""Parse `model.json` into a Manifest, and check every value against the type of its field.

For any text, the result is either a Manifest that can be written again, or a ManifestError of one
line that names the place, the expected value and the actual value.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.errors import ManifestError, one_line, suggest
from model_handlers.manifest import MANIFEST_NAME, Manifest, refuse_manifest
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
    if isinstance(kind, type) and is_dataclass(kind):
        return _parse_object(kind, value, where)
    if origin is types.UnionType:
        return None if value is None else _parse(args[0], value, where)
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
    members, hints = _members(value, where), get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for name in members:
        if name not in hints:
            hint = f": unknown member {name!r}{suggest(name, hints)}"
            refuse_manifest(
                where or "top level", f"only the members {', '.join(hints)}", list(members), hint
            )
    for f in fields(kind):
        required = f.default is MISSING and f.default_factory is MISSING
        if required and f.name not in members:
            refuse_manifest(f"{prefix}{f.name}", "a value", None)
    return kind(**{name: _parse(hints[name], v, f"{prefix}{name}") for name, v in members.items()})
