"""Lists of Dataflow's jobs, which leave out the regions that do not answer, and name them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.cloud.dataflow_v1beta3 import Job, ListJobsResponse


def read_jobs(
    pages: Iterable[ListJobsResponse], most: int | None = None
) -> tuple[list[Job], list[str]]:
    """Answers of jobs.list or jobs.aggregated -> at most so many jobs, regions not among them."""
    jobs: list[Job] = []
    unseen: set[str] = set()
    for page in pages:
        jobs += page.jobs
        unseen.update(place.name for place in page.failed_location)
        if most is not None and len(jobs) >= most:
            break
    return jobs[:most], sorted(unseen)


def not_listed(regions: Sequence[str]) -> str:
    """Regions that did not answer -> what is told of them."""
    return f"jobs of {' and '.join(regions)} could not be listed"
