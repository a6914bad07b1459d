"""Measures appends to a table by many threads: over one connection, and over one per thread.

python -m benchmarks.bigquery.appends

A server of AppendRows answers each request 50 to 90 ms after it arrived, and the requests of a
connection in order. It takes requests while earlier ones wait for their answers, as the service
does. Threads write bundles of one request or of several. `shared` is what Millrace does: threads
of a process share a connection, and a bundle awaits its answers at its end. `own` is what it did
before: each thread has a connection, and awaits each answer before its next request.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import grpc
from google.cloud.bigquery_storage_v1 import types

from benchmarks.bigquery.sinks import TABLE, output_rows, table_schema
from benchmarks.contestant import timed
from benchmarks.measure import Measured
from benchmarks.row_costs import report_rows, take_turns, write_results
from benchmarks.summary import Record, spread
from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from transforms.bigquery.append import conform_to_table
from transforms.bigquery.append_stream import DefaultStream, release_stream, share_stream

REQUEST_ROWS = 200
ANSWER_SECONDS = (0.050, 0.090)
# Threads, and requests of a bundle.
CASES = ((1, 1), (1, 8), (12, 1), (12, 8))
# Requests of a thread in a round.
REQUESTS = 64
PROCESSES, THREADS = 20, 12
WAYS = ("own", "shared")
METHOD = {
    "rows_per_second": "rows of all threads of a process by the wall time of their appends",
    "us_per_request": "user and system time of the process by its requests",
    "other_cpu_share": "of the machine, including the server of the benchmark",
    "connections": "that the server has seen in a round",
    "fleet_connections": f"of {PROCESSES} processes with {THREADS} threads each",
}


class Service:
    """A server of AppendRows with the latency of the service, which counts connections."""

    def __init__(self) -> None:
        self.connections = 0
        method = grpc.stream_stream_rpc_method_handler(
            self._append_rows, None, types.AppendRowsResponse.serialize
        )
        name = "google.cloud.bigquery.storage.v1.BigQueryWrite"
        self.server = grpc.server(ThreadPoolExecutor(PROCESSES * THREADS + 10))
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, {"AppendRows": method})]
        )
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def _append_rows(self, requests: Iterator[bytes], _: Any) -> Iterator[types.AppendRowsResponse]:
        self.connections += 1
        due: SimpleQueue[float | None] = SimpleQueue()

        def read() -> None:
            # A client ends its call by cancelling it.
            with suppress(Exception):
                for _ in requests:
                    due.put(time.monotonic() + random.uniform(*ANSWER_SECONDS))
            due.put(None)

        Thread(target=read, daemon=True).start()
        for moment in iter(due.get, None):
            time.sleep(max(0.0, moment - time.monotonic()))
            yield types.AppendRowsResponse()


@contextmanager
def serving() -> Iterator[Service]:
    """Run a server while the block runs."""
    service = Service()
    service.server.start()
    try:
        yield service
    finally:
        service.server.stop(None).wait()


def append(way: str, address: str, threads: int, requests: int) -> None:
    """Append from several threads, and print a report.

    Args:
        way: One of WAYS.
        address: The address of the server.
        threads: The number of threads.
        requests: The number of requests of a bundle.
    """
    batches = output_rows(REQUEST_ROWS)
    schema = table_schema(batches)
    rows = conform_to_table(batches[0], schema)
    cloud = Cloud(TABLE.project, Endpoints(bigquerystorage=address))

    def write(_: int) -> None:
        is_shared = way == "shared"
        stream = (share_stream if is_shared else DefaultStream)(cloud, TABLE, schema)
        for _ in range(REQUESTS // requests):
            if is_shared:
                for sent in [stream.start(rows) for _ in range(requests)]:
                    sent.refused()
            else:
                for _ in range(requests):
                    stream.send(rows)
        if is_shared:
            release_stream(stream)
        else:
            stream.close()

    with ThreadPoolExecutor(threads) as pool, timed() as clock:
        list(pool.map(write, range(threads)))
    report_rows(threads * REQUESTS * REQUEST_ROWS, clock)


def command(way: str, address: str, threads: int, requests: int) -> list[str]:
    """Return the command line of a process that appends."""
    program = [sys.executable, "-m", "benchmarks.bigquery.appends", "--way", way]
    return [*program, "--address", address, f"--threads={threads}", f"--requests={requests}"]


def figures(runs: Sequence[Measured]) -> Record:
    """Return the rates and the CPU time of the rounds of a case."""
    reports = [run.report for run in runs]
    costs = [r.run_cpu_seconds / (r.rows / REQUEST_ROWS) * 1e6 for r in reports]
    return {
        "rows_per_second": spread([r.rows / r.run_seconds for r in reports]),
        "us_per_request": spread(costs),
        "other_cpu_share": spread([run.other_cpu_share for run in runs]),
    }


def compete(service: Service, rounds: int) -> Record:
    """Return the figures of each case, for both ways."""
    found: Record = {}
    for threads, requests in CASES:
        for way in WAYS:
            name = f"{way}, {threads} threads, bundles of {requests} requests"
            before, rows = service.connections, threads * REQUESTS * REQUEST_ROWS
            commands = {name: command(way, service.address, threads, requests)}
            found[name] = figures(take_turns(commands, {name: rows}, rounds)[name])
            found[name]["connections"] = (service.connections - before) // rounds
    return found


def fleet(service: Service) -> Record:
    """Return how many connections many processes open."""
    found: Record = {}
    for way in WAYS:
        before = service.connections
        line = command(way, service.address, THREADS, 1)
        started = [subprocess.Popen(line, stdout=subprocess.DEVNULL) for _ in range(PROCESSES)]
        if any(process.wait() for process in started):
            raise RuntimeError("a process failed")
        found[way] = service.connections - before
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write bigquery_appends.json to the output folder, or append as one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--way", choices=WAYS, help="append in one of the processes, in this way")
    parser.add_argument("--address", help="address of the server")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--requests", type=int, default=1)
    args = parser.parse_args(argv)
    if args.way is not None:
        append(args.way, args.address, args.threads, args.requests)
        return 0
    with serving() as service:
        results = {"cases": compete(service, args.rounds), "fleet_connections": fleet(service)}
    settings = {
        "request_rows": REQUEST_ROWS,
        "answer_ms": [1000 * seconds for seconds in ANSWER_SECONDS],
        "method": METHOD,
    }
    write_results(args.output / "bigquery_appends.json", settings, results, args.rounds)
    for name, case in results["cases"].items():
        print(f"{name:>40}: {case['rows_per_second']['median']:>10,.0f} rows/s", flush=True)
    print(f"connections of {PROCESSES} processes: {results['fleet_connections']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
