"""Run a batch pipeline in this process: its thread, its memory, and what its workers print."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import apache_beam as beam

from common.interrupts import Background
from common.memory import set_allocator

# From malloc.h of glibc.
M_ARENA_MAX = -8


def run_in_process(pipeline: beam.Pipeline) -> None:
    """Run a pipeline to its end. Ctrl-C ends only the wait; the process should end then."""
    from common.private_beam.in_process import keep_buffers_whole

    keep_buffers_whole()
    share_memory()
    # When Ctrl-C interrupts it, Beam's runner sometimes waits forever for its own threads.
    Background(lambda: pipeline.run().wait_until_finish()).result()


def share_memory() -> None:
    """Limit the memory pools of this process to two, if its C library is glibc.

    The default is eight pools per core. Each keeps the memory that its threads have freed, which
    adds up to hundreds of megabytes in a run with large batches.
    """
    set_allocator(M_ARENA_MAX, 2)


@contextmanager
def quiet_workers() -> Iterator[None]:
    """Hold back what workers in this process print on standard error, and drop it on failure.

    Beam prints the traceback of each failing bundle several times, while the error itself is
    reported once, at the end. If the block succeeds, the held output is printed. After Ctrl-C the
    workers run until the process ends, so only the main thread can print. Logging is not held back.
    """
    before, held = sys.stderr, io.StringIO()
    sys.stderr = held
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr = _OfMainThread(before)
        raise
    except BaseException:
        sys.stderr = before
        raise
    sys.stderr = before
    before.write(held.getvalue())


@contextmanager
def silent_workers() -> Iterator[None]:
    """Let only the main thread print on standard error while the block runs.

    This is `quiet_workers` for a run whose main thread reports its progress.
    """
    before = sys.stderr
    sys.stderr = _OfMainThread(before)
    try:
        yield
    finally:
        sys.stderr = before


class _OfMainThread(io.TextIOBase):
    """A stream to which only the main thread can write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
