"""A connection to a table over which many threads append rows, without waiting for each other."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import grpc
from google.api_core import exceptions
from google.api_core.gapic_v1 import routing_header
from google.cloud.bigquery_storage_v1 import types

# The bounds of what a connection has sent without a response. They bound memory. Google's own
# client for Java allows 1,000 requests and 100 MB.
IN_FLIGHT_REQUESTS = 1_000
IN_FLIGHT_BYTES = 64 << 20


class AppendConnection:
    """A call of AppendRows, which many threads use; the service responds to requests in order.

    It uses the bare stub. The client's own method would retry with requests that have already
    been consumed, and its AppendRowsStream waits without a limit and does not report the cause of
    a failure.

    Args:
        client: A BigQueryWriteClient.
        stream: The full name of the stream to append to.
        schema: The serialized Arrow schema of the rows.
        silence: After how many seconds without any response the connection is given up.
    """

    def __init__(self, client: Any, stream: str, schema: bytes, silence: float) -> None:
        self._stream, self._schema, self._silence = stream, schema, silence
        self._lock = threading.Condition()
        self._queue: SimpleQueue[types.AppendRowsRequest | None] = SimpleQueue()
        # The requests in flight, with their sizes.
        self._waiting: deque[tuple[Future[types.AppendRowsResponse], int]] = deque()
        self._bytes, self._is_first = 0, True
        # Why the connection takes no more requests.
        self._closed: exceptions.GoogleAPICallError | None = None
        # When the service last responded, or had nothing to respond to.
        self._heard = time.monotonic()
        header = routing_header.to_grpc_metadata({"write_stream": stream})
        self._call = client.transport.append_rows(iter(self._queue.get, None), metadata=(header,))
        threading.Thread(target=self._receive, name="append responses", daemon=True).start()

    @property
    def is_open(self) -> bool:
        """Whether the connection takes requests."""
        return self._closed is None

    def send(self, data: bytes) -> Future[types.AppendRowsResponse]:
        """Send a serialized record batch, and return its future response, for `wait`.

        If too much is in flight, this first waits for responses. If the connection fails, the
        future raises its error: Aborted if it was closed, DeadlineExceeded if the service was
        silent for too long.
        """
        future: Future[types.AppendRowsResponse] = Future()
        request = types.AppendRowsRequest()
        # Set the bare protobuf message: proto-plus would copy the bytes once more.
        types.AppendRowsRequest.pb(request).arrow_rows.rows.serialized_record_batch = data
        with self._lock:
            while not self._has_room(len(data)):
                self._lock.wait(self._patience())
                self._check_silence()
            if self._closed is not None:
                future.set_exception(self._closed)
                return future
            if self._is_first:
                request.write_stream = self._stream
                request.arrow_rows.writer_schema.serialized_schema = self._schema
            if not self._waiting:
                self._heard = time.monotonic()
            try:
                self._waiting.append((future, len(data)))
                self._bytes, self._is_first = self._bytes + len(data), False
                self._queue.put(request)
            except BaseException:
                # After an interrupt here, a response might belong to another request.
                self.close()
                raise
        return future

    def wait(self, future: Future[types.AppendRowsResponse]) -> types.AppendRowsResponse:
        """Return the response that `send` promised.

        Raises:
            GoogleAPICallError: The connection failed before the response.
        """
        while True:
            try:
                return future.result(self._patience())
            except TimeoutError:
                self._check_silence()

    def retire(self) -> None:
        """Take no more requests, and end when those in flight have been answered."""
        with self._lock:
            self._closed = self._closed or exceptions.Aborted("the connection takes no more rows")
            self._queue.put(None)
            self._lock.notify_all()

    def close(self) -> None:
        """End the call and its threads; requests in flight fail."""
        self._end(exceptions.Aborted("the connection was closed before the response"))

    def _has_room(self, size: int) -> bool:
        """Return whether a request of this size need not wait."""
        return (
            self._closed is not None
            or not self._waiting
            or (len(self._waiting) < IN_FLIGHT_REQUESTS and self._bytes + size <= IN_FLIGHT_BYTES)
        )

    def _patience(self) -> float:
        """Return for how many more seconds the service may be silent."""
        return max(0.0, self._heard + self._silence - time.monotonic())

    def _check_silence(self) -> None:
        """Give the connection up if the service has been silent for too long."""
        with self._lock:
            if self._waiting and not self._patience():
                text = f"no response within {self._silence:g} s"
                self._end(exceptions.DeadlineExceeded(text))

    def _receive(self) -> None:
        """Hand responses to the requests in flight, until the call ends."""
        error: exceptions.GoogleAPICallError = exceptions.Aborted(
            "the connection was closed before the response"
        )
        try:
            for response in self._call:
                with self._lock:
                    if not self._waiting:
                        break
                    future, size = self._waiting.popleft()
                    self._bytes -= size
                    self._heard = time.monotonic()
                    self._lock.notify_all()
                future.set_result(response)
        except grpc.RpcError as cause:
            error = exceptions.from_grpc_error(cause)
        finally:
            self._end(error)

    def _end(self, error: exceptions.GoogleAPICallError) -> None:
        with self._lock:
            self._closed = self._closed or error
            failed, self._waiting, self._bytes = self._waiting, deque(), 0
            self._lock.notify_all()
        # The thread in which gRPC waits for requests ends too.
        self._queue.put(None)
        self._call.cancel()
        for future, _ in failed:
            future.set_exception(error)
