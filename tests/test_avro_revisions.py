"""Avro messages are read by the encoding and the schema with which they were written."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import fastavro
import grpc
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form
from google.pubsub_v1.types import GetSchemaRequest, Schema
from hypothesis import given
from hypothesis import strategies as st

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from common.errors import InputError, UsageError
from common.record_batch import to_rows
from model_handlers.manifests.manifest import Manifest
from transforms.dead_letters import to_letter_line
from transforms.json_rows.row_format import RowFormat
from transforms.messages.avro_revisions import AvroRevisions, parse_revisions
from transforms.messages.decode import MessageFormat, decode_messages
from transforms.messages.message import Message
from transforms.messages.publish import failure_messages
from transforms.provenance import Provenance, utc_now
from transforms.replay.letters import from_message, read_letter, to_message

Make = Callable[..., Manifest]
NAME = "projects/p/schemas/rows"
NUMBER = ["null", "double"]


def record(*fields: str | dict[str, Any], name: str = "Row", kind: Any = NUMBER) -> dict[str, Any]:
    named = [{"name": f, "type": kind} if isinstance(f, str) else f for f in fields]
    return {"type": "record", "name": name, "fields": named}


OWN = record("a", "b", "c")
# The same fields in another order and under another name, and one more.
OTHER = record("c", "b", "extra", "a", name="x.Renamed")
ROW = {"a": 1.0, "b": 1.0, "c": 5.0}


def binary(row: Any = ROW, schema: Any = OWN) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), {"extra": 7.0, **row})
    return out.getvalue()


def text(row: Any = ROW, schema: Any = OWN) -> bytes:
    out = io.StringIO()
    fastavro.json_writer(out, fastavro.parse_schema(schema), [{"extra": 7.0, **row}])
    return out.getvalue().encode()


def said(encoding: str = "BINARY", revision: str = "", name: str = NAME) -> dict[str, str]:
    attributes = {"googclient_schemaencoding": encoding, "googclient_schemaname": name}
    return attributes | ({"googclient_schemarevisionid": revision} if revision else {})


def revisions(own: Any = OWN, cloud: Cloud | None = None, **given: Any) -> AvroRevisions:
    texts = tuple((name.strip("_"), json.dumps(schema)) for name, schema in given.items())
    return AvroRevisions(json.dumps(own), texts, cloud)


@dataclass
class Schemas:
    """A stand-in for Pub/Sub's schema service."""

    cloud: Cloud
    definitions: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refuse: grpc.StatusCode | None = None

    def get(self, request: GetSchemaRequest, context: grpc.ServicerContext) -> Schema:
        self.asked.append(request.name)
        if self.refuse is not None:
            context.abort(self.refuse, "refused")
        if request.name not in self.definitions:
            context.abort(grpc.StatusCode.NOT_FOUND, "Schema revision not found")
        return Schema(name=request.name, definition=self.definitions[request.name])


@pytest.fixture
def schemas() -> Iterator[Schemas]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    port = server.add_insecure_port("localhost:0")
    found = Schemas(Cloud("p", Endpoints(pubsub=f"localhost:{port}"), 2.0))
    handler = grpc.unary_unary_rpc_method_handler(
        found.get,
        request_deserializer=GetSchemaRequest.deserialize,
        response_serializer=Schema.serialize,
    )
    service = grpc.method_handlers_generic_handler(
        "google.pubsub.v1.SchemaService", {"GetSchema": handler}
    )
    server.add_generic_rpc_handlers([service])
    server.start()
    yield found
    server.stop(None)


def read(avro: AvroRevisions, body: bytes, attributes: Mapping[str, str] | None = None) -> Any:
    row = avro.read(body, attributes or {})
    return row if isinstance(row, dict) else (row.reason, row.message)


# Revisions


def test_a_revision_is_fetched_once_and_resolved_to_the_own_fields(schemas: Schemas) -> None:
    schemas.definitions = {f"{NAME}@r1": json.dumps(OWN), f"{NAME}@r2": json.dumps(OTHER)}
    avro = revisions(cloud=schemas.cloud)
    for _ in range(3):
        assert read(avro, binary(), said(revision="r1")) == ROW
        assert read(avro, binary(schema=OTHER), said(revision="r2")) == ROW
        assert read(avro, text(schema=OTHER), said("JSON", "r2")) == ROW
    assert schemas.asked == [f"{NAME}@r1", f"{NAME}@r2"]


def test_a_message_of_another_revision_is_not_misread(schemas: Schemas) -> None:
    swapped = record("c", "b", "a")
    body = binary(schema=swapped)
    # By the wrong schema, each byte fits, and the values are those of other fields.
    assert read(revisions(), body) == {"a": 5.0, "b": 1.0, "c": 1.0}
    schemas.definitions = {f"{NAME}@r2": json.dumps(swapped)}
    assert read(revisions(cloud=schemas.cloud), body, said(revision="r2")) == ROW
    assert read(revisions(r2=swapped), body, said(revision="r2")) == ROW


def test_a_given_revision_is_not_fetched(schemas: Schemas) -> None:
    avro = revisions(cloud=schemas.cloud, r2=OTHER)
    assert read(avro, binary(schema=OTHER), said(revision="r2")) == ROW
    assert schemas.asked == []


@pytest.mark.parametrize("name", [NAME, "", "projects/p/schemas/rows@r1"])
def test_an_unknown_revision_is_a_fault_that_names_it(schemas: Schemas, name: str) -> None:
    avro = revisions(cloud=schemas.cloud)
    for _ in range(3):
        reason, message = read(avro, binary(), said(revision="gone", name=name))
        assert reason == "wrong_schema"
        assert "not in Pub/Sub any more: give its schema with --avro_revisions" in message
        assert message.endswith("(written as BINARY with revision gone)")
    assert len(schemas.asked) <= 1


def test_without_a_cloud_a_revision_must_be_given() -> None:
    reason, message = read(revisions(), text(), said("JSON", "r2"))
    assert (reason, "written as JSON with revision r2" in message) == ("wrong_schema", True)


def test_a_refused_permission_is_never_the_fault_of_a_message(schemas: Schemas) -> None:
    schemas.refuse = grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(InputError, match=r"revision r1 of .*rows.* the role roles/pubsub.viewer"):
        read(revisions(cloud=schemas.cloud), binary(), said(revision="r1"))


def test_a_schema_that_is_not_safe_or_not_avro_is_a_fault(schemas: Schemas) -> None:
    recursive = record({"name": "n", "type": ["null", "Row"]})
    schemas.definitions = {f"{NAME}@r1": json.dumps(recursive), f"{NAME}@r2": 'syntax = "proto3";'}
    avro = revisions(cloud=schemas.cloud)
    assert read(avro, b"\0", said(revision="r1"))[0] == "wrong_schema"
    assert "revision r2: not an Avro schema" in read(avro, b"\0", said(revision="r2"))[1]


def test_fields_are_resolved_as_avro_defines_it() -> None:
    own = record(
        "a",
        "b",
        {"name": "c", "type": "double", "default": 9.0},
        "d",
        {"name": "e", "type": "double", "aliases": ["was_e"]},
    )
    older = record({"name": "a", "type": "int"}, "b", {"name": "was_e", "type": "float"})
    body = binary({"a": 4, "b": None, "was_e": 0.5}, older)
    # A row lacks a field that neither the revision nor a default gives.
    expected = {"a": 4, "b": None, "c": 9.0, "e": 0.5}
    assert read(revisions(own, old=older), body, said(revision="old")) == expected
    other = record({"name": "a", "type": "string"})
    reason, message = read(revisions(own, o=other), binary({"a": "x"}, other), said(revision="o"))
    assert reason == "wrong_schema"
    assert message.startswith("the message's schema does not fit --avro_schema")


# Encodings


def test_the_encoding_is_followed() -> None:
    avro = revisions()
    assert read(avro, text(), said("JSON")) == read(avro, binary(), said()) == ROW
    assert read(avro, text().replace(b",", b",\n"), said("JSON")) == ROW
    reason, message = read(avro, binary(), said("TEXT"))
    assert (reason, "written as TEXT" in message) == ("invalid_avro", True)


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (text(), "BINARY", "invalid_avro"),
        (binary(), "JSON", "invalid_json"),
        (b'{"a":1,"b":2,"c":3}', "JSON", "invalid_avro"),
        (b'{"a":null}', "JSON", "invalid_avro"),
        (b'{"a":null,"a":null,"b":null,"c":null}', "JSON", "duplicate_key"),
        (b"[1]", "JSON", "not_an_object"),
        (b"{}{}", "JSON", "invalid_json"),
        (b'{"a":' * 5_000, "JSON", "invalid_json"),
    ],
)
def test_what_cannot_be_read_names_its_encoding(body: bytes, encoding: str, reason: str) -> None:
    found, message = read(revisions(), body, said(encoding))
    assert found == reason
    assert message.endswith(f"(written as {encoding})")


# Headers


def single_object(schema: Any) -> bytes:
    form = to_parsing_canonical_form(fastavro.parse_schema(schema))
    return b"\xc3\x01" + bytes.fromhex(fingerprint(form, "CRC-64-AVRO"))[::-1]


def confluent(number: int) -> bytes:
    return b"\0" + number.to_bytes(4)


def test_headers_are_read_if_their_schema_is_given() -> None:
    avro = revisions(_17=OTHER)
    assert read(avro, binary()) == ROW
    assert read(avro, single_object(OWN) + binary()) == ROW
    assert read(avro, single_object(OTHER) + binary(schema=OTHER)) == ROW
    assert read(avro, confluent(17) + binary(schema=OTHER)) == ROW


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (confluent(18), "a Confluent header of schema id 18"),
        (single_object(record("zz")), "a single-object header of fingerprint "),
    ],
)
def test_a_header_of_an_unknown_schema_is_named(header: bytes, words: str) -> None:
    reason, message = read(revisions(_17=OTHER), header + binary())
    assert reason == "wrong_schema"
    assert words in message
    assert "--avro_revisions" in message


def test_a_record_may_start_like_a_header() -> None:
    numbers = record("a", "b", "c", kind="double")
    for start in (b"\0" * 5, b"\xc3\x01"):
        body = (start + bytes(24))[:24]
        assert {*read(revisions(numbers), body)} == {"a", "b", "c"}
    for short in (b"\0", b"\0\0", b"\xc3\x01", b"\xc3\x01\0"):
        assert read(revisions(_0=OTHER), short)[0] == "invalid_avro"


@given(st.binary(max_size=40), st.sampled_from(["", "BINARY", "JSON", "?"]), st.booleans())
def test_any_bytes_are_a_row_or_a_fault(body: bytes, encoding: str, framed: bool) -> None:
    body = confluent(17) + body if framed else body
    row = revisions(_17=OTHER).read(body, said(encoding) if encoding else {})
    assert isinstance(row, dict) or row.reason


# Flags and dead letters


def test_revisions_are_given_by_id_and_path() -> None:
    assert parse_revisions(["r1=a.avsc", "17=gs://b/x=y.avsc"]) == {
        "r1": "a.avsc",
        "17": "gs://b/x=y.avsc",
    }
    for wrong in (["a.avsc"], ["=a.avsc"], ["r1="], ["r1=a", "r1=b"]):
        with pytest.raises(UsageError, match="--avro_revisions"):
            parse_revisions(wrong)


def test_a_dead_letter_keeps_its_encoding_and_revision_through_topics(
    make_manifest: Make, provenance: Provenance
) -> None:
    read_as = MessageFormat(RowFormat(make_manifest()), "avro", revisions(r2=OTHER))
    bad = binary({"a": None, "b": 1.0, "c": 1.0}, OTHER)[:-1]
    messages = [Message(bad, {**said(revision="r2"), "k": "v"}, "m", 0, "")]
    for _ in range(3):
        _, failures = decode_messages(messages, read_as, provenance, utc_now())
        assert failures is not None
        (row,) = to_rows(failures)
        assert row["message"].endswith("(written as BINARY with revision r2)")
        (sent,) = failure_messages(failures)
        assert not any(name.startswith("goog") for name in sent.attributes)
        # The same stream reads the topic of its dead letters.
        messages = [Message(sent.data, sent.attributes, "n", 0, "")]
    record_of = from_message(messages[0])
    assert record_of is not None
    again = to_message(read_letter(to_letter_line(record_of), "here"))
    assert said(revision="r2").items() <= again.attributes.items()
    good, _ = decode_messages(
        [Message(binary(schema=OTHER), again.attributes, "o", 0, "")],
        read_as,
        provenance,
        utc_now(),
    )
    assert [row["source"]["features"] for batch in good for row in to_rows(batch)] == [[1, 1, 5]]


# Messages that are read as another format


def letters(
    make_manifest: Make, provenance: Provenance, body: bytes, attributes: dict[str, str], kind: Any
) -> list[tuple[str, str]]:
    read = MessageFormat(RowFormat(make_manifest()), kind)
    message = Message(body, attributes, "m", 0, "")
    _, failures = decode_messages([message], read, provenance, utc_now())
    assert failures is not None
    return [(one["reason"], one["message"]) for one in to_rows(failures)]


@pytest.mark.parametrize("prefix", ["", "millrace_"])
@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("json", binary(), "invalid_json"),
        ("json", b"7", "not_an_object"),
        ("arrow", binary(), "invalid_arrow"),
    ],
)
def test_an_avro_message_that_is_read_as_another_format_names_the_flag(
    make_manifest: Make, provenance: Provenance, kind: str, body: bytes, reason: str, prefix: str
) -> None:
    attributes = {prefix + name: value for name, value in said().items()}
    ((found, message),) = letters(make_manifest, provenance, body, attributes, kind)
    assert found == reason
    assert "attribute googclient_schemaencoding is BINARY" in message
    assert "--message_format avro with --avro_schema" in message


@pytest.mark.parametrize(
    ("body", "attributes"),
    [
        (b"no", {}),
        (b"no", said("JSON")),
        (b'{"a":1,"a":2,"b":1,"c":1}', said()),
        (b"", said()),
    ],
)
def test_other_faults_do_not_mention_avro(
    make_manifest: Make, provenance: Provenance, body: bytes, attributes: dict[str, str]
) -> None:
    ((_, message),) = letters(make_manifest, provenance, body, attributes, "json")
    assert "avro" not in message.lower()
