"""Read parts of an object in Cloud Storage: the bytes that are needed, in few requests."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple

from google.api_core.exceptions import NotFound, PreconditionFailed

from common.private_beam.any_runner import storage_client
from transforms.files.pins import Pin, check_pin

# A request takes about 50 ms before its first byte arrives, the time of a few megabytes. One of
# this size spends more time on its bytes than on waiting, and several run at the same time.
REQUEST_BYTES = 8 << 20
# The requests that a process sends at the same time. The client keeps 10 connections open.
_THREADS = 8
# Bytes between the needed ones are fetched too, if that saves requests: up to this share of them.
_SPARE_SHARE = 0.25
# Above this number of requests, waiting would take longer than fetching what is in between.
MOST_REQUESTS = 256


class Span(NamedTuple):
    """Bytes of a file, from `start` up to `stop`, which is not included."""

    start: int
    stop: int


def grouped(spans: Iterable[Span]) -> list[list[Span]]:
    """Group spans that are fetched in one request.

    A request fetches the bytes between its spans too. All requests together fetch at most 1.25
    times the bytes of the spans, unless they would be more than MOST_REQUESTS.

    Args:
        spans: The needed bytes of a file, in any order.

    Returns:
        The spans of each request, sorted. A request of several spans has at most REQUEST_BYTES.
    """
    ordered = sorted(set(spans))
    # Only a damaged footer names spans that overlap.
    ends = accumulate((span.stop for span in ordered), max)
    holes = [max(0, after.start - end) for end, after in zip(ends, ordered[1:], strict=False)]
    spare = int(_SPARE_SHARE * sum(stop - start for start, stop in ordered))
    bridged: set[int] = set()
    for i in sorted(range(len(holes)), key=holes.__getitem__):
        spare -= holes[i]
        if spare < 0 and len(ordered) - len(bridged) <= MOST_REQUESTS:
            break
        bridged.add(i)
    groups = [[span] for span in ordered[:1]]
    for i, span in enumerate(ordered[1:]):
        if i in bridged and span.stop - groups[-1][0].start <= REQUEST_BYTES:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


class ObjectFile(io.RawIOBase):
    """A file object that reads an object in Cloud Storage by exact ranges.

    A read that `fetch` has prepared takes its bytes from memory. Other reads send one request.
    Beam's own file object would fetch 16 MB at each position.

    Args:
        path: The path of the object.
        pinned: The state of the object that is read, or None for its current state.

    Raises:
        GoogleAPIError: The object does not exist, or its metadata cannot be read.
    """

    def __init__(self, path: str, pinned: Pin | None = None) -> None:
        bucket, _, name = path.removeprefix("gs://").partition("/")
        # Beam's own client has the server and the credentials.
        self._blob = storage_client(path).bucket(bucket).blob(name)
        self._pin = pinned
        if pinned is None:
            self._blob.reload()
        self._size: int = self._blob.size if pinned is None else pinned.size
        self._generation = self._blob.generation if pinned is None else pinned.generation
        self._at = 0
        self._fetched: dict[Span, bytes] = {}

    def fetch(self, spans: Sequence[Span]) -> None:
        """Read spans into memory, with several requests at the same time.

        Each of them is kept until it is read. Spans outside of the object are ignored.

        Raises:
            GoogleAPIError: A request fails.
            InputChanged: The object has changed since it was pinned.
        """
        inside = [span for span in spans if 0 <= span.start < span.stop <= self._size]
        for _ in _threads().map(self._fetch_group, grouped(inside)):
            pass

    def _fetch_group(self, group: Sequence[Span]) -> None:
        start, stop = group[0].start, max(span.stop for span in group)
        data = self._request(start, stop)
        # Copies, so that the bytes in between do not stay in memory.
        for span in group:
            self._fetched[span] = data[span.start - start : span.stop - start]

    def _request(self, start: int, stop: int) -> bytes:
        try:
            content: bytes = self._blob.download_as_bytes(
                start=start, end=stop - 1, if_generation_match=self._generation
            )
        except (NotFound, PreconditionFailed):
            check_pin(self._pin)
            raise
        return content

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes at the current position; fewer at the end of the object."""
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if stop <= self._at:
            return b""
        found = self._fetched.pop(Span(self._at, stop), None)
        found = self._request(self._at, stop) if found is None else found
        self._at = stop
        return found

    def seek(self, offset: int, origin: int = io.SEEK_SET) -> int:
        """Set the position, which no request needs."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[origin]
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Return the threads that fetch parts of objects, one pool per process."""
    return ThreadPoolExecutor(_THREADS, "fetch")
