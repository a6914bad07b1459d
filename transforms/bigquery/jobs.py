"""Jobs of BigQuery with names of their own choosing, so that none is run twice.

A job's id is derived from what it does. Whoever starts it again, a repeated bundle or
a second attempt at a run, finds the first one and takes its result. An id cannot be
used again after a failure, so a number is added: id-0, id-1, ...
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

from google.api_core import exceptions
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import is_passing, retry

Job = Any
# A job that fails for a reason that passes is run again until it was started this often.
ATTEMPTS = 5
# BigQuery ends a transaction, or a statement, whose rows another one changes, and calls that an
# invalid query: only the message tells. Source: its documentation of transactions, "concurrency".
_ABORTED = "due to concurrent update"
# Numbers that are looked through: far more than attempts can have used up.
_NUMBERS = 1_000
# BigQuery ends a job after six hours of waiting and six of running.
_JOB_SECONDS = 13 * 3600.0


def job_id(kind: str, *parts: str) -> str:
    """What a job is for, and whatever tells it from others -> an id for it."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
    return f"millrace-{kind}-{digest}"


def run_job(
    client: bigquery.Client,
    base: str,
    location: str | None,
    cloud: Cloud,
    begin: Callable[[str], Job],
) -> Job:
    """A job's id, and a function that starts it under a full one -> the job, done.

    One that is there already is waited for instead; one that failed is tried again
    under the next number, in this call as long as the failure may pass and ATTEMPTS
    are not used up. An error of asking about a job is no failure of the job: the job
    may run on, so that none is started beside it. location: of the data; a job outside
    the multi-regions US and EU is found only with it. Raises GoogleAPICallError,
    RetryError.
    """
    started = 0
    for number in range(_NUMBERS):
        name = f"{base}-{number}"
        job = _find(client, name, location, cloud)
        found = job is not None
        if job is None:
            job = _begin(client, name, location, cloud, begin)
            started += 1
        failure = _wait(job, cloud)
        if failure is None:
            return job
        if not found:
            if started == ATTEMPTS or not _may_pass(failure):
                raise failure
            time.sleep(min(2.0 ** (started - 1), 20.0))
    raise exceptions.Conflict(f"{_NUMBERS:,} jobs {base}-... have failed")


def _may_pass(failure: exceptions.GoogleAPICallError) -> bool:
    return is_passing(failure) or _ABORTED in str(failure)


def done_job(client: bigquery.Client, base: str, location: str | None, cloud: Cloud) -> Job | None:
    """A job's id -> the one that succeeded under it, waited for if it runs; None if none did."""
    for number in range(_NUMBERS):
        job = _find(client, f"{base}-{number}", location, cloud)
        if job is None or _wait(job, cloud) is None:
            return job
    return None


def _find(client: bigquery.Client, name: str, location: str | None, cloud: Cloud) -> Job | None:
    """A job's full id -> the job, None if there is none."""
    try:
        return client.get_job(name, location=location, retry=retry(cloud.retry_seconds))
    except exceptions.NotFound:
        return None


def _begin(
    client: bigquery.Client,
    name: str,
    location: str | None,
    cloud: Cloud,
    begin: Callable[[str], Job],
) -> Job:
    try:
        return begin(name)
    except exceptions.Conflict:
        # Started meanwhile by another, or by a request of ours whose answer was lost; it may
        # take a moment until it can be seen.
        again = retry(cloud.retry_seconds, exceptions.NotFound)
        return client.get_job(name, location=location, retry=again)


def _wait(job: Job, cloud: Cloud) -> exceptions.GoogleAPICallError | None:
    """A job -> None once it is done, or why it failed. Raises what asking about it raises."""
    deadline, delay = time.monotonic() + _JOB_SECONDS, 0.1
    while not job.done(retry=retry(cloud.retry_seconds)):
        if time.monotonic() > deadline:
            raise exceptions.DeadlineExceeded(f"job {job.job_id} is still {job.state}")
        time.sleep(delay)
        delay = min(delay * 1.5, 5.0)
    return job.exception() if job.error_result else None
