"""Ends the process if a thread dies, or cannot start, for lack of memory.

Beam's in-process runner and gRPC hand work to their own threads and wait for them without a
timeout. If memory is short, such a thread may be missing, and the run would hang.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Any

from common.errors import one_line
from common.memory import is_of_memory, out_of_memory
from common.pages import error_line

# Within this time the run may end on its own, with an error that says more.
GRACE_SECONDS = 15.0


class _Watch(logging.Handler):
    """A watch that ends the process after a thread has reported lack of memory."""

    def __init__(self, grace_seconds: float) -> None:
        super().__init__()
        self._grace, self._what = grace_seconds, ""
        self._noticed = threading.Event()
        # Started now, while there is enough memory for it.
        threading.Thread(target=self._end, name="millrace-memory", daemon=True).start()

    def notice(self, error: BaseException | None) -> None:
        """End the process after the grace period if a thread raised an error of lack of memory."""
        if error is not None and is_of_memory(error) and not self._noticed.is_set():
            self._what = one_line(error, 120)
            self._noticed.set()

    def emit(self, record: logging.LogRecord) -> None:
        """Check a log record: gRPC logs the exceptions of its handlers and continues."""
        self.notice(record.exc_info[1] if record.exc_info else None)

    def _end(self) -> None:
        self._noticed.wait()
        time.sleep(self._grace)
        line = f"{error_line(out_of_memory(self._what))}\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
        os._exit(1)


def end_when_threads_fail(grace_seconds: float = GRACE_SECONDS) -> None:
    """From now on, end the process with code 1 when a thread lacks memory.

    Args:
        grace_seconds: How long to wait first, in seconds, for the run to end on its own.
    """
    watch = _Watch(grace_seconds)
    # On this logger, because the handlers of the root logger filter such records out.
    logging.getLogger("grpc").addHandler(watch)
    start, hook = threading.Thread.start, threading.excepthook

    def started(thread: threading.Thread) -> None:
        try:
            start(thread)
        except (RuntimeError, MemoryError) as error:
            watch.notice(error)
            raise

    def noticed(args: Any) -> None:
        watch.notice(args.exc_value)
        error = args.exc_value
        # One line reports the lack of memory. A worker in a thread loses its connection when the
        # runner stops; if it stops too early, the error of the run reports that.
        if error is None or not (is_of_memory(error) or _is_lost_connection(error)):
            hook(args)

    threading.Thread.start = started  # type: ignore[method-assign, assignment]
    threading.excepthook = noticed


def _is_lost_connection(error: BaseException) -> bool:
    # If gRPC has not been imported, it has not raised the error.
    grpc = sys.modules.get("grpc")
    return grpc is not None and isinstance(error, grpc.RpcError)
