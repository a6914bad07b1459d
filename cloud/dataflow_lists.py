"""Reads lists of Dataflow's jobs, and finds the regions that did not respond to the request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.cloud.dataflow_v1beta3 import Job, ListJobsResponse


def read_jobs(
    pages: Iterable[ListJobsResponse], most: int | None = None
) -> tuple[list[Job], list[str]]:
    """Read the jobs of a list, and the regions that are missing from it.

    Args:
        pages: The responses of `jobs.list` or `jobs.aggregated`.
        most: The number of jobs after which to stop, None for all.

    Returns:
        At most `most` jobs, and the sorted names of the regions that did not respond.
    """
    jobs: list[Job] = []
    unseen: set[str] = set()
    for page in pages:
        jobs += page.jobs
        unseen.update(place.name for place in page.failed_location)
        if most is not None and len(jobs) >= most:
            break
    return jobs[:most], sorted(unseen)


def not_listed(regions: Sequence[str]) -> str:
    """Return the message about regions that did not respond."""
    return f"jobs of {' and '.join(regions)} could not be listed"
