"""Decoding: whatever a message contains, it becomes rows or one dead letter, and not both."""

import datetime
import gzip
import io
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import apache_beam as beam
import fastavro
import numpy as np
import orjson
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import example, given
from hypothesis import strategies as st
from property_tests import examples

from common.errors import UsageError
from common.record_batch import to_rows
from model_handlers.manifests.manifest import FeatureStatistics, InputSpec, Manifest
from transforms.json_rows.decode import decode_rows
from transforms.json_rows.row_format import RowFormat, read_plain
from transforms.messages.avro_revisions import AvroRevisions
from transforms.messages.decode import DecodeMessages, MessageFormat, decode_messages
from transforms.messages.message import ATTEMPTS, REPLAYED_ID, Message, serialize
from transforms.messages.several_rows import several
from transforms.provenance import Provenance
from transforms.row_schemas import CARRIED
from transforms.validate import validate

Make = Callable[..., Any]
NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
GOOD = b'{"a":1,"b":2.5,"c":-3}'
MEAN = FeatureStatistics(count=1, mean=0.5, std=1.0, min=0.0, max=1.0)


def message(data: bytes, number: int = 0, **attributes: str) -> Message:
    return Message(data, attributes, f"m{number}", 1_700_000_000_000_000 + number, "")


def messages_of(bodies: Sequence[bytes]) -> list[Message]:
    return [message(body, i) for i, body in enumerate(bodies)]


def json_format(manifest: Manifest, **fields: Any) -> MessageFormat:
    return MessageFormat(RowFormat(manifest, typed=CARRIED), **fields)


def decode(
    messages: Sequence[Message], message_format: MessageFormat, provenance: Provenance
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return good rows and dead letters, as dicts."""
    batches, failures = decode_messages(messages, message_format, provenance, NOW)
    good = [row for batch in batches for row in to_rows(batch)]
    return good, [] if failures is None else to_rows(failures)


def values(row: dict[str, Any]) -> list[Any]:
    """Return the three features of a good row, which it has by name or in one list."""
    source = row["source"]
    return source["features"] if "features" in source else [source[n] for n in ("a", "b", "c")]


# Messages that are read


def test_both_forms_are_read_and_rows_get_the_ids_of_their_messages(
    make_manifest: Make, provenance: Provenance
) -> None:
    bodies = [b'{"c":3,"b":2.5,"a":1,"other":{}}', b'{"features":[4,5,6]}']
    # The fast reader can read each message on its own, but not both together.
    for part in ([0], [1], [0, 1]):
        messages = [messages_of(bodies)[i] for i in part]
        good, bad = decode(messages, json_format(make_manifest()), provenance)
        assert [values(row) for row in good] == [
            [[1.0, 2.5, 3.0], [4.0, 5.0, 6.0]][i] for i in part
        ]
        assert [row["row_id"] for row in good] == [f"m{i}" for i in part]
        assert [row["payload"] for row in good] == [bodies[i] for i in part]
        assert [row["message"]["message_id"] for row in good] == [f"m{i}" for i in part]
        assert {row["message"]["received_at"] for row in good} == {NOW}
        assert bad == []


def test_the_id_column_takes_precedence_over_the_message_id(
    make_manifest: Make, provenance: Provenance
) -> None:
    row_format = RowFormat(make_manifest(), "id")
    bodies = [b'{"features":[1,2,3],"id":""}', b'{"features":[1,2,3]}', b'{"features":7,"id":"x"}']
    good, bad = decode(messages_of(bodies), MessageFormat(row_format), provenance)
    assert [row["row_id"] for row in good] == ["", "m1"]
    assert [(row["row_id"], row["payload"]) for row in bad] == [("x", bodies[2])]


def test_gzip_is_decompressed_if_the_attribute_says_so(
    make_manifest: Make, provenance: Provenance
) -> None:
    zipped = gzip.compress(GOOD)
    messages = [
        message(zipped, 0, **{"content-encoding": "gzip"}),
        message(GOOD, 1, **{"content-encoding": "identity"}),
        message(zipped, 2),
        message(GOOD, 3, **{"content-encoding": "gzip"}),
        message(zipped[:-4], 4, **{"content-encoding": "gzip"}),
        message(zipped + b"x", 5, **{"content-encoding": "gzip"}),
        message(gzip.compress(b""), 6, **{"content-encoding": "gzip"}),
        message(b"", 7, **{"content-encoding": "gzip"}),
    ]
    good, bad = decode(messages, json_format(make_manifest()), provenance)
    assert [row["row_id"] for row in good] == ["m0", "m1"]
    assert good[0]["payload"] == zipped
    assert [(row["row_id"], row["reason"]) for row in bad] == [
        ("m2", "invalid_json"),
        ("m3", "invalid_gzip"),
        ("m4", "invalid_gzip"),
        ("m5", "invalid_gzip"),
        ("m6", "empty_message"),
        ("m7", "empty_message"),
    ]
    assert [row["payload"] for row in bad] == [m.data for m in messages[2:]]


def test_sizes_are_bounded_before_and_after_unzipping(
    make_manifest: Make, provenance: Provenance
) -> None:
    limit = 1000
    fits = GOOD[:-1] + b" " * (limit - len(GOOD)) + b"}"
    bomb = gzip.compress(b" " * 50_000_000)
    messages = [
        message(fits, 0),
        message(fits + b" ", 1),
        message(gzip.compress(fits), 2, **{"content-encoding": "gzip"}),
        message(gzip.compress(fits + b" "), 3, **{"content-encoding": "gzip"}),
        message(bomb, 4, **{"content-encoding": "gzip"}),
        message(b"x" * 10_000_000, 5),
    ]
    read = json_format(make_manifest(), max_bytes=limit)
    good, bad = decode(messages, read, provenance)
    assert [row["row_id"] for row in good] == ["m0", "m2"]
    assert [row["reason"] for row in bad] == ["too_large"] * 4
    assert [row["payload"] for row in bad] == [messages[i].data for i in (1, 3, 4, 5)]
    assert bad[0]["message"] == "expected at most 1,000 bytes, got 1,001"
    # Compressed, the fifty megabytes are within this limit; decompression stops at the limit.
    wide = json_format(make_manifest(), max_bytes=1 << 20)
    _, (letter,) = decode([messages[4]], wide, provenance)
    assert letter["message"] == "expected at most 1,048,576 bytes uncompressed, got more"


# Messages that are refused


DEEP = b"[" * 900 + b"]" * 900
DEEPER = b"[" * 1020 + b"]" * 1020
BAD: list[tuple[bytes, str, str]] = [
    (b"", "empty_message", "the message has no data"),
    (b"\0", "invalid_json", "not JSON"),
    (b"not json", "invalid_json", "not JSON: invalid literal"),
    (b'{"a":1,"b":2,"c":nan}', "invalid_json", "not JSON"),
    (b'{"a":1,"b":2,"c":1e400}', "invalid_json", "number is infinity"),
    (b'{"a":1,"b":2,"c":3', "invalid_json", "not JSON"),
    (b'{"a":1,"b":2,"c":3}{}', "invalid_json", "unexpected content after document"),
    (b'{"a":1,"b":2,"c":"\xff"}', "invalid_json", "UTF-8"),
    (b"\xef\xbb\xbf" + GOOD, "invalid_json", "BOM"),
    (b'{"a":1,"b":2,"c":"\\ud800"}', "invalid_json", "surrogate"),
    (b"[" * 5000, "invalid_json", "depth limit exceeded"),
    (b"[" * 1000 + b"]" * 1000, "not_an_object", "got list"),
    (b"[1,2,3]", "not_an_object", "expected a JSON object, got list"),
    (b'"text"', "not_an_object", "got string"),
    (b"null", "not_an_object", "got null"),
    (b"{}", "missing_feature", "the row has no column a"),
    (b'{"a":1,"b":2}', "missing_feature", "the row has no column c"),
    (b'{"A":1,"b":2,"c":3}', "missing_feature", "the row has no column a"),
    (b'{"a":"x","b":2,"c":3}', "wrong_type", "column a: expected a number, got string"),
    (b'{"a":true,"b":2,"c":3}', "wrong_type", "column a: expected a number, got boolean"),
    (b'{"a":[1,2],"b":2,"c":3}', "wrong_type", "column a: expected a number, got list"),
    (b'{"a":' + DEEP + b',"b":2,"c":3}', "wrong_type", "column a: expected a number, got list"),
    (b'{"features":[1,2]}', "wrong_width", "column features: expected 3 values, got 2"),
    (b'{"features":[1,2,"x"]}', "wrong_type", "column features[2]: expected a number"),
    (b'{"features":"123"}', "wrong_type", "column features: expected a list, got string"),
    (b'{"features":null}', "null", "column features: expected a list, got null"),
    (b'{"a":1,"a":1,"b":2,"c":3}', "duplicate_key", "key 'a' appears twice"),
    (
        b'{"a":1,"b":2,"c":3,"x":{"y":1,"y":2}}',
        "duplicate_key",
        "a nested object contains a key twice",
    ),
    (
        b'{"a":1,"b":2,"c":3,"x":[{"\\u0079":1,"y":2}]}',
        "duplicate_key",
        "a nested object contains a key",
    ),
    (b'{"a":1,"b":2,"c":3,"sequence":"7.5"}', "wrong_type", "sequence: expected int64, got string"),
    (b'{"a":1,"b":2,"c":3,"sequence":1.5}', "wrong_type", "sequence: expected int64, got float"),
    (b'{"a":1,"b":2,"c":3,"sequence":true}', "wrong_type", "expected int64, got boolean"),
    (b'{"a":1,"b":2,"c":3,"sequence":9223372036854775808}', "wrong_type", "expected int64"),
    (b'{"a":1,"b":2,"c":3,"sequence":' + DEEP + b"}", "wrong_type", "expected int64, got list"),
    (b'{"a":1,"b":2,"c":3,"publish_time":"now"}', "wrong_type", "expected double, got string"),
    (b'{"a":1,"b":2,"c":3,"publish_time":false}', "wrong_type", "expected double, got boolean"),
    (b'{"a":1,"b":2,"c":3,"test_id":' + DEEP + b"}", "wrong_type", "nested too deeply"),
    (b'{"a":1,"b":2,"c":3,"message_id":' + DEEP + b"}", "wrong_type", "nested too deeply"),
]
if sys.version_info < (3, 12):
    # Later versions of Python can read the whole message, and find no duplicate key.
    BAD.append(
        (b'{"a":1,"b":2,"c":3,"x":{"y":' + DEEPER + b',"z":"\\":"}}', "invalid_json", "deep")
    )


def test_each_bad_message_is_one_dead_letter_with_its_bytes_and_the_rest_is_read(
    make_manifest: Make, provenance: Provenance
) -> None:
    messages = messages_of([body for bad, _, _ in BAD for body in (GOOD, bad)])
    good, letters = decode(messages, json_format(make_manifest()), provenance)
    assert [row["row_id"] for row in good] == [m.message_id for m in messages[::2]]
    assert [values(row) for row in good] == [[1.0, 2.5, -3.0]] * len(BAD)
    assert [row["row_id"] for row in letters] == [m.message_id for m in messages[1::2]]
    for letter, (body, reason, words) in zip(letters, BAD, strict=True):
        assert (letter["payload"], letter["reason"], letter["stage"]) == (body, reason, "decode")
        assert words in letter["message"]
        assert len(letter["message"]) < 500


@pytest.mark.parametrize(("body", "reason", "words"), BAD, ids=range(len(BAD)))
def test_a_bad_message_is_reported_the_same_way_on_its_own(
    make_manifest: Make, provenance: Provenance, body: bytes, reason: str, words: str
) -> None:
    good, (letter,) = decode([message(body)], json_format(make_manifest()), provenance)
    assert (good, letter["reason"], letter["payload"]) == ([], reason, body)
    assert words in letter["message"]


def test_a_dead_letter_has_the_fields_of_its_message(
    make_manifest: Make, provenance: Provenance
) -> None:
    one = Message(b"{", {"k": "v", ATTEMPTS: "2"}, "m1", 1_700_000_000_000_001, "key")
    _, (letter,) = decode([one], json_format(make_manifest()), provenance)
    assert orjson.loads(letter["attributes"]) == {
        "message": {
            "id": "m1",
            "event_time": "2023-11-14T22:13:20.000001+00:00",
            "ordering_key": "key",
            "attributes": {"k": "v", ATTEMPTS: "2"},
        }
    }
    assert letter["attempts"] == 3
    assert (letter["run_id"], letter["pipeline"]) == (provenance.run_id, provenance.pipeline)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"b":2,"c":3,"x":"a:b"}',
        b'{"a":1,"b":2,"c":3,"x":"\\":\\":"}',
        b'{"a":1,"b":2,"c":3,"x":{"a":1,"b":{"a":1}}}',
        b'{"a":1,"b":2,"c":3,"x":[{"y":1},{"y":1}]}',
        b'{"a":1,"b":2,"c":3,"x":{"y":' + DEEPER + b"}}",
        b'{"a":1,"b":2,"c":3,"x":{"y":' + b"1" * 300 + b"}}",
    ],
)
def test_keys_that_only_look_duplicated_are_accepted(
    make_manifest: Make, provenance: Provenance, body: bytes
) -> None:
    good, bad = decode([message(body)], json_format(make_manifest()), provenance)
    assert (len(good), bad) == (1, [])


# The two readers agree


SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-2, 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0**63, 1e300, 2**53 + 1, 2**63, "", "1", "a"])
    | st.text(max_size=3)
)
ANY = (
    SCALAR | st.lists(SCALAR, max_size=4) | st.dictionaries(st.text(max_size=1), SCALAR, max_size=2)
)
NUMBER = st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
CELL = NUMBER | st.none()
BESIDE = {
    "test_id": ANY,
    "message_id": st.text(max_size=3) | ANY,
    "publish_time": CELL | ANY,
    "sequence": CELL | ANY,
    "city": st.text(max_size=3) | ANY,
    "id": ANY,
}
NAMED = st.fixed_dictionaries({"a": CELL, "b": CELL, "c": CELL}, optional=BESIDE)
LISTED = st.fixed_dictionaries(
    {"features": st.lists(CELL, min_size=3, max_size=3)}, optional=BESIDE | {"a": CELL}
)
MIXED = st.fixed_dictionaries(
    {}, optional={"a": ANY, "b": ANY, "c": CELL, "features": ANY | st.lists(CELL, max_size=4)}
)
ROWS = st.one_of(
    st.lists(NAMED, min_size=1, max_size=5),
    st.lists(LISTED, min_size=1, max_size=5),
    st.lists(NAMED | LISTED | MIXED | ANY, min_size=1, max_size=5),
)


@pytest.fixture(scope="session")
def formats(make_manifest: Make) -> list[RowFormat]:
    manifests = [
        make_manifest(),
        make_manifest(InputSpec("x", ("a", "b", "c"), dtype="float64", shape=(3,))),
        make_manifest(
            InputSpec("x", ("a", "b", "c"), shape=(3,), impute={"b": "mean"}),
            statistics={"b": MEAN},
        ),
        make_manifest(InputSpec("x", ("a",), shape=(1,))),
        make_manifest(InputSpec("x", ("a",))),
        make_manifest(InputSpec("x", ("features",), shape=(1,))),
        make_manifest(InputSpec("l", ("a",), shape=(3,))),
        make_manifest(InputSpec("x", ("a", "b", "c"), dtype="int64", shape=(3,))),
        make_manifest(InputSpec("x", ("a", "b"), shape=(2,)), InputSpec("y", ("c",))),
    ]
    return [
        RowFormat(manifest, id_column, keep, CARRIED)
        for manifest in manifests
        for id_column, keep in ((None, ()), ("id", ("city", "b")), ("a", ("features",)))
    ]


def verdicts(rows: Sequence[Any], row_format: RowFormat, *, as_vector: bool) -> list[str]:
    """Return the result of each row after validation: its values, or why it was refused."""
    payloads = [b"%d" % i for i in range(len(rows))]
    ids = [f"m{i}" for i in range(len(rows))]
    decoded = decode_rows(rows, payloads, ids, row_format, as_vector=as_vector)
    found = {
        payload: str((row_id, fault))
        for payload, row_id, fault in zip(
            decoded.failed_payloads, decoded.failed_ids, decoded.faults, strict=True
        )
    }
    if decoded.batch is not None:
        beside = [name for name, _ in row_format.columns]
        beside += [name for name in row_format.keep if name in row_format.features]
        good, bad, faults = validate(decoded.batch, row_format.manifest)
        for row in to_rows(good):
            kept = {name: row["source"][name] for name in beside}
            found[row["payload"]] = repr((row["row_id"], row["inputs"], sorted(kept.items())))
        for row, fault in zip(to_rows(bad), faults, strict=True):
            kept = {name: row["source"][name] for name in beside}
            found[row["payload"]] = str((row["row_id"], fault.reason, sorted(kept.items())))
        # The types of columns that are not features do not depend on their values.
        types = {f.name: f.type for f in decoded.batch.schema.field("source").type}
        assert all(types[name] == kind for name, kind in row_format.columns)
    assert len(found) == len(rows)
    return [found[payload] for payload in payloads]


@given(rows=ROWS, which=st.integers(0, 26))
@example([{"a": 1, "b": 2, "c": True}], 0)
@example([{"a": 1, "b": 2, "c": 3, "features": [7, 8, 9]}, {"features": [1, 2, 3]}], 0)
@example([{"features": [1, 2, 3], "a": 7}], 0)
@example([{"a": 1, "b": 2, "c": 3, "sequence": 1.5}], 0)
@example([{"a": 1, "b": 2, "c": 3, "sequence": 1.0}], 0)
@example([{"a": 1, "b": 2, "c": 3, "sequence": True}], 0)
@example([{"a": 1, "b": 2, "c": 3, "publish_time": True}], 0)
@example([{"a": 1, "b": 2, "c": 3}], 2)
@example([{"a": [1.0]}], 9)
@example([{"a": {}}], 9)
@example([{"features": [1.0]}], 15)
@pytest.mark.slow
def test_the_fast_and_the_general_reader_agree(
    formats: list[RowFormat], rows: list[Any], which: int
) -> None:
    row_format = formats[which]
    fast = verdicts(rows, row_format, as_vector=True)
    assert fast == verdicts(rows, row_format, as_vector=False)
    # Each row has the same result on its own.
    assert fast == [
        verdict.replace("'m0'", f"'m{i}'")
        for i, row in enumerate(rows)
        for verdict in verdicts([row], row_format, as_vector=True)
    ]


def test_plain_rows_are_read_by_the_fast_reader(make_manifest: Make) -> None:
    row_format = RowFormat(make_manifest(), "id", ("city", "b"), CARRIED)
    named = {"a": 1, "b": None, "c": 2.5, "city": "x", "sequence": 0, "publish_time": 0, "id": 7}
    for rows in ([named, named], [{"features": [1, 2.5, None]}]):
        columns = read_plain(rows, row_format)
        assert columns is not None
        assert list(columns) == ["features", "b", "city", *(name for name, _ in CARRIED)]


# Carried fields


def test_zero_and_empty_values_are_carried_and_wrong_types_are_dead_letters(
    make_manifest: Make, provenance: Provenance
) -> None:
    falsy = {"test_id": "", "message_id": "", "publish_time": 0, "sequence": 0}
    rows: list[dict[str, Any]] = [
        falsy,
        {},
        dict.fromkeys(falsy),
        {"test_id": 7, "sequence": 2.0, "publish_time": 1.5, "message_id": False},
        {"sequence": -(2**63)},
    ]
    bodies = [orjson.dumps({"features": [1, 2, 3], **row}) for row in rows]
    good, bad = decode(messages_of(bodies), json_format(make_manifest()), provenance)
    assert bad == []
    carried = [{name: row["source"][name] for name, _ in CARRIED} for row in good]
    nothing = dict.fromkeys(falsy)
    assert carried == [
        falsy,
        nothing,
        nothing,
        {"test_id": "7", "message_id": "false", "publish_time": 1.5, "sequence": 2},
        nothing | {"sequence": -(2**63)},
    ]


# Avro


SCHEMA = {
    "type": "record",
    "name": "Row",
    "namespace": "tests",
    "fields": [
        *({"name": n, "type": ["null", "double"]} for n in ("a", "b", "c")),
        {"name": "city", "type": {"type": "enum", "name": "City", "symbols": ["Ulm", "Bonn"]}},
        {"name": "sequence", "type": ["null", "long"], "default": None},
        {"name": "raw", "type": "bytes"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
ROW = {"a": 1.0, "b": None, "c": -3.5, "city": "Ulm", "sequence": 0, "raw": b"\xff", "at": NOW}


def avro(row: Any, schema: Any = SCHEMA) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return out.getvalue()


def avro_format(manifest: Manifest, schema: Any = SCHEMA) -> MessageFormat:
    row_format = RowFormat(manifest, None, ("city", "raw", "at"), CARRIED)
    return MessageFormat(row_format, "avro", AvroRevisions(json.dumps(schema)))


def test_avro_is_read_by_its_schema(make_manifest: Make, provenance: Provenance) -> None:
    good, bad = decode([message(avro(ROW))], avro_format(make_manifest()), provenance)
    assert bad == []
    (row,) = good
    assert values(row) == [1.0, None, -3.5]
    assert {name: row["source"][name] for name in ("city", "sequence", "raw", "at")} == {
        "city": "Ulm",
        "sequence": 0,
        "raw": "/w==",
        "at": "2026-11-20 12:00:00+00",
    }


def test_avro_of_another_schema_is_a_dead_letter(
    make_manifest: Make, provenance: Provenance
) -> None:
    row = avro(ROW)
    bodies = [row[:-1], row + b"\0", b"\xff" * 40, b"", GOOD, row[:10], b"\x0c" + row[1:]]
    good, bad = decode(messages_of([row, *bodies, row]), avro_format(make_manifest()), provenance)
    assert [r["row_id"] for r in good] == ["m0", f"m{len(bodies) + 1}"]
    assert [r["payload"] for r in bad] == bodies
    reasons = [r["reason"] for r in bad]
    assert reasons == ["invalid_avro"] * 3 + ["empty_message"] + ["invalid_avro"] * 3
    assert bad[0]["message"].startswith("the message does not match the Avro schema (")
    assert bad[1]["message"] == "1 bytes follow the record: was it written with another schema?"


def test_an_avro_file_is_reported_as_a_file(make_manifest: Make, provenance: Provenance) -> None:
    file = io.BytesIO()
    schema = {"type": "record", "name": "r", "fields": [{"name": "a", "type": "double"}]}
    fastavro.writer(file, schema, [{"a": 1.0}])
    _, (bad,) = decode([message(file.getvalue())], avro_format(make_manifest()), provenance)
    assert bad["reason"] == "invalid_avro"
    assert bad["message"] == "expected one record without a schema, got an Avro file"


def test_numbers_in_avro_are_reported_like_numbers_in_json(
    make_manifest: Make, provenance: Provenance
) -> None:
    schema = {
        "type": "record",
        "name": "Row",
        "fields": [
            {"name": "a", "type": ["boolean", "double"]},
            {"name": "b", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9}},
            {"name": "c", "type": ["double", "string"]},
        ],
    }
    rows = [
        {"a": 1.0, "b": Decimal(7), "c": 1.0},
        {"a": True, "b": Decimal(7), "c": 1.0},
        {"a": 1.0, "b": Decimal(7), "c": "x"},
        {"a": float("nan"), "b": Decimal(7), "c": 1.0},
    ]
    read = MessageFormat(RowFormat(make_manifest()), "avro", AvroRevisions(json.dumps(schema)))
    good, bad = decode(messages_of([avro(row, schema) for row in rows]), read, provenance)
    assert [row["row_id"] for row in good] == ["m0", "m3"]
    assert values(good[0]) == [1.0, 7.0, 1.0]
    assert np.isnan(values(good[1])[0])
    assert [row["message"] for row in bad] == [
        "column a: expected a number, got boolean",
        "column c: expected a number, got string",
    ]


RECURSIVE = {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not an Avro schema"),
        ("{", "not an Avro schema"),
        ("5", "not an Avro schema"),
        ('{"type":"record","name":"r","fields":[{"name":"a","type":"nope"}]}', "nope"),
        ('{"name":"x"}', "not an Avro schema"),
        ('"double"', "expected the schema of a record"),
        ('["null","double"]', "expected the schema of a record"),
        ('{"type":"array","items":"double"}', "expected the schema of a record"),
        (json.dumps(RECURSIVE), "record L must not contain itself"),
        (
            '{"type":"record","name":"r","fields":[{"name":"a","type":{"type":"map","values":'
            '{"type":"record","name":"s","fields":[{"name":"b","type":["null","r"]}]}}}]}',
            "record r must not contain itself",
        ),
        (
            '{"type":"record","name":"r","fields":[{"name":"n","type":"int"},'
            '{"name":"a","type":{"type":"array","items":"null"}}]}',
            "an array has items without content .null, a record of nulls.*, which take no bytes",
        ),
        (
            '{"type":"record","name":"r","fields":[{"name":"e","type":{"type":"record","name":"e",'
            '"fields":[{"name":"n","type":"null"}]}},'
            '{"name":"a","type":{"type":"array","items":"e"}}]}',
            "an array has items without content .* fixed of size 0.*, which take no bytes",
        ),
    ],
)
def test_schemas_that_cannot_be_read_safely_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        AvroRevisions(text).check()


def test_a_schema_may_use_a_named_record_twice() -> None:
    point = {"type": "record", "name": "P", "fields": [{"name": "x", "type": "double"}]}
    fields = [{"name": "p", "type": point}, {"name": "q", "type": {"type": "array", "items": "P"}}]
    schema = {"type": "record", "name": "R", "namespace": "n", "fields": fields}
    assert AvroRevisions(json.dumps(schema)).schema["name"] == "n.R"


# Arrow


def ipc(table: pa.Table | pa.RecordBatch, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write(table)
    return sink.getvalue().to_pybytes()


def arrow_format(manifest: Manifest, **fields: Any) -> MessageFormat:
    max_bytes = fields.pop("max_bytes", 1 << 20)
    return MessageFormat(RowFormat(manifest, typed=CARRIED, **fields), "arrow", None, max_bytes)


ABC = pa.table({"a": [1.0, 2.0], "b": [3, None], "c": pa.array([5.0, 6.0], pa.float32())})


def test_the_rows_of_an_arrow_message_are_numbered_in_order(
    make_manifest: Make, provenance: Provenance
) -> None:
    one, two = message(ipc(ABC), 1, k="v"), message(ipc(ABC.slice(1)), 2)
    good, bad = decode([one, two], arrow_format(make_manifest()), provenance)
    assert bad == []
    assert [row["row_id"] for row in good] == ["m1-0", "m1-1", "m2-0"]
    assert [values(row) for row in good] == [[1.0, 3, 5.0], [2.0, None, 6.0], [2.0, None, 6.0]]
    assert [row["message"]["message_id"] for row in good] == ["m1", "m1", "m2"]
    assert good[1]["message"]["attributes"] == '{"k":"v"}'


def test_other_columns_have_the_same_types_as_in_json(
    make_manifest: Make, provenance: Provenance
) -> None:
    table = ABC.append_column("id", pa.array(["x", None]))
    tables = [
        table,
        table.append_column("city", pa.array([1, 2]))
        .append_column("sequence", pa.array([0, 7], pa.int8()))
        .append_column("test_id", pa.array(["", None]).dictionary_encode())
        .append_column("publish_time", pa.array([0, 1])),
        table.append_column("city", pa.array([{"x": [1]}, None])),
    ]
    tables[0] = tables[0].append_column("city", pa.array([None, "Ulm"]))
    read = arrow_format(make_manifest(), id_column="id", keep=("city", "a"))
    batches, failures = decode_messages(
        messages_of([ipc(table) for table in tables]), read, provenance, NOW
    )
    assert failures is None
    beside = {"city": pa.string(), "test_id": pa.string(), "sequence": pa.int64()}
    for batch in batches:
        types = {f.name: f.type for f in batch.schema.field("source").type}
        assert all(types.get(name, kind) == kind for name, kind in beside.items())
    rows = [row for batch in batches for row in to_rows(batch)]
    assert [row["row_id"] for row in rows] == ["x", "m0-1", "x", "m1-1", "x", "m2-1"]
    cities = [row["source"]["city"] for row in rows]
    assert cities == [None, "Ulm", "1", "2", '{"x":[1]}', None]
    carried = {"sequence": 0, "test_id": "", "publish_time": 0.0}
    assert {name: rows[2]["source"][name] for name in carried} == carried


def test_dictionaries_and_several_batches_in_a_message_are_read(
    make_manifest: Make, provenance: Provenance
) -> None:
    sink = pa.BufferOutputStream()
    city = pa.field("city", pa.dictionary(pa.int8(), pa.string()))
    schema = pa.schema([*((name, pa.float64()) for name in "abc"), city])
    with pa.ipc.new_stream(sink, schema) as writer:
        for city in ("Ulm", "Bonn"):
            cities = pa.array([city, city]).dictionary_encode().cast(schema.field("city").type)
            writer.write(pa.record_batch([*[pa.array([1.0, 2.0])] * 3, cities], schema=schema))
    read = arrow_format(make_manifest(), keep=("city",))
    good, bad = decode([message(sink.getvalue().to_pybytes())], read, provenance)
    assert bad == []
    assert [row["row_id"] for row in good] == ["m0-0", "m0-1", "m0-2", "m0-3"]
    assert [row["source"]["city"] for row in good] == ["Ulm", "Ulm", "Bonn", "Bonn"]


def corrupted(body: bytes) -> bytes:
    """Return a stream of strings with an offset that points outside of its buffer."""
    at = body.rindex(np.array([0, 3, 6], np.int32).tobytes())
    return body[: at + 4] + b"\xff\xff\xff\x7f" + body[at + 8 :]


TEXTS = ABC.append_column("city", pa.array(["abc", "def"]))
ONES = pa.array([1, 1])
TWO_SEQUENCES = TEXTS.append_column("sequence", ONES).append_column("sequence", ONES)
BILLION = pa.RecordBatch.from_arrays([pa.nulls(1_000_000_000)] * 3, names=["a", "b", "c"])
NO_STREAM = "expected an Arrow IPC stream, got other or damaged data ("
BAD_ARROW: list[tuple[bytes, str, str]] = [
    (b"", "empty_message", "no data"),
    (GOOD, "invalid_arrow", NO_STREAM),
    (ipc(TEXTS)[:-30], "invalid_arrow", NO_STREAM),
    (ipc(TEXTS)[:100], "invalid_arrow", NO_STREAM),
    (b"\xff\xff\xff\xff" + b"\xff\xff\xff\x7f" + b"\0" * 100, "invalid_arrow", NO_STREAM),
    (b"ARROW1" + ipc(TEXTS), "invalid_arrow", "expected an Arrow IPC stream, got an Arrow file"),
    (corrupted(ipc(TEXTS)), "invalid_arrow", NO_STREAM),
    (ipc(TEXTS.slice(0, 0)), "empty_message", "has no rows"),
    (ipc(BILLION), "too_large", "expected at most one row per byte, got 1,000,000,000 rows in"),
    (ipc(TEXTS.drop_columns(["b"])), "wrong_schema", "needs column 'b'"),
    (ipc(TEXTS.drop_columns(["city"])), "wrong_schema", "lacks column 'city'"),
    (ipc(TEXTS.append_column("a", pa.array([1, 2]))), "wrong_schema", "2 columns named 'a'"),
    (ipc(TWO_SEQUENCES), "wrong_schema", "the message has 2 columns 'sequence'"),
    (ipc(TEXTS.set_column(0, "a", pa.array([b"x", b"y"]))), "wrong_schema", "expected a number"),
    (ipc(TEXTS.append_column("sequence", pa.array([1.5, 2]))), "wrong_schema", "int64, got double"),
    (
        ipc(TEXTS.append_column("sequence", pa.array(["x", "y"]))),
        "wrong_schema",
        "int64, got string",
    ),
    (ipc(TEXTS.append_column("publish_time", pa.array([[1], [2]]))), "wrong_schema", "list"),
]


def test_each_hostile_arrow_message_is_one_dead_letter_and_the_rest_is_read(
    make_manifest: Make, provenance: Provenance
) -> None:
    fine = ipc(TEXTS)
    messages = messages_of([body for bad, _, _ in BAD_ARROW for body in (fine, bad)])
    good, bad = decode(messages, arrow_format(make_manifest(), keep=("city",)), provenance)
    numbers = range(0, len(messages), 2)
    assert [row["row_id"] for row in good] == [f"m{i}-{row}" for i in numbers for row in (0, 1)]
    for letter, (body, reason, words) in zip(bad, BAD_ARROW, strict=True):
        assert (letter["payload"], letter["reason"]) == (body, reason), words
        assert words in letter["message"]


def test_features_of_arrow_messages_may_be_views(
    make_manifest: Make, provenance: Provenance
) -> None:
    texts = pa.array(["1", "x"], pa.string_view())
    body = ipc(pa.table({"a": texts, "b": texts, "c": texts}))
    read = arrow_format(make_manifest())
    (batch,), failures = decode_messages(messages_of([body]), read, provenance, NOW)
    good, bad, faults = validate(batch, read.row_format.manifest)
    assert (good.num_rows, bad.num_rows, failures) == (1, 1, None)
    assert [fault.reason for fault in faults] == ["wrong_type"]


def test_compressed_arrow_may_not_be_larger_than_a_message(
    make_manifest: Make, provenance: Provenance
) -> None:
    zeros = pa.table(dict.fromkeys("abc", np.zeros(100_000)))
    body = ipc(zeros, compression="zstd")
    assert len(body) < 1 << 12
    read = arrow_format(make_manifest(), max_bytes=1 << 20)
    _, (letter,) = decode([message(body)], read, provenance)
    assert letter["reason"] == "too_large"
    good, bad = decode([message(ipc(ABC, compression="lz4"))], read, provenance)
    assert (len(good), bad) == (2, [])


def test_a_replayed_row_of_an_arrow_message_is_read_as_json(
    make_manifest: Make, provenance: Provenance
) -> None:
    again = message(GOOD, 1, **{REPLAYED_ID: "m0-7", "content-encoding": "gzip"})
    good, bad = decode([again, message(ipc(ABC), 2)], arrow_format(make_manifest()), provenance)
    assert bad == []
    assert sorted(row["row_id"] for row in good) == ["m0-7", "m2-0", "m2-1"]


# Messages of any content


def mutated(rng: random.Random, body: bytes) -> bytes:
    """Change, cut, duplicate or move some bytes of a valid message."""
    at, until = sorted((rng.randrange(len(body) + 1), rng.randrange(len(body) + 1)))
    match rng.randrange(6):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + body[until:]
        case 2:
            return body[:at] + rng.choice(TOKENS) + body[at:]
        case 3:
            return body[:at] + rng.choice(TOKENS) + body[until:]
        case 4:
            return body[:until] + body[at:]
        case _:
            return body[:at] + rng.randbytes(rng.randrange(1, 4)) + body[at + 1 :]


TOKENS = [
    *(b"0", b"-", b"1e999", b"null", b"true", b"NaN", b'"', b'"a":', b'"features":', b",", b":"),
    *(b"{", b"}", b"[", b"]", b"\\", b"\\u0000", b"\\ud800", b"\0", b"\xff", b"\xc3\xa9", b" "),
    *(b"9" * 25, b"[" * 300, b'{"a":' * 300, b'"sequence":1.5,', b'"test_id":[],'),
]
SEEDS = [
    b'{"a":1,"b":2.5,"c":-3}',
    b'{"features":[1,2.5,-3e2],"test_id":"x","sequence":7}',
    b'{"a":0.1,"b":null,"c":2,"city":"Z\xc3\xbcrich","x":{"y":[1,{"z":"\\u00e9"}]}}',
    b'{"features":[0,0,0],"message_id":"","publish_time":1700000000.5,"id":12}',
]


def random_json(rng: random.Random, depth: int = 0) -> Any:
    pick = rng.randrange(9 if depth < 3 else 6)
    if pick < 6:
        return rng.choice([None, True, rng.randrange(-9, 9), rng.random(), 10**30, "x" * pick])
    if pick == 6:
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    names = rng.sample(["a", "b", "c", "features", "sequence", "test_id", "id", "city"], 4)
    return {name: random_json(rng, depth + 1) for name in names[: rng.randrange(5)]}


def any_message(rng: random.Random) -> bytes:
    match rng.randrange(5):
        case 0:
            return rng.choice(SEEDS)
        case 1 | 2:
            return mutated(rng, rng.choice(SEEDS))
        case 3:
            return json.dumps(random_json(rng)).encode()
        case _:
            return rng.randbytes(rng.randrange(30))


def rows_of(messages: list[Message], read: MessageFormat) -> Iterator[tuple[str, bytes]]:
    """Yield the ids and the bytes of the rows in messages, which are not compressed."""
    for sent in messages:
        rows = several(sent.data) if len(sent.data) <= read.max_bytes else None
        if rows is None:
            yield sent.message_id, sent.data
        else:
            yield from ((f"{sent.message_id}-{i}", row) for i, row in enumerate(rows))


def balance(
    messages: list[Message], message_format: MessageFormat, provenance: Provenance
) -> Counter[str]:
    """Check that each row is in exactly one place, and count rows by reason."""
    batches, failures = decode_messages(messages, message_format, provenance, NOW)
    good = [i for batch in batches for i in batch.column("row_id").to_pylist()]
    bad = [] if failures is None else failures.column("row_id").to_pylist()
    payloads = [] if failures is None else failures.column("payload").to_pylist()
    # Good and bad rows are in order, and each row is one of the two.
    sent = dict(rows_of(messages, message_format))
    places = {row_id: i for i, row_id in enumerate(sent)}
    for ids in (good, bad):
        assert [places[i] for i in ids] == sorted(places[i] for i in ids)
    assert sorted(good + bad) == sorted(places)
    assert payloads == [sent[i] for i in bad]
    counts = Counter([] if failures is None else failures.column("reason").to_pylist())
    kept = 0
    for batch in batches:
        fine, refused, faults = validate(batch, message_format.row_format.manifest)
        assert fine.num_rows + refused.num_rows == batch.num_rows
        kept += fine.num_rows
        counts += Counter(f"later {fault.reason}" for fault in faults)
    return counts + Counter(good=kept)


def test_messages_of_any_kind_are_read_or_refused_and_none_is_lost(
    make_manifest: Make, provenance: Provenance
) -> None:
    rng = random.Random(20_261_120)
    read = MessageFormat(RowFormat(make_manifest(), None, ("city", "b"), CARRIED), max_bytes=4_000)
    counts: Counter[str] = Counter()
    messages = examples(200_000)
    while counts.total() < messages:
        # Some batches have one message, and some have only good ones.
        bodies = [any_message(rng) for _ in range(rng.choice([1, 10, 500]))]
        if rng.random() < 0.3:
            bodies = [rng.choice(SEEDS[:2] + SEEDS[3:]) for _ in bodies]
        counts += balance(messages_of(bodies), read, provenance)
    reasons = {"invalid_json", "not_an_object", "missing_feature", "wrong_type", "wrong_width"}
    reasons |= {"empty_message", "duplicate_key", "null", "later null", "good"}
    assert {reason for reason in counts if counts[reason] > messages // 4_000} >= reasons


@pytest.mark.slow
def test_mutated_avro_and_arrow_are_read_or_refused(
    make_manifest: Make, provenance: Provenance
) -> None:
    rng = random.Random(7)
    table = TEXTS.append_column("sequence", pa.array([1, None]))
    seeds = {
        "avro": [avro(ROW)],
        "arrow": [ipc(table), ipc(table, compression="zstd"), ipc(table.slice(0, 1))],
    }
    formats = {
        "avro": avro_format(make_manifest()),
        "arrow": arrow_format(make_manifest(), keep=("city",)),
    }
    for kind, read in formats.items():
        lost = 0
        for _ in range(40):
            bodies = [mutated(rng, rng.choice(seeds[kind])) for _ in range(100)]
            messages = messages_of(bodies)
            batches, failures = decode_messages(messages, read, provenance, NOW)
            rows = [row["message_id"] for b in batches for row in b.column("message").to_pylist()]
            bad = [] if failures is None else failures.column("row_id").to_pylist()
            assert set(rows) | set(bad) == {m.message_id for m in messages}
            assert not set(rows) & set(bad)
            lost += len(bad)
            for batch in batches:
                validate(batch, read.row_format.manifest)
        assert 0 < lost < 4000


BODIES = st.binary(max_size=40) | (ANY | NAMED | MIXED).map(lambda row: json.dumps(row).encode())


@given(st.lists(BODIES, max_size=6))
def test_messages_of_any_shape_are_read_or_refused(
    make_manifest: Make, provenance: Provenance, bodies: list[bytes]
) -> None:
    balance(messages_of(bodies), json_format(make_manifest()), provenance)


# As a transform


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize(("batch_rows", "batch_bytes"), [(4, 1 << 20), (100, 3 * len(GOOD))])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_batches_of_a_bundle_are_limited_by_rows_and_by_bytes_and_no_message_is_lost(
    make_manifest: Make,
    provenance: Provenance,
    as_list: bool,
    batch_rows: int,
    batch_bytes: int,
) -> None:
    bodies = [GOOD if i % 3 else b"{" for i in range(20)]
    messages: list[Any] = [serialize(message) for message in messages_of(bodies)]
    expected = {f"m{i}": body for i, body in enumerate(bodies)}

    def check(kind: bytes) -> Callable[[list[pa.RecordBatch]], None]:
        def batches(found: list[pa.RecordBatch]) -> None:
            rows = [row for batch in found for row in to_rows(batch)]
            wanted = {i: body for i, body in expected.items() if body == kind}
            assert {row["row_id"]: row["payload"] for row in rows} == wanted
            assert len(rows) == len(wanted)
            assert max(batch.num_rows for batch in found) <= 4

        return batches

    with beam.Pipeline("FnApiRunner") as pipeline:
        read = (
            pipeline
            | beam.Create([messages] if as_list else messages)
            | DecodeMessages(json_format(make_manifest()), provenance, batch_rows, batch_bytes)
        )
        assert_that(read.good, check(GOOD), label="good")
        assert_that(read.failures, check(b"{"), label="failures")
