"""The endpoint that other tests use: each fault does what its name says, and is counted."""

import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from faulty_endpoint import (
    ERROR_WITH_200,
    HANG,
    HTML,
    NAME,
    NOT_A_NUMBER,
    NULL,
    RESET,
    SERVER_ERROR,
    THROTTLED,
    THROTTLED_WITH_RETRY_AFTER,
    TOO_FEW,
    TOO_MANY,
    TRUNCATED,
    UNAVAILABLE,
    Fault,
    FaultyEndpoint,
    at_rate,
    faulty_endpoint,
    in_turn,
    latency,
)


def double(instances: list[Any]) -> list[Any]:
    return [{"score": 2 * value} for value in instances]


def post(
    endpoint: FaultyEndpoint, body: Any, timeout: float = 10
) -> tuple[int, dict[str, str], bytes]:
    """Send a POST request on a new connection, and return status, headers and body."""
    connection = http.client.HTTPConnection(endpoint.url.removeprefix("http://"), timeout=timeout)
    try:
        connection.request("POST", f"/v1/{NAME}:predict", json.dumps(body))
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


INSTANCES = {"instances": [1, 2, 3]}
RIGHT = [{"score": 2}, {"score": 4}, {"score": 6}]


def test_without_a_fault_it_answers_each_instance() -> None:
    with faulty_endpoint(double) as endpoint:
        status, headers, body = post(endpoint, INSTANCES)
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert json.loads(body)["predictions"] == RIGHT
        (request,) = endpoint.requests
        assert request.path == f"/v1/{NAME}:predict"
        assert request.instances == [1, 2, 3]
        assert (endpoint.statuses, endpoint.rows) == ({200: 1}, {200: 3})
        assert not endpoint.faults


@pytest.mark.parametrize(
    ("fault", "status", "retry_after"),
    [
        (THROTTLED, 429, None),
        (THROTTLED_WITH_RETRY_AFTER, 429, "1"),
        (SERVER_ERROR, 500, None),
        (UNAVAILABLE, 503, None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_refusal_has_its_status_and_an_error_body(
    fault: Fault, status: int, retry_after: str | None
) -> None:
    with faulty_endpoint(double, in_turn(fault)) as endpoint:
        got, headers, body = post(endpoint, INSTANCES)
        assert got == status == json.loads(body)["error"]["code"]
        assert headers.get("Retry-After") == retry_after
        assert post(endpoint, INSTANCES)[0] == 200
        assert endpoint.rows == {status: 3, 200: 3}
        assert endpoint.faults == {fault.name: 1}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (TOO_FEW, RIGHT[:2]),
        (TOO_MANY, [*RIGHT, RIGHT[2]]),
        (NULL, [{"score": None}, *RIGHT[1:]]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_wrong_predictions_have_status_200(fault: Fault, expected: list[Any]) -> None:
    with faulty_endpoint(double, in_turn(fault)) as endpoint:
        status, _, body = post(endpoint, INSTANCES)
        assert (status, json.loads(body)["predictions"]) == (200, expected)


def test_nan_is_written_as_the_bare_word() -> None:
    with faulty_endpoint(double, in_turn(NOT_A_NUMBER)) as endpoint:
        assert b'[{"score": NaN}, {"score": 4}' in post(endpoint, INSTANCES)[2]


def test_bodies_without_predictions_have_status_200() -> None:
    with faulty_endpoint(double, in_turn(ERROR_WITH_200, HTML)) as endpoint:
        status, _, body = post(endpoint, INSTANCES)
        assert (status, list(json.loads(body))) == (200, ["error"])
        status, headers, body = post(endpoint, INSTANCES)
        assert (status, headers["Content-Type"][:9], body[:5]) == (200, "text/html", b"<!DOC")


def test_a_connection_can_hang_be_reset_or_end_in_the_middle() -> None:
    with faulty_endpoint(double, in_turn(HANG, RESET, TRUNCATED)) as endpoint:
        with pytest.raises(socket.timeout):
            post(endpoint, INSTANCES, timeout=0.1)
        with pytest.raises(ConnectionResetError):
            post(endpoint, INSTANCES)
        with pytest.raises(http.client.IncompleteRead):
            post(endpoint, INSTANCES)
        assert endpoint.rows == {0: 6, 200: 3}


def test_a_late_answer_is_correct_and_requests_in_flight_are_counted() -> None:
    with (
        faulty_endpoint(double, lambda _: latency(0.05)) as endpoint,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda _: post(endpoint, INSTANCES), range(16)))
        assert all(json.loads(body)["predictions"] == RIGHT for _, _, body in answers)
        assert 1 < endpoint.most_in_flight <= 8
        assert endpoint.connections == 16


def test_an_invalid_request_is_refused() -> None:
    with faulty_endpoint(double) as endpoint:
        assert post(endpoint, {"rows": []})[0] == 400
        assert post(endpoint, {"instances": 3})[0] == 400
        assert endpoint.statuses == {400: 2}


def test_the_resource_and_the_list_can_be_read_on_one_connection() -> None:
    with faulty_endpoint(double) as endpoint:
        connection = http.client.HTTPConnection(endpoint.url.removeprefix("http://"), timeout=10)
        for path, status in [(f"/v1/{NAME}", 200), (f"/v1/{NAME[:-2]}", 200), ("/other", 404)]:
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (status, True)
        connection.close()
        assert endpoint.connections == 1


def test_a_rate_has_the_same_faults_for_the_same_seed() -> None:
    with faulty_endpoint(double) as endpoint:
        post(endpoint, INSTANCES)
        request = endpoint.requests[0]
    first, again = (
        [choose(request) for _ in range(500)] for choose in (at_rate(0.2, 3), at_rate(0.2, 3))
    )
    assert first == again
    assert 60 < sum(fault is not None for fault in first) < 140
