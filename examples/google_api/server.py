"""The server of the stand-ins: it checks requests and passes them to the services' handlers."""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

from examples.google_api.discovery import Document, Method, load_document
from examples.google_api.faults import Call, Faults, HangUp, Later, Refusal
from examples.google_api.store import Store

# The numbers of google.rpc.Code, which failed operations contain.
_CODES = {400: 3, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13, 503: 14}


@dataclass
class Operation:
    """An operation that takes some polls to end.

    Attributes:
        left: The number of polls until it ends.
        finish: The function that carries it out at the end.
        ended: The response or the error, once it has ended.
    """

    left: int
    finish: Callable[[], dict[str, Any]]
    ended: dict[str, Any] | None = None


class Service:
    """A stand-in for a service, with a handler for each method that clients use.

    A handler takes the Call, and is named after the last two parts of the method's id: the handler
    of `aiplatform.projects.locations.models.listVersions` is `models_list_versions`. The server
    answers with the value that the handler returns, or with the Refusal that it raises.

    Args:
        polls: The number of polls after which an operation ends.

    Attributes:
        document: The name of the service's discovery document.
        enums: The enums of Google's client, if it sends enums as numbers.
        store: The resources.
        later: The error with which the operation of the current call ends, or None.
    """

    document: ClassVar[str]
    enums: ClassVar[Sequence[type[IntEnum]]] = ()

    def __init__(self, *, polls: int = 1) -> None:
        self.polls = polls
        self.store = Store()
        self.later: Refusal | None = None
        self._operations: dict[str, Operation] = {}
        self._numbers = itertools.count(1)
        # Each call of now() returns a later time, so that resources can be sorted by age.
        self._clock = datetime.now(UTC)

    def values(self, values: dict[str, str]) -> dict[str, str]:
        """Return the parameters of a request in the form that the handlers expect."""
        return values

    def now(self) -> str:
        """Return the time as in Google's JSON, later than at every call before."""
        self._clock = max(datetime.now(UTC), self._clock + timedelta(milliseconds=1))
        return self._clock.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def number(self) -> int:
        """Return a new number."""
        return next(self._numbers)

    def start(self, parent: str, finish: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Start an operation, which ends after `polls` polls.

        Args:
            parent: The name of the resource that the operation belongs to, or an empty text.
            finish: The function that carries the operation out, and returns the response.

        Returns:
            The operation as JSON.
        """
        name = f"{parent}/operations/{self.number()}" if parent else f"operations/{self.number()}"
        refusal = self.later

        def fail() -> dict[str, Any]:
            raise refusal or AssertionError

        self._operations[name] = Operation(self.polls, fail if refusal else finish)
        return self._state_of(name)

    def started(self, name: str) -> bool:
        """Return whether this service has started an operation of this name."""
        return name in self._operations

    def poll(self, name: str) -> dict[str, Any]:
        """Count a poll of an operation, and return the operation as JSON.

        Raises:
            Refusal: If there is no such operation.
        """
        if name not in self._operations:
            raise Refusal(404, f"The operation {name} is not found.")
        self._operations[name].left -= 1
        return self._state_of(name)

    def _state_of(self, name: str) -> dict[str, Any]:
        operation = self._operations[name]
        if operation.left > 0:
            return {"name": name, "done": False}
        if operation.ended is None:
            try:
                operation.ended = {"response": operation.finish()}
            except Refusal as refusal:
                code = _CODES.get(refusal.status, 2)
                operation.ended = {"error": {"code": code, "message": refusal.message}}
        return {"name": name, "done": True, **operation.ended}


def _handler_name(method: str) -> str:
    """Return the name of the handler of a method: the last two parts of its id."""
    parts = [re.sub(r"([A-Z])", r"_\1", part).lower() for part in method.split(".")[-2:]]
    return "_".join(parts)


@dataclass(kw_only=True)
class GoogleApi:
    """A running server.

    Attributes:
        services: The stand-ins.
        faults: A function that returns the fault of a call, or None.
        url: The address of the server.
        calls: The calls so far.
        rejected: The reasons of requests and answers that do not match the documents.
    """

    services: Sequence[Service]
    faults: Faults = lambda _: None
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._documents = [load_document(s.document, s.enums) for s in self.services]
        # The server handles one request at a time, so the services need no locks.
        self._lock = threading.Lock()

    def methods(self) -> list[str]:
        """Return the last two parts of each called method's id, in order."""
        return [".".join(call.method.split(".")[-2:]) for call in self.calls]

    def answer(self, http: str, target: str, body: bytes) -> tuple[int, Any] | None:
        """Answer a request.

        Args:
            http: The HTTP method.
            target: The path and the query.
            body: The body, which may be empty.

        Returns:
            The status and the decoded body of the answer, or None to close the connection.
        """
        with self._lock:
            try:
                return self._answer(http, target, body)
            except Refusal as refusal:
                return refusal.status, refusal.answer()

    def _answer(self, http: str, target: str, body: bytes) -> tuple[int, Any] | None:
        parts = urlsplit(target)
        path = unquote(parts.path).lstrip("/")
        service, document, method = self._find(http, path)
        given = method.path_values(path)
        query, unknown = document.read_query(method, dict(parse_qsl(parts.query)))
        faults = document.check_path(method, given) + unknown
        try:
            content = json.loads(body) if body else None
        except ValueError as error:
            raise self._reject(f"{method.id}: the body is not JSON: {error}") from error
        read, wrong = document.read_body(method, content, partial=http in ("PATCH", "PUT"))
        if faults or wrong:
            raise self._reject(f"{method.id}: {'; '.join(faults + wrong)}")
        call = Call(len(self.calls), method.id, service.values(given | query), read)
        self.calls.append(call)
        fault = self.faults(call)
        if isinstance(fault, Refusal):
            raise fault
        if isinstance(fault, HangUp) and not fault.done:
            return None
        service.later = fault.refusal if isinstance(fault, Later) else None
        answer = getattr(service, _handler_name(method.id))(call)
        if lies := document.check_answer(method, answer):
            raise self._reject(f"the answer to {method.id}: {'; '.join(lies)}", 500)
        return None if isinstance(fault, HangUp) else (200, answer)

    def _find(self, http: str, path: str) -> tuple[Service, Document, Method]:
        """Return the service, document and method for a request, or raise Refusal."""
        known, found = None, []
        for service, document in zip(self.services, self._documents, strict=True):
            method = document.find(http, path)
            if method is not None:
                known = method
                if hasattr(service, _handler_name(method.id)):
                    found.append((service, document, method))
        if found:
            # Two services may have the same path for operations.
            return next((f for f in found if f[0].started(path.partition("/")[2])), found[0])
        if known is None:
            raise self._reject(f"{http} /{path} is not in any of the documents")
        raise self._reject(f"{known.id} has no handler in this stand-in: write one", 501)

    def _reject(self, reason: str, status: int = 400) -> Refusal:
        self.rejected.append(reason)
        return Refusal(status, reason)


def _handler(google: GoogleApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # With Nagle's algorithm, the body would wait 40 ms for the acknowledgement of the headers.
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = google.answer(self.command, self.path, body)
            if answer is None:
                self.close_connection = True
                return
            status, content = answer
            text = json.dumps(content).encode()
            self.send_response(status, HTTPStatus(status).phrase)
            self.send_header("Content-Type", "application/json; charset=UTF-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client may disconnect at any time, and some tests kill their client.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def google_api(*services: Service, faults: Faults = lambda _: None) -> Iterator[GoogleApi]:
    """Run a server with these services until the block ends.

    Args:
        services: The stand-ins.
        faults: A function that returns the fault of a call, or None.

    Raises:
        AssertionError: At the end of the block, if a request did not match the documents.
    """
    google = GoogleApi(services=services, faults=faults)
    http = _Server(("127.0.0.1", 0), _handler(google))
    google.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield google
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
    if google.rejected:
        raise AssertionError("; ".join(google.rejected))
