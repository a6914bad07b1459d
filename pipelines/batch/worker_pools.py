"""Check, before a run on Prism starts, that the workers of an external pool can reach it.

Prism itself waits a minute for its workers. Its error then does not say whether the pool, its
Python or the way back from the workers is at fault.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions, PortableOptions
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

from common.errors import RunnerError

# How long a pool may take to answer, and a worker to start and connect. Importing Beam takes
# seconds on a slow disk.
ANSWER_SECONDS = 10.0
START_SECONDS = 30.0


class _Control(beam_fn_api_pb2_grpc.BeamFnControlServicer):
    """A runner without work: a worker that connects is counted, and ends."""

    def __init__(self) -> None:
        self.reached = threading.Event()

    def Control(self, _: Any, __: Any) -> Iterator[Any]:  # noqa: N802
        """Note that a worker has connected."""
        self.reached.set()
        return iter(())


def check_worker_pool(options: PipelineOptions) -> None:
    """Start one worker in the pool of `--environment_type EXTERNAL`, and wait until it connects.

    It gets the address that Prism gives to its workers: localhost, and the port of `--job_port`.

    Raises:
        RunnerError: The pool does not answer, or its worker does not connect.
    """
    portable = options.view_as(PortableOptions)
    if str(portable.environment_type).upper() != "EXTERNAL":
        return
    pool = portable.environment_config
    with grpc.insecure_channel(pool) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise RunnerError(
                f"no worker pool answers at {pool}: start it there with "
                "`python -m apache_beam.runners.worker.worker_pool_main --service_port=PORT`, or "
                "correct --environment_config"
            ) from error
        _check_worker(channel, pool, options.view_as(JobServerOptions).job_port or 0)


def _check_worker(channel: grpc.Channel, pool: str, job_port: int) -> None:
    """Raise RunnerError unless a worker of a pool connects to this port (0: any) of localhost."""
    stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
    name, control = f"millrace-probe-{uuid.uuid4().hex[:8]}", _Control()
    server = grpc.server(ThreadPoolExecutor(1))
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(control, server)
    address = f"localhost:{server.add_insecure_port(f'[::]:{job_port}')}"
    server.start()
    try:
        stub.StartWorker(
            beam_fn_api_pb2.StartWorkerRequest(
                worker_id=name,
                control_endpoint=endpoints_pb2.ApiServiceDescriptor(url=address),
            )
        )
        if not control.reached.wait(START_SECONDS):
            raise RunnerError(
                f"a worker of the pool at {pool} did not connect to {address}, the address that "
                f"Prism gives to workers, within {START_SECONDS:.0f} s: the workers need a "
                "`python` with apache_beam on their PATH; on another machine they also need a "
                "forwarder from this address to Prism, at a fixed --job_port"
            )
    finally:
        stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id=name))
        server.stop(0)
