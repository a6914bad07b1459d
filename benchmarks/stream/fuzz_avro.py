"""Avro messages as different senders write them, for benchmarks/stream/fuzz.py."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from examples.transactions.data import FEATURES
from transforms.messages.avro_revisions import AvroRevisions
from transforms.messages.message import SCHEMA_ENCODING, SCHEMA_NAME, SCHEMA_REVISION

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Row",
    "fields": [{"name": name, "type": "double"} for name in FEATURES],
}
# The same fields in another order and of another type, and one more.
OTHER: dict[str, Any] = {
    "type": "record",
    "name": "other.Row",
    "fields": [
        {"name": "extra", "type": ["null", "string"]},
        *({"name": name, "type": "float"} for name in reversed(FEATURES)),
    ],
}
# The ids of the other schema: of a revision in Pub/Sub, and in Confluent's registry.
REVISION, NUMBER = "0ther", 7
REVISIONS = AvroRevisions(
    json.dumps(SCHEMA), ((REVISION, json.dumps(OTHER)), (str(NUMBER), json.dumps(OTHER)))
)


class Written(NamedTuple):
    """A row as a message; `good` says whether it can be read."""

    body: bytes
    attributes: dict[str, str]
    good: bool


def written(rng: random.Random, row: Mapping[str, float]) -> Written:
    """Return a message that a sender could write."""
    schema, other = rng.choice([(SCHEMA, False), (OTHER, True)])
    own = {**row, "extra": rng.choice([None, "x"])} if other else dict(row)
    attributes = {SCHEMA_NAME: "projects/p/schemas/rows"} if rng.random() < 0.8 else {}
    if other:
        attributes[SCHEMA_REVISION] = REVISION
    how = rng.choice(["BINARY", "BINARY", "JSON", "header", "unknown revision", "XML", "plain"])
    if how == "JSON":
        text = io.StringIO()
        fastavro.json_writer(text, fastavro.parse_schema(schema), [own])
        return Written(text.getvalue().encode(), attributes | {SCHEMA_ENCODING: how}, True)
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, own)
    body = out.getvalue()
    if how == "header":
        return Written(_header(rng, schema, other) + body, {}, True)
    if how == "plain":
        # Nothing says that it has another schema.
        return Written(body, {}, not other)
    if how == "unknown revision":
        return Written(body, attributes | {SCHEMA_REVISION: "gone"}, False)
    return Written(body, attributes | {SCHEMA_ENCODING: how}, how == "BINARY")


def _header(rng: random.Random, schema: Any, other: bool) -> bytes:
    """Return a single-object header, or Confluent's."""
    if other and rng.random() < 0.5:
        return b"\0" + NUMBER.to_bytes(4)
    mark = fingerprint(to_parsing_canonical_form(fastavro.parse_schema(schema)), "CRC-64-AVRO")
    return b"\xc3\x01" + bytes.fromhex(mark)[::-1]
