"""Measures the commit of many files to a bucket whose every request takes 50 ms longer.

python -m benchmarks.files.commit --files 10000 100000

The local storage server handles one request at a time. Its own time says nothing about the
service: what counts is the number of requests, and that they wait at the same time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import psutil
from apache_beam.internal.gcp import auth

from benchmarks.row_costs import write_results
from examples.local_cloud import INSTALL_COMMAND, LocalCloud, is_installed, local_cloud
from transforms.files.sink.commit import commit
from transforms.files.sink.destination import FolderDestination
from transforms.files.sink.run_folder import SCORES, RunFolder, StagedFile

BUCKET, TOKEN, RUN_ID = "bench", "aaaaaaaa", "r"
DELAY_SECONDS = 0.05
SECONDS, REQUESTS_A_FILE = 60.0, 0.1
MEGABYTE = 1_000_000
METHOD = {
    "requests": "requests of the commit by kind: a list, a batch of copies or removals, and the "
    "rest, which read and write the report",
    "seconds": "from the start of the commit to its end, including the removal of staged files",
    "report_mb": "the size of report.json, 10^6 bytes",
    "memory_mb": "the peak memory of the process minus its memory before the commit, 10^6 bytes",
}


@dataclass
class SlowProxy:
    """A proxy in front of a server that delays and counts requests.

    Attributes:
        address: The address of the server.
        requests: The number of requests of each kind.
        url: The address of the proxy.
        lock: Guards the numbers.
    """

    address: str
    requests: Counter[str] = field(default_factory=Counter)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def kind(self, method: str, path: str) -> str:
        """Return the kind of a request: list, batch or other."""
        path = urlsplit(path).path
        is_list = method == "GET" and path.endswith("/o")
        return "list" if is_list else "batch" if path.startswith("/batch/") else "other"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the block ends."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(proxy: SlowProxy) -> type[BaseHTTPRequestHandler]:
    """Return the class that handles the requests of a proxy."""
    target = urlsplit(proxy.address).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            """Delay and count the request, and pass it on."""
            with proxy.lock:
                proxy.requests[proxy.kind(self.command, self.path)] += 1
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(DELAY_SECONDS)
            connection = http.client.HTTPConnection(target, timeout=300)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            """Forward a list or a read."""
            self.forward()

        def do_POST(self) -> None:
            """Forward a batch or an upload."""
            self.forward()

        def do_PUT(self) -> None:
            """Forward a part of a large upload."""
            self.forward()

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    return Handler


def stage(servers: LocalCloud, files: int) -> list[str]:
    """Put staged files into the bucket, and return their paths."""
    client = servers.cloud.storage()
    bucket = client.create_bucket(BUCKET)
    names = [f"out/.staging/{RUN_ID}/{TOKEN}-scores-{i:06d}.parquet" for i in range(files)]
    bucket.blob("content").upload_from_string(b"x" * 100)
    for start in range(0, files, 100):
        with client.batch():
            for name in names[start : start + 100]:
                bucket.copy_blob(bucket.blob("content"), bucket, name)
    bucket.blob("content").delete()
    return [f"gs://{BUCKET}/{name}" for name in names]


def commit_files(paths: Sequence[str]) -> None:
    """Commit staged files as a run does at its end."""
    folder = RunFolder(f"gs://{BUCKET}/out", RUN_ID, TOKEN)
    staged = [StagedFile(SCORES, path, 10, 100) for path in paths]

    def report(listing: Mapping[str, Any]) -> bytes:
        return json.dumps({"rows_in": 0, **listing}, indent=2).encode()

    with patch.object(auth._Credentials, "_credentials_init", True):
        commit([FolderDestination(SCORES, folder, "parquet")], staged, folder, report)


def check(servers: LocalCloud, files: int) -> float:
    """Return the size of the report in 10^6 bytes; raise if the result is not complete."""
    found = {blob.name: blob.size for blob in servers.cloud.storage().list_blobs(BUCKET)}
    size = found.pop(f"out/{RUN_ID}/report.json")
    placed = [name for name in found if name.startswith(f"out/{RUN_ID}/scores/")]
    if not len(placed) == len(found) == files:
        raise RuntimeError(f"expected {files} files, got {len(placed)} of {len(found)} objects")
    return float(size / MEGABYTE)


def run(files: int) -> dict[str, Any]:
    """Commit files once, and return the figures."""
    with tempfile.TemporaryDirectory() as place, local_cloud(Path(place)) as servers:
        paths = stage(servers, files)
        proxy = SlowProxy(servers.endpoints.storage or "")
        with proxy.running(), patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": proxy.url}):
            before = psutil.Process().memory_info().rss
            start = time.perf_counter()
            commit_files(paths)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        report_mb = check(servers, files)
    total = proxy.requests.total()
    return {
        "files": files,
        "seconds": round(seconds, 1),
        "requests": dict(proxy.requests),
        "requests_a_file": round(total / files, 4),
        "report_mb": round(report_mb, 1),
        "memory_mb": round((peak - before) / MEGABYTE),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write commit.json to the output folder. Return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if not is_installed():
        print(f"error: the emulators are not installed: {INSTALL_COMMAND}", file=sys.stderr)
        return 1
    sizes = []
    for files in args.files:
        sizes.append(run(files))
        print(json.dumps(sizes[-1]), flush=True)
    first = sizes[0]
    targets = {
        "seconds": {"at_most": SECONDS, "measured": first["seconds"], "files": first["files"]},
        "requests_a_file": {"at_most": REQUESTS_A_FILE, "measured": first["requests_a_file"]},
    }
    settings = {"delay_seconds": DELAY_SECONDS, "method": METHOD}
    write_results(args.output / "commit.json", settings, {"sizes": sizes, "targets": targets}, 1)
    return int(any(t["measured"] > t["at_most"] for t in targets.values()))


if __name__ == "__main__":
    sys.exit(main())
