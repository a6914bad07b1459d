"""Run a pipeline on a runner outside of this process, and stop what Beam starts for it."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from subprocess import Popen
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import (
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
)
from apache_beam.runners.portability.job_server import JobServer, StopOnExitJobServer
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
from apache_beam.runners.portability.prism_runner import PrismJobServer, PrismRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner

from common.errors import RunnerError, UsageError, one_line
from common.interrupts import Background
from common.private_beam.worker_processes import noted_workers
from pipelines.batch.worker_pools import check_worker_pool

# What a worker and Prism write, in the text of the error of a job.
_NO_MODULE = re.compile(r"^ModuleNotFoundError: No module named '([\w.]+)'", re.MULTILINE)
_NO_WORKER = re.compile(r"didn't get control connection to (\S+) after")
_NO_PRISM = re.compile(r"^Unable to fetch remote prism binary at (.*)")
_NO_JAR = re.compile(r"^Unable to fetch remote job server jar at (\S+): ")
# How long Prism waits for a job before it ends, as Go writes a duration.
_IDLE = "60s"
# How Beam names the threads of workers, and how long they may take to notice that Prism has ended.
_WORKER_THREADS = "run_worker_"
_WORKER_SECONDS = 1.0
_POLL_SECONDS = 0.5
# How long a job may go on when a worker process has ended.
_GRACE_SECONDS = 10.0
_WORKER_ENDED = (
    "a worker of the runner has ended before the job: it was killed, or its machine had too little "
    "memory; run again"
)


def _wait(until_end: Callable[[], None]) -> None:
    """Wait for the end of a job."""
    until_end()


def run_elsewhere(
    pipeline: beam.Pipeline,
    options: PipelineOptions,
    wait: Callable[[Callable[[], None]], None] = _wait,
    *,
    debug: bool = False,
) -> None:
    """Run a pipeline to its end. Ctrl-C cancels the job.

    Args:
        pipeline: The pipeline.
        options: The options of the pipeline.
        wait: Waits for the end of the job by calling its argument, which returns then. It raises
            KeyboardInterrupt to cancel the job.
        debug: Whether workers that are processes print on standard error.

    Raises:
        UsageError: The program of Prism does not exist.
        RunnerError: No job server or worker answers, the job server or a worker stops before the
            end of the run, or the workers lack a module.
    """
    endpoint = options.view_as(PortableOptions).job_endpoint
    if isinstance(pipeline.runner, PrismRunner) and not endpoint:
        _check_program(options.view_as(PrismRunnerOptions).prism_location)
        check_worker_pool(options)
    with (
        noted_workers(silent=not debug) as workers,
        _environment(),
        _servers_stopped(pipeline.runner),
    ):
        try:
            result = pipeline.run()
            try:
                wait(partial(_wait_until_end, result, workers))
            except (KeyboardInterrupt, RunnerError):
                with suppress(Exception):
                    result.cancel()
                raise
        except grpc.FutureTimeoutError as error:
            raise RunnerError(
                f"no job server answers at {endpoint}: start it, or correct --job_endpoint"
            ) from error
        except (grpc.RpcError, RuntimeError) as error:
            if (explained := _explain(error)) is None:
                raise
            raise explained from error


def _wait_until_end(result: PipelineResult, workers: Sequence[Popen[bytes]]) -> None:
    """Wait for the end of a job. Raise RunnerError if a worker process ends before it.

    Prism waits without end for a worker that has ended while it had nothing to do.
    """
    job = Background(result.wait_until_finish)
    while not job.wait(_POLL_SECONDS):
        codes = [worker.poll() for worker in workers]
        # A worker also ends at the end of the job.
        if any(code is not None for code in codes) and not job.wait(_GRACE_SECONDS):
            raise RunnerError(_WORKER_ENDED)
    job.result()


def _check_program(path: str | None) -> None:
    """Raise UsageError if the program of Prism is a path of this machine that does not exist."""
    if path and "://" not in path and not os.path.isfile(path):
        raise UsageError(
            f"--prism_location {path} does not exist: get Prism with `make prism`, and pass "
            "--prism_location .prism/prism"
        )


def _explain(error: Exception) -> RunnerError | None:
    """Return what an error of a runner means, or None if it is an error of the run."""
    if isinstance(error, grpc.RpcError):
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            return None
        return RunnerError(
            "the runner's job server has stopped, or can no longer be reached "
            f"({one_line(error)}): see its log for the cause, and run again"
        )
    if found := _NO_PRISM.match(str(error)):
        return RunnerError(
            f"Prism cannot be downloaded from {found[1]}: get it with `make prism`, and pass "
            "--prism_location .prism/prism"
        )
    if found := _NO_JAR.match(str(error)):
        return RunnerError(
            f"the runner's job server cannot be downloaded from {found[1]}: download it elsewhere, "
            "and pass its path as --flink_job_server_jar or --spark_job_server_jar"
        )
    if found := _NO_MODULE.search(str(error)):
        return RunnerError(
            f"the workers cannot import {found[1]!r}: install Millrace on them, and what your "
            "model needs, in the versions of this machine"
        )
    if "SDK worker disconnected" in str(error):
        return RunnerError(_WORKER_ENDED)
    if found := _NO_WORKER.search(str(error)):
        return RunnerError(
            f"no worker has connected to the runner at {found[1]}: check that the workers can "
            "start, and that they reach this address"
        )
    return None


class _Prism(PrismJobServer):
    """Prism, which ends by itself if the command is killed and its job has ended."""

    def prism_arguments(self, job_port: int) -> list[Any]:
        """Return the arguments of the program."""
        return [*super().prism_arguments(job_port), f"--idle_shutdown_timeout={_IDLE}"]


@contextmanager
def _servers_stopped(runner: PipelineRunner) -> Iterator[None]:
    """Wait for job servers as long as a job runs, and stop those that a runner starts in the block.

    Beam stops them when the interpreter exits, which a command skips (pipelines/command.py). A
    server such as Prism would then keep its memory and its port.
    """
    started: list[JobServer] = []
    if isinstance(runner, PortableRunner):
        make = runner.default_job_server
        connect = runner.create_job_service_handle

        def connect_for_good(service: Any, options: PipelineOptions) -> JobServiceHandle:
            # Beam would end the wait for a job by --job_server_timeout, after 300 s by default.
            handle = connect(service, options)
            handle.timeout = None
            return handle

        runner.create_job_service_handle = connect_for_good
        if isinstance(runner, PrismRunner):

            def make(options: PipelineOptions) -> JobServer:
                return StopOnExitJobServer(_Prism(options))

        def make_and_note(options: PipelineOptions) -> JobServer:
            started.append(make(options))
            return started[-1]

        runner.default_job_server = make_and_note
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        # Beam handles Ctrl-C by stopping the server, and would wait for the stop that is running.
        with suppress(ValueError):
            signal.signal(signal.SIGINT, before)
        with _lost_connections_ignored():
            for server in started:
                server.stop()


@contextmanager
def _lost_connections_ignored() -> Iterator[None]:
    """Let threads of workers end without a traceback if their runner stops in the block."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, grpc.RpcError):
            before(args)

    threading.excepthook = hook
    try:
        yield
        for thread in threading.enumerate():
            if thread.name.startswith(_WORKER_THREADS):
                thread.join(_WORKER_SECONDS)
    finally:
        threading.excepthook = before


@contextmanager
def _environment() -> Iterator[None]:
    """Set where Beam creates temporary files, and with which Python it starts workers.

    Beam leaves folders behind, some of them until the interpreter exits. It starts a worker with
    the first `python` on the PATH.
    """
    folder_before, path_before = tempfile.tempdir, os.environ.get("PATH", "")
    with tempfile.TemporaryDirectory(prefix="millrace-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), path_before))
        try:
            yield
        finally:
            tempfile.tempdir, os.environ["PATH"] = folder_before, path_before
