"""Loads a server over several connections for some seconds, and prints the figures as JSON.

Each connection sends the next request as soon as it has received a response. The program runs in a
separate process, so it shares nothing with the server except the cores of the machine.
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
    """A measurement: its period, the latencies in seconds, and the statuses of the responses."""

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
        """Send the first request."""
        # The class of uvloop has the methods of a Transport, but does not derive from it.
        self.transport = cast(asyncio.Transport, transport)
        self.send()

    def send(self) -> None:
        """Send the next request."""
        self.sent = time.perf_counter()
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        """Count a response when it is complete, and send the next request."""
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
        """End the measurement of this connection, also if the server closed it early."""
        if not self.done.done():
            self.done.set_result(None)


async def run(url: str, body: bytes, connections: int, seconds: float, warm: float) -> Load:
    """Load a URL, and measure for `seconds` after the first `warm` seconds."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    start = time.perf_counter() + warm
    load = Load(request=head.encode() + body, warm_until=start, until=start + seconds)
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
    """Print a line of JSON: requests per second, percentiles in ms, and statuses."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm", type=float, default=1.0)
    args = parser.parse_args(argv)
    running = run(args.url, args.body.read_bytes(), args.connections, args.seconds, args.warm)
    load = uvloop.run(running)
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
