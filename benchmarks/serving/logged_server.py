"""Runs Millrace's server, and writes when it began and ended to answer each request."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Any, TextIO

from serving.server import Server
from serving.settings import Settings


class Logged:
    """An ASGI app that writes a line for each prediction request: its begin and end.

    Both are seconds since 1970: the moment at which the headers are read, and the one at which the
    answer is written.

    Args:
        app: The app that answers.
        log: Where the lines go.
        delay_ms: The smallest and the largest time by which each answer is delayed, at random.
    """

    def __init__(self, app: Any, log: TextIO, delay_ms: tuple[float, float]) -> None:
        self._app, self._log, self._delay_ms = app, log, delay_ms
        self._random = random.Random(1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        began = time.time()
        await asyncio.sleep(self._random.uniform(*self._delay_ms) / 1e3)
        await self._app(scope, receive, send)
        self._log.write(f"{began:.6f} {time.time():.6f}\n")
        self._log.flush()


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay_ms", type=float, nargs=2, required=True)
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    server = Server(Settings(model_path=args.model_path, port=args.port))
    with args.log.open("w") as log:
        server.config.app = Logged(server.config.app, log, tuple(args.delay_ms))
        server.run()


if __name__ == "__main__":
    main()
