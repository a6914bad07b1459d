"""Errors of Google's clients as a scripted server gives them: which are retried, what is said."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import google.auth.exceptions
import pytest
import requests
from google.api_core import exceptions

import cloud.clients
from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from cloud.errors import explain, is_passing, retry, translate_errors
from common.errors import CredentialsError, InputError
from examples.local_cloud import free_port

TABLE = {"tableReference": {"projectId": "p", "datasetId": "d", "tableId": "t"}}
# Instead of a status: the connection ends without an answer, or the answer comes too late.
CUT, SILENT = 0, -1
Answer = tuple[int, Any]


class Server:
    """Gives the answers of a list one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.calls = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._http.serve_forever, args=(0.01,)).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = server.answers[min(server.calls, len(server.answers) - 1)]
                server.calls += 1
                if status == SILENT:
                    server.closing.wait(2)
                    status = 200
                if status == CUT:
                    self.close_connection = True
                    return
                text = body if isinstance(body, bytes) else json.dumps(body).encode()
                with suppress(ConnectionError):
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.closing = threading.Event()
        return Handler

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def failure(status: int, reason: str, message: str = "it is so") -> Answer:
    """An error as BigQuery's REST API answers it."""
    details = [{"reason": reason, "message": message, "domain": "global"}] if reason else []
    return status, {"error": {"code": status, "message": message, "errors": details}}


def name(answer: Answer) -> str:
    """An answer -> the name of its test."""
    status, body = answer
    details = body["error"]["errors"] if isinstance(body, dict) else []
    return f"{status}-{details[0]['reason'] if details else ''}"


def get_table(server: Server, seconds: float = 30.0) -> Any:
    client = Cloud("p", Endpoints(bigquery=server.address)).bigquery()
    return client.get_table("p.d.t", retry=retry(seconds))


PASSING = [
    failure(500, "internalError"),
    failure(500, "backendError"),
    (500, b"not even JSON"),
    (502, b"<html>bad gateway</html>"),
    failure(503, "backendError"),
    # Of a balancer in between, which has reasons of its own.
    failure(503, "unknownReason"),
    failure(504, ""),
    failure(429, "rateLimitExceeded"),
    failure(429, ""),
    failure(403, "rateLimitExceeded"),
    failure(400, "tableUnavailable"),
    (CUT, None),
]
LASTING = [
    failure(400, "invalid"),
    failure(400, "invalidQuery"),
    failure(403, "accessDenied"),
    failure(403, "quotaExceeded"),
    failure(429, "quotaExceeded"),
    failure(403, "billingNotEnabled"),
    failure(403, ""),
    failure(404, "notFound"),
    failure(409, "duplicate"),
    failure(412, "conditionNotMet"),
    failure(501, "notImplemented"),
]


@pytest.mark.parametrize("answer", PASSING, ids=name)
def test_an_error_that_passes_is_waited_out(
    server: Server, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.answers = [answer, answer, answer, (200, TABLE)]
    assert get_table(server).table_id == "t"
    assert server.calls == 4
    assert len(waits) == 3


@pytest.mark.parametrize("answer", LASTING, ids=name)
def test_an_error_that_lasts_is_told_after_one_request(server: Server, answer: Answer) -> None:
    server.answers = [answer]
    with pytest.raises(exceptions.GoogleAPICallError):
        get_table(server)
    assert server.calls == 1


def test_waits_grow_up_to_a_limit_and_vary(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.answers = [failure(503, "backendError")] * 12 + [(200, TABLE)]
    get_table(server)
    for i, wait in enumerate(waits):
        assert 0 <= wait <= min(0.5 * 2**i, 20.0)
    assert len(set(waits)) == 12


def test_what_does_not_pass_within_the_time_is_given_up(server: Server) -> None:
    server.answers = [failure(503, "backendError", "come back later")]
    with pytest.raises(exceptions.RetryError) as raised:
        get_table(server, seconds=1.0)
    assert server.calls > 1
    assert explain(raised.value) == (
        "gave up after repeated attempts (come back later); this may pass: run it again later"
    )


def test_a_server_that_never_answers_is_taken_for_dead(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud.clients, "REQUEST_SECONDS", 0.1)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    late = {"tableReference": TABLE["tableReference"] | {"tableId": "late"}}
    server.answers = [(SILENT, late), (200, TABLE)]
    assert get_table(server).table_id == "t"
    assert server.calls == 2


def test_a_port_where_nobody_listens_is_told_with_its_address(server: Server) -> None:
    server.close()
    with pytest.raises(exceptions.RetryError) as raised:
        get_table(server, seconds=0.1)
    assert explain(raised.value) == (
        f"gave up after repeated attempts ({server.address} cannot be reached: Connection "
        "refused); check the network and --api_endpoints"
    )


@pytest.mark.parametrize("kind", [StopIteration, TimeoutError])
def test_what_the_system_said_is_told_when_a_retry_was_at_its_end(kind: type[Exception]) -> None:
    url = f"http://127.0.0.1:{free_port()}/x"
    # As Beam's client of Dataflow raises it: the context is the end of its waits.
    try:
        requests.get(url, timeout=5.0)
    except requests.exceptions.ConnectionError as error:
        error.__context__ = kind()
        text = explain(error)
    assert text.endswith(
        "cannot be reached: Connection refused; check the network and --api_endpoints"
    )


def test_a_connection_that_says_nothing_is_told_by_its_class() -> None:
    error = requests.exceptions.ConnectionError(request=requests.Request("GET", "http://h:1/x"))
    assert explain(error).startswith("h:1 cannot be reached: ConnectionError; ")
    error.__context__ = StopIteration()
    assert explain(error).startswith("h:1 cannot be reached: ConnectionError; ")


def test_https_where_plain_http_is_spoken_is_told_at_once(server: Server) -> None:
    server.answers = [(200, TABLE)]
    with pytest.raises(requests.exceptions.SSLError) as raised:
        retry(30.0)(requests.get)(f"https://{server.address}")
    assert server.address in explain(raised.value)
    assert "wrong version number" in explain(raised.value)
    assert explain(raised.value).endswith("check the network and --api_endpoints")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            failure(404, "notFound", "Not found: Table p:d.t"),
            "Not found: Table p:d.t; check the project, the dataset, the name and the location",
        ),
        (
            failure(403, "accessDenied", "Access Denied: Table p:d.t."),
            "Access Denied: Table p:d.t; grant the account the role that is missing, or use "
            "another --billing_project",
        ),
        (
            failure(403, "quotaExceeded", "Quota exceeded: bytes a day"),
            "Quota exceeded: bytes a day; a quota of the project is used up: raise it in the "
            "console, or wait",
        ),
        (
            failure(404, "notFound", "x" * 301),
            f"{'x' * 300}...; check the project, the dataset, the name and the location",
        ),
        (failure(400, "invalid", "Bad:\n int64\tout of range."), "Bad: int64 out of range."),
    ],
    ids=["missing", "denied", "quota", "long", "lines"],
)
def test_an_error_is_explained_in_a_line_without_the_url(
    server: Server, answer: Answer, said: str
) -> None:
    server.answers = [answer]
    with (
        pytest.raises(InputError) as raised,
        translate_errors(InputError, "the table cannot be read"),
    ):
        get_table(server)
    assert str(raised.value) == f"the table cannot be read: {said}"


@pytest.mark.parametrize(
    ("error", "passing", "parts"),
    [
        # What gRPC's errors become.
        (exceptions.ServiceUnavailable("Socket closed"), True, ("Socket closed", "run it again")),
        (exceptions.Unknown("Stream removed"), True, ("Stream removed", "run it again")),
        (exceptions.Aborted("try again"), True, ("try again",)),
        (exceptions.DeadlineExceeded("too slow"), True, ("too slow",)),
        (exceptions.ResourceExhausted("rows a second"), True, ("rows a second",)),
        # Vertex AI says both with one status: what a minute has, and what a project may have.
        (exceptions.TooManyRequests("Quota exceeded for requests per minute"), True, ("again",)),
        (
            exceptions.TooManyRequests("The following quota metrics exceed quota limits: CPUs"),
            False,
            ("CPUs", "a quota of the project is used up"),
        ),
        (exceptions.InternalServerError("RST_STREAM"), True, ("RST_STREAM",)),
        (exceptions.PermissionDenied("no getData"), False, ("no getData", "grant", "role")),
        (
            exceptions.Forbidden("Permission 'storage.objects.create' denied"),
            False,
            ("grant the account the role roles/storage.objectUser",),
        ),
        (exceptions.Unauthenticated("expired"), False, ("expired", "log in again")),
        (exceptions.FailedPrecondition("session expired"), False, ("session expired",)),
        (exceptions.InvalidArgument("row_restriction"), False, ("row_restriction",)),
        (exceptions.NotFound(""), False, ("NotFound", "check the project")),
        (ConnectionResetError(104, "Connection reset by peer"), True, ("reset by peer",)),
        # What a job's error becomes, with a reason that no status belongs to, so that it is 500.
        (
            exceptions.InternalServerError("job timed out", errors=[{"reason": "timeout"}]),
            False,
            ("job timed out",),
        ),
        (
            exceptions.InternalServerError("oh", errors=[{"reason": "jobInternalError"}]),
            True,
            ("oh", "run it again"),
        ),
        (google.auth.exceptions.TransportError("no route"), True, ("no route", "network")),
        (google.auth.exceptions.RefreshError("revoked"), False, ("revoked", "gcloud auth")),
    ],
    ids=repr,
)
def test_errors_without_a_rest_answer(
    error: Exception, passing: bool, parts: tuple[str, ...]
) -> None:
    assert is_passing(error) == passing
    for part in parts:
        assert part in explain(error)
    given_up = explain(exceptions.RetryError("no", cause=error))
    assert given_up.startswith("gave up after repeated attempts (")
    assert parts[0] in given_up
    assert "\n" not in given_up


@pytest.mark.parametrize("wrapped", [False, True])
def test_errors_of_credentials_are_told_as_such(wrapped: bool) -> None:
    error: Exception = google.auth.exceptions.RefreshError("revoked")
    match = r"^it cannot be read: .*revoked"
    with (
        pytest.raises(CredentialsError, match=match),
        translate_errors(InputError, "it cannot be read"),
    ):
        raise exceptions.RetryError("no", cause=error) if wrapped else error


@pytest.mark.parametrize("error", [ValueError("a bug"), InputError("told already")])
def test_what_is_no_error_of_a_client_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, translate_errors(InputError, "it cannot be read"):
        raise error
    assert raised.value is error


def test_an_error_that_passes_only_here_is_retried_only_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def twice_missing() -> Callable[[], int]:
        answers: Iterator[Exception | int] = iter([exceptions.NotFound("no")] * 2 + [7])  # type: ignore[list-item]

        def call() -> int:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    assert retry(9.0, exceptions.NotFound)(twice_missing())() == 7
    with pytest.raises(exceptions.NotFound):
        retry(9.0)(twice_missing())()
