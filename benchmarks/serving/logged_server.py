"""Runs Millrace's server, and writes when it began and ended to answer each request.

python -m benchmarks.serving.logged_server --model_path MODEL --port PORT --log FILE
"""

from __future__ import annotations

import argparse
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
    """

    def __init__(self, app: Any, log: TextIO) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        began = time.time()
        await self._app(scope, receive, send)
        if scope["type"] == "http" and scope["method"] == "POST":
            self._log.write(f"{began:.6f} {time.time():.6f}\n")
            self._log.flush()


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max_batch_wait_ms", type=float, default=0.0)
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    settings = Settings(
        model_path=args.model_path, port=args.port, max_batch_wait_ms=args.max_batch_wait_ms
    )
    server = Server(settings)
    with args.log.open("w") as log:
        server.config.app = Logged(server.config.app, log)
        server.run()


if __name__ == "__main__":
    main()
