"""A thread that dies, or cannot start, for lack of memory: the process ends instead of waiting.

Beam's runner in this process and gRPC hand work to threads of theirs and wait for them without
an end. Where memory is short one of them may be missing, and the run would hang.
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

# The run may still end by itself, with an error that says more.
GRACE_SECONDS = 15.0


class _Watch(logging.Handler):
    """Notices lack of memory in any thread, and ends the process if it does not end itself."""

    def __init__(self, grace_seconds: float) -> None:
        super().__init__()
        self._grace, self._what = grace_seconds, ""
        self._noticed = threading.Event()
        # Begun while there is memory for it.
        threading.Thread(target=self._end, name="millrace-memory", daemon=True).start()

    def notice(self, error: BaseException | None) -> None:
        """What was raised in a thread -> nothing; the process ends soon if memory lacked."""
        if error is not None and is_of_memory(error) and not self._noticed.is_set():
            self._what = one_line(error, 120)
            self._noticed.set()

    def emit(self, record: logging.LogRecord) -> None:
        """gRPC logs what its handlers raise, and goes on."""
        self.notice(record.exc_info[1] if record.exc_info else None)

    def _end(self) -> None:
        self._noticed.wait()
        time.sleep(self._grace)
        line = f"error: {out_of_memory(self._what)}\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
        os._exit(1)


def end_when_threads_fail(grace_seconds: float = GRACE_SECONDS) -> None:
    """Nothing -> from now on the process ends, with code 1, when memory for a thread lacks.

    grace_seconds: how long it may still end by itself.
    """
    watch = _Watch(grace_seconds)
    # Not on its way to the root: what is filtered there must be noticed as well.
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
        # One line will say it.
        if args.exc_value is None or not is_of_memory(args.exc_value):
            hook(args)

    threading.Thread.start = started  # type: ignore[method-assign, assignment]
    threading.excepthook = noticed
