"""Read sessions of the BigQuery Storage Read API: opening one, and reading its streams.

BigQuery ends a session some hours after it was opened, however much of it is still unread. Source:
its reference of the Storage Read API, "Read sessions automatically expire 6 hours after they are
created".
"""

from __future__ import annotations

import datetime
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from google.api_core import exceptions
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from cloud.errors import (
    current_call,
    explain,
    is_passing,
    lacks_role,
    retry,
    short_reason,
    translate_errors,
)
from common.errors import InputError
from common.retry_notices import Retried
from transforms.accounts import Entry, promise
from transforms.bigquery.source import BigQuerySource, describe_source
from transforms.files.columns import Columns
from transforms.provenance import utc_now

# The timeout of one call. A stream that takes longer, or hangs, is continued in another call.
READ_SECONDS = 600.0
# BigQuery returns at most this many streams. Source: its reference of CreateReadSessionRequest.
MAX_STREAMS = 1_000
_REMEDY = (
    "add --spread_batches yes, which reads without waiting for predictions, or --read_method "
    "export, whose files do not expire"
)


@dataclass(frozen=True)
class ReadStream:
    """One stream of a read session.

    Attributes:
        name: The full name of the stream.
        schema: The Arrow schema of its batches, serialized.
        number: Its index among the streams of the session, from 0.
        of: The number of streams in the session.
        expires: When BigQuery ends the session, or None if it did not say.
        remedy: What a user can do if the session ends too early.
    """

    name: str
    schema: bytes
    number: int = 0
    of: int = 1
    expires: datetime.datetime | None = None
    remedy: str = "run again"

    @classmethod
    def all_of(cls, session: types.ReadSession, remedy: str = remedy) -> list[ReadStream]:
        """Return the streams of an opened session.

        Args:
            session: The session.
            remedy: What a user can do if the session ends too early.
        """
        schema, count = bytes(session.arrow_schema.serialized_schema), len(session.streams)
        # The client's own class of times cannot be pickled on every version of it.
        expires = session.expire_time and datetime.datetime.fromtimestamp(
            session.expire_time.timestamp(), datetime.UTC
        )
        return [
            cls(one.name, schema, i, count, expires, remedy)
            for i, one in enumerate(session.streams)
        ]

    def check(self, rows: int, error: exceptions.GoogleAPICallError | None = None) -> None:
        """Raise InputError if BigQuery has ended the session.

        Args:
            rows: The number of rows that were read from the stream.
            error: The error with which a call ended, or None before a call.

        Raises:
            InputError: The session has expired, which no retry can change.
        """
        over = self.expires is not None and utc_now() >= self.expires
        if not (over or (isinstance(error, exceptions.FailedPrecondition) and _expired(error))):
            return
        when = f" at {self.expires:%Y-%m-%d %H:%M} UTC" if self.expires else ""
        raise InputError(
            f"{current_call()}: the read session of BigQuery expired{when}, when {rows:,} rows of "
            f"stream {self.number + 1:,} of {self.of:,} were read: {self.remedy}"
        ) from error


def _expired(error: exceptions.GoogleAPICallError) -> bool:
    return "expired" in str(error).lower()


def create_session(cloud: Cloud, session: types.ReadSession, streams: int = 0) -> types.ReadSession:
    """Open a read session.

    Args:
        cloud: Makes the client. Its project is billed.
        session: The session to open.
        streams: The number of streams that the workers can use at the same time; 0 lets BigQuery
            choose, which sometimes returns only one.

    Raises:
        GoogleAPICallError: The session was refused.
    """
    request = types.CreateReadSessionRequest(
        parent=f"projects/{cloud.project}",
        read_session=session,
        max_stream_count=MAX_STREAMS,
        preferred_min_stream_count=min(streams, MAX_STREAMS),
    )
    again = retry(cloud.retry_seconds)
    return cloud.bigquery_read().create_read_session(request=request, retry=again)


def open_session(source: BigQuerySource, columns: Columns, streams: int = 0) -> list[ReadStream]:
    """Open a read session over some columns of a table, and return its streams.

    Args:
        source: The table, with its snapshot and its row restriction.
        columns: The columns to read.
        streams: The number of streams that the workers can use at the same time; 0 lets BigQuery
            choose.

    Returns:
        The streams; none if the table has no rows.

    Raises:
        InputError: The table cannot be read, or lacks a column.
    """
    if source.table is None:
        raise ValueError("open_session reads tables: run the query first")
    names = columns.names(describe_source(replace(source, row_restriction=None)), str(source.table))
    compression = types.ArrowSerializationOptions.CompressionCodec.LZ4_FRAME
    session = types.ReadSession(
        table=source.table.path,
        data_format=types.DataFormat.ARROW,
        read_options=types.ReadSession.TableReadOptions(
            selected_fields=names,
            row_restriction=source.row_restriction or "",
            arrow_serialization_options=types.ArrowSerializationOptions(
                buffer_compression=compression
            ),
        ),
    )
    if source.snapshot is not None:
        session.table_modifiers = types.ReadSession.TableModifiers(snapshot_time=source.snapshot)
    with translate_errors(InputError, f"{source.label} cannot be read"):
        try:
            opened = create_session(source.cloud, session, streams)
        except exceptions.Forbidden as error:
            if not lacks_role(error):
                raise
            raise InputError(
                f"{source.label} cannot be read: {explain(error)}, or use --read_method export, "
                "which does not need the Storage Read API"
            ) from error
    return ReadStream.all_of(opened, _REMEDY)


def promise_streams(place: str, streams: Sequence[ReadStream]) -> Entry:
    """Return the entry that promises all streams of a session to be read.

    Args:
        place: The name of the table or the query.
        streams: The streams of the session.
    """
    return promise(place, "streams", streams[0].of if streams else 0)


def read_stream(stream: ReadStream, client: Any, retry_seconds: float) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a stream, each once and in order.

    After a transient error, the stream is continued at the first row that has not arrived.

    Args:
        stream: The stream to read.
        client: A BigQueryReadClient.
        retry_seconds: How long to retry without receiving a row.

    Raises:
        GoogleAPICallError: The stream cannot be read.
        InputError: The session has expired.
    """
    schema = pa.ipc.read_schema(pa.py_buffer(stream.schema))
    offset, delay, broken_at = 0, 0.1, math.inf
    with Retried(current_call()) as retried:
        while True:
            stream.check(offset)
            try:
                for response in client.read_rows(
                    read_stream=stream.name, offset=offset, retry=None, timeout=READ_SECONDS
                ):
                    # Read the bare protobuf message: proto-plus would copy the rows twice, and keep
                    # the first copy while they are processed.
                    bare = types.ReadRowsResponse.pb(response)
                    rows, body = bare.row_count, bare.arrow_record_batch.serialized_record_batch
                    del response, bare
                    # A response without rows only reports the progress of the stream.
                    if rows:
                        yield pa.ipc.read_record_batch(pa.py_buffer(body), schema)
                        offset += rows
                        delay, broken_at = 0.1, math.inf
                        retried.over()
                return
            except exceptions.GoogleAPICallError as error:
                stream.check(offset, error)
                broken_at = min(broken_at, now := time.monotonic())
                if not is_passing(error) or now - broken_at > retry_seconds:
                    raise
                retried.failed(short_reason(error), broken_at + retry_seconds - now)
                time.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, 10.0)
