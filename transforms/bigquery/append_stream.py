"""The default stream of a table: appends that are retried, over one connection per process.

BigQuery limits the connections of a project, and answers an append after 50 to 100 ms. So the
threads of a process share a connection, and send requests without waiting for the responses to
earlier ones. A connection carries 1 to 10 MB per second; a job that writes more needs more
processes.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pyarrow as pa
from google.api_core import exceptions
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from cloud.errors import current_call, is_passing, short_reason
from common.retry_notices import Retried
from transforms.bigquery.append_connection import AppendConnection
from transforms.bigquery.schema import TableName


class Append:
    """Rows that have been sent to a stream, and are sent again if their connection fails."""

    def __init__(self, stream: DefaultStream, rows: pa.RecordBatch) -> None:
        """Send the rows, as `DefaultStream.start` does."""
        self._stream, self._rows = stream, rows
        self._send()

    @property
    def is_answered(self) -> bool:
        """Whether `refused` has nothing to wait for, unless the rows must be sent again."""
        return self._response.done()

    def refused(self) -> dict[int, str]:
        """Wait until all rows are written, or none of them because some are refused.

        Transient errors are retried for `retry_seconds`.

        Returns:
            The message of each refused row, by its index; empty if all rows were written.

        Raises:
            GoogleAPIError: The append failed, or kept failing with transient errors.
        """
        seconds = self._stream.retry_seconds
        deadline, delay = time.monotonic() + seconds, 0.1
        with Retried(current_call()) as retried:
            while True:
                try:
                    return _refused_rows(self._connection.wait(self._response))
                except exceptions.GoogleAPICallError as error:
                    # The service ends a call early with Cancelled; another call may succeed.
                    if not (is_passing(error) or isinstance(error, exceptions.Cancelled)):
                        # The table may have been replaced, which only a new connection sees.
                        self._connection.retire()
                        raise
                    wait = delay * random.uniform(0.5, 1.0)
                    if time.monotonic() + wait > deadline:
                        self._connection.retire()
                        raise exceptions.RetryError("", error) from error
                    retried.failed(short_reason(error), deadline - time.monotonic())
                time.sleep(wait)
                delay = min(delay * 2, 10.0)
                self._send()

    def _send(self) -> None:
        self._connection = self._stream.connection()
        self._response = self._connection.send(self._rows.serialize().to_pybytes())


def _refused_rows(answer: types.AppendRowsResponse) -> dict[int, str]:
    """Return the messages of refused rows; raise the error of a request that failed as a whole."""
    if answer.row_errors:
        return {int(error.index): str(error.message) for error in answer.row_errors}
    if answer.error.code:
        raise exceptions.from_grpc_status(answer.error.code, answer.error.message)
    return {}


class DefaultStream:
    """The default stream of a table, with one connection, which is opened when it is needed.

    Any number of threads may use it. `shared_stream` returns that of the process.

    Args:
        cloud: Makes the client, and limits retries.
        table: The table to append to.
        schema: The Arrow schema of the rows that are sent.
    """

    def __init__(self, cloud: Cloud, table: TableName, schema: pa.Schema) -> None:
        self._cloud = cloud
        self._name = f"{table.path}/streams/_default"
        self._schema = schema.serialize().to_pybytes()
        self._lock = threading.Lock()
        self._connection: AppendConnection | None = None

    @property
    def retry_seconds(self) -> float:
        """For how long transient errors are retried."""
        return self._cloud.retry_seconds

    def start(self, rows: pa.RecordBatch) -> Append:
        """Send rows of the stream's schema without waiting for the response.

        It waits only if too much is in flight. Errors of the service are raised by the result.
        """
        return Append(self, rows)

    def send(self, rows: pa.RecordBatch) -> dict[int, str]:
        """Send rows and return what `Append.refused` returns."""
        return self.start(rows).refused()

    def connection(self) -> AppendConnection:
        """Return the connection; open one if there is none, or if it takes no more requests."""
        with self._lock:
            if self._connection is None or not self._connection.is_open:
                # Half the time, to leave some for another connection if this one hangs.
                silence = self._cloud.retry_seconds / 2
                client = self._cloud.bigquery_write()
                self._connection = AppendConnection(client, self._name, self._schema, silence)
            return self._connection

    def close(self) -> None:
        """Close the connection; the next rows open another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


# The streams that this process uses, and how many users each one has.
_streams: dict[tuple[Cloud, TableName, bytes], DefaultStream] = {}
_users: Counter[DefaultStream] = Counter()
_lock = threading.Lock()


def share_stream(cloud: Cloud, table: TableName, schema: pa.Schema) -> DefaultStream:
    """Return the stream of a table that all users in this process share.

    Each call must be followed by one of `release_stream`.

    Args:
        cloud: Makes the client, and limits retries.
        table: The table to append to.
        schema: The Arrow schema of the rows. Rows of another schema have another stream.
    """
    key = (cloud, table, schema.serialize().to_pybytes())
    with _lock:
        stream = _streams.get(key) or DefaultStream(cloud, table, schema)
        _streams[key] = stream
        _users[stream] += 1
    return stream


def release_stream(stream: DefaultStream) -> None:
    """Close a stream that `share_stream` returned, unless it has other users."""
    with _lock:
        _users[stream] -= 1
        if _users[stream]:
            return
        del _users[stream]
        for key in [key for key, other in _streams.items() if other is stream]:
            del _streams[key]
    stream.close()
