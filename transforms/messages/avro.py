"""Avro messages: each is one record, whose schema is not part of the message."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import fastavro

from common.errors import UsageError, one_line
from common.memory import check_memory
from model_handlers.manifests.unique_keys import load_unique
from transforms.dead_letters import Fault
from transforms.json_rows.values import json_type, read_json_values

_FILE = b"Obj\x01"


def parse_schema(text: str, place: str = "--avro_schema") -> Any:
    """Parse the JSON text of a record's schema.

    Some schemas are refused because a message of a few bytes could crash a worker or fill its
    memory: records that contain themselves, which fastavro reads on the C stack, and arrays of
    items that take no bytes.

    Args:
        text: The JSON text.
        place: What holds the text, for errors.

    Raises:
        UsageError: The text is not the schema of a record, or the schema is refused.
    """
    try:
        schema = fastavro.parse_schema(load_unique(text))
    # fastavro raises exceptions of many kinds for an invalid schema.
    except (ValueError, TypeError, KeyError, fastavro.schema.SchemaParseException) as error:
        raise UsageError(f"{place}: not an Avro schema: {one_line(error)}") from error
    if not isinstance(schema, dict) or schema["type"] != "record":
        raise UsageError(f"{place}: expected the schema of a record")
    try:
        _is_empty(schema, {})
    except _Refused as refused:
        raise UsageError(f"{place}: {refused}") from None
    return schema


class _Refused(Exception):
    """A schema cannot be read safely."""


def _is_empty(schema: Any, named: dict[str, bool | None]) -> bool:
    """Return whether the values of a schema take no bytes. Raises _Refused if it is refused.

    `named` holds the same for each named schema so far, and None for those that surround it.
    """
    if isinstance(schema, list):
        for branch in schema:
            _is_empty(branch, named)
        return False
    if isinstance(schema, str):
        empty = named.get(schema, schema == "null")
        if empty is None:
            raise _Refused(f"record {schema} must not contain itself")
        return empty
    kind = schema["type"]
    if kind == "record":
        named[schema["name"]] = None
        names = field_names(schema)
        if double := next((name for name in names if names.count(name) > 1), None):
            raise _Refused(f"record {schema['name']} has field {double!r} twice")
        fields = [_is_empty(field["type"], named) for field in schema["fields"]]
        named[schema["name"]] = all(fields)
        return all(fields)
    if kind == "array" and _is_empty(schema["items"], named):
        raise _Refused(
            "an array has items without content (null, a record of nulls, or fixed "
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


def read_binary(body: bytes, schema: Any, reader: Any) -> Any:
    """Read a record in Avro's binary encoding; return the row or its Fault.

    Args:
        body: The bytes of the record.
        schema: The parsed schema with which it was written.
        reader: The parsed schema to which it is resolved, or None for the same.
    """
    stream = io.BytesIO(body)
    try:
        row = fastavro.schemaless_reader(stream, schema, reader)
    # fastavro raises exceptions of any kind for bytes of another schema.
    except Exception as error:
        check_memory(error, "an Avro message")
        if body.startswith(_FILE):
            return Fault("invalid_avro", "expected one record without a schema, got an Avro file")
        return _mismatch(error)
    if left := len(body) - stream.tell():
        return Fault(
            "invalid_avro",
            f"{left:,} bytes follow the record: was it written with another schema?",
        )
    return row


def read_json(body: bytes, schema: Any, reader: Any) -> Any:
    """Read a record in Avro's JSON encoding, like `read_binary`."""
    (value,) = read_json_values([body])
    if isinstance(value, Fault):
        return value
    if not isinstance(value, dict):
        return Fault("not_an_object", f"expected a JSON object, got {json_type(value)}")
    try:
        # fastavro reads one record per line.
        (row,) = fastavro.json_reader(io.StringIO(json.dumps(value)), schema, reader)
    except Exception as error:
        check_memory(error, "an Avro message")
        return _mismatch(error)
    return row


def _mismatch(error: Exception) -> Fault:
    """Return the Fault of a record that a schema does not fit."""
    kind = type(error).__name__
    if isinstance(error, fastavro.read.SchemaResolutionError):
        return Fault("wrong_schema", f"the message's schema does not fit --avro_schema ({kind})")
    # The text of the error may quote bytes of the record.
    return Fault("invalid_avro", f"the message does not match the Avro schema ({kind})")
