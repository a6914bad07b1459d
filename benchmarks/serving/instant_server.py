"""Answers each HTTP request at once, with a prediction for one row."""

from __future__ import annotations

import argparse
import asyncio
import re

BODY = b'{"predictions":[0]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Instant(asyncio.Protocol):
    """A connection, on which requests follow each other."""

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        """Start to read requests."""
        self._transport, self._data = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer the requests that are complete."""
        self._data += data
        while (head := self._data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._data, 0, head)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self._data) < end:
                return
            self._data = self._data[end:]
            self._transport.write(ANSWER)


async def serve(port: int) -> None:
    """Serve until the process is stopped."""
    made = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", port)
    await made.serve_forever()


def main() -> None:
    """Serve on a port."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
