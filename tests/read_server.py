"""A server of BigQuery's Storage Read API, which can fail as the service does."""

import datetime
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pyarrow as pa
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from cloud.endpoints import Endpoints


def messages(table: pa.Table, rows: int, compression: str | None = "lz4") -> list[bytes]:
    """Return the serialized schema of a table, and its record batches of up to `rows` rows."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=rows)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    return [message.serialize().to_pybytes() for message in reader]


@dataclass
class Reads:
    """A server that has a table in streams, and can fail.

    `sizes` are the numbers of rows in a response, used in turn, so every call cuts a stream in
    another way. `breaks` are for each call in turn: after how many responses it ends, and with
    which status. A file at `ended` ends the session: from then on, every call is refused.
    """

    table: pa.Table
    streams: int = 1
    sizes: Sequence[int] = (3,)
    breaks: list[tuple[int, grpc.StatusCode | None]] = field(default_factory=list)
    refusals: list[grpc.StatusCode] = field(default_factory=list)
    sessions: list[types.CreateReadSessionRequest] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)
    ended: Path | None = None
    expires: datetime.datetime | None = None

    def create(
        self, request: types.CreateReadSessionRequest, context: grpc.ServicerContext
    ) -> types.ReadSession:
        self.sessions.append(request)
        if self.refusals:
            context.abort(self.refusals.pop(0), "it is so")
        schema = types.ArrowSchema(serialized_schema=messages(self.table[:0], 1)[0])
        streams = [types.ReadStream(name=f"s/{i}") for i in range(self.streams)]
        return types.ReadSession(arrow_schema=schema, streams=streams, expire_time=self.expires)

    def read(
        self, request: types.ReadRowsRequest, context: grpc.ServicerContext
    ) -> Iterator[types.ReadRowsResponse]:
        self.offsets.append(request.offset)
        if self.ended is not None and self.ended.exists():
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "session expired at some time")
        number, rows = int(request.read_stream.rsplit("/", 1)[-1]), self.table.num_rows
        start, stop = rows * number // self.streams, rows * (number + 1) // self.streams
        left = self.table[start + request.offset : stop]
        last, code = self.breaks.pop(0) if self.breaks else (1 << 30, None)
        count = 0
        while left.num_rows and count < last:
            size = self.sizes[(len(self.offsets) + count) % len(self.sizes)]
            part, left = left[:size], left[size:]
            batch = types.ArrowRecordBatch(serialized_record_batch=messages(part, 1 << 20)[1])
            yield types.ReadRowsResponse(row_count=part.num_rows, arrow_record_batch=batch)
            # A response without rows that only reports the progress of the stream.
            yield types.ReadRowsResponse(row_count=0)
            count += 1
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            # The call hangs instead of ending.
            self.hanging.wait(30)
        elif code is not None:
            context.abort(code, "it is so")


@contextmanager
def serving(reads: Reads) -> Iterator[Cloud]:
    """Yield a Cloud whose Storage Read API is the server."""
    service = "google.cloud.bigquery.storage.v1.BigQueryRead"
    handlers = {
        "CreateReadSession": grpc.unary_unary_rpc_method_handler(
            reads.create, types.CreateReadSessionRequest.deserialize, types.ReadSession.serialize
        ),
        "ReadRows": grpc.unary_stream_rpc_method_handler(
            reads.read, types.ReadRowsRequest.deserialize, types.ReadRowsResponse.serialize
        ),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Cloud("payer-project", Endpoints(bigquerystorage=f"127.0.0.1:{port}"), 20.0)
    finally:
        reads.hanging.set()
        server.stop(None).wait()
