"""BigQuery jobs with chosen ids, so that no job runs twice.

A job's id is derived from what the job does. A repeated bundle, or a second attempt at a run, finds
the first job and uses its result. An id cannot be used again after a failure, so a number is
appended: id-0, id-1, ...
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.api_core import exceptions
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import is_passing, retry
from common.terminal import long_step

Job = Any
# Starts a job under a full id, and returns it.
Begin = Callable[[str], Job]
# How many times a job is started if it fails with a transient error.
ATTEMPTS = 5
# BigQuery ends a transaction or a statement whose rows another one changes, and calls it an invalid
# query: only the message names the cause. Source: its documentation of transactions, "concurrency".
_ABORTED = "due to concurrent update"
# How many numbers are tried: far more than attempts can use up.
_NUMBERS = 1_000
# In seconds. BigQuery ends a job that has waited for six hours and run for six hours.
_JOB_SECONDS = 13 * 3600.0


def job_id(kind: str, *parts: str) -> str:
    """Return the id of a job, to which `run_job` appends a number.

    Args:
        kind: The purpose of the job, such as `load`.
        parts: The texts that distinguish the job from others of its kind.
    """
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
    return f"millrace-{kind}-{digest}"


def run_job(
    client: bigquery.Client,
    base: str,
    location: str | None,
    cloud: Cloud,
    begin: Begin,
) -> Job:
    """Run a job to its end, unless a job with its id exists: then wait for that one.

    A job that has failed is followed by another under the next number. If this call started the
    failed job, it starts another only after a transient failure, and at most ATTEMPTS jobs in all.
    An error while polling a job is not a failure of the job: the job may still be running, so no
    other one is started.

    Args:
        client: The client with which jobs are found.
        base: The job's id, without a number.
        location: The location of the data. Outside the multi-regions US and EU, a job is found
            only with its location.
        cloud: Limits the retries of each request.
        begin: Starts the job under the full id that it is given, and returns the job.

    Returns:
        The job, which has succeeded.

    Raises:
        GoogleAPICallError: The job failed, or a request failed.
        RetryError: A request kept failing with transient errors.
    """
    return run_jobs(client, location, cloud, {base: begin})[0]


def run_jobs(
    client: bigquery.Client, location: str | None, cloud: Cloud, begins: Mapping[str, Begin]
) -> list[Job]:
    """Start several jobs as `run_job` does, then wait for each of them.

    If one fails, the others run on. A repeated call finds them by their ids.

    Args:
        client: The client with which jobs are found.
        location: The location of the data.
        cloud: Limits the retries of each request.
        begins: What starts the job under a full id, by the job's id without a number.

    Returns:
        The jobs, which have succeeded.

    Raises:
        GoogleAPICallError: A job failed, or a request failed.
        RetryError: A request kept failing with transient errors.
    """
    series = [_Series(client, location, cloud, base, begin) for base, begin in begins.items()]
    for one in series:
        one.start()
    return [one.finish() for one in series]


@dataclass
class _Series:
    """The jobs with one id and successive numbers, of which one has to succeed."""

    client: bigquery.Client
    location: str | None
    cloud: Cloud
    base: str
    begin: Begin
    number: int = 0
    started: int = 0
    job: Job = None
    is_ours: bool = False

    def start(self) -> None:
        """Find the next job that has not failed, or start one."""
        while self.number < _NUMBERS:
            name = f"{self.base}-{self.number}"
            self.number += 1
            self.job = _find(self.client, name, self.location, self.cloud)
            self.is_ours = self.job is None
            if self.is_ours:
                self.started += 1
                self.job = _begin(self.client, name, self.location, self.cloud, self.begin)
                return
            if not (self.job.state == "DONE" and self.job.error_result):
                return
        raise exceptions.Conflict(
            f"{_NUMBERS:,} jobs {self.base}-... have failed: choose another --run_id"
        )

    def finish(self) -> Job:
        """Wait for the job, and for those that follow it if it fails; return the last."""
        while (failure := _wait(self.job, self.cloud)) is not None:
            if self.is_ours:
                if self.started == ATTEMPTS or not _may_pass(failure):
                    raise failure
                time.sleep(min(2.0 ** (self.started - 1), 20.0))
            self.start()
        return self.job


def _may_pass(failure: exceptions.GoogleAPICallError) -> bool:
    return is_passing(failure) or _ABORTED in str(failure)


def done_job(client: bigquery.Client, base: str, location: str | None, cloud: Cloud) -> Job | None:
    """Return the job that succeeded under an id, or None; wait for a job that is running.

    Args:
        client: The client with which jobs are found.
        base: The job's id, without a number.
        location: The location of the data.
        cloud: Limits the retries of each request.
    """
    for number in range(_NUMBERS):
        job = _find(client, f"{base}-{number}", location, cloud)
        if job is None or _wait(job, cloud) is None:
            return job
    return None


def _find(client: bigquery.Client, name: str, location: str | None, cloud: Cloud) -> Job | None:
    """Return the job with a full id, or None."""
    try:
        return client.get_job(name, location=location, retry=retry(cloud.retry_seconds))
    except exceptions.NotFound:
        return None


def _begin(
    client: bigquery.Client,
    name: str,
    location: str | None,
    cloud: Cloud,
    begin: Begin,
) -> Job:
    try:
        return begin(name)
    except exceptions.Conflict:
        # Another process has started the job in the meantime, or an earlier request did and its
        # response was lost. The job may take a moment to become visible.
        again = retry(cloud.retry_seconds, exceptions.NotFound)
        return client.get_job(name, location=location, retry=again)


def _wait(job: Job, cloud: Cloud) -> exceptions.GoogleAPICallError | None:
    """Wait for a job to end, and return why it failed, or None. Errors of polling are raised."""
    deadline, delay = time.monotonic() + _JOB_SECONDS, 0.1
    with long_step(f"waiting for BigQuery job {job.job_id}"):
        while not job.done(retry=retry(cloud.retry_seconds)):
            if time.monotonic() > deadline:
                raise exceptions.DeadlineExceeded(f"job {job.job_id} is still {job.state}")
            time.sleep(delay)
            delay = min(delay * 1.5, 5.0)
    return job.exception() if job.error_result else None
