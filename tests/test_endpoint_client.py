"""The endpoint client: it retries transient failures, and reports others in one line."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
from faulty_endpoint import (
    ERROR_WITH_200,
    HANG,
    HTML,
    HTML_PAGE,
    QUICK_FAULTS,
    RESET,
    SERVER_ERROR,
    THROTTLED,
    TOO_FEW,
    TRUNCATED,
    UNAVAILABLE,
    Fault,
    FaultyEndpoint,
    faulty_endpoint,
    in_turn,
    latency,
    refusal,
    retry_after,
)
from google.auth.exceptions import RefreshError, TransportError
from waiting import wait_until

from cloud import retry_pacing
from cloud.endpoint_client import DIGEST_HEADER, FLAGS, EndpointClient
from cloud.endpoint_responses import BadAnswer, RequestRefused, error_text
from common.errors import CredentialsError, EndpointError

BODY = b'{"instances":[1,2,3]}'


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_pacing, "FIRST_BACKOFF", 0.001)


def double(instances: list[Any]) -> list[Any]:
    return [2 * value for value in instances]


def read(body: bytes) -> list[int]:
    try:
        predictions = orjson.loads(body)["predictions"]
    except (orjson.JSONDecodeError, KeyError) as error:
        raise BadAnswer(f"no answer: {type(error).__name__}") from None
    if predictions != [2, 4, 6]:
        raise BadAnswer(f"{len(predictions)} predictions")
    return predictions  # type: ignore[no-any-return]


Connect = Callable[..., EndpointClient]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A function that builds a client of a server, which is closed after the test."""
    clients = []

    def open_client(endpoint: FaultyEndpoint | str, **settings: Any) -> EndpointClient:
        url = endpoint if isinstance(endpoint, str) else endpoint.predict_url
        clients.append(EndpointClient(url, "e", **settings))
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()


def post(client: EndpointClient, **settings: Any) -> list[int]:
    return client.run(client.post(BODY, read, **settings))


def failure(client: EndpointClient, error: type[Exception], **settings: Any) -> str:
    with pytest.raises(error) as raised:
        post(client, **settings)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_an_answer_is_read_and_counted(connect: Connect) -> None:
    with faulty_endpoint(double) as endpoint:
        client = connect(endpoint)
        assert post(client) == [2, 4, 6]
        stats = client.take_stats()
        assert (stats.requests, stats.retries, stats.bytes_sent) == (1, 0, len(BODY))
        assert (stats.answers, stats.most_in_flight, stats.throttled) == ({"2xx": 1}, 1, 0)
        assert len(stats.seconds) == 1
        assert client.take_stats().requests == 0
        assert endpoint.requests[0].headers["content-type"] == "application/json"
        assert "authorization" not in endpoint.requests[0].headers


def test_connections_are_reused(connect: Connect) -> None:
    with faulty_endpoint(double) as endpoint:
        client = connect(endpoint)
        for _ in range(20):
            post(client)
        assert endpoint.connections == 1


@pytest.mark.parametrize("fault", [*QUICK_FAULTS[1:9], ERROR_WITH_200, HTML], ids=lambda f: f.name)
def test_a_transient_failure_is_retried(connect: Connect, fault: Fault) -> None:
    with faulty_endpoint(double, in_turn(fault, fault)) as endpoint:
        client = connect(endpoint)
        assert post(client) == [2, 4, 6]
        stats = client.take_stats()
        assert (stats.requests, stats.retries) == (3, 2)
        assert stats.answers["2xx"] >= 1


def test_a_request_that_times_out_is_retried(connect: Connect) -> None:
    with faulty_endpoint(double, in_turn(HANG)) as endpoint:
        client = connect(endpoint, timeout_seconds=0.1)
        assert post(client) == [2, 4, 6]
        assert client.take_stats().answers == {"timeout": 1, "2xx": 1}


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        (SERVER_ERROR, "500 Internal Server Error: Internal Server Error"),
        (UNAVAILABLE, "503 Service Unavailable: Service Unavailable"),
        (TOO_FEW, "2 predictions"),
        (HTML, "no answer: JSONDecodeError"),
        (TRUNCATED, "closed the connection in the middle of its response"),
        (RESET, "127.0.0.1:"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_after_some_failures_the_rows_are_suspected(
    connect: Connect, fault: Fault, reported: str
) -> None:
    with faulty_endpoint(double, lambda _: fault) as endpoint:
        assert reported in failure(connect(endpoint), RequestRefused, patience=3)
        assert len(endpoint.requests) == 3


def test_throttling_is_never_blamed_on_the_rows(connect: Connect) -> None:
    with faulty_endpoint(double, lambda _: THROTTLED) as endpoint:
        reported = failure(connect(endpoint, retry_seconds=0.05), EndpointError, patience=1)
        assert reported.startswith("a request to endpoint e failed ")
        assert "the last error was: 429 Too Many Requests: Quota exceeded" in reported
        assert "its rows were neither scored nor written as dead letters" in reported
        assert len(endpoint.requests) > 1


def test_failures_of_known_good_rows_are_retried(connect: Connect) -> None:
    faults = [SERVER_ERROR, RESET, TRUNCATED, UNAVAILABLE] * 2
    with faulty_endpoint(double, in_turn(*faults)) as endpoint:
        assert post(connect(endpoint), innocent=True) == [2, 4, 6]
    with faulty_endpoint(double, lambda _: TOO_FEW) as endpoint:
        assert failure(connect(endpoint), RequestRefused, innocent=True) == "2 predictions"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_of_the_rows_is_raised_at_once(connect: Connect, status: int) -> None:
    with faulty_endpoint(double, lambda _: refusal(status, "row 2 has no Amount")) as endpoint:
        with pytest.raises(RequestRefused, match=f"^{status} .*: row 2 has no Amount$") as raised:
            post(connect(endpoint))
        assert raised.value.status == status
        assert len(endpoint.requests) == 1


PRECONDITION = orjson.dumps({"error": {"status": "FAILED_PRECONDITION", "message": "not ready"}})


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        (
            refusal(401),
            "no token was sent, because tokens go only to https addresses under googleapis.com and "
            "vertexai.goog: use such an address, or let the server accept requests without a token",
        ),
        (refusal(403), "grant the account the role roles/aiplatform.user"),
        (refusal(403, "VPC Service Controls: no"), "a perimeter of VPC Service Controls forbids"),
        (refusal(404), "check --endpoint, --endpoint_project and --endpoint_location"),
        (refusal(405), f"check {FLAGS}: expected the URL of an endpoint for predictions"),
        (refusal(501), f"check {FLAGS}: expected the URL of an endpoint for predictions"),
        (
            Fault("redirect", status=302, headers=(("Location", "/"),)),
            "expected the URL of an endpoint",
        ),
        (Fault("p", status=400, body=PRECONDITION), "FAILED_PRECONDITION: not ready; check that"),
        (Fault("HTML", status=404, body=HTML_PAGE), "404 Not Found: an HTML page; check --endp"),
        (Fault("empty", status=403, body=b""), "endpoint e: 403 Forbidden; grant"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_permanent_failure_is_raised_at_once_with_advice(
    connect: Connect, fault: Fault, reported: str
) -> None:
    with faulty_endpoint(double, lambda _: fault) as endpoint:
        assert reported in failure(connect(endpoint), EndpointError)
        assert len(endpoint.requests) == 1


def test_an_unknown_host_and_a_refused_connection_are_reported(connect: Connect) -> None:
    reported = failure(connect("http://nowhere.invalid/predict", retry_seconds=0), EndpointError)
    assert "the last error was: nowhere.invalid cannot be found (DNS)" in reported
    with faulty_endpoint(double) as endpoint:
        url = endpoint.predict_url
    reported = failure(connect(url, retry_seconds=0), EndpointError, innocent=True)
    assert "Connect" in reported


def test_retry_after_is_respected_if_there_is_time(connect: Connect) -> None:
    with faulty_endpoint(double, in_turn(retry_after("0.2"))) as endpoint:
        client, began = connect(endpoint), time.monotonic()
        assert post(client) == [2, 4, 6]
        assert time.monotonic() - began >= 0.2
    with faulty_endpoint(double, lambda _: retry_after("3600")) as endpoint:
        reported = failure(connect(endpoint), EndpointError)
        assert "(Retry-After: 3600 s); its rows were neither scored nor written as" in reported
        assert len(endpoint.requests) == 1
    with faulty_endpoint(double, lambda _: retry_after("inf")) as endpoint:
        failure(connect(endpoint), EndpointError)


Impatient = Callable[[FaultyEndpoint, float], EndpointClient]


@pytest.fixture(params=["jitter", "debt"])
def impatient(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Impatient:
    """A function that builds a client whose next retry would be long after its time is over."""

    def open_client(endpoint: FaultyEndpoint, retry_seconds: float) -> EndpointClient:
        client = connect(endpoint, retry_seconds=retry_seconds)
        if request.param == "jitter":
            monkeypatch.setattr(retry_pacing, "FIRST_BACKOFF", 1e9)
            monkeypatch.setattr(retry_pacing, "LONGEST_BACKOFF", 1e9)
        else:
            client._budget = retry_pacing.RetryBudget(most=-1_000)
        return client

    return open_client


def test_an_outage_shorter_than_the_retry_time_fails_nothing(impatient: Impatient) -> None:
    with faulty_endpoint(double, in_turn(UNAVAILABLE)) as endpoint:
        assert post(impatient(endpoint, 0.1)) == [2, 4, 6]


def test_a_request_is_retried_until_its_time_is_over(impatient: Impatient) -> None:
    with faulty_endpoint(double, lambda _: UNAVAILABLE) as endpoint:
        client, began = impatient(endpoint, 0.2), time.monotonic()
        assert "e failed 2 times in" in failure(client, EndpointError, innocent=True)
        assert time.monotonic() - began >= 0.2


def at_once(client: EndpointClient, number: int) -> list[list[int]]:
    async def ask() -> list[list[int]]:
        return await asyncio.gather(*(client.post(BODY, read) for _ in range(number)))

    return client.run(ask())


def test_the_limit_on_requests_in_flight_holds_for_all_threads(connect: Connect) -> None:
    with faulty_endpoint(double, lambda _: latency(0.01)) as endpoint:
        client = connect(endpoint, concurrency=3)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: at_once(client, 4), range(6)))
        assert answers == [[[2, 4, 6]] * 4] * 6
        assert endpoint.most_in_flight == endpoint.connections == 3
        assert client.take_stats().most_in_flight == 3


@pytest.mark.slow
def test_an_overloaded_server_gets_fewer_requests_and_the_time_is_counted(connect: Connect) -> None:
    overloaded = [retry_after("1.1")] * 4
    with faulty_endpoint(double, in_turn(*overloaded)) as endpoint:
        client = connect(endpoint, concurrency=4)
        at_once(client, 12)
        stats = client.take_stats()
        assert client._limit.limit < 4 + 1e-9
        # The time counts once, although four requests waited.
        assert stats.throttled == 1
        assert stats.retries == 4


@pytest.mark.slow
def test_an_outage_is_not_amplified(connect: Connect) -> None:
    with faulty_endpoint(double, lambda _: UNAVAILABLE) as endpoint:
        client = connect(endpoint, retry_seconds=1, concurrency=50)

        async def ask() -> list[Any]:
            asked = (client.post(BODY, read, innocent=True) for _ in range(100))
            return await asyncio.gather(*asked, return_exceptions=True)

        errors = client.run(ask())
        assert {type(error) for error in errors} == {EndpointError}
        # Each request has a first and a last attempt, and the budget allows 50 retries and one per
        # second.
        assert len(endpoint.requests) <= 2 * 100 + 50 + 2


class Credentials:
    """Credentials like Google's: each refresh fetches a token, and some tokens are revoked."""

    def __init__(self, *revoked: str, error: Exception | None = None) -> None:
        self.token: str | None = None
        self.revoked, self.error, self.refreshed = revoked, error, 0

    @property
    def valid(self) -> bool:
        return self.token is not None

    def refresh(self, _: Any) -> None:
        self.refreshed += 1
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.token = f"t{self.refreshed}"

    def apply(self, headers: dict[str, str]) -> None:
        headers["Authorization"] = f"Bearer {self.token}"

    def fault(self, request: Any) -> Fault | None:
        token = request.headers["authorization"].removeprefix("Bearer ")
        return refusal(401, f"no such token {token}") if token in self.revoked else None


def test_a_token_is_fetched_once_for_all_requests(connect: Connect) -> None:
    credentials = Credentials()
    with faulty_endpoint(double, credentials.fault) as endpoint:
        client = connect(endpoint, credentials=credentials)
        at_once(client, 10)
        assert credentials.refreshed == 1
        assert {r.headers["authorization"] for r in endpoint.requests} == {"Bearer t1"}


def test_a_revoked_token_is_renewed_once_for_all_requests(connect: Connect) -> None:
    credentials = Credentials("t1")
    credentials.refresh(None)
    with faulty_endpoint(
        double, lambda request: credentials.fault(request) or latency(0.01)
    ) as endpoint:
        client = connect(endpoint, credentials=credentials, concurrency=10)
        assert at_once(client, 10) == [[2, 4, 6]] * 10
        assert credentials.refreshed == 2
        assert endpoint.statuses[200] == 10


def test_a_token_that_stays_rejected_is_an_error_in_one_line(connect: Connect) -> None:
    credentials = Credentials("t1", "t2")
    with faulty_endpoint(double, credentials.fault) as endpoint:
        reported = failure(connect(endpoint, credentials=credentials), EndpointError)
        assert "401 Unauthorized" in reported
        assert "log in again, or set the worker's service account" in reported
        assert len(endpoint.requests) == 2


def test_invalid_credentials_are_an_error_and_transient_failures_are_retried(
    connect: Connect,
) -> None:
    with faulty_endpoint(double) as endpoint:
        expired = Credentials(error=RefreshError("invalid_grant: expired or revoked"))
        reported = failure(connect(endpoint, credentials=expired), CredentialsError)
        assert reported == (
            "cannot fetch a token for endpoint e: invalid_grant: expired or revoked; log in again"
        )
        for error in (TransportError("no route"), RefreshError("busy", retryable=True)):
            later = Credentials(error=error)
            assert post(connect(endpoint, credentials=later)) == [2, 4, 6]
            assert later.refreshed == 2


def test_an_answer_of_another_model_is_an_error(connect: Connect) -> None:
    said = Fault("digest", headers=((DIGEST_HEADER, "b" * 64),))
    with faulty_endpoint(double, lambda _: said) as endpoint:
        reported = failure(connect(endpoint, digest="a" * 64), EndpointError)
        assert reported.startswith("endpoint e serves another model: expected digest aaaa")
        assert post(connect(endpoint, digest="b" * 64)) == [2, 4, 6]
        assert post(connect(endpoint)) == [2, 4, 6]


def test_a_large_body_is_sent_completely_without_a_warning(
    connect: Connect, recwarn: pytest.WarningsRecorder
) -> None:
    body = orjson.dumps({"instances": [1] * 800_000})
    with faulty_endpoint(lambda rows: [2, 4, 6]) as endpoint:
        client = connect(endpoint)
        assert client.run(client.post(body, read)) == [2, 4, 6]
        assert len(endpoint.requests[0].instances) == 800_000
    assert [w for w in recwarn if issubclass(w.category, ResourceWarning)] == []


def test_a_client_works_on_after_requests_were_cancelled(connect: Connect) -> None:
    with faulty_endpoint(double, in_turn(HANG, HANG)) as endpoint:
        client = connect(endpoint, concurrency=2)

        async def ask_and_stop() -> None:
            tasks = [asyncio.ensure_future(client.post(BODY, read)) for _ in range(3)]
            await asyncio.to_thread(wait_until, lambda: endpoint.in_flight == 2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        client.run(ask_and_stop())
        assert client._limit.in_flight == 0
        assert at_once(client, 4) == [[2, 4, 6]] * 4


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "endpoint"}


@pytest.mark.slow
def test_a_client_that_is_dropped_ends_its_thread_and_its_connections() -> None:
    with faulty_endpoint(double) as endpoint:
        # Clients of other tests may still exist.
        before = threads()
        client = EndpointClient(endpoint.predict_url, "e")
        post(client)
        (thread,) = threads() - before
        gone = weakref.ref(client)
        del client
        gc.collect()
        assert gone() is None
        thread.join(10)
        assert not thread.is_alive()


def test_a_client_may_be_dropped_by_its_own_thread() -> None:
    with faulty_endpoint(double) as endpoint:
        # Clients of other tests may still exist.
        before = threads()
        client = EndpointClient(endpoint.predict_url, "e")
        (thread,) = threads() - before

        async def hold(held: list[EndpointClient]) -> None:
            await held[0].post(BODY, read)
            gone.set()
            held.clear()

        gone = threading.Event()
        asyncio.run_coroutine_threadsafe(hold([client]), client._loop)
        del client
        assert gone.wait(10)
        gc.collect()
        thread.join(10)
        assert not thread.is_alive()


def test_a_request_to_a_client_that_is_closed_fails(connect: Connect) -> None:
    with faulty_endpoint(double, lambda _: HANG) as endpoint:
        client = connect(endpoint)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post, client)
            wait_until(lambda: endpoint.in_flight)
            client.close()
            assert waiting.exception(10) is not None
        with pytest.raises(RuntimeError, match="the client of endpoint e was closed"):
            post(client)


def test_a_process_ends_although_its_client_is_open() -> None:
    with faulty_endpoint(double) as endpoint:
        program = (
            "from cloud.endpoint_client import EndpointClient\n"
            f"client = EndpointClient({endpoint.predict_url!r}, 'e')\n"
            f"print(client.run(client.post({BODY!r}, len)))\n"
        )
        command = [sys.executable, "-X", "dev", "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert int(done.stdout) > 0


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", ""),
        (b"  \n", ""),
        (b'"why"', "why"),
        (b"<html>", "an HTML page"),
        (b'{"error": "why"}', "why"),
        (b'{"message": "why"}', "why"),
        (b'{"detail": "why"}', "why"),
        (b'{"error": {"message": "line\\nline", "status": "X"}}', "line line"),
        (b'{"error": {"code": 7}}', '{"code":7}'),
        (b"[]", "[]"),
        (b"plain\r\ntext", "plain text"),
    ],
)
def test_an_error_says_what_its_body_says(body: bytes, text: str) -> None:
    assert error_text(body) == text


def test_an_error_is_cut_short() -> None:
    assert len(error_text(b"x" * 100_000)) < 250
    assert len(error_text(orjson.dumps({"error": {"message": "x" * 100_000}}))) < 250
