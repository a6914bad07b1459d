"""A server of BigQuery's AppendRows, which can fail as the service does."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue

import grpc
import pyarrow as pa
from google.cloud.bigquery_storage_v1 import types
from google.rpc import status_pb2

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from transforms.bigquery.append_stream import DefaultStream
from transforms.bigquery.schema import TableName

TABLE = TableName("some-project", "d", "t")


def ids(*values: str | None) -> pa.RecordBatch:
    return pa.record_batch({"id": pa.array(values, pa.string())})


class Service:
    """A server of BigQuery's AppendRows that handles each request as the next answer says."""

    def __init__(self, *answers: "Answer", then: "Answer | None" = None) -> None:
        self._answers = iter(answers)
        self._then = then or write
        self.received = 0
        self.requests: list[list[str]] = []
        self.sizes: list[int] = []
        self.written: list[str] = []
        self.connections: list[grpc.ServicerContext] = []
        self.over = threading.Event()
        method = grpc.stream_stream_rpc_method_handler(
            self._append_rows, None, types.AppendRowsResponse.serialize
        )
        name = "google.cloud.bigquery.storage.v1.BigQueryWrite"
        self._server = grpc.server(
            ThreadPoolExecutor(64), options=[("grpc.max_receive_message_length", -1)]
        )
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, {"AppendRows": method})]
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def cloud(self, retry_seconds: float = 60.0) -> Cloud:
        """A Cloud whose Storage Write API is this server."""
        return Cloud(
            "some-project", Endpoints(bigquerystorage=f"127.0.0.1:{self.port}"), retry_seconds
        )

    def stream(self, retry_seconds: float = 60.0) -> DefaultStream:
        """An unopened stream of rows with one column `id`."""
        return DefaultStream(self.cloud(retry_seconds), TABLE, ids().schema)

    def stop(self) -> None:
        """End all connections."""
        self.over.set()
        self._server.stop(None)

    def _append_rows(
        self, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[types.AppendRowsResponse]:
        self.connections.append(context)
        schema = None
        for raw in self._read_ahead(requests):
            request = types.AppendRowsRequest.deserialize(raw)
            if schema is None:
                assert request.write_stream == f"{TABLE.path}/streams/_default"
                sent = request.arrow_rows.writer_schema.serialized_schema
                schema = pa.ipc.read_schema(pa.py_buffer(sent))
            data = request.arrow_rows.rows.serialized_record_batch
            rows = pa.ipc.read_record_batch(pa.py_buffer(data), schema).column(0).to_pylist()
            self.requests.append(rows)
            self.sizes.append(len(raw))
            answer = next(self._answers, self._then)(self, rows, context)
            if answer is None:
                return
            yield answer

    def _read_ahead(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        """Yield requests, which another thread receives while earlier ones are answered."""
        received: SimpleQueue[bytes | None] = SimpleQueue()

        def read() -> None:
            # Requests end with an error if the call is cancelled.
            with suppress(Exception):
                for raw in requests:
                    self.received += 1
                    received.put(raw)
            received.put(None)

        threading.Thread(target=read, name="ThreadPool of a server", daemon=True).start()
        yield from iter(received.get, None)


Answer = Callable[[Service, list[str], grpc.ServicerContext], types.AppendRowsResponse | None]


def write(service: Service, rows: list[str], _: grpc.ServicerContext) -> types.AppendRowsResponse:
    service.written.extend(rows)
    return types.AppendRowsResponse(append_result={})


def end_call(code: grpc.StatusCode, *, written: bool = False) -> Answer:
    """End the call with a status, before or after the rows are written."""

    def answer(service: Service, rows: list[str], context: grpc.ServicerContext) -> None:
        service.written.extend(rows if written else [])
        context.abort(code, "said by the service")

    return answer


def say(code: grpc.StatusCode) -> Answer:
    """Respond with an error, and continue the call."""
    status = status_pb2.Status(code=code.value[0], message="said by the service")
    return lambda *_: types.AppendRowsResponse(error=status)


def refuse(*bad: str | None) -> Answer:
    """Refuse rows with these names, and write the others."""

    def answer(
        service: Service, rows: list[str], context: grpc.ServicerContext
    ) -> types.AppendRowsResponse:
        faults = [(i, row) for i, row in enumerate(rows) if row in bad]
        if not faults:
            return write(service, rows, context)
        return types.AppendRowsResponse(
            error=status_pb2.Status(code=3, message="rows are bad"),
            row_errors=[types.RowError(index=i, message=f"bad {row}") for i, row in faults],
        )

    return answer


def hang(service: Service, rows: list[str], context: grpc.ServicerContext) -> None:
    service.over.wait()


def when(event: threading.Event, answer: Answer) -> Answer:
    """Give an answer once an event is set."""

    def later(
        service: Service, rows: list[str], context: grpc.ServicerContext
    ) -> types.AppendRowsResponse | None:
        event.wait()
        return answer(service, rows, context)

    return later


def leave(service: Service, rows: list[str], context: grpc.ServicerContext) -> None:
    """End the call without an error and without a response."""


@contextmanager
def services() -> Iterator[Callable[..., Service]]:
    """Yield a function that starts a server with the arguments of Service."""
    started: list[Service] = []

    def start(*answers: Answer, then: Answer | None = None) -> Service:
        started.append(Service(*answers, then=then))
        return started[-1]

    try:
        yield start
    finally:
        for service in started:
            service.stop()


def threads_since(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return new threads of clients; the threads of the test servers are left out."""
    now = set(threading.enumerate()) - before
    return [thread for thread in now if not thread.name.startswith("ThreadPool")]
