"""Copies and deletes any number of objects of Cloud Storage, 100 in one request.

One object a request would take hours for 100,000 objects, because each request takes 50 to 100 ms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from google.api_core import exceptions
from google.cloud.storage.batch import Batch

from cloud.errors import RETRY_SECONDS, is_passing, retry
from common.addresses import split_gcs_path

if TYPE_CHECKING:
    from google.cloud.storage import Client

# How many calls a batch request may have. Source: Cloud Storage's documentation, "batch requests".
CALLS_A_REQUEST = 100
THREADS = 16
# A call on a client whose requests are gathered in a batch.
Call = Callable[["Client"], Any]


def copy_objects(
    connect: Callable[[], Client],
    pairs: Iterable[tuple[str, str]],
    retry_seconds: float = RETRY_SECONDS,
) -> None:
    """Copy objects to other names.

    Args:
        connect: Returns a new client. Each thread has its own.
        pairs: The addresses of the objects and of their copies, of the form gs://BUCKET/NAME.
        retry_seconds: How long transient errors of one request are retried, in seconds.

    Raises:
        GoogleAPIError: An object cannot be copied. Others may have been copied.
    """

    def call_of(source: str, target: str) -> Call:
        (bucket, name), (to, new_name) = split_gcs_path(source), split_gcs_path(target)

        def copy(client: Client) -> None:
            client.bucket(bucket).copy_blob(
                client.bucket(bucket).blob(name), client.bucket(to), new_name
            )

        return copy

    _send_all(connect, [call_of(*pair) for pair in pairs], retry_seconds)


def delete_objects(
    connect: Callable[[], Client], paths: Iterable[str], retry_seconds: float = RETRY_SECONDS
) -> None:
    """Delete objects. Objects that do not exist are ignored.

    Args:
        connect: Returns a new client. Each thread has its own.
        paths: The addresses of the objects, of the form gs://BUCKET/NAME.
        retry_seconds: How long transient errors of one request are retried, in seconds.

    Raises:
        GoogleAPIError: An object cannot be deleted. Others may have been deleted.
    """

    def call_of(path: str) -> Call:
        bucket, name = split_gcs_path(path)
        return lambda client: client.bucket(bucket).delete_blob(name)

    _send_all(connect, list(map(call_of, paths)), retry_seconds, missing_ok=True)


class _Batch(Batch):  # type: ignore[misc]
    """A batch request that keeps the responses to its calls."""

    answers: list[Any]

    def finish(self, raise_exception: bool = True) -> list[Any]:
        self.answers = super().finish(raise_exception)
        return self.answers


class _Connection(threading.local):
    """A client for each thread, because a session of requests serves one thread at a time."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self.client = connect()


def _send_all(
    connect: Callable[[], Client],
    calls: Sequence[Call],
    retry_seconds: float,
    *,
    missing_ok: bool = False,
) -> None:
    """Send calls in batch requests; after an error, the requests that have not started are left."""
    if not calls:
        return
    batches = [calls[i : i + CALLS_A_REQUEST] for i in range(0, len(calls), CALLS_A_REQUEST)]
    connection = _Connection(connect)

    def send(batch: Sequence[Call]) -> None:
        _send(connection.client, batch, retry_seconds, missing_ok=missing_ok)

    if len(batches) == 1:
        send(batches[0])
        return
    pool = ThreadPoolExecutor(THREADS, "objects")
    try:
        # The context says what is being done, for the lines that report retries.
        sent = [pool.submit(copy_context().run, send, batch) for batch in batches]
        for future in sent:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _send(client: Client, calls: Sequence[Call], retry_seconds: float, *, missing_ok: bool) -> None:
    """Send one batch request; repeat those calls whose answer is a transient error."""
    left = list(calls)

    def send() -> None:
        answers = _answers(client, left)
        ignored = {HTTPStatus.NOT_FOUND} if missing_ok else set()
        failed = [
            (call, exceptions.from_http_response(answer))
            for call, answer in zip(left, answers, strict=True)
            if answer.status_code >= 300 and answer.status_code not in ignored
        ]
        left[:] = [call for call, _ in failed]
        # A permanent error comes first, because it ends the retries.
        for error in sorted((error for _, error in failed), key=is_passing):
            raise error

    retry(retry_seconds)(send)()


def _answers(client: Client, calls: Sequence[Call]) -> list[Any]:
    """Send calls in one request, and return the response to each."""
    with _Batch(client, raise_exception=False) as batch:
        for call in calls:
            call(client)
    return batch.answers
