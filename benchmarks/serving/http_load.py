"""A URL, a body and a number of connections -> what a server did in some seconds, as JSON.

Each connection sends the next request as soon as it has the answer. Run in a process of its
own, so that it takes nothing from the server but the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit


@dataclass(kw_only=True)
class Load:
    """One measurement: when it ends, and what was seen. Latencies in seconds."""

    request: bytes
    warm_until: float
    until: float
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


class Connection(asyncio.Protocol):
    """One keep-alive connection in a closed loop."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.done = asyncio.get_running_loop().create_future()
        self.buffer = bytearray()
        self.expected = 0
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the first request."""
        # uvloop's is one by what it does alone.
        self.transport = cast(asyncio.Transport, transport)
        self.send()

    def send(self) -> None:
        """Sends the next request."""
        self.sent = time.perf_counter()
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        """Counts an answer when it is whole."""
        self.buffer += data
        if not self.expected:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            length = head.split(b"content-length:")[1].split(b"\r\n")[0]
            self.expected = end + 4 + int(length)
        if len(self.buffer) < self.expected:
            return
        now, load = time.perf_counter(), self.load
        if self.sent >= load.warm_until and now <= load.until:
            load.latencies.append(now - self.sent)
            load.statuses[bytes(self.buffer[9:12]).decode()] += 1
        self.buffer.clear()
        self.expected = 0
        if now < load.until:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends, early where the server hung up."""
        if not self.done.done():
            self.done.set_result(None)


async def run(url: str, body: bytes, connections: int, seconds: float, warm: float) -> Load:
    """A URL and how to load it -> what was seen after `warm` seconds."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    begin = time.perf_counter() + warm
    load = Load(request=head.encode() + body, warm_until=begin, until=begin + seconds)
    loop = asyncio.get_running_loop()
    opened = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(
            lambda: Connection(load), parts.hostname or "", parts.port or 80
        )
        opened.append(protocol)
    await asyncio.gather(*(connection.done for connection in opened))
    return load


def main(argv: list[str] | None = None) -> None:
    """The command line -> a line of JSON: requests a second, percentiles in ms, statuses."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm", type=float, default=1.0)
    args = parser.parse_args(argv)
    asked = run(args.url, args.body.read_bytes(), args.connections, args.seconds, args.warm)
    load = uvloop.run(asked)
    latencies = sorted(load.latencies)
    result = {
        "requests_per_second": len(latencies) / args.seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1000 if latencies else None,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1000 if latencies else None,
        "statuses": dict(load.statuses),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
