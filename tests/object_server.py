"""A server of objects that counts requests: the part of Cloud Storage's JSON API that reads use."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_OBJECT = re.compile(r"(?P<media>/download)?/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)")


@dataclass
class ObjectServer:
    """A running server.

    Attributes:
        objects: The content of each object, by `bucket/name`.
        generation: The generation of all objects.
        url: The address of the server.
        refuses: The status of all answers, or None to answer.
        reads: The first byte and the number of bytes of each answer with content.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    generation: int = 1
    refuses: int | None = None
    url: str = ""
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def fetched(self) -> int:
        """The bytes of content that were sent."""
        return sum(size for _, size in self.reads)


def _handler(server: ObjectServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if server.refuses is not None:
                return self._send(server.refuses, b"{}")
            parts = urlsplit(self.path)
            found = _OBJECT.fullmatch(parts.path)
            key = found and f"{found['bucket']}/{unquote(found['name'])}"
            if not found or key not in server.objects:
                return self._send(404, b"{}")
            wanted = parse_qs(parts.query).get("ifGenerationMatch", [str(server.generation)])
            if wanted != [str(server.generation)]:
                return self._send(412, b"{}")
            content = server.objects[key]
            if not found["media"]:
                facts: dict[str, Any] = {"size": len(content), "generation": server.generation}
                return self._send(200, json.dumps(facts).encode())
            first, last = 0, len(content) - 1
            if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                first, last = int(asked[1]), min(int(asked[2]), last)
            data = content[first : last + 1]
            server.reads.append((first, len(data)))
            return self._send(206 if asked else 200, data, f"bytes {first}-{last}/{len(content)}")

        def _send(self, status: int, content: bytes, place: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if place:
                self.send_header("Content-Range", place)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """Run a server without objects until the block ends."""
    server = ObjectServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
