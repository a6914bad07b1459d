"""A stand-in for Cloud Storage that counts requests and fails on demand."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from resources.package import checksum_of

PAGE = 1000  # objects
CALLS_A_REQUEST = 100
ROOT = "gs://bucket/"


@dataclass
class ObjectStore:
    """The objects of one bucket, and what was requested.

    fault: returns the status with which a call is refused, or None. A call is a request, or one
    of the calls in a batch request. Its kind is list, read, write, copy, delete or batch.
    """

    root: str = "gs://bucket"
    objects: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    calls: list[tuple[str, str]] = field(default_factory=list)
    fault: Callable[[str, str], int | None] = lambda kind, name: None
    generation: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)
    address: str = ""

    def write(self, path: str, content: bytes) -> None:
        self.put(path.removeprefix(ROOT), content)

    def put(self, name: str, content: bytes) -> None:
        with self.lock:
            self.generation += 1
            self.objects[name] = (self.generation, content)

    def names(self) -> set[str]:
        return set(self.objects)

    def steps(self, _: Any) -> Any:
        raise NotImplementedError

    def request(self, method: str, target: str, kind: str, body: bytes) -> tuple[int, Any, Any]:
        """Return the status, the headers and the body of the answer to a request."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        with self.lock:
            if url.path == "/batch/storage/v1":
                self.requests["batch"] += 1
                return self.refused("batch", "") or self.batch(kind, body)
            name = unquote(url.path.partition("/o/")[2])
            what = self.kind(method, url.path)
            self.requests[what] += 1
            return self.refused(what, name) or self.call(what, name, query, kind, body)

    def kind(self, method: str, path: str) -> str:
        if method == "DELETE":
            return "delete"
        if method == "GET":
            return "list" if path.endswith("/o") else "read"
        return "copy" if "/copyTo/" in path else "write"

    def refused(self, what: str, name: str) -> tuple[int, Any, Any] | None:
        self.calls.append((what, name))
        status = self.fault(what, name)
        if status is None:
            return None
        error = {"code": status, "message": "it is so", "errors": [{"reason": "any"}]}
        return status, {}, {"error": error}

    def call(
        self, what: str, name: str, query: dict[str, str], kind: str, body: bytes
    ) -> tuple[int, Any, Any]:
        if what == "list":
            return 200, {}, self.page(query)
        if what == "write":
            return self.upload(query, kind, body)
        source, _, target = name.partition("/copyTo/b/bucket/o/")
        if source not in self.objects:
            return 404, {}, {"error": {"code": 404, "message": "No such object"}}
        generation, content = self.objects[source]
        if what == "read":
            return 200, {"X-Goog-Generation": str(generation)}, content
        if what == "delete":
            del self.objects[source]
            return 204, {}, b""
        self.put(target, content)
        return 200, {}, self.described(target)

    def described(self, name: str) -> dict[str, str]:
        generation, content = self.objects[name]
        written = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return {
            "name": name,
            "size": str(len(content)),
            "updated": written,
            "generation": str(generation),
            "crc32c": checksum_of(content),
        }

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, after = query.get("prefix", ""), query.get("pageToken", "")
        names = sorted(n for n in self.objects if n.startswith(prefix) and n > after)
        more = {"nextPageToken": names[PAGE - 1]} if len(names) > PAGE else {}
        return {"items": [self.described(name) for name in names[:PAGE]], **more}

    def upload(self, query: dict[str, str], kind: str, body: bytes) -> tuple[int, Any, Any]:
        """Store an object that comes whole, or that follows the request that announces it."""
        if query.get("uploadType") == "resumable" and "upload_id" not in query:
            address = self.session(json.loads(body)["name"], query["ifGenerationMatch"])
            return 200, {"Location": address}, {}
        described, content = parts(kind, body) if "upload_id" not in query else (b"", body)
        name = query.get("upload_id") or json.loads(described)["name"]
        wanted = query.get("ifGenerationMatch")
        found = self.objects.get(name, (0, b""))[0]
        if wanted is not None and int(wanted) != found:
            return 412, {}, {"error": {"code": 412, "message": "conditionNotMet"}}
        self.put(name, content)
        return 200, {}, self.described(name)

    def session(self, name: str, wanted: str) -> str:
        query = f"uploadType=resumable&ifGenerationMatch={wanted}&upload_id={name}"
        return f"{self.address}/upload/storage/v1/b/bucket/o?{query}"

    def batch(self, kind: str, body: bytes) -> tuple[int, Any, Any]:
        calls = [part.decode() for part in parts(kind, body)]
        assert len(calls) <= CALLS_A_REQUEST
        answers = []
        for text in calls:
            method, target, _ = text.split(maxsplit=2)
            path = urlsplit(target).path
            what, name = self.kind(method, path), unquote(path.partition("/o/")[2])
            status, _, answer = self.refused(what, name) or self.call(what, name, {}, "", b"")
            inner = "" if answer == b"" else json.dumps(answer)
            answers.append(
                "--b\r\nContent-Type: application/http\r\n\r\n"
                f"HTTP/1.1 {status} so\r\nContent-Type: application/json\r\n\r\n{inner}\r\n"
            )
        text = "".join(answers) + "--b--"
        return 200, {"Content-Type": "multipart/mixed; boundary=b"}, text.encode()


def parts(kind: str, body: bytes) -> list[bytes]:
    """Return the parts of a body of several parts."""
    message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    found = message.get_payload()
    assert isinstance(found, list)
    return [part.get_payload(decode=True) for part in found]  # type: ignore[union-attr, misc]


@contextmanager
def serve(store: ObjectStore) -> Iterator[str]:
    """Serve a store, and return its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type") or ""
            status, headers, answer = store.request(self.command, self.path, kind, body)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def do_PUT(self) -> None:
            self.answer()

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    store.address = f"http://127.0.0.1:{http.server_port}"
    try:
        yield store.address
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
