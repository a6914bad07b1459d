"""How to find a Dataflow job again: its console page, and the command that follows it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from cloud.endpoints import Endpoints
from common.command_names import as_typed

# The services that following a job needs: for the job, a stream's backlog, the report, and the
# label of the stream's subscription.
_SERVICES = ("dataflow", "monitoring", "storage", "pubsub")


def console_link(project: str, region: str, job_id: str) -> str:
    """Return the address of a job's page in the Google Cloud console."""
    return f"https://console.cloud.google.com/dataflow/jobs/{region}/{job_id}?project={project}"


def attach_command(project: str, region: str, job_id: str, endpoints: Endpoints) -> str:
    """Return the command that follows a job, quoted so that it can be pasted into a shell.

    Args:
        project: The project of the job.
        region: The region of the job.
        job_id: The id or name of the job.
        endpoints: The addresses of the services; those that are set become `--api_endpoints`.
    """
    words = ["--attach", job_id, "--project", project, "--region", region]
    places = {name: getattr(endpoints, name) for name in _SERVICES}
    if given := ",".join(f"{name}={place}" for name, place in places.items() if place):
        words += ["--api_endpoints", given]
    return as_typed(f"pipelines.launch {shlex.join(words)}")


def links(project: str, region: str, job_id: str, endpoints: Endpoints) -> dict[str, str]:
    """Return the lines that say where to find a started job: `console` and `follow`.

    Args:
        project: The project of the job.
        region: The region of the job.
        job_id: The id of the job.
        endpoints: As for `attach_command`.
    """
    return {
        "console": console_link(project, region, job_id),
        "follow": attach_command(project, region, job_id, endpoints),
    }


@contextmanager
def interrupted(message: str) -> Iterator[None]:
    """Raise KeyboardInterrupt with a message if the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(message) from None


@contextmanager
def starting(project: str, region: str, name: str, endpoints: Endpoints) -> Iterator[None]:
    """If Ctrl-C interrupts the block that starts a job, report how to look for the job.

    Args:
        project: The project of the job.
        region: The region of the job.
        name: The name of the job.
        endpoints: As for `attach_command`.

    Raises:
        KeyboardInterrupt: The block was interrupted.
    """
    by_name = attach_command(project, region, name, endpoints)
    with interrupted(f"the job may have started; follow it with `{by_name}`"):
        yield
