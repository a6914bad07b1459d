"""Errors of Google's clients, from a scripted server: which are retried, and their messages."""

import json
import threading
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
from cloud.endpoint_responses import refusal_advice
from cloud.endpoints import Endpoints
from cloud.errors import explain, is_passing, lacks_role, retry, translate_errors
from common.errors import CredentialsError, InputError
from examples.local_cloud import free_port

TABLE = {"tableReference": {"projectId": "p", "datasetId": "d", "tableId": "t"}}
# Instead of a status: the connection is closed without a response, or the response is late.
CUT, SILENT = 0, -1
Answer = tuple[int, Any]


class Server:
    """A server that sends the answers in a list in order, and then repeats the last one."""

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
    """Return an error as BigQuery's REST API sends it."""
    details = [{"reason": reason, "message": message, "domain": "global"}] if reason else []
    return status, {"error": {"code": status, "message": message, "errors": details}}


def name(answer: Answer) -> str:
    """Return the id of the test of an answer."""
    status, body = answer
    details = body["error"]["errors"] if isinstance(body, dict) else []
    return f"{status}-{details[0]['reason'] if details else ''}"


def get_table(server: Server, seconds: float = 30.0) -> Any:
    client = Cloud("p", Endpoints(bigquery=server.address)).bigquery()
    return client.get_table("p.d.t", retry=retry(seconds))


TRANSIENT = [
    failure(500, "internalError"),
    failure(500, "backendError"),
    (500, b"not even JSON"),
    (502, b"<html>bad gateway</html>"),
    failure(503, "backendError"),
    # A load balancer in between uses other reasons.
    failure(503, "unknownReason"),
    failure(504, ""),
    failure(429, "rateLimitExceeded"),
    failure(429, ""),
    failure(403, "rateLimitExceeded"),
    failure(400, "tableUnavailable"),
    (CUT, None),
]
PERMANENT = [
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


@pytest.mark.parametrize("answer", TRANSIENT, ids=name)
def test_a_transient_error_is_retried(
    server: Server, answer: Answer, no_waits: list[float]
) -> None:
    server.answers = [answer, answer, answer, (200, TABLE)]
    assert get_table(server).table_id == "t"
    assert server.calls == 4
    assert len(no_waits) == 3


@pytest.mark.parametrize("answer", PERMANENT, ids=name)
def test_a_permanent_error_is_raised_after_one_request(server: Server, answer: Answer) -> None:
    server.answers = [answer]
    with pytest.raises(exceptions.GoogleAPICallError):
        get_table(server)
    assert server.calls == 1


def test_waits_grow_up_to_a_limit_and_vary(server: Server, no_waits: list[float]) -> None:
    server.answers = [failure(503, "backendError")] * 12 + [(200, TABLE)]
    get_table(server)
    for i, wait in enumerate(no_waits):
        assert 0 <= wait <= min(0.5 * 2**i, 20.0)
    assert len(set(no_waits)) == 12


def test_retries_end_when_the_time_is_over(server: Server) -> None:
    server.answers = [failure(503, "backendError", "come back later")]
    with pytest.raises(exceptions.RetryError) as raised:
        get_table(server, seconds=1.0)
    assert server.calls > 1
    assert explain(raised.value) == (
        "failed after repeated attempts: come back later; this error is usually transient: try "
        "again later"
    )


@pytest.mark.usefixtures("no_waits")
def test_a_request_without_a_response_times_out_and_is_retried(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud.clients, "REQUEST_SECONDS", 0.1)
    late = {"tableReference": TABLE["tableReference"] | {"tableId": "late"}}
    server.answers = [(SILENT, late), (200, TABLE)]
    assert get_table(server).table_id == "t"
    assert server.calls == 2


def test_a_refused_connection_is_reported_with_its_address(server: Server) -> None:
    server.close()
    with pytest.raises(exceptions.RetryError) as raised:
        get_table(server, seconds=0.1)
    assert explain(raised.value) == (
        f"failed after repeated attempts: {server.address} cannot be reached: Connection "
        "refused; check the network and --api_endpoints"
    )


@pytest.mark.parametrize("kind", [StopIteration, TimeoutError])
def test_the_systems_message_is_reported_when_retries_end(kind: type[Exception]) -> None:
    url = f"http://127.0.0.1:{free_port()}/x"
    # Beam's client of Dataflow raises such an error, whose context is the end of its retries.
    try:
        requests.get(url, timeout=5.0)
    except requests.exceptions.ConnectionError as error:
        error.__context__ = kind()
        text = explain(error)
    assert text.endswith(
        "cannot be reached: Connection refused; check the network and --api_endpoints"
    )


def test_a_connection_error_without_a_message_is_reported_by_its_class() -> None:
    error = requests.exceptions.ConnectionError(request=requests.Request("GET", "http://h:1/x"))
    assert explain(error).startswith("h:1 cannot be reached: ConnectionError; ")
    error.__context__ = StopIteration()
    assert explain(error).startswith("h:1 cannot be reached: ConnectionError; ")


def test_https_to_a_server_of_plain_http_fails_at_once(server: Server) -> None:
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
            "Not found: Table p:d.t; check the project, the name and the location",
        ),
        (
            failure(403, "accessDenied", "Access Denied: Table p:d.t."),
            "Access Denied: Table p:d.t; grant the account the missing role, or use another "
            "--billing_project",
        ),
        (
            failure(403, "forbidden", "Forbidden: the bucket"),
            "Forbidden: the bucket; grant the account the missing role",
        ),
        (
            failure(403, "quotaExceeded", "Quota exceeded: bytes a day"),
            "Quota exceeded: bytes a day; a quota of the project is exhausted: raise it in the "
            "console, or wait",
        ),
        (
            failure(404, "notFound", "x" * 301),
            f"{'x' * 300}...; check the project, the name and the location",
        ),
        (failure(400, "invalid", "Bad:\n int64\tout of range."), "Bad: int64 out of range."),
    ],
    ids=["missing", "denied", "forbidden", "quota", "long", "lines"],
)
def test_an_error_is_explained_in_one_line_without_the_url(
    server: Server, answer: Answer, said: str
) -> None:
    server.answers = [answer]
    with (
        pytest.raises(InputError) as raised,
        translate_errors(InputError, "the table cannot be read"),
    ):
        get_table(server)
    assert str(raised.value) == f"the table cannot be read: {said}"


def info(reason: str, message: str) -> Answer:
    """Return a refusal as Google's newer APIs send it, with an ErrorInfo."""
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    details = [{"@type": kind, "reason": reason, "domain": "googleapis.com", "metadata": {}}]
    error = {"code": 403, "message": message, "status": "PERMISSION_DENIED", "details": details}
    return 403, {"error": error}


PERIMETER = "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: x"
REFUSALS = [
    (failure(403, "responseTooLarge", "Response too large to return."), "result is too large"),
    (failure(403, "accessDenied", f"VPC Service Controls: {PERIMETER}"), "VPC Service Controls"),
    (failure(403, "vpcServiceControls", PERIMETER), "a perimeter of VPC Service Controls"),
    (info("SECURITY_POLICY_VIOLATED", PERIMETER), "a perimeter of VPC Service Controls"),
    (failure(403, "billingNotEnabled", "Not now."), "no active billing account"),
    (info("BILLING_DISABLED", "This API method requires billing to be enabled."), "no active bil"),
    (
        failure(
            403,
            "accountDisabled",
            "The billing account for the owning project is disabled in state absent",
        ),
        "no active billing account",
    ),
    (failure(403, "quotaExceeded", "Quota exceeded: bytes"), "a quota of the project is exh"),
    (failure(403, "forbidden", "Quota exceeded for quota metric"), "a quota of the project"),
    (info("ACCESS_TOKEN_SCOPE_INSUFFICIENT", "No."), "the credentials lack the scope"),
    (info("USER_PROJECT_DENIED", "No."), "roles/serviceusage.serviceUsageConsumer"),
    (info("CONSUMER_SUSPENDED", "Project p has been suspended."), "the project is suspended"),
    (failure(403, "blocked", "No."), "blocks this operation"),
    (failure(403, "forbidden", "Operation denied by organization policy: constraints/x"), "policy"),
]


@pytest.mark.parametrize(("answer", "advice"), REFUSALS, ids=lambda value: str(value)[-40:])
def test_the_advice_on_a_refusal_follows_its_reason(
    server: Server, answer: Answer, advice: str
) -> None:
    server.answers = [answer]
    with (
        pytest.raises(InputError) as raised,
        # The role that the call needs does not help.
        translate_errors(InputError, "the table cannot be read", "roles/bigquery.user"),
    ):
        get_table(server)
    assert advice in str(raised.value)
    assert "role roles/bigquery.user" not in str(raised.value)
    cause = raised.value.__cause__
    assert isinstance(cause, exceptions.Forbidden)
    assert not lacks_role(cause)
    # An endpoint answers with the same body.
    assert advice in refusal_advice(json.dumps(answer[1]).encode())


@pytest.mark.parametrize(
    "message",
    [
        "Access Denied: Table p:d.t: Permission bigquery.tables.getData denied on table p:d.t",
        "a@b does not have storage.objects.get access to the Google Cloud Storage object.",
        "The caller does not have permission",
    ],
)
def test_a_missing_role_is_still_reported_as_one(server: Server, message: str) -> None:
    server.answers = [failure(403, "accessDenied", message)]
    with (
        pytest.raises(InputError, match="grant the account the role roles/x"),
        translate_errors(InputError, "it cannot be read", "roles/x"),
    ):
        get_table(server)


@pytest.mark.parametrize(
    ("error", "passing", "parts"),
    [
        # The exceptions for gRPC's errors.
        (
            exceptions.ServiceUnavailable("Socket closed"),
            True,
            ("Socket closed", "try again later"),
        ),
        (exceptions.Unknown("Stream removed"), True, ("Stream removed", "try again later")),
        (exceptions.Aborted("try again"), True, ("try again",)),
        (exceptions.DeadlineExceeded("too slow"), True, ("too slow",)),
        (exceptions.ResourceExhausted("rows a second"), True, ("rows a second",)),
        # Vertex AI reports an exceeded rate and an exceeded quota with the same status.
        (exceptions.TooManyRequests("Quota exceeded for requests per minute"), True, ("again",)),
        (
            exceptions.TooManyRequests("The following quota metrics exceed quota limits: CPUs"),
            False,
            ("CPUs", "a quota of the project is exhausted"),
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
        # The exceptions for a job's errors. A reason without a status becomes a 500.
        (
            exceptions.InternalServerError("job timed out", errors=[{"reason": "timeout"}]),
            False,
            ("job timed out",),
        ),
        (
            exceptions.InternalServerError("oh", errors=[{"reason": "jobInternalError"}]),
            True,
            ("oh", "try again later"),
        ),
        (google.auth.exceptions.TransportError("no route"), True, ("no route", "network")),
        (google.auth.exceptions.RefreshError("revoked"), False, ("revoked", "gcloud auth")),
    ],
    ids=repr,
)
def test_errors_without_a_rest_response(
    error: Exception, passing: bool, parts: tuple[str, ...]
) -> None:
    assert is_passing(error) == passing
    for part in parts:
        assert part in explain(error)
    given_up = explain(exceptions.RetryError("no", cause=error))
    assert given_up.startswith("failed after repeated attempts: ")
    assert parts[0] in given_up
    assert "\n" not in given_up


@pytest.mark.parametrize("wrapped", [False, True])
def test_errors_of_credentials_become_credentials_errors(wrapped: bool) -> None:
    error: Exception = google.auth.exceptions.RefreshError("revoked")
    match = r"^it cannot be read: .*revoked"
    with (
        pytest.raises(CredentialsError, match=match),
        translate_errors(InputError, "it cannot be read"),
    ):
        raise exceptions.RetryError("no", cause=error) if wrapped else error


@pytest.mark.parametrize("error", [ValueError("a bug"), InputError("reported already")])
def test_an_error_that_is_not_from_a_client_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, translate_errors(InputError, "it cannot be read"):
        raise error
    assert raised.value is error


@pytest.mark.usefixtures("no_waits")
def test_an_additional_transient_error_is_retried_only_in_that_call() -> None:
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
