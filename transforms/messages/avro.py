"""Avro messages: each is one record, whose schema is known and not part of the message."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import fastavro

from common.errors import UsageError, one_line
from common.memory import check_memory
from model_handlers.unique_keys import load_unique
from transforms.dead_letters import Fault

_FILE = b"Obj\x01"


def parse_schema(text: str) -> Any:
    """Parse the JSON text of a record's schema.

    Some schemas are refused because a message of a few bytes could crash a worker or fill its
    memory: records that contain themselves, which fastavro reads on the C stack, and arrays of
    items that take no bytes.

    Raises:
        UsageError: The text is not the schema of a record, or the schema is refused.
    """
    try:
        schema = fastavro.parse_schema(load_unique(text))
    # fastavro raises exceptions of many kinds for an invalid schema.
    except (ValueError, TypeError, KeyError, fastavro.schema.SchemaParseException) as error:
        raise UsageError(f"--avro_schema: not an Avro schema: {one_line(error)}") from error
    if not isinstance(schema, dict) or schema["type"] != "record":
        raise UsageError("--avro_schema: expected the schema of a record")
    _is_empty(schema, {})
    return schema


def _is_empty(schema: Any, named: dict[str, bool | None]) -> bool:
    """Return whether the values of a schema take no bytes. Raises UsageError if it is refused.

    `named` holds the same for each named schema so far, and None for those that surround it.
    """
    if isinstance(schema, list):
        for branch in schema:
            _is_empty(branch, named)
        return False
    if isinstance(schema, str):
        empty = named.get(schema, schema == "null")
        if empty is None:
            raise UsageError(f"--avro_schema: record {schema} must not contain itself")
        return empty
    kind = schema["type"]
    if kind == "record":
        named[schema["name"]] = None
        names = field_names(schema)
        if double := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"--avro_schema: record {schema['name']} has field {double!r} twice")
        fields = [_is_empty(field["type"], named) for field in schema["fields"]]
        named[schema["name"]] = all(fields)
        return all(fields)
    if kind == "array" and _is_empty(schema["items"], named):
        raise UsageError(
            "--avro_schema: an array has items without content (null, a record of nulls, or fixed "
            "of size 0), which take no bytes: choose another type for the items"
        )
    if kind == "map":
        _is_empty(schema["values"], named)
    if kind in ("fixed", "enum"):
        named[schema["name"]] = kind == "fixed" and not schema["size"]
        return bool(named[schema["name"]])
    return kind not in ("array", "map") and _is_empty(kind, named)


def field_names(schema: Mapping[str, Any]) -> list[str]:
    """Return the names of a parsed schema's fields."""
    return [field["name"] for field in schema["fields"]]


def avro_reader(schema: Any) -> Callable[[bytes], Any]:
    """Return a function that reads the content of a message into a row, or returns its Fault.

    Args:
        schema: A schema that `parse_schema` returned.
    """

    def read(body: bytes) -> Any:
        stream = io.BytesIO(body)
        try:
            row = fastavro.schemaless_reader(stream, schema, None)
        # fastavro raises exceptions of any kind for bytes of another schema.
        except Exception as error:
            check_memory(error, "an Avro message")
            if body.startswith(_FILE):
                return Fault(
                    "invalid_avro", "expected one record without a schema, got an Avro file"
                )
            # The text of the error may quote bytes of the record.
            return Fault(
                "invalid_avro",
                f"the message does not match the Avro schema ({type(error).__name__})",
            )
        if left := len(body) - stream.tell():
            return Fault(
                "invalid_avro",
                f"{left:,} bytes follow the record: was it written with another schema?",
            )
        return row

    return read
