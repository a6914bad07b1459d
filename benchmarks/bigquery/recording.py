"""Records responses of the Storage Read API and replays them byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from transforms.bigquery.schema import TableName, table_fields

_SESSION = "session"


@dataclass(frozen=True)
class Recording:
    """A serialized read session, and the serialized responses of each of its streams."""

    session: bytes
    streams: tuple[tuple[bytes, ...], ...]

    @property
    def rows(self) -> int:
        """The number of rows in all responses."""
        return sum(response.row_count for response in self._responses())

    @property
    def response_rows(self) -> int:
        """The number of rows in the largest response."""
        return max(response.row_count for response in self._responses())

    @property
    def size(self) -> int:
        """The size of all responses in bytes."""
        return sum(len(data) for stream in self.streams for data in stream)

    def _responses(self) -> Iterator[types.ReadRowsResponse]:
        return (types.ReadRowsResponse.deserialize(d) for stream in self.streams for d in stream)

    def save(self, folder: Path) -> None:
        """Write one file per message into a new folder."""
        folder.mkdir(parents=True)
        (folder / _SESSION).write_bytes(self.session)
        for i, stream in enumerate(self.streams):
            for j, data in enumerate(stream):
                (folder / f"{i:04d}-{j:04d}").write_bytes(data)

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """Read a recording from a folder that `save` filled."""
        streams: dict[str, list[bytes]] = {}
        for path in sorted(folder.glob("*-*")):
            streams.setdefault(path.name.split("-")[0], []).append(path.read_bytes())
        return cls((folder / _SESSION).read_bytes(), tuple(map(tuple, streams.values())))


def record(
    cloud: Cloud, table: TableName, columns: Sequence[str], data_format: types.DataFormat
) -> Recording:
    """Record the responses to a read of some columns of a table."""
    client = cloud.bigquery_read()
    session = client.create_read_session(
        parent=f"projects/{cloud.project}",
        read_session=types.ReadSession(
            table=table.path,
            data_format=data_format,
            read_options=types.ReadSession.TableReadOptions(selected_fields=list(columns)),
        ),
    )
    streams = tuple(
        tuple(map(types.ReadRowsResponse.serialize, client.read_rows(read_stream=stream.name)))
        for stream in session.streams
    )
    return Recording(types.ReadSession.serialize(session), streams)


def cut(recording: Recording, rows: int) -> Recording:
    """Return the rows of an Arrow recording as compressed (LZ4) responses with at most `rows` rows.

    The emulator does not compress, and sends 100,000 rows per response. The service compresses on
    request, and sends at most 10 MB per response.
    """
    session = types.ReadSession.deserialize(recording.session)
    schema = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
    options = pa.ipc.IpcWriteOptions(compression="lz4")

    def cut_one(data: bytes) -> Iterator[bytes]:
        whole = types.ReadRowsResponse.deserialize(data)
        body = pa.py_buffer(whole.arrow_record_batch.serialized_record_batch)
        batch = pa.ipc.read_record_batch(body, schema)
        for start in range(0, batch.num_rows, rows):
            part = batch.slice(start, rows)
            answer = types.ReadRowsResponse(
                row_count=part.num_rows,
                arrow_schema=session.arrow_schema,
                arrow_record_batch=types.ArrowRecordBatch(
                    serialized_record_batch=_serialized(part, options)
                ),
            )
            yield types.ReadRowsResponse.serialize(answer)

    streams = tuple(
        tuple(part for data in stream for part in cut_one(data)) for stream in recording.streams
    )
    return Recording(recording.session, streams)


def _serialized(batch: pa.RecordBatch, options: pa.ipc.IpcWriteOptions) -> bytes:
    """Return the IPC message of a batch, without the message of the schema."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    messages = pa.ipc.MessageReader.open_stream(sink.getvalue())
    messages.read_next_message()
    return bytes(messages.read_next_message().serialize())


class ReplayingClient:
    """Replaces the generated BigQueryReadClient, and responds with a recording.

    Like gRPC, it parses each response from its bytes.

    Args:
        recording: The recording.
        times: How many times the session lists each of its streams.
    """

    def __init__(self, recording: Recording, times: int = 1) -> None:
        self._session = types.ReadSession.deserialize(recording.session)
        names = [stream.name for stream in self._session.streams]
        self._answers = dict(zip(names, recording.streams, strict=True))
        self._session.streams = [types.ReadStream(name=name) for name in names * times]

    def create_read_session(self, **_: Any) -> types.ReadSession:
        """Return the recorded session for any request."""
        return self._session

    def read_rows(
        self, *, read_stream: str, offset: int = 0, **_: Any
    ) -> Iterator[types.ReadRowsResponse]:
        """Return the responses of a stream, from the first one on."""
        if offset:
            raise ValueError(f"a recording can be read only from its start, not from row {offset}")
        return map(types.ReadRowsResponse.deserialize, self._answers[read_stream])


@dataclass(frozen=True)
class ReplayingCloud(Cloud):
    """A `Cloud` whose only table is a recording in a folder, which keeps the object picklable."""

    folder: str = ""
    times: int = 1

    def bigquery_read(self) -> Any:
        """Return the replaying client."""
        return ReplayingClient(Recording.load(Path(self.folder)), self.times)

    def bigquery(self) -> Any:
        """Return a client that knows the columns of the table."""
        return _TableClient(self.bigquery_read().create_read_session())


class _TableClient:
    """Replaces the methods of bigquery.Client that a source calls to inspect its table."""

    def __init__(self, session: types.ReadSession) -> None:
        schema = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
        self._fields = table_fields(schema)

    def get_table(self, name: str, **_: Any) -> bigquery.Table:
        table = bigquery.Table(name, self._fields)
        table._properties["type"] = "TABLE"
        return table
