"""How a job that goes on elsewhere is found again: its page, and the command that follows it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from cloud.endpoints import Endpoints
from common.command_names import as_typed

# Whom a follower asks: for the job, a stream's backlog, the report, the label of a reader.
_ASKED = ("dataflow", "monitoring", "storage", "pubsub")


def console_link(project: str, region: str, job_id: str) -> str:
    """A job -> its page in the console."""
    return f"https://console.cloud.google.com/dataflow/jobs/{region}/{job_id}?project={project}"


def attach_command(project: str, region: str, job_id: str, endpoints: Endpoints) -> str:
    """A job, by id or name, and where the services are -> the command that follows it.

    It can be typed as it is, in any shell.
    """
    words = ["--attach", job_id, "--project", project, "--region", region]
    places = {name: getattr(endpoints, name) for name in _ASKED}
    if given := ",".join(f"{name}={place}" for name, place in places.items() if place):
        words += ["--api_endpoints", given]
    return as_typed(f"pipelines.launch {shlex.join(words)}")


def links(project: str, region: str, job_id: str, endpoints: Endpoints) -> dict[str, str]:
    """A job that was started -> the lines that tell where it is to be seen."""
    return {
        "console": console_link(project, region, job_id),
        "follow": attach_command(project, region, job_id, endpoints),
    }


@contextmanager
def interrupted(message: str) -> Iterator[None]:
    """What Ctrl-C in the block leaves behind -> told where it comes."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(message) from None


@contextmanager
def starting(project: str, region: str, name: str, endpoints: Endpoints) -> Iterator[None]:
    """A job that the block starts -> where Ctrl-C comes, how to look for it."""
    by_name = attach_command(project, region, name, endpoints)
    with interrupted(f"the job may have been started; follow it: {by_name}"):
        yield
