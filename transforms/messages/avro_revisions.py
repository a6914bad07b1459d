"""Read Avro messages by the schema revision and the encoding with which they were written.

Pub/Sub says both in the attributes of a message whose topic has a schema. Other senders put the id
of the schema before the record: a single-object header, or Confluent's. A record that was written
with another revision is resolved to the fields of --avro_schema, as Avro defines it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastavro.schema import fingerprint, to_parsing_canonical_form
from google.api_core import exceptions

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError, UsageError, one_line
from transforms.dead_letters import Fault
from transforms.messages.avro import field_names, parse_schema, read_binary, read_json
from transforms.messages.message import (
    ATTEMPTS,
    SCHEMA_ENCODING,
    SCHEMA_NAME,
    SCHEMA_REVISION,
    schema_attributes,
)

_FULL_NAME = re.compile(r"projects/[^/@]+/schemas/[^/@]+")
# Source: "Single-object encoding" of the Avro specification.
_SINGLE_OBJECT, _FINGERPRINT_BYTES = b"\xc3\x01", 8
# Source: "Wire format" of Confluent's Schema Registry: a zero, and the id in four bytes.
_CONFLUENT, _ID_BYTES = b"\x00", 4
_GIVE = "give its schema with --avro_revisions"


@dataclass(frozen=True)
class _Writer:
    """A schema with which messages were written.

    Attributes:
        schema: The parsed schema.
        reader: The schema to which records are resolved, or None if it is the same.
    """

    schema: Any
    reader: Any


@dataclass(frozen=True)
class AvroRevisions:
    """The schemas of Avro messages: the user's, and those with which messages were written.

    Attributes:
        text: The JSON text of --avro_schema.
        given: The id and the JSON text of each schema of --avro_revisions. An id is that of a
            revision in Pub/Sub, or of a schema in Confluent's registry.
        cloud: The Cloud that fetches other revisions from Pub/Sub; None if nothing does.
    """

    text: str
    given: tuple[tuple[str, str], ...] = ()
    cloud: Cloud | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Workers parse the schemas themselves.
        return {name: self.__dict__[name] for name in ("text", "given", "cloud")}

    @cached_property
    def schema(self) -> Any:
        """The parsed --avro_schema. Raises UsageError if it cannot be used."""
        return parse_schema(self.text)

    @cached_property
    def _own(self) -> _Writer:
        return _Writer(self.schema, None)

    @cached_property
    def _given(self) -> dict[str, _Writer]:
        return {
            name: self._writer(parse_schema(text, f"--avro_revisions: {name}"))
            for name, text in self.given
        }

    @cached_property
    def _fetched(self) -> dict[str, _Writer | Fault]:
        return {}

    @cached_property
    def _by_fingerprint(self) -> dict[bytes, _Writer]:
        return {_fingerprint(w.schema): w for w in (*self._given.values(), self._own)}

    def check(self) -> None:
        """Parse all schemas. Raises UsageError if one of them cannot be used."""
        assert self._by_fingerprint

    def read(self, body: bytes, attributes: Mapping[str, str]) -> Any:
        """Read the content of a message.

        Args:
            body: The content.
            attributes: The attributes of the message.

        Returns:
            The row, or the Fault of a message that cannot be read; it names the encoding and the
            revision.

        Raises:
            InputError: A revision cannot be fetched at the moment, or without another role.
        """
        if ATTEMPTS in attributes:
            # This is a dead letter, sent again.
            attributes = schema_attributes(attributes)
        revision = attributes.get(SCHEMA_REVISION)
        if revision is None and SCHEMA_ENCODING not in attributes:
            return self._read_framed(body)
        encoding, name = attributes.get(SCHEMA_ENCODING, "BINARY"), attributes.get(SCHEMA_NAME, "")
        row: Any = self._revision(name, revision) if revision else self._own
        if isinstance(row, _Writer):
            read = _READERS.get(encoding)
            row = (
                Fault("invalid_avro", "the encoding of the message is not known")
                if read is None
                else read(body, row.schema, row.reader)
            )
        if isinstance(row, Fault):
            how = f"written as {encoding[:40]}" + (f" with revision {revision}" if revision else "")
            return Fault(row.reason, f"{row.message} ({how})")
        return row

    def _read_framed(self, body: bytes) -> Any:
        """Read a record that nothing describes, unless a header before it does."""
        if body.startswith(_SINGLE_OBJECT):
            start = len(_SINGLE_OBJECT) + _FINGERPRINT_BYTES
            named = body[len(_SINGLE_OBJECT) : start]
            writer = self._by_fingerprint.get(named)
            header = f"a single-object header of fingerprint {named[::-1].hex()}"
        elif body.startswith(_CONFLUENT):
            start = len(_CONFLUENT) + _ID_BYTES
            number = int.from_bytes(body[len(_CONFLUENT) : start])
            writer = self._given.get(str(number))
            header = f"a Confluent header of schema id {number}"
        else:
            return read_binary(body, self.schema, None)
        if writer is not None and len(body) >= start:
            return read_binary(body[start:], writer.schema, writer.reader)
        # A record of --avro_schema may start with the same bytes.
        row = read_binary(body, self.schema, None)
        if isinstance(row, Fault) and len(body) >= start:
            return Fault("wrong_schema", f"{row.message}; it may have {header}: {_GIVE}")
        return row

    def _revision(self, name: str, revision: str) -> _Writer | Fault:
        """Return a revision of a schema in Pub/Sub, which is fetched once per process."""
        key = f"{name}@{revision}"
        known = self._given.get(revision) or self._fetched.get(key)
        if known is None:
            known = self._fetched[key] = self._fetch(name, revision)
        return known

    def _fetch(self, name: str, revision: str) -> _Writer | Fault:
        unknown = Fault("wrong_schema", f"the revision is not in Pub/Sub any more: {_GIVE}")
        if self.cloud is None:
            return Fault("wrong_schema", f"the revision is not known here: {_GIVE}")
        if _FULL_NAME.fullmatch(name) is None:
            return unknown
        what = f"revision {revision} of {name} cannot be read, with which messages were written"
        try:
            with translate_errors(InputError, what, "roles/pubsub.viewer"):
                found = self.cloud.schemas().get_schema(
                    name=f"{name}@{revision}", retry=retry(self.cloud.retry_seconds)
                )
            return self._writer(parse_schema(found.definition, f"revision {revision}"))
        except InputError as error:
            if isinstance(error.__cause__, exceptions.NotFound | exceptions.InvalidArgument):
                return unknown
            raise
        except UsageError as error:
            return Fault("wrong_schema", one_line(error))

    def _writer(self, schema: Any) -> _Writer:
        own = self.schema
        same = to_parsing_canonical_form(schema) == to_parsing_canonical_form(own)
        return _Writer(schema, None if same else _reader(schema, own))


_READERS: Mapping[str, Callable[[bytes, Any, Any], Any]] = {
    "BINARY": read_binary,
    "JSON": read_json,
}


def _reader(written: Any, own: Any) -> Any:
    """Return the schema to which records of another schema are resolved.

    Fields that only the other schema has are skipped. A row lacks a field that only `own` has,
    unless the field has a default.
    """
    names = {*field_names(written)}
    fields = [
        field
        for field in own["fields"]
        if "default" in field or names & {field["name"], *field.get("aliases", ())}
    ]
    # The names of the two records need not agree.
    return {**own, "fields": fields, "aliases": [*own.get("aliases", ()), written["name"]]}


def _fingerprint(schema: Any) -> bytes:
    """Return the fingerprint of a schema as it is in a single-object header."""
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))[::-1]


def parse_revisions(texts: Sequence[str]) -> dict[str, str]:
    """Return the path of each schema of --avro_revisions by its id.

    Args:
        texts: The values of the flag, such as `dda9377e=old.avsc`.

    Raises:
        UsageError: A value is not an id and a path, or an id is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UsageError(
                f"--avro_revisions: expected ID=PATH, got {text!r}: name the revision or the "
                "schema id, and the file of its schema"
            )
        if name in found:
            raise UsageError(f"--avro_revisions: {name} is given twice: leave out one")
        found[name] = path
    return found
