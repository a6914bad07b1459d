"""Run a batch pipeline on a runner outside of this process, and stop what Beam starts for it."""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.runners.portability.job_server import JobServer
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.runners.runner import PipelineRunner

from common.errors import RunnerError, one_line
from pipelines.batch.worker_pools import check_worker_pool

# What a worker and Prism write, in the text of the error of a job.
_NO_MODULE = re.compile(r"^ModuleNotFoundError: No module named '([\w.]+)'", re.MULTILINE)
_NO_WORKER = re.compile(r"didn't get control connection to (\S+) after")


def run_elsewhere(pipeline: beam.Pipeline, options: PipelineOptions) -> None:
    """Run a pipeline to its end. Ctrl-C cancels the job.

    Args:
        pipeline: The pipeline.
        options: The options of the pipeline.

    Raises:
        RunnerError: No job server or worker answers, the job server stops before the end of the
            run, or the workers lack a module.
    """
    endpoint = options.view_as(PortableOptions).job_endpoint
    if isinstance(pipeline.runner, PrismRunner) and not endpoint:
        check_worker_pool(options)
    with _temporary_files(), _servers_stopped(pipeline.runner):
        try:
            result = pipeline.run()
            try:
                result.wait_until_finish()
            except KeyboardInterrupt:
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


def _explain(error: Exception) -> RunnerError | None:
    """Return what an error of a runner means, or None if it is an error of the run."""
    if isinstance(error, grpc.RpcError):
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            return None
        return RunnerError(
            "the runner's job server has stopped, or can no longer be reached "
            f"({one_line(error)}): see its log for the cause, and run again"
        )
    if found := _NO_MODULE.search(str(error)):
        return RunnerError(
            f"the workers cannot import {found[1]!r}: install Millrace on them, and what your "
            "model needs, in the versions of this machine"
        )
    if found := _NO_WORKER.search(str(error)):
        return RunnerError(
            f"no worker has connected to the runner at {found[1]}: check that the workers can "
            "start, and that they reach this address"
        )
    return None


@contextmanager
def _servers_stopped(runner: PipelineRunner) -> Iterator[None]:
    """Stop the job servers that a runner starts in the block.

    Beam stops them when the interpreter exits, which a command skips (pipelines/command.py). A
    server such as Prism would then keep its memory and its port.
    """
    started: list[JobServer] = []
    if isinstance(runner, PortableRunner):
        make = runner.default_job_server

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
        for server in started:
            server.stop()


@contextmanager
def _temporary_files() -> Iterator[None]:
    """Let this process create temporary files in a folder that is removed after the block.

    Beam leaves folders behind, some of them until the interpreter exits.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="millrace-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
