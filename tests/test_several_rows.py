"""A JSON message may hold several rows: an array of objects, or JSON Lines."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from common.record_batch import to_rows
from model_handlers.manifests.manifest import Manifest
from transforms.json_rows.row_format import RowFormat
from transforms.messages.decode import DecodeMessages, MessageFormat, decode_messages
from transforms.messages.message import Message, serialize
from transforms.messages.publish import failure_messages
from transforms.messages.several_rows import several
from transforms.provenance import Provenance, utc_now
from transforms.validate import validate

Make = Callable[..., Manifest]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(max_size=3)
    | st.sampled_from([float("inf"), -float("inf"), "NaN", "Infinity"])
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES | st.lists(VALUES, max_size=2), max_size=3)


def row(a: Any = 1.0, **more: Any) -> dict[str, Any]:
    return {"a": a, "b": 2.0, "c": 3.0, **more}


def decode(
    bodies: list[bytes], read: MessageFormat, provenance: Provenance, **attributes: str
) -> tuple[dict[str, float], dict[str, tuple[str, bytes]], Any]:
    """Return feature a of the good rows and the reason and bytes of the others, by row id."""
    messages = [Message(body, attributes, f"m{i}", 0, "") for i, body in enumerate(bodies)]
    batches, failures = decode_messages(messages, read, provenance, utc_now())
    rows = [one for batch in batches for one in to_rows(batch)]
    good = {
        one["row_id"]: one["source"].get("a", one["source"].get("features", [None])[0])
        for one in rows
    }
    assert len(good) == len(rows)
    assert {one["message"]["message_id"] for one in rows} <= {m.message_id for m in messages}
    bad = [] if failures is None else to_rows(failures)
    return good, {one["row_id"]: (one["reason"], one["payload"]) for one in bad}, failures


def test_rows_of_an_array_and_of_lines_are_numbered(
    make_manifest: Make, provenance: Provenance
) -> None:
    rows = [json.dumps(row(float(i))).encode() for i in range(3)]
    bodies = [
        b"[" + b", ".join(rows) + b"]",
        b"\n".join(rows) + b"\n",
        b"\r\n".join([*rows, b""]),
        b" \n[\n" + b",\n".join(rows) + b"\n]\n",
        rows[0],
        json.dumps(row(), indent=2).encode(),
    ]
    good, bad, _ = decode(bodies, MessageFormat(RowFormat(make_manifest())), provenance)
    several_of = {f"m{i}-{n}": float(n) for i in range(4) for n in range(3)}
    assert good == several_of | {"m4": 0.0, "m5": 1.0}
    assert bad == {}


def test_one_bad_row_of_a_message_costs_one_row(
    make_manifest: Make, provenance: Provenance
) -> None:
    array = b'[{"a":1,"b":1,"c":1},null,{"a":1,"a":2,"b":1,"c":1},7,{"a":"x","b":1,"c":1}]'
    lines = b'{"a":5,"b":1,"c":1}\n{"a":\n\n{"a":6,"b":1,"c":1}'
    good, bad, _ = decode([array, lines], MessageFormat(RowFormat(make_manifest())), provenance)
    assert good == {"m0-0": 1.0, "m1-0": 5.0, "m1-2": 6.0}
    assert bad == {
        "m0-1": ("not_an_object", b"null"),
        "m0-2": ("duplicate_key", b'{"a":1,"a":2,"b":1,"c":1}'),
        "m0-3": ("not_an_object", b"7"),
        "m0-4": ("wrong_type", b'{"a":"x","b":1,"c":1}'),
        "m1-1": ("invalid_json", b'{"a":'),
    }


def test_a_row_with_nan_costs_one_row(make_manifest: Make, provenance: Provenance) -> None:
    rows = [row(1.0), row(float("nan")), row(2.0), row(-float("inf")), row(3.0, note="NaN")]
    bodies = [
        json.dumps(rows).encode(),
        json.dumps(rows, indent=1).encode(),
        "\n".join(map(json.dumps, rows)).encode(),
        "\n".join(map(json.dumps, rows[1:])).encode(),
    ]
    manifest = make_manifest()
    messages = [Message(body, {}, f"m{i}", 0, "") for i, body in enumerate(bodies)]
    read = MessageFormat(RowFormat(manifest))
    batches, failures = decode_messages(messages, read, provenance, utc_now())
    assert failures is None
    scored: set[str] = set()
    refused: dict[str, str] = {}
    for batch in batches:
        good, bad, faults = validate(batch, manifest)
        scored |= {*good.column("row_id").to_pylist()}
        refused |= dict(
            zip(bad.column("row_id").to_pylist(), [one.reason for one in faults], strict=True)
        )
    assert scored == {f"m{i}-{n}" for i in range(3) for n in (0, 2, 4)} | {"m3-1", "m3-3"}
    assert refused == dict.fromkeys(
        {f"m{i}-{n}" for i in range(3) for n in (1, 3)} | {"m3-0", "m3-2"}, "not_finite"
    )


def test_a_constant_in_one_row_leaves_the_others(
    make_manifest: Make, provenance: Provenance
) -> None:
    array = (
        b'[{"a":1,"b":1,"c":1}, {"a":"NaN","b":NaN,"k":[-Infinity]}, [[1]], {"a":2,"b":1,"c":1}]'
    )
    lines = b'{"a":5,"k":NaN,"b":1,"c":1}\n{"a":6,"b":1,"c":1}'
    good, bad, _ = decode([array, lines], MessageFormat(RowFormat(make_manifest())), provenance)
    assert good == {"m0-0": 1.0, "m0-3": 2.0, "m1-0": 5.0, "m1-1": 6.0}
    assert bad == {
        "m0-1": ("missing_feature", b'{"a":"NaN","b":NaN,"k":[-Infinity]}'),
        "m0-2": ("not_an_object", b"[[1]]"),
    }


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[1,2,3]", "not_an_object"),
        (b"[]", "not_an_object"),
        (b'[{"a":1},', "invalid_json"),
        (b"[" * 5_000, "invalid_json"),
        (b'{"a":\n1}}', "invalid_json"),
        (b'{"a":1,\n"b":2', "invalid_json"),
        (b'7\n{"a":1}', "invalid_json"),
        (b'{"a":1}{"a":2}', "invalid_json"),
        (b'[{"a":NaN}', "invalid_json"),
        (b'[{NaN:1},{"a":1}]', "invalid_json"),
    ],
)
def test_other_messages_stay_one_dead_letter(
    make_manifest: Make, provenance: Provenance, body: bytes, reason: str
) -> None:
    _, bad, _ = decode([body], MessageFormat(RowFormat(make_manifest())), provenance)
    assert bad == {"m0": (reason, body)}


def test_ids_of_rows_take_precedence(make_manifest: Make, provenance: Provenance) -> None:
    body = json.dumps([row(1.0, id="x"), row(2.0), row("no", id="z")]).encode()
    good, bad, _ = decode([body], MessageFormat(RowFormat(make_manifest(), "id")), provenance)
    assert (good, list(bad)) == ({"x": 1.0, "m0-1": 2.0}, ["z"])


def test_a_bad_row_is_replayed_on_its_own(make_manifest: Make, provenance: Provenance) -> None:
    read = MessageFormat(RowFormat(make_manifest()))
    body = gzip.compress(json.dumps([row(1.0), row("no")]).encode())
    encoding = {"Content-Encoding": "gzip"}
    good, bad, failures = decode([body], read, provenance, **encoding)
    assert (good, list(bad)) == ({"m0-0": 1.0}, ["m0-1"])
    (sent,) = failure_messages(failures)
    # With the attributes of the whole message, but not compressed.
    assert sent.attributes["Content-Encoding"] == "gzip"
    fixed = sent.data.replace(b'"no"', b"4.0")
    again, bad, _ = decode([fixed], read, provenance, **sent.attributes)
    assert (again, bad) == ({"m0-1": 4.0}, {})


def test_rows_of_files_are_not_split(make_manifest: Make, provenance: Provenance) -> None:
    body = json.dumps([row()]).encode()
    read = MessageFormat(RowFormat(make_manifest()), several=False)
    assert decode([body], read, provenance)[1] == {"m0": ("not_an_object", body)}


@given(st.lists(OBJECTS, min_size=1, max_size=6), st.data())
def test_each_row_is_found_once_in_order(rows: list[Any], data: st.DataObject) -> None:
    indent = data.draw(st.sampled_from([None, 1]))
    assert [json.loads(one) for one in several(json.dumps(rows, indent=indent).encode()) or []] == (
        rows
    )
    lines = data.draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(map(json.dumps, rows)).encode()
    found = several(lines)
    assert found is None if len(rows) == 1 else [json.loads(one) for one in found or []] == rows


@given(st.binary(max_size=30) | st.text('[]{}"a:1,\n ', max_size=20).map(str.encode))
def test_any_content_is_split_or_left_alone(body: bytes) -> None:
    rows = several(body)
    assert rows is None or (rows and all(one and one in body for one in rows))


def test_messages_are_counted_and_batches_limited(
    make_manifest: Make, provenance: Provenance
) -> None:
    bodies = [
        json.dumps([row(float(i)) for i in range(10)]).encode(),
        b"no",
        b'{"features":[1,2,3]}',
    ]
    raw = [serialize(Message(body, {}, f"m{i}", 0, "")) for i, body in enumerate(bodies)]
    read = MessageFormat(RowFormat(make_manifest()))
    with beam.Pipeline("FnApiRunner") as pipeline:
        messages = pipeline | beam.Create([raw])
        found = messages | DecodeMessages(read, provenance, batch_rows=4)
        sizes = found.good | "Sizes" >> beam.Map(lambda batch: batch.num_rows)
        assert_that(sizes, equal_to([4, 4, 3]), "sizes")
        counts = found.counts | "Counts" >> beam.Map(lambda count: count[1])
        assert_that(counts, equal_to([3]), "counts")
