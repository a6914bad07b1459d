"""A server on a real socket, in this process or in its own, and a plain client for it."""

import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import wait_until

from serving.server import Server
from serving.service import State
from serving.settings import Settings

ROOT = Path(__file__).parent.parent
SECONDS = 60


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


@dataclass
class Client:
    """A client that opens a new connection for each request."""

    address: str

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def predict(self, instances: Any, **parameters: Any) -> Answer:
        request = {"instances": instances} | ({"parameters": parameters} if parameters else {})
        return self.ask("POST", "/predict", json.dumps(request))

    def metric(self, name: str) -> float:
        """Return the value of one line of /metrics, or 0 if there is no such line."""
        lines = self.get("/metrics").body.decode().splitlines()
        found = [line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == name]
        return float(found[0]) if found else 0.0


@dataclass
class Running:
    """A server and a client for it."""

    server: Server
    client: Client
    thread: threading.Thread


@contextmanager
def running(model: Path, *, until_ready: bool = True, **settings: Any) -> Iterator[Running]:
    """Run a server in this process until the block ends."""
    server = Server(Settings(model_path=str(model), port=0, **settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        if until_ready:
            wait_until(lambda: server.service.state is not State.LOADING)
            assert server.service.state is State.READY, server.service.reason
        yield Running(server, Client(server.url.removeprefix("http://")), thread)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


def connect(client: Client) -> socket.socket:
    """Open a connection to the client's server, on which nothing has been sent yet."""
    host, _, port = client.address.partition(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


def half_a_request(client: Client, instances: Any) -> tuple[socket.socket, bytes]:
    """Send half of a request; return the connection, and the other half.

    By then, the server has asked for the body.
    """
    body = json.dumps({"instances": instances}).encode()
    connection = connect(client)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
    asked = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert connection.recv(len(asked), socket.MSG_WAITALL) == asked
    connection.sendall(body[:20])
    return connection, body[20:]


def read_answer(connection: socket.socket) -> Answer:
    """Read the answer to a request, and not a byte of the next answer."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += _received(connection, 1)
    line, _, rest = head.partition(b"\r\n")
    headers = http.client.parse_headers(io.BytesIO(rest))
    body = _received(connection, int(headers["Content-Length"]))
    return Answer(int(line.split()[1]), dict(headers), body)


def _received(connection: socket.socket, count: int) -> bytes:
    """Read this many bytes; raise EOFError if the connection ends before."""
    found = b""
    while len(found) < count:
        if not (part := connection.recv(count - len(found))):
            raise EOFError(f"the server closed the connection {count - len(found)} bytes too early")
        found += part
    return found


@contextmanager
def process(
    *flags: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """Start a server process; yield it once it listens, with a client for it."""
    running = subprocess.Popen(
        [sys.executable, "-m", "serving", "run", "--port", "0", *flags],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    try:
        lines = []
        for line in running.stderr:
            lines.append(line)
            if found := re.search(r"listening on http://(\S+)", line):
                yield running, Client(found[1])
                break
        else:
            raise AssertionError("".join(lines))
    finally:
        running.kill()
        running.wait()
        running.stderr.close()


def until_ready(client: Client) -> None:
    wait_until(lambda: client.get("/health").status != 503)
    assert client.get("/health").status == 200
