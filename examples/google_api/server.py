"""The server: requests to the handlers of services, with state, operations and faults."""

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

# google.rpc.Code's numbers, which operations that failed have.
_CODES = {400: 3, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13, 503: 14}


@dataclass
class Operation:
    """One that goes on: polls left, what ends it, and how it ended."""

    left: int
    finish: Callable[[], dict[str, Any]]
    ended: dict[str, Any] | None = None


class Service:
    """A service: its document and, for each method that is used, a function of the Call.

    `aiplatform.projects.locations.models.listVersions` is `models_list_versions`. What a
    function returns is answered; a Refusal that it raises too.
    """

    document: ClassVar[str]
    # Of the client library, where it sends enums as numbers.
    enums: ClassVar[Sequence[type[IntEnum]]] = ()

    def __init__(self, *, polls: int = 1) -> None:
        self.polls = polls
        self.store = Store()
        self.later: Refusal | None = None
        self._operations: dict[str, Operation] = {}
        self._numbers = itertools.count(1)
        # Each moment is another, so that what is newer can be told.
        self._clock = datetime.now(UTC)

    def values(self, values: dict[str, str]) -> dict[str, str]:
        """A request's path and query -> the same as the handlers want them."""
        return values

    def now(self) -> str:
        """The time, as in Google's JSON; later than any told before."""
        self._clock += timedelta(milliseconds=1)
        return self._clock.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def number(self) -> int:
        """A number that was not given before."""
        return next(self._numbers)

    def start(self, parent: str, finish: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A resource, and what is done at the end -> the operation, which ends after some polls."""
        name = f"{parent}/operations/{self.number()}" if parent else f"operations/{self.number()}"
        refusal = self.later

        def fail() -> dict[str, Any]:
            raise refusal or AssertionError

        self._operations[name] = Operation(self.polls, fail if refusal else finish)
        return self._told(name)

    def started(self, name: str) -> bool:
        """Whether an operation of that name is of this service."""
        return name in self._operations

    def poll(self, name: str) -> dict[str, Any]:
        """An operation's name -> the operation, one poll older."""
        if name not in self._operations:
            raise Refusal(404, f"The operation {name} is not found.")
        self._operations[name].left -= 1
        return self._told(name)

    def _told(self, name: str) -> dict[str, Any]:
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
    """A method's id -> the function's name: its last two parts."""
    parts = [re.sub(r"([A-Z])", r"_\1", part).lower() for part in method.split(".")[-2:]]
    return "_".join(parts)


@dataclass(kw_only=True)
class GoogleApi:
    """A running server: its address, what was called, and what was refused as unknown."""

    services: Sequence[Service]
    faults: Faults = lambda _: None
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._documents = [load_document(s.document, s.enums) for s in self.services]
        # One request at a time: state needs no locks of its own.
        self._lock = threading.Lock()

    def methods(self) -> list[str]:
        """The last two parts of each called method's id, in order."""
        return [".".join(call.method.split(".")[-2:]) for call in self.calls]

    def answer(self, http: str, target: str, body: bytes) -> tuple[int, Any] | None:
        """A request -> status and body of the answer; None where the connection is to end."""
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
            raise self._reject(f"{method.id}: the body is no JSON: {error}") from error
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
        """A verb and a path -> who answers. Raises Refusal."""
        known, found = None, []
        for service, document in zip(self.services, self._documents, strict=True):
            method = document.find(http, path)
            if method is not None:
                known = method
                if hasattr(service, _handler_name(method.id)):
                    found.append((service, document, method))
        if found:
            # Operations of two services may have the same path.
            return next((f for f in found if f[0].started(path.partition("/")[2])), found[0])
        if known is None:
            raise self._reject(f"{http} /{path} is in none of the documents")
        raise self._reject(f"{known.id} is not served here: write its handler", 501)

    def _reject(self, reason: str, status: int = 400) -> Refusal:
        self.rejected.append(reason)
        return Refusal(status, reason)


def _handler(google: GoogleApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else the body waits until the client has acknowledged the head: 40 ms.
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
        # A client may end at any time, and tests end some.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def google_api(*services: Service, faults: Faults = lambda _: None) -> Iterator[GoogleApi]:
    """Services -> the server, listening until the block ends.

    Raises AssertionError at the end if a request was not what the documents say.
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
