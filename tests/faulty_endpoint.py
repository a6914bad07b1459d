"""An endpoint on a real socket that answers like Vertex AI, and fails on request.

    with faulty_endpoint(predict, at_rate(0.2, seed=1)) as endpoint:
        post(endpoint.predict_url, {"instances": [...]})
    assert endpoint.statuses[200] == ...

`predict` returns the predictions for the instances of one request. `faults` returns the fault of
one request, or None. Both run in the server's own thread, for one request at a time, in order of
arrival.
"""

import asyncio
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson

NAME = "projects/demo-project/locations/us-central1/endpoints/1"
RESOURCE = {
    "name": NAME,
    "displayName": "pytorch-autoencoder-endpoint",
    "deployedModels": [{"id": "1", "displayName": "pytorch-autoencoder"}],
}
# SO_LINGER with a timeout of 0 makes the connection end with a reset when it is closed.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Request:
    """A POST request. Requests are numbered from 0; names of headers are in lower case."""

    number: int
    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def instances(self) -> list[Any]:
        return self.body["instances"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one response. A field at its default changes nothing.

    `delay` is the number of seconds before the response. `status`, `headers` and `body` replace
    those of the response. `change` changes the predictions. `cut_off` ends the request: "hang"
    never answers, "reset" resets the connection, "truncate" closes it in the middle of the body.
    """

    name: str
    delay: float = 0.0
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    change: Callable[[list[Any]], list[Any]] | None = None
    cut_off: str = ""


def refusal(
    status: int, message: str = "", headers: tuple[tuple[str, str], ...] = (), name: str = ""
) -> Fault:
    """Return the fault that answers with a status and an error body like Google's."""
    error = {
        "code": status,
        "message": message or HTTPStatus(status).phrase,
        "status": HTTPStatus(status).phrase.upper().replace(" ", "_"),
    }
    body = orjson.dumps({"error": error})
    return Fault(name or str(status), status=status, headers=headers, body=body)


def latency(seconds: float) -> Fault:
    return Fault("latency", delay=seconds)


def retry_after(value: str, status: int = 429) -> Fault:
    """Return the fault that answers with this Retry-After header, seconds or a date."""
    headers = (("Retry-After", value),)
    return refusal(status, headers=headers, name=f"{status} with Retry-After")


def put_in_first_leaf(value: Any, leaf: Any) -> Any:
    """Return a JSON value with its first number replaced."""
    if isinstance(value, dict):
        (name, first), *rest = value.items()
        return {name: put_in_first_leaf(first, leaf), **dict(rest)}
    if isinstance(value, list) and value:
        return [put_in_first_leaf(value[0], leaf), *value[1:]]
    return leaf


HTML_PAGE = b"<!DOCTYPE html><html><title>Error 502 (Server Error)!!1</title></html>"

LATENCY = latency(0.02)
THROTTLED = refusal(429, "Quota exceeded for online prediction requests.")
THROTTLED_WITH_RETRY_AFTER = retry_after("1")
SERVER_ERROR = refusal(500)
UNAVAILABLE = refusal(503)
HANG = Fault("hang", cut_off="hang")
RESET = Fault("reset", cut_off="reset")
TRUNCATED = Fault("truncated", cut_off="truncate")
TOO_FEW = Fault("too few", change=lambda rows: rows[:-1])
TOO_MANY = Fault("too many", change=lambda rows: [*rows, rows[-1]])
NOT_A_NUMBER = Fault("NaN", change=lambda rows: put_in_first_leaf(rows, float("nan")))
NULL = Fault("null", change=lambda rows: put_in_first_leaf(rows, None))
ERROR_WITH_200 = Fault("error with 200", body=orjson.dumps({"error": "Prediction failed"}))
HTML = Fault("HTML", headers=(("Content-Type", "text/html; charset=utf-8"),), body=HTML_PAGE)

# All faults that do not wait for a timeout.
QUICK_FAULTS = (
    LATENCY,
    THROTTLED,
    retry_after("0"),
    SERVER_ERROR,
    UNAVAILABLE,
    RESET,
    TRUNCATED,
    TOO_FEW,
    TOO_MANY,
    NOT_A_NUMBER,
    NULL,
    ERROR_WITH_200,
    HTML,
)
FAULTS = (*QUICK_FAULTS, THROTTLED_WITH_RETRY_AFTER, HANG)

Predict = Callable[[list[Any]], list[Any]]
Faults = Callable[[Request], Fault | None]


def no_faults(_: Request) -> None:
    return None


def at_rate(share: float, seed: int, kinds: Sequence[Fault] = QUICK_FAULTS) -> Faults:
    """Return faults for a share of the requests, with all kinds equally likely."""
    chance = random.Random(seed)
    return lambda _: chance.choice(kinds) if chance.random() < share else None


def in_turn(*faults: Fault | None) -> Faults:
    """Return the given faults for the first requests, in order, and None after the last."""
    return lambda request: faults[request.number] if request.number < len(faults) else None


@dataclass
class FaultyEndpoint:
    """A running endpoint: its address, and what it has done so far.

    `statuses` and `rows` count requests and their instances by the status of the response. Status 0
    means that the connection hung or was reset. `faults` counts requests by the name of the fault.
    """

    predict: Predict
    choose_fault: Faults
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    rows: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def endpoint_url(self) -> str:
        return f"{self.url}/v1/{NAME}"

    @property
    def predict_url(self) -> str:
        return f"{self.endpoint_url}:predict"

    def answer(self, path: str, headers: Mapping[str, str], raw: bytes) -> tuple[Fault, bytes]:
        """Return the fault of a POST request and the body of its response."""
        try:
            body = orjson.loads(raw)
            if not isinstance(body["instances"], list):
                raise TypeError("instances is not a list")
        except (ValueError, KeyError, TypeError) as error:
            self.statuses[400] += 1
            refused = refusal(400, f"Invalid JSON payload received. {error}")
            return refused, refused.body or b""
        request = Request(len(self.requests), path, headers, body)
        self.requests.append(request)
        fault = self.choose_fault(request) or Fault("")
        if fault.name:
            self.faults[fault.name] += 1
        sent = 0 if fault.cut_off in ("hang", "reset") else fault.status
        self.statuses[sent] += 1
        self.rows[sent] += len(request.instances)
        if fault.body is not None or fault.cut_off in ("hang", "reset"):
            return fault, fault.body or b""
        predictions = self.predict(request.instances)
        if fault.change:
            predictions = fault.change(predictions)
        answer = {"predictions": predictions, "deployedModelId": "1"}
        # The standard library writes NaN. orjson would write null.
        return fault, json.dumps(answer).encode() if fault.change else orjson.dumps(answer)


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection that answers one request at a time."""

    def __init__(self, endpoint: FaultyEndpoint, connections: list["Connection"]) -> None:
        self.endpoint = endpoint
        self.connections = connections
        self.buffer = b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.connections.append(self)
        self.endpoint.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.endpoint.in_flight -= 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.serve_next()

    def serve_next(self) -> None:
        head, blank, rest = self.buffer.partition(b"\r\n\r\n")
        if self.busy or not blank:
            return
        line, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if "transfer-encoding" in headers:
            self.send(refusal(411), b"")
            self.transport.close()
            return
        if headers.get("expect") == "100-continue" and not rest:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        self.serve(method, path, headers, rest[:length])

    def serve(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        if method == "GET" and path.partition("?")[0].endswith("/endpoints"):
            self.send(Fault(""), orjson.dumps({"endpoints": [RESOURCE]}))
        elif method == "GET" and path.partition("?")[0].endswith(NAME):
            self.send(Fault(""), orjson.dumps(RESOURCE))
        elif method == "POST" and path.endswith((":predict", ":rawPredict", "/predict")):
            fault, text = self.endpoint.answer(path, headers, body)
            self.busy = True
            self.endpoint.in_flight += 1
            self.endpoint.most_in_flight = max(
                self.endpoint.most_in_flight, self.endpoint.in_flight
            )
            if fault.delay:
                asyncio.get_running_loop().call_later(fault.delay, self.finish, fault, text)
            else:
                self.finish(fault, text)
        else:
            missing = refusal(404)
            self.send(missing, missing.body or b"")

    def finish(self, fault: Fault, body: bytes) -> None:
        if fault.cut_off == "hang" or self.transport.is_closing():
            return
        if fault.cut_off == "reset":
            peer = self.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.transport.abort()
            return
        self.busy = False
        self.endpoint.in_flight -= 1
        self.send(fault, body)
        self.serve_next()

    def send(self, fault: Fault, body: bytes) -> None:
        headers = {"Content-Type": "application/json", **dict(fault.headers)}
        lines = [f"HTTP/1.1 {fault.status} {HTTPStatus(fault.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        if fault.cut_off == "truncate":
            self.transport.write(head + body[: len(body) // 2])
            self.transport.close()
        else:
            self.transport.write(head + body)


@contextmanager
def faulty_endpoint(predict: Predict, faults: Faults = no_faults) -> Iterator[FaultyEndpoint]:
    """Run an endpoint on a free local port in the block."""
    endpoint = FaultyEndpoint(predict, faults)
    loop = asyncio.new_event_loop()
    connections: list[Connection] = []
    server = loop.run_until_complete(
        loop.create_server(lambda: Connection(endpoint, connections), "127.0.0.1", 0)
    )
    endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, name="faulty-endpoint", daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(asyncio.sleep(0))  # connection_made of those just accepted
        for connection in connections:
            connection.transport.abort()
        loop.run_until_complete(asyncio.sleep(0))  # connection_lost of those just closed
        loop.close()
