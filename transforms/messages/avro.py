"""Messages of Avro: one record each, of a schema that is given and not sent along."""

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
    """JSON text -> a record's schema, parsed. Raises UsageError.

    Refused are schemas by which a few bytes could crash or fill a worker: records within
    themselves, which fastavro reads on the C stack, and arrays of what takes no byte.
    """
    try:
        schema = fastavro.parse_schema(load_unique(text))
    # fastavro answers what is no schema with exceptions of many kinds.
    except (ValueError, TypeError, KeyError, fastavro.schema.SchemaParseException) as error:
        raise UsageError(f"--avro_schema: not a schema of Avro: {one_line(error)}") from error
    if not isinstance(schema, dict) or schema["type"] != "record":
        raise UsageError("--avro_schema: expected the schema of a record")
    _is_empty(schema, {})
    return schema


def _is_empty(schema: Any, named: dict[str, bool | None]) -> bool:
    """A schema -> whether its values take no byte. Raises UsageError.

    named: the same of the named schemas before it, None for those that it lies in.
    """
    if isinstance(schema, list):
        for branch in schema:
            _is_empty(branch, named)
        return False
    if isinstance(schema, str):
        empty = named.get(schema, schema == "null")
        if empty is None:
            raise UsageError(f"--avro_schema: record {schema} within itself cannot be read")
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
        raise UsageError("--avro_schema: an array of null, or of nothing, cannot be read")
    if kind == "map":
        _is_empty(schema["values"], named)
    if kind in ("fixed", "enum"):
        named[schema["name"]] = kind == "fixed" and not schema["size"]
        return bool(named[schema["name"]])
    return kind not in ("array", "map") and _is_empty(kind, named)


def field_names(schema: Mapping[str, Any]) -> list[str]:
    """A parsed schema -> the names of its fields."""
    return [field["name"] for field in schema["fields"]]


def avro_reader(schema: Any) -> Callable[[bytes], Any]:
    """A parsed schema -> a function: a message's content -> its row, or the Fault that it has."""

    def read(body: bytes) -> Any:
        stream = io.BytesIO(body)
        try:
            row = fastavro.schemaless_reader(stream, schema, None)
        # fastavro answers bytes of another schema with exceptions of any kind.
        except Exception as error:
            check_memory(error, "a message of Avro")
            if body.startswith(_FILE):
                return Fault("invalid_avro", "an Avro file, expected one record without a schema")
            # Its message may quote bytes of the record.
            return Fault("invalid_avro", f"not Avro of the given schema ({type(error).__name__})")
        if left := len(body) - stream.tell():
            return Fault("invalid_avro", f"{left:,} bytes follow the record: another schema?")
        return row

    return read
