"""Clients on raw sockets that are slow, send too much, or send while the server shuts down."""

import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving_client import (
    Running,
    connect,
    half_a_request,
    process,
    read_answer,
    running,
    until_ready,
)
from waiting import wait_until

from serving.connection import MAX_HEAD_BYTES

ROW = [0.1] * 30
BODY = json.dumps({"instances": [ROW]}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def hasty(example: Path) -> Iterator[Running]:
    """A server with a short time limit."""
    with running(example / "model", read_timeout_seconds=0.5, max_in_flight=4) as server:
        yield server


@pytest.fixture(scope="module")
def patient(example: Path) -> Iterator[Running]:
    """A server with the default limits."""
    with running(example / "model") as server:
        yield server


def is_closed(connection: socket.socket) -> bool:
    """Return whether the server closes the connection, without a reset or another byte."""
    return connection.recv(1) == b""


STALLED = {
    "in its line": b"POST /pre",
    "in its headers": HEAD + b"Content-Le",
    "in its body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "in a chunk": CHUNKED + b"64\r\n{",
    "between chunks": CHUNKED + b"1\r\n{\r\n",
    "in a body for another path": b"POST /health HTTP/1.1\r\nContent-Length: 100",
    "before it begins": b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", STALLED.values(), ids=STALLED)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_stalled_request_is_refused_at_the_deadline(hasty: Running, sent: bytes) -> None:
    with connect(hasty.client) as connection:
        connection.sendall(sent)
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert answer.error["status"] == "DEADLINE_EXCEEDED"
        assert "within 0.5 s" in answer.error["message"]
        assert is_closed(connection)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (HEAD + b"X: ", b"x"),
        (HEAD, b"X: x\r\n"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED + b"fff\r\n", b"x"),
    ],
    ids=["a header", "headers", "chunks", "a chunk"],
)
@pytest.mark.slow
def test_a_trickle_of_bytes_does_not_postpone_the_deadline(
    hasty: Running, start: bytes, drop: bytes
) -> None:
    with connect(hasty.client) as connection:
        connection.sendall(start)
        connection.settimeout(0.05)
        answered = b""
        # Without an answer, this loop would go on for a minute.
        for _ in range(1_200):
            try:
                answered = connection.recv(12)
                break
            except TimeoutError:
                connection.sendall(drop)
        assert answered == b"HTTP/1.1 408"


@pytest.mark.slow
def test_a_connection_that_sends_nothing_is_closed_without_an_answer(hasty: Running) -> None:
    with connect(hasty.client) as connection:
        assert is_closed(connection)


@pytest.mark.slow
def test_stalled_requests_do_not_delay_other_clients(hasty: Running) -> None:
    stalled = [half_a_request(hasty.client, [ROW]) for _ in range(16)]
    assert hasty.client.predict([ROW]).status == 200
    assert hasty.client.metric("millrace_in_flight") == 0
    for connection, _ in stalled:
        assert read_answer(connection).status == 408
        connection.close()


@pytest.mark.slow
def test_each_request_of_a_connection_has_its_own_deadline(hasty: Running) -> None:
    with connect(hasty.client) as connection:
        for _ in range(3):
            connection.sendall(WHOLE)
            assert read_answer(connection).status == 200
        connection.sendall(WHOLE[:-1])
        assert read_answer(connection).status == 408


@pytest.mark.slow
def test_a_complete_request_is_answered_before_the_stalled_one_behind_it(hasty: Running) -> None:
    with connect(hasty.client) as connection:
        connection.sendall(WHOLE + WHOLE[:-1])
        file = connection.makefile("rb")
        answers = file.read()
        assert answers.startswith(b"HTTP/1.1 200")
        assert answers.count(b"HTTP/1.1 408") == 1


# The server may read more than the limit at once.
LARGE = b"x" * (MAX_HEAD_BYTES + 600_000)
OVERSIZED = {
    "a header": HEAD + b"X: " + LARGE,
    "many headers": HEAD + b"X: x\r\n" * (MAX_HEAD_BYTES // 6),
    "a header's name": HEAD + LARGE,
    "a path": b"GET /" + LARGE,
    "trailers": CHUNKED + b"0\r\n" + b"X: x\r\n" * (MAX_HEAD_BYTES // 4),
    "a trailer": CHUNKED + b"0\r\nX: " + LARGE,
    "a chunk's extension": CHUNKED + b"1;" + LARGE,
    "blank lines": b"\r\n" * len(LARGE),
}


@pytest.mark.parametrize("sent", OVERSIZED.values(), ids=OVERSIZED)
def test_endless_headers_are_refused(patient: Running, sent: bytes) -> None:
    with connect(patient.client) as connection:
        # The answer arrives although the client sends more.
        connection.sendall(sent + sent[-10:])
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert "more than 65,536 bytes" in answer.error["message"]


def test_headers_below_the_limit_are_accepted(hasty: Running) -> None:
    with connect(hasty.client) as connection:
        connection.sendall(WHOLE.replace(b"Host: x", b"Host: x\r\nX: " + LARGE[:60_000]))
        assert read_answer(connection).status == 200


def test_a_client_that_keeps_sending_can_read_why_it_was_refused(example: Path) -> None:
    limited = running(example / "model", max_request_bytes=1000)
    with limited as server, connect(server.client) as connection:
        connection.sendall(HEAD + b"Content-Length: 3000000\r\n\r\n")
        connection.sendall(b"x" * 3_000_000)
        assert read_answer(connection).status == 413
        assert is_closed(connection)


def test_bytes_that_are_not_http_are_refused_in_the_same_form(hasty: Running) -> None:
    with connect(hasty.client) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01")
        answer = read_answer(connection)
        assert (answer.status, answer.error["code"]) == (400, 400)


@pytest.mark.slow
def test_a_client_that_does_not_read_is_disconnected(example: Path) -> None:
    with running(example / "model", outputs="all", read_timeout_seconds=0.5) as server:
        connection = connect(server.client)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({"instances": [ROW] * 2000}).encode()
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        # These answers do not fit into all buffers together.
        with pytest.raises(ConnectionError):
            connection.sendall(request * 200)
        wait_until(lambda: not server.server.server_state.connections)
        assert server.client.predict([ROW]).status == 200
        connection.close()


def test_a_new_connection_replaces_the_one_that_has_waited_longest(example: Path) -> None:
    with running(example / "model", max_connections=2) as server:
        oldest, stalled = connect(server.client), half_a_request(server.client, [ROW])[0]
        assert server.client.predict([ROW]).status == 200
        assert is_closed(oldest)
        others = [connect(server.client) for _ in range(2)]
        assert read_answer(stalled).status == 408
        for connection in (oldest, stalled, *others):
            connection.close()


def test_no_request_around_sigterm_is_reset(example: Path) -> None:
    """Each request is answered or its connection refused, on kept and on new connections."""
    answers: list[int] = []
    with process("--model_path", str(example / "model")) as (server, client):
        until_ready(client)

        def ask(keeps: bool) -> None:
            connection = None
            while True:
                try:
                    connection = connection or connect(client)
                except (ConnectionRefusedError, ConnectionResetError):
                    # The server refused the connection, or reset it before it was established.
                    return
                connection.sendall(WHOLE)
                answer = read_answer(connection)
                answers.append(answer.status)
                if not keeps or answer.headers.get("connection") == "close":
                    connection.close()
                    connection = None

        with ThreadPoolExecutor(16) as pool:
            asking = [pool.submit(ask, keeps) for keeps in [True, False] * 8]
            wait_until(lambda: len(answers) > 100)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
            for done in asking:
                done.result()
    assert {*answers} == {200, 503}


def test_an_idle_connection_is_answered_during_the_drain_and_closed_without_a_reset(
    example: Path,
) -> None:
    with process("--model_path", str(example / "model")) as (server, client):
        until_ready(client)
        idle, asked = connect(client), connect(client)
        for connection in (idle, asked):
            connection.sendall(WHOLE)
            assert read_answer(connection).status == 200
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/health").status == 503)
        asked.sendall(WHOLE)
        answer = read_answer(asked)
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert is_closed(asked)
        assert is_closed(idle)
        assert server.wait(60) == 0
        for connection in (idle, asked):
            connection.close()


@pytest.mark.parametrize("requests", [1, 5])
def test_a_client_that_has_finished_sending_still_gets_its_answers(
    patient: Running, requests: int
) -> None:
    with connect(patient.client) as connection:
        connection.sendall(WHOLE * requests)
        connection.shutdown(socket.SHUT_WR)
        assert [read_answer(connection).status for _ in range(requests)] == [200] * requests
        assert is_closed(connection)
    with connect(patient.client) as connection:
        connection.sendall(WHOLE + WHOLE[:-1])
        connection.shutdown(socket.SHUT_WR)
        assert read_answer(connection).status == 200
        assert is_closed(connection)
