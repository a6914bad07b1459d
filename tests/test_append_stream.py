"""Appends share a connection: whatever the service does, no row is lost and no wait is endless."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
from append_server import (
    TABLE,
    Answer,
    Service,
    end_call,
    hang,
    ids,
    leave,
    refuse,
    say,
    services,
    threads_since,
    when,
    write,
)
from google.api_core import exceptions
from waiting import wait_until

from transforms.bigquery import append_connection, append_stream
from transforms.bigquery.append import REQUEST_BYTES
from transforms.bigquery.append_connection import AppendConnection
from transforms.bigquery.append_stream import release_stream, share_stream

ROOT = Path(__file__).parent.parent
Serve = Callable[..., Service]
Code = grpc.StatusCode


@pytest.fixture
def serve() -> Iterator[Serve]:
    with services() as start:
        yield start


@pytest.mark.parametrize(
    ("fault", "connections"),
    [
        (end_call(Code.UNAVAILABLE), 2),
        (end_call(Code.UNKNOWN), 2),
        (end_call(Code.ABORTED), 2),
        (end_call(Code.CANCELLED), 2),
        (leave, 2),
        # The response to one request says nothing about the others.
        (say(Code.RESOURCE_EXHAUSTED), 1),
        (say(Code.INTERNAL), 1),
        (say(Code.UNAVAILABLE), 1),
    ],
)
def test_after_a_transient_error_rows_are_sent_again_if_need_be_over_a_new_connection(
    serve: Serve, fault: Answer, connections: int
) -> None:
    service = serve(write, fault)
    stream = service.stream()
    assert stream.send(ids("a")) == stream.send(ids("b")) == stream.send(ids("c")) == {}
    assert service.requests == [["a"], ["b"], ["b"], ["c"]]
    assert service.written == ["a", "b", "c"]
    assert len(service.connections) == connections
    stream.close()


def test_rows_whose_response_was_lost_are_written_twice_rather_than_not_at_all(
    serve: Serve,
) -> None:
    service = serve(end_call(Code.UNAVAILABLE, written=True))
    stream = service.stream()
    assert stream.send(ids("a", "b")) == {}
    assert service.written == ["a", "b", "a", "b"]
    stream.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (say(Code.INVALID_ARGUMENT), exceptions.InvalidArgument),
        (say(Code.PERMISSION_DENIED), exceptions.PermissionDenied),
        (end_call(Code.INVALID_ARGUMENT), exceptions.InvalidArgument),
        (end_call(Code.PERMISSION_DENIED), exceptions.PermissionDenied),
        (end_call(Code.UNAUTHENTICATED), exceptions.Unauthenticated),
        (end_call(Code.NOT_FOUND), exceptions.NotFound),
        (end_call(Code.UNIMPLEMENTED), exceptions.MethodNotImplemented),
    ],
)
def test_a_permanent_error_is_raised_at_once_with_the_message_of_the_service(
    serve: Serve, fault: Answer, kind: type[Exception]
) -> None:
    service = serve(fault)
    stream = service.stream()
    with pytest.raises(kind, match="said by the service"):
        stream.send(ids("a"))
    assert service.requests == [["a"]]
    # The runner may retry the bundle.
    assert stream.send(ids("a")) == {}
    stream.close()


class Clock:
    """A clock that only advances during sleeps."""

    def __init__(self) -> None:
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return sum(self.sleeps)

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)


def test_pauses_grow_to_ten_seconds_until_the_time_for_retries_is_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(append_stream, "time", clock)
    service = serve(then=end_call(Code.UNAVAILABLE))
    stream = service.stream(retry_seconds=120.0)
    with pytest.raises(exceptions.RetryError, match="said by the service"):
        stream.send(ids("a"))
    longest = [min(0.1 * 2**i, 10.0) for i in range(len(clock.sleeps))]
    assert all(half / 2 <= pause <= half for pause, half in zip(clock.sleeps, longest, strict=True))
    assert 110.0 <= sum(clock.sleeps) <= 120.0
    assert len(service.requests) == len(clock.sleeps) + 1


def test_a_connection_that_hangs_is_replaced_by_another_one(serve: Serve) -> None:
    service = serve(hang)
    stream = service.stream(retry_seconds=1.0)
    assert stream.send(ids("a")) == {}
    service.over.set()
    assert stream.send(ids("b")) == {}
    assert service.written == ["a", "b"]
    assert len(service.connections) == 2
    stream.close()


@pytest.mark.slow
def test_a_service_that_never_responds_is_given_up_on(serve: Serve) -> None:
    service = serve(then=hang)
    stream = service.stream(retry_seconds=0.4)
    with pytest.raises(exceptions.RetryError, match="no response within"):
        stream.send(ids("a"))
    # The client has closed its connections.
    wait_until(lambda: not any(c.is_active() for c in service.connections))


def test_a_service_that_cannot_be_reached_is_given_up_on(serve: Serve) -> None:
    service = serve()
    service.stop()
    with pytest.raises(exceptions.RetryError, match="connect"):
        service.stream(retry_seconds=0.4).send(ids("a"))


def test_a_connection_that_the_service_closed_while_idle_is_opened_again(serve: Serve) -> None:
    service = serve()
    stream = service.stream()
    assert stream.send(ids("a")) == {}
    service.connections[0].cancel()
    assert stream.send(ids("b")) == {}
    assert service.written == ["a", "b"]
    stream.close()


def test_refused_rows_are_returned_by_index_and_keep_the_connection_open(serve: Serve) -> None:
    service = serve(then=refuse("b", "d"))
    stream = service.stream()
    assert stream.send(ids(*"abcd")) == {1: "bad b", 3: "bad d"}
    assert service.written == []
    assert stream.send(ids("a", "c")) == {}
    assert service.written == ["a", "c"]
    assert len(service.connections) == 1
    stream.close()


def test_an_interrupted_send_does_not_leave_its_response_to_the_next(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(refuse("a"))
    stream = service.stream()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AppendConnection, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.send(ids("a"))
    assert stream.send(ids("b")) == {}
    stream.close()


# One connection for many threads


def test_threads_share_a_connection_and_receive_their_own_responses(serve: Serve) -> None:
    service = serve(then=refuse(*(f"bad{i}" for i in range(8))))
    stream = service.stream()

    def run(i: int) -> list[dict[int, str]]:
        sent = [stream.start(ids(f"fine{i}.{k}")) for k in range(10)]
        sent.append(stream.start(ids("x", f"bad{i}")))
        return [append.refused() for append in sent]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(run, range(8)))
    assert answers == [[{}] * 10 + [{1: f"bad bad{i}"}] for i in range(8)]
    assert sorted(service.written) == sorted(f"fine{i}.{k}" for i in range(8) for k in range(10))
    assert len(service.connections) == 1
    stream.close()


def test_requests_are_sent_before_earlier_ones_are_answered(serve: Serve) -> None:
    answering = threading.Event()
    service = serve(when(answering, write))
    stream = service.stream()
    sent = [stream.start(ids(f"{i}")) for i in range(20)]
    wait_until(lambda: service.received == 20)
    assert not any(append.is_answered for append in sent)
    answering.set()
    assert [append.refused() for append in sent] == [{}] * 20
    assert service.written == [f"{i}" for i in range(20)]
    stream.close()


@pytest.mark.parametrize("limit", ["IN_FLIGHT_REQUESTS", "IN_FLIGHT_BYTES"])
def test_requests_wait_while_too_much_is_in_flight(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    size = len(ids("0").serialize())
    monkeypatch.setattr(append_connection, limit, 3 if "REQUESTS" in limit else 3 * size)
    answering = threading.Event()
    service = serve(when(answering, write))
    stream = service.stream()
    with ThreadPoolExecutor(8) as pool:
        started = [pool.submit(stream.start, ids(f"{i}")) for i in range(8)]
        wait_until(lambda: service.received == 3)
        wait_until(lambda: sum(sending.done() for sending in started) == 3)
        answering.set()
        assert [sending.result().refused() for sending in started] == [{}] * 8
    assert sorted(service.written) == [f"{i}" for i in range(8)]
    stream.close()


def test_rows_larger_than_what_may_be_in_flight_are_sent_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_connection, "IN_FLIGHT_BYTES", 1)
    service = serve()
    stream = service.stream()
    assert [append.refused() for append in map(stream.start, map(ids, "abc"))] == [{}] * 3
    stream.close()


@pytest.mark.slow
def test_an_error_of_the_connection_fails_all_requests_in_flight_and_each_is_sent_again(
    serve: Serve,
) -> None:
    breaking = threading.Event()
    service = serve(write, when(breaking, end_call(Code.UNAVAILABLE)))
    stream = service.stream()
    sent = [stream.start(ids(f"{i}")) for i in range(10)]
    wait_until(lambda: service.received == 10)
    breaking.set()
    assert [append.refused() for append in sent] == [{}] * 10
    assert sorted(service.written) == [f"{i}" for i in range(10)]
    assert len(service.connections) == 2
    stream.close()


@pytest.mark.slow
def test_a_hanging_connection_is_replaced_also_for_threads_that_wait_to_send(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_connection, "IN_FLIGHT_REQUESTS", 1)
    service = serve(hang)
    stream = service.stream(retry_seconds=1.0)
    first, second = stream.start(ids("a")), stream.start(ids("b"))
    assert first.refused() == second.refused() == {}
    assert sorted(service.written) == ["a", "b"]
    stream.close()


def test_a_slow_service_is_not_given_up_on_while_it_responds(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = threading.Event()
    service = serve(then=when(answering, write))
    clock = Clock()
    monkeypatch.setattr(append_connection, "time", clock)
    stream = service.stream(retry_seconds=100.0)
    sent = [stream.start(ids(f"{i}")) for i in range(3)]
    clock.sleep(49.0)
    answering.set()
    sent[0].refused()
    clock.sleep(49.0)
    assert [append.refused() for append in sent] == [{}] * 3
    assert len(service.connections) == 1
    stream.close()


def test_a_request_that_fails_for_good_does_not_disturb_those_in_flight(serve: Serve) -> None:
    service = serve(say(Code.INVALID_ARGUMENT))
    stream = service.stream()
    bad, good = stream.start(ids("a")), stream.start(ids("b"))
    with pytest.raises(exceptions.InvalidArgument):
        bad.refused()
    assert good.refused() == {}
    # The table may have been replaced, so the next rows get a new connection.
    assert stream.send(ids("c")) == {}
    assert service.requests == [["a"], ["b"], ["c"]]
    wait_until(lambda: [c.is_active() for c in service.connections] == [False, True])
    stream.close()


def test_closing_a_stream_ends_all_waits(serve: Serve) -> None:
    service = serve(then=hang)
    stream = service.stream(retry_seconds=3600.0)
    sent = stream.start(ids("a"))
    wait_until(lambda: service.received == 1)
    connection = stream.connection()
    stream.close()
    with pytest.raises(exceptions.Aborted, match="closed before the response"):
        connection.wait(sent._response)


def test_users_of_a_table_share_its_stream_until_the_last_one_releases_it(serve: Serve) -> None:
    service = serve()
    cloud, schema = service.cloud(), ids().schema
    stream = share_stream(cloud, TABLE, schema)
    assert share_stream(service.cloud(), TABLE, schema) is stream
    other = share_stream(cloud, TABLE, pa.schema([("id", pa.string()), ("n", pa.int64())]))
    assert other is not stream
    stream.send(ids("a"))
    release_stream(stream)
    stream.send(ids("b"))
    assert [c.is_active() for c in service.connections] == [True]
    release_stream(stream)
    release_stream(other)
    wait_until(lambda: not service.connections[0].is_active())
    again = share_stream(cloud, TABLE, schema)
    assert again is not stream
    release_stream(again)


# Threads and processes


def test_closed_and_broken_streams_leave_no_thread_and_no_connection_behind(serve: Serve) -> None:
    service = serve(then=refuse())
    broken = serve(then=end_call(Code.PERMISSION_DENIED))

    def once() -> None:
        stream = service.stream(retry_seconds=3600.0)
        stream.send(ids("a"))
        stream.close()
        stream.close()
        with pytest.raises(exceptions.PermissionDenied):
            broken.stream().send(ids("a"))

    once()
    before = set(threading.enumerate())
    for _ in range(25):
        once()
    wait_until(lambda: not threads_since(before))
    wait_until(lambda: not any(c.is_active() for c in service.connections))


def test_a_process_ends_whatever_state_its_connections_are_in(serve: Serve) -> None:
    program = """
import sys, threading
import pyarrow as pa
from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from transforms.bigquery.append_stream import DefaultStream
from transforms.bigquery.schema import TableName

rows = pa.record_batch({"id": pa.array(["a"])})
table = TableName("some-project", "d", "t")
streams = [
    DefaultStream(Cloud("p", Endpoints(bigquerystorage=address), 3600.0), table, rows.schema)
    for address in sys.argv[1:]
]
fine, broken, hanging = streams
fine.send(rows)
try:
    broken.send(rows)
except Exception as error:
    print(type(error).__name__)
threading.Thread(target=hanging.send, args=(rows,), daemon=True).start()
sys.stdin.read()
"""
    fine, broken, hanging = serve(), serve(then=end_call(Code.NOT_FOUND)), serve(then=hang)
    addresses = [f"127.0.0.1:{service.port}" for service in (fine, broken, hanging)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *addresses],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: len(hanging.requests) == 1)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output == "NotFound\n"


@pytest.mark.slow
def test_the_largest_append_is_within_the_limit_of_the_api(serve: Serve) -> None:
    service = serve()
    stream = service.stream()
    rows = ids("x" * (REQUEST_BYTES - 4))
    assert rows.nbytes == REQUEST_BYTES
    stream.send(rows)
    # "The size of a single AppendRowsRequest must be less than 20 MB in size."
    assert REQUEST_BYTES < service.sizes[0] < 20_000_000
    stream.close()
