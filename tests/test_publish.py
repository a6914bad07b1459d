"""Rows and dead letters as messages: unchanged, within Pub/Sub's limits, and none is lost."""

import datetime
import json
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import apache_beam as beam
import grpc
import numpy as np
import orjson
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from google.pubsub_v1.types import PublishRequest, PublishResponse
from hypothesis import example, given
from hypothesis import strategies as st

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from common.record_batch import OUTPUTS, to_rows
from examples.local_cloud import LocalCloud
from transforms.dead_letters import Fault, failure_batch
from transforms.encode import ORDERING_KEY, encode
from transforms.messages import publish
from transforms.messages.message import Message, message_column
from transforms.messages.publish import (
    ATTRIBUTE_BYTES,
    ATTRIBUTES,
    ENCODED_AT,
    MESSAGE_BYTES,
    PUBLISHED,
    REQUEST_BYTES,
    REQUEST_MESSAGES,
    Outgoing,
    PublishBatches,
    failure_messages,
    requests,
    row_messages,
    size_of,
)
from transforms.output_fields import OutputFields
from transforms.provenance import Provenance

Make = Callable[..., Any]
NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
TOPIC = "projects/some-project/topics/out"


@pytest.fixture
def rows(make_source: Make, provenance: Provenance) -> pa.RecordBatch:
    source = make_source({"city": ["Ulm", None]})
    outputs = pa.StructArray.from_arrays([pa.array([0.5, np.nan], pa.float32())], names=["total"])
    batch = source.append_column(OUTPUTS, outputs)
    return encode(batch, OutputFields(score="total", outputs=(), source=("city",)), provenance, NOW)


def test_a_row_is_a_json_object_with_its_id_and_run_as_attributes(rows: pa.RecordBatch) -> None:
    one, two = row_messages(rows)
    lineage = {
        "model_name": "tiny",
        "model_version": "3",
        "model_digest": "0" * 64,
        "run_id": "run 1",
        "scored_at": "2026-11-20T12:00:00Z",
    }
    assert json.loads(one.data) == {"row_id": "r-0", "score": 0.5, "city": "Ulm", **lineage}
    assert json.loads(two.data) == {"row_id": "r-1", "score": None, **lineage}
    assert one.attributes == {
        "row_id": "r-0",
        "run_id": "run 1",
        "model_name": "tiny",
        "model_digest": "0" * 64,
    }
    assert row_messages(rows.slice(0, 0)) == []


def test_a_message_says_when_it_was_encoded_if_that_is_requested(rows: pa.RecordBatch) -> None:
    before = datetime.datetime.now(datetime.UTC)
    plain, timed = row_messages(rows), row_messages(rows, timed=True)
    after = datetime.datetime.now(datetime.UTC)
    for one, other in zip(plain, timed, strict=True):
        attributes = dict(other.attributes)
        encoded_at = datetime.datetime.fromisoformat(attributes.pop(ENCODED_AT))
        assert before <= encoded_at <= after
        assert (one.data, one.attributes) == (other.data, attributes)


@pytest.mark.parametrize("letter", ["a", "é", "😀"])
def test_ids_too_long_for_an_attribute_are_still_distinguished(letter: str) -> None:
    ids = [letter * 2000 + "1", letter * 2000 + "2", letter * 256]
    messages = row_messages(pa.record_batch({"row_id": ids}))
    assert [json.loads(m.data)["row_id"] for m in messages] == ids
    sent = [m.attributes["row_id"] for m in messages]
    assert len(set(sent)) == 3
    assert sent[2] == ids[2]
    assert all(len(text.encode()) <= ATTRIBUTE_BYTES for text in sent)


# Dead letters


def letter(
    payload: bytes, attributes: Mapping[str, str], provenance: Provenance, **fault: str
) -> pa.RecordBatch:
    """Return the dead letter of a message that could not be scored."""
    message = Message(payload, attributes, "m1", 1_700_000_000_000_000, "")
    reported = Fault(fault.get("reason", "invalid_json"), fault.get("message", "not JSON"))
    return failure_batch(
        [fault.get("row_id", "m1")],
        [payload],
        [reported],
        stage="decode",
        provenance=provenance,
        failed_at=NOW,
        messages=message_column([message], NOW),
    )


def test_a_dead_letter_is_the_original_message_with_the_failure_as_attributes(
    provenance: Provenance,
) -> None:
    failures = letter(b"\xff\0", {"k": "v"}, provenance, message="not JSON: \n\u00e9")
    assert failure_messages(failures) == [
        Outgoing(
            b"\xff\0",
            {
                "k": "v",
                "millrace_attempts": "1",
                "millrace_failed_at": "2026-11-20T12:00:00+00:00",
                "millrace_stage": "decode",
                "millrace_reason": "invalid_json",
                "millrace_message": "not JSON: \n\u00e9",
                "millrace_row_id": "m1",
                "millrace_run_id": "run 1",
                "millrace_pipeline": "a test",
                "millrace_model_digest": "0" * 64,
                "millrace_message_id": "m1",
                "millrace_event_time": "2023-11-14T22:13:20+00:00",
            },
        )
    ]


KEYS = st.text(min_size=1, max_size=8) | st.sampled_from(["googclient_x", "millrace_reason", "k"])
TEXT = st.text(max_size=400) | st.sampled_from(["", "é" * 512, "x" * 1024])


@given(
    payload=st.binary(max_size=30),
    attributes=st.dictionaries(KEYS, TEXT.filter(lambda t: len(t.encode()) <= 1024), max_size=20),
    filler=st.integers(0, 100),
    row_id=st.text(min_size=1, max_size=10) | st.just("é" * 3000),
    words=st.text(min_size=1) | st.just("é" * 3000),
)
@example(b"", {}, 100, "m1", "w")
@example(b"", {}, 91, "m1", "w")
@example(b"", {}, 92, "m1", "w")
@example(b"x", {"millrace_attempts": "7", "millrace_attributes_dropped": "9"}, 0, "m1", "w")
def test_a_dead_letter_keeps_its_bytes_and_the_attributes_for_which_there_is_room(
    provenance: Provenance,
    payload: bytes,
    attributes: dict[str, str],
    filler: int,
    row_id: str,
    words: str,
) -> None:
    attributes |= {f"a{i}": "" for i in range(min(filler, 100 - len(attributes)))}
    failures = letter(payload, attributes, provenance, row_id=row_id, message=words)
    (message,) = failure_messages(failures)
    assert message.data == payload
    # The limits of Pub/Sub.
    assert len(message.attributes) <= 100
    assert all(len(text.encode()) <= 1024 for text in message.attributes.values())
    assert all(0 < len(name.encode()) <= 256 for name in message.attributes)
    assert not any(name.startswith("goog") for name in message.attributes)
    own = {n: t for n, t in message.attributes.items() if n.startswith("millrace_")}
    assert own["millrace_reason"] == "invalid_json"
    assert words.startswith(own["millrace_message"])
    assert int(own["millrace_attempts"]) == to_rows(failures)[0]["attempts"]
    theirs = {n: t for n, t in attributes.items() if not n.startswith(("millrace_", "goog"))}
    kept = {n: t for n, t in message.attributes.items() if not n.startswith("millrace_")}
    assert kept.items() <= theirs.items()
    dropped = int(own.get("millrace_attributes_dropped", 0))
    assert len(theirs) - len(kept) == dropped
    # No attribute is dropped while there is room.
    assert dropped == 0 or len(message.attributes) == ATTRIBUTES


@pytest.mark.parametrize("size", [MESSAGE_BYTES, 9_900_000])
def test_the_end_of_a_message_of_the_largest_size_is_cut_for_the_attributes(
    provenance: Provenance, size: int
) -> None:
    payload = b"x" * size
    failures = letter(payload, {f"a{i}": "é" * 500 for i in range(50)}, provenance)
    (message,) = failure_messages(failures)
    assert size_of(message) <= MESSAGE_BYTES
    fits = size == 9_900_000
    assert (message.data == payload) == fits
    assert message.attributes.get("millrace_payload_bytes") == (None if fits else str(size))
    assert payload.startswith(message.data)
    assert len(payload) - len(message.data) < 100_000


# Requests


SIZES = st.integers(0, 50) | st.sampled_from(
    [REQUEST_BYTES // 3, REQUEST_BYTES, MESSAGE_BYTES - 99]
)


@given(sizes=st.lists(SIZES, max_size=8), many=st.integers(0, 3000))
def test_requests_hold_all_messages_in_order_within_their_limits(
    sizes: list[int], many: int
) -> None:
    buffers = {size: b"x" * size for size in sizes}
    messages = [Outgoing(buffers[size], {"n": str(i)}) for i, size in enumerate(sizes)]
    messages += [Outgoing(b"", {"n": f"o{i}"}) for i in range(many)]
    found = list(requests(messages))
    assert [m for part in found for m in part] == messages
    for part in found:
        assert 0 < len(part) <= REQUEST_MESSAGES
        assert len(part) == 1 or sum(map(size_of, part)) <= REQUEST_BYTES
    # Two neighbouring requests would not fit into one.
    for one, two in pairwise(found):
        joint = sum(map(size_of, one)) + size_of(two[0])
        assert len(one) == REQUEST_MESSAGES or joint > REQUEST_BYTES


@given(data=st.binary(), attributes=st.dictionaries(st.text(), st.text(), max_size=20))
def test_a_message_is_not_larger_than_its_estimated_size(
    data: bytes, attributes: dict[str, str]
) -> None:
    request = PublishRequest(topic=TOPIC, messages=[{"data": data, "attributes": attributes}])
    # The room is for the topic's name and some bytes of framing.
    room = 10_000_000 - MESSAGE_BYTES
    assert PublishRequest.pb(request).ByteSize() <= size_of(Outgoing(data, attributes)) + room


# On a server


class Topics:
    """A server of Pub/Sub's Publish, which fails as a test says and records requests."""

    def __init__(self) -> None:
        self.requests: list[PublishRequest] = []
        self.errors: list[tuple[grpc.StatusCode, str]] = []
        self.always: tuple[grpc.StatusCode, str] | None = None
        self.calls = 0

    def publish(self, request: PublishRequest, context: grpc.ServicerContext) -> PublishResponse:
        self.calls += 1
        if error := self.always or (self.errors.pop(0) if self.errors else None):
            context.abort(*error)
        self.requests.append(request)
        return PublishResponse(message_ids=[str(i) for i in range(len(request.messages))])


@pytest.fixture
def topics() -> Iterator[tuple[Topics, Cloud]]:
    """A server of the Publisher service, and the Cloud that reaches it."""
    service = Topics()
    handler = grpc.unary_unary_rpc_method_handler(
        service.publish, PublishRequest.deserialize, PublishResponse.serialize
    )
    server = grpc.server(
        ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", 10_000_000)]
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", {"Publish": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, Cloud("some-project", Endpoints(pubsub=f"127.0.0.1:{port}"), 0.4)
    server.stop(None).wait()


def run(batches: list[pa.RecordBatch], sink: PublishBatches, counts: Any, large: Any) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        published = pipeline | beam.Create(batches) | sink
        assert_that(published.good, counts, label="counts")
        assert_that(published.failures, large, label="failures")


def nothing(found: list[Any]) -> None:
    assert found == []


def adds_up_to(count: int) -> Callable[[list[Any]], None]:
    def check(found: list[Any]) -> None:
        assert {key for key, _ in found} <= {(PUBLISHED,)}
        assert sum(rows for _, rows in found) == count

    return check


@pytest.mark.slow
def test_rows_of_many_batches_are_published_in_full_requests(topics: tuple[Topics, Cloud]) -> None:
    service, cloud = topics
    batches = [pa.record_batch({"row_id": [f"{b}-{i}" for i in range(300)]}) for b in range(8)]
    run(batches, PublishBatches(cloud, TOPIC), adds_up_to(2400), nothing)
    ids = [m.attributes["row_id"] for request in service.requests for m in request.messages]
    assert sorted(ids) == sorted(i for batch in batches for i in batch.column(0).to_pylist())
    assert {request.topic for request in service.requests} == {TOPIC}
    assert len(service.requests) <= 5


@pytest.mark.slow
def test_transient_errors_are_retried_and_no_message_is_lost(
    topics: tuple[Topics, Cloud], provenance: Provenance
) -> None:
    service, cloud = topics
    unavailable = (grpc.StatusCode.UNAVAILABLE, "try again")
    service.errors = [unavailable, (grpc.StatusCode.ABORTED, "again"), unavailable]
    patient = Cloud(cloud.project, cloud.endpoints, 20.0)
    failures = letter(b"\xff", {"k": "v"}, provenance)
    run(
        [failures],
        PublishBatches(patient, TOPIC, "failures"),
        equal_to([((PUBLISHED,), 1)]),
        nothing,
    )
    assert service.calls == 4
    (request,) = service.requests
    assert request.messages[0].data == b"\xff"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ((grpc.StatusCode.NOT_FOUND, "Resource not found (resource=out)."), "check the project"),
        (
            (grpc.StatusCode.PERMISSION_DENIED, "User not authorized."),
            "grant the account the missing role",
        ),
        ((grpc.StatusCode.UNAVAILABLE, "down"), "failed after repeated attempts"),
    ],
)
@pytest.mark.slow
def test_a_topic_that_cannot_be_published_to_is_reported_in_one_line(
    topics: tuple[Topics, Cloud], error: tuple[grpc.StatusCode, str], words: str
) -> None:
    service, cloud = topics
    service.always = error
    rows = pa.record_batch({"row_id": ["x"]})
    with pytest.raises(
        Exception, match=f"topic {TOPIC} cannot be published to: .*{words}"
    ) as raised:
        run([rows], PublishBatches(cloud, TOPIC), nothing, nothing)
    assert "OutputError" in repr(raised.value)
    assert service.requests == []
    if error[0] != grpc.StatusCode.UNAVAILABLE:
        # There is one call for each attempt of the runner at the bundle.
        assert service.calls == 1


@pytest.mark.slow
def test_a_row_too_large_for_a_message_is_a_dead_letter_and_the_others_are_published(
    topics: tuple[Topics, Cloud], provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, cloud = topics
    monkeypatch.setattr(publish, "MESSAGE_BYTES", 10_000)
    # Some characters take six bytes in JSON.
    texts = ["a", "\0" * 2_000, "b", "x" * 9_000, None, "y" * 10_000]
    rows = pa.record_batch({"row_id": list("123456"), "text": texts})

    def check(found: list[pa.RecordBatch]) -> None:
        (records,) = [to_rows(batch) for batch in found]
        kinds = [(record["stage"], record["reason"], record["row_id"]) for record in records]
        assert kinds == [("write", "too_large", "2"), ("write", "too_large", "6")]
        # Each message states the size of its own row: the data, and 23 bytes for the attribute.
        limit = "expected a message of at most 10,000 bytes with its attributes"
        assert [record["message"] for record in records] == [
            f"{limit}, got 12,047",
            f"{limit}, got 10,047",
        ]
        assert [orjson.loads(record["payload"]) for record in records] == [
            {"row_id": "2", "text": texts[1]},
            {"row_id": "6", "text": texts[5]},
        ]

    run([rows], PublishBatches(cloud, TOPIC, "rows", provenance), adds_up_to(4), check)
    published = [m.attributes["row_id"] for request in service.requests for m in request.messages]
    assert sorted(published) == list("1345")


def test_without_dead_letters_a_row_too_large_for_a_message_is_an_error(
    topics: tuple[Topics, Cloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cloud = topics
    monkeypatch.setattr(publish, "MESSAGE_BYTES", 10_000)
    rows = pa.record_batch({"row_id": ["7"], "text": ["x" * 10_000]})
    with pytest.raises(Exception, match=r"row 7 cannot be published to .*--output_fields"):
        run([rows], PublishBatches(cloud, TOPIC), nothing, nothing)


# Ordering keys


def keyed(*keys: str | None) -> pa.RecordBatch:
    """Return rows with the ids 0, 1, ... and these ordering keys."""
    return pa.record_batch(
        {"row_id": [f"{i}" for i in range(len(keys))], ORDERING_KEY: pa.array(keys, pa.string())}
    )


def test_a_message_has_the_ordering_key_of_its_row_only_as_its_key() -> None:
    messages = row_messages(keyed("a", None, "b"))
    assert [message.ordering_key for message in messages] == ["a", "", "b"]
    assert [json.loads(message.data) for message in messages] == [{"row_id": id} for id in "012"]


@pytest.mark.slow
def test_a_request_has_one_ordering_key_and_the_rows_of_a_key_keep_their_order(
    topics: tuple[Topics, Cloud],
) -> None:
    service, cloud = topics
    service.errors = [(grpc.StatusCode.UNAVAILABLE, "try again")] * 3
    keys = random.Random(7).choices(["a", "b", "c", None], k=2_500)
    patient = Cloud(cloud.project, cloud.endpoints, 20.0)
    run([keyed(*keys)], PublishBatches(patient, TOPIC), adds_up_to(2_500), nothing)
    got: dict[str, list[str]] = {}
    for request in service.requests:
        (key,) = {message.ordering_key for message in request.messages}
        got.setdefault(key, []).extend(m.attributes["row_id"] for m in request.messages)
    wanted: dict[str, list[str]] = {}
    for i, key in enumerate(keys):
        wanted.setdefault(key or "", []).append(f"{i}")
    assert got == wanted


def test_an_error_of_one_ordering_key_fails_the_bundle_in_one_line(
    topics: tuple[Topics, Cloud],
) -> None:
    service, cloud = topics
    service.errors = [(grpc.StatusCode.PERMISSION_DENIED, "User not authorized.")]
    with pytest.raises(Exception, match=f"topic {TOPIC} cannot be published to: User not auth"):
        run([keyed(*"abc")], PublishBatches(cloud, TOPIC), nothing, nothing)


# On Google's emulator


def test_a_subscriber_receives_exactly_what_was_published(
    stream_emulators: LocalCloud, rows: pa.RecordBatch, provenance: Provenance
) -> None:
    # The emulator does not check the number, the size and the names of attributes. The service
    # refuses a whole request if one message exceeds a limit or uses a reserved name.
    cloud = stream_emulators.cloud
    name = f"projects/{cloud.project}/topics/t{uuid.uuid4().hex}"
    subscription = name.replace("topics", "subscriptions")
    cloud.publisher().create_topic(name=name)
    cloud.subscriber().create_subscription(name=subscription, topic=name)
    large = b"\xff" * (MESSAGE_BYTES - 5000)
    failures = letter(large, {"k": "v"}, provenance)
    run([rows], PublishBatches(cloud, name), adds_up_to(2), nothing)
    run([failures], PublishBatches(cloud, name, "failures"), adds_up_to(1), nothing)
    wanted = [*row_messages(rows), *failure_messages(failures)]
    got: list[Outgoing] = []
    while len(got) < len(wanted):
        pulled = cloud.subscriber().pull(subscription=subscription, max_messages=10)
        got += [
            Outgoing(m.message.data, dict(m.message.attributes)) for m in pulled.received_messages
        ]
    assert sorted(got, key=lambda m: m.data) == sorted(wanted, key=lambda m: m.data)


def test_an_ordered_subscription_delivers_the_rows_of_a_key_in_order(
    stream_emulators: LocalCloud,
) -> None:
    cloud = stream_emulators.cloud
    name = f"projects/{cloud.project}/topics/t{uuid.uuid4().hex}"
    subscription = name.replace("topics", "subscriptions")
    cloud.publisher().create_topic(name=name)
    ordered = {"name": subscription, "topic": name, "enable_message_ordering": True}
    cloud.subscriber().create_subscription(request=ordered)
    keys = [f"k{i % 7}" for i in range(300)]
    run([keyed(*keys)], PublishBatches(cloud, name), adds_up_to(300), nothing)
    got: dict[str, list[int]] = {}
    while sum(map(len, got.values())) < 300:
        pulled = cloud.subscriber().pull(subscription=subscription, max_messages=50)
        for one in pulled.received_messages:
            rows = got.setdefault(one.message.ordering_key, [])
            rows.append(int(one.message.attributes["row_id"]))
        cloud.subscriber().acknowledge(
            subscription=subscription, ack_ids=[one.ack_id for one in pulled.received_messages]
        )
    assert got == {f"k{k}": list(range(k, 300, 7)) for k in range(7)}


def test_a_missing_topic_is_an_error_on_the_emulator_too(
    stream_emulators: LocalCloud, rows: pa.RecordBatch
) -> None:
    cloud = stream_emulators.cloud
    missing = f"projects/{cloud.project}/topics/missing"
    with pytest.raises(Exception, match="cannot be published to: Topic not found; check"):
        run([rows], PublishBatches(cloud, missing), nothing, nothing)
