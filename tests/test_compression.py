"""Compressed messages and requests are read however the compression is spelt, within limits."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from property_tests import examples
from serving_client import Running, connect, read_answer, running

from common.compression import TooLarge, compression_of, decompress
from common.record_batch import to_rows
from model_handlers.manifests.manifest import Manifest
from transforms.json_rows.row_format import RowFormat
from transforms.messages.decode import MessageFormat, decode_messages
from transforms.messages.message import Message
from transforms.provenance import Provenance, utc_now

GOOD = b'{"a":1,"b":2,"c":3}'
LIMIT = 1_000


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(data) + deflate.flush()


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "GZIP": gzip.compress,
    " x-gzip ": lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:]),
    "X-GZip": lambda data: gzip.compress(data) + bytes(20),
    "x-gzip": lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:]) + bytes(20),
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "identity": lambda data: data,
    "": lambda data: data,
}


@given(st.binary(max_size=2 * LIMIT), st.sampled_from(list(WAYS)))
def test_each_way_to_compress_is_read_up_to_the_limit(data: bytes, way: str) -> None:
    compression = compression_of(way)
    assert compression is not None
    if len(data) <= LIMIT:
        assert decompress(WAYS[way](data), compression, LIMIT) == data
    else:
        with pytest.raises(TooLarge):
            decompress(WAYS[way](data), compression, LIMIT)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]), st.data())
def test_damaged_data_is_refused_or_short(data: bytes, way: str, rest: st.DataObject) -> None:
    whole = WAYS[way](data)
    with pytest.raises(ValueError, match=r"."):
        decompress(whole[: rest.draw(st.integers(0, len(whole) - 1))], compression_of(way), LIMIT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other data follows"):
        decompress(gzip.compress(data) + b"x", "gzip", LIMIT)


def test_a_thousand_members_and_a_bomb_cost_no_more_than_their_size() -> None:
    assert decompress(gzip.compress(b"x") * LIMIT, "gzip", LIMIT) == b"x" * LIMIT
    with pytest.raises(TooLarge):
        decompress(gzip.compress(b"x") * (LIMIT + 1), "gzip", LIMIT)
    with pytest.raises(TooLarge):
        decompress(gzip.compress(bytes(50_000_000)), "gzip", LIMIT)


# Messages


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["content-encoding", "Content-Encoding", "CONTENT-ENCODING"])
def test_messages_are_read_by_their_attribute(
    make_manifest: Callable[..., Manifest], provenance: Provenance, name: str, way: str
) -> None:
    sent = WAYS[way](GOOD)
    messages = [Message(sent, {"other": "x", name: way}, "m", 0, ""), Message(GOOD, {}, "n", 0, "")]
    read = MessageFormat(RowFormat(make_manifest()))
    batches, failures = decode_messages(messages, read, provenance, utc_now())
    rows = [row for batch in batches for row in to_rows(batch)]
    assert [row["row_id"] for row in rows] == ["m", "n"]
    assert [row["payload"] for row in rows] == [sent, GOOD]
    assert failures is None


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_an_unknown_compression_is_named(
    make_manifest: Callable[..., Manifest], provenance: Provenance, encoding: str
) -> None:
    messages = [Message(GOOD, {"Content-Encoding": encoding}, "m", 0, "")]
    read = MessageFormat(RowFormat(make_manifest()))
    batches, failures = decode_messages(messages, read, provenance, utc_now())
    assert batches == []
    assert failures is not None
    (letter,) = to_rows(failures)
    assert (letter["reason"], letter["payload"]) == ("unknown_encoding", GOOD)
    assert letter["message"] == (
        f"content-encoding is {encoding!r}: expected gzip, deflate or identity"
    )


# Requests


@pytest.fixture(scope="module")
def server(example: Path) -> Iterator[Running]:
    with running(example / "model", max_request_bytes=20_000) as found:
        yield found


BODY = json.dumps({"instances": [[0.1] * 30] * 3}).encode()


@pytest.mark.parametrize("way", ["gzip", "GZIP", " x-gzip ", "X-GZip", "identity"])
def test_a_request_may_be_compressed(server: Running, way: str) -> None:
    plain = server.client.ask("POST", "/predict", BODY)
    sent = server.client.ask("POST", "/predict", WAYS[way](BODY), **{"Content-Encoding": way})
    assert (plain.status, plain.body) == (sent.status, sent.body)
    assert sent.status == 200


@pytest.mark.parametrize(
    ("encoding", "body", "status", "words"),
    [
        ("deflate", zlib.compress(BODY), 415, "Content-Encoding is 'deflate': expected gzip"),
        ("br", BODY, 415, "Content-Encoding is 'br'"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY)), 415, "'gzip, gzip'"),
        ("gzip", gzip.compress(bytes(5_000_000)), 413, "20,000 bytes when decompressed"),
        ("gzip", gzip.compress(BODY)[:-5], 400, "cannot be decompressed: the data is incomplete"),
        ("gzip", BODY, 400, "cannot be decompressed"),
    ],
    # The compressed bodies contain the time.
    ids=["deflate", "br", "gzip twice", "bomb", "incomplete", "not compressed"],
)
def test_other_encodings_and_damaged_bodies_are_refused(
    server: Running, encoding: str, body: bytes, status: int, words: str
) -> None:
    answer = server.client.ask("POST", "/predict", body, **{"Content-Encoding": encoding})
    assert (answer.status, answer.error["status"]) == (status, "INVALID_ARGUMENT")
    assert words in answer.error["message"]
    assert answer.headers.get("accept-encoding") == ("gzip" if status == 415 else None)


# Requests that offer another protocol

OFFER = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
OFFER += b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
SENT = {
    "with a length": OFFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "in chunks": OFFER
    + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
}


@pytest.mark.parametrize("size", [1 << 20, 100, 7])
@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
def test_a_request_that_offers_an_upgrade_keeps_its_body(
    server: Running, sent: bytes, size: int
) -> None:
    plain = server.client.ask("POST", "/predict", BODY)
    health = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    stream = sent + health + sent
    answers: list[Any] = []
    with connect(server.client) as connection:
        for start in range(0, len(stream), size):
            connection.sendall(stream[start : start + size])
        answers += [read_answer(connection) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert answers[0].body == answers[2].body == plain.body
    assert answers[1].json["status"] == "ready"


def test_many_offers_at_once_are_answered(server: Running) -> None:
    offer = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with connect(server.client) as connection:
        connection.sendall(offer * examples(2_000))
        assert {read_answer(connection).status for _ in range(examples(2_000))} == {200}
