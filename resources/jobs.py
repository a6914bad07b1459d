"""Dataflow jobs of the pipelines, found by their names, and others that read our messages."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from google.api_core import exceptions
from google.protobuf.json_format import MessageToDict

from cloud.clients import Cloud
from cloud.dataflow_lists import not_listed, read_jobs
from cloud.errors import retry
from resources.config import Config
from resources.declaration import declare
from resources.kinds.base import configs_of
from resources.kinds.storage import SCHEME, split_gcs_path

if TYPE_CHECKING:
    from cloud.clients import Dataflow

ROLE = "roles/dataflow.developer"
_POLL_SECONDS = 5.0
_ENDED = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")
# By pipeline: the reference's names. The longest that fits tells, since the first is the
# beginning of the second.
_STEMS = {
    "batch_local": "batch-",
    "batch_vertex": "batch-vertex-",
    "stream_local": "streaming-",
    "stream_vertex": "streaming-vertex-",
}


@dataclass(frozen=True, kw_only=True)
class PipelineJob:
    """A job that has not ended.

    pipeline: None where the name is not one of ours. subscriptions: that it reads, as Dataflow
    tells them. Only `Jobs.whole` tells configs, those of its labels; buckets, that it stages in;
    account, that its workers run as.
    """

    ident: str
    name: str
    region: str
    pipeline: str | None
    state: str
    streaming: bool
    created: datetime
    subscriptions: tuple[str, ...] = ()
    configs: frozenset[str] = frozenset()
    buckets: tuple[str, ...] = ()
    account: str = ""

    @property
    def drains(self) -> bool:
        """Whether it can end by what it has taken in; one that has not begun cannot."""
        return self.streaming and self.state in ("running", "draining")

    def age(self, now: datetime) -> timedelta:
        """The present -> how long it has been there."""
        return now - self.created


@dataclass(frozen=True)
class Usage:
    """What a job used so far. vcpu, memory and disk: seconds of one, of a GB, of a GB."""

    vcpu: float = 0.0
    memory: float = 0.0
    disk: float = 0.0

    def dollars(self, *, streaming: bool) -> float:
        """An estimate, by the list prices of us-central1 for workers, shuffle left out.

        Source: "Dataflow pricing", prices an hour.
        """
        hourly = self.vcpu * (0.069 if streaming else 0.056) + self.memory * 0.003557
        return (hourly + self.disk * 0.000054) / 3600


def pipeline_of(name: str, prefix: str) -> str | None:
    """A job's name, the prefix of ours -> the pipeline that it runs, None for a foreign one."""
    fitting = [
        (len(stem), pipeline)
        for pipeline, stem in _STEMS.items()
        if name.startswith(f"{prefix}-{stem}")
    ]
    return max(fitting)[1] if fitting else None


@dataclass(frozen=True)
class PipelineJobs:
    """Dataflow, as far as it is ours. Methods raise errors of Google's clients."""

    cloud: Cloud
    config: Config

    def running(self) -> list[PipelineJob]:
        """Nothing -> our jobs that have not ended, of all regions, and who reads beside them.

        Raises ServiceUnavailable where a region goes on not to be listed: jobs may run there.
        """

        def listed() -> list[PipelineJob]:
            jobs, unseen = self.seen()
            if unseen:
                raise exceptions.ServiceUnavailable(not_listed(unseen))
            return jobs

        return self._retry(listed)()  # type: ignore[no-any-return]

    def seen(self) -> tuple[list[PipelineJob], list[str]]:
        """Nothing -> jobs as `running` tells them, and regions that could not be listed."""
        from google.cloud.dataflow_v1beta3 import JobState, JobView, ListJobsRequest

        request = ListJobsRequest(
            project_id=self.cloud.project,
            filter=ListJobsRequest.Filter.ACTIVE,
            view=JobView.JOB_VIEW_SUMMARY,
        )
        ours = {r.name for r in declare(self.config) if r.kind == "subscription"}
        answer = self._clients.jobs.aggregated_list_jobs(request=request, retry=self._retry)
        jobs, unseen = read_jobs(answer.pages)
        every = [self._job(job, JobState(job.current_state).name) for job in jobs]
        kept = [job for job in every if job.pipeline or ours.intersection(job.subscriptions)]
        return kept, unseen

    def whole(self, job: PipelineJob) -> PipelineJob | None:
        """A job -> itself with what a list does not tell; None if it has ended meanwhile."""
        from google.cloud.dataflow_v1beta3 import GetJobRequest, JobState, JobView

        request = GetJobRequest(**self._named(job), view=JobView.JOB_VIEW_ALL)
        try:
            answer = self._clients.jobs.get_job(request=request, retry=self._retry)
        except exceptions.NotFound:
            return None
        if JobState(answer.current_state).name.removeprefix("JOB_STATE_") in _ENDED:
            return None
        environment = answer.environment
        found = MessageToDict(type(answer).pb(answer).environment.sdk_pipeline_options)
        options = found.get("options", {})
        places = (str(options.get(name) or "") for name in ("temp_location", "staging_location"))
        return replace(
            job,
            configs=configs_of(answer.labels),
            buckets=tuple(
                {split_gcs_path(place)[0] for place in places if place.startswith(SCHEME)}
            ),
            account=environment.service_account_email or options.get("service_account_email") or "",
        )

    def usage(self, job: PipelineJob) -> Usage:
        """A job -> what it used, zeros where Dataflow does not tell yet."""
        answer = self._clients.metrics.get_job_metrics(request=self._named(job), retry=self._retry)
        totals = {
            metric.name.name: float(metric.scalar)
            for metric in answer.metrics
            if isinstance(metric.scalar, (int, float))
        }
        memory = totals.get("TotalMemoryUsage", 0.0) / 1024
        return Usage(totals.get("TotalVcpuTime", 0.0), memory, totals.get("TotalPdUsage", 0.0))

    def stop(self, job: PipelineJob, *, cancel: bool) -> str:
        """A job -> what it does: it drains, or is cancelled where it cannot drain or shall not.

        One that does so already is left alone.
        """
        from google.cloud.dataflow_v1beta3 import Job as Asked
        from google.cloud.dataflow_v1beta3 import JobState

        if job.state == "cancelling" or (job.state == "draining" and not cancel):
            return job.state
        drain = job.drains and not cancel
        wanted = JobState.JOB_STATE_DRAINED if drain else JobState.JOB_STATE_CANCELLED
        request = {**self._named(job), "job": Asked(requested_state=wanted)}
        try:
            self._clients.jobs.update_job(request=request, retry=self._retry)
        except exceptions.BadRequest:
            if self.whole(job) is not None:
                raise
            # It ended by itself in between.
        return "draining" if drain else "cancelling"

    def wait(
        self,
        jobs: Sequence[PipelineJob],
        seconds: float,
        report: Callable[[Mapping[str, str]], None],
    ) -> list[PipelineJob]:
        """Jobs that were told to stop, how long to wait -> those that have not ended by then."""
        idents, end = {job.ident for job in jobs}, time.monotonic() + seconds
        while True:
            left = [job for job in self.running() if job.ident in idents]
            if not left or time.monotonic() >= end:
                return left
            report({job.name: job.state for job in left})
            time.sleep(min(_POLL_SECONDS, max(0.0, end - time.monotonic())))

    def _job(self, job: Any, state: str) -> PipelineJob:
        from google.cloud.dataflow_v1beta3 import JobType

        return PipelineJob(
            ident=job.id,
            name=job.name,
            region=job.location,
            pipeline=pipeline_of(job.name, self.config.job_prefix),
            state=state.removeprefix("JOB_STATE_").lower(),
            streaming=job.type_ == JobType.JOB_TYPE_STREAMING,
            created=datetime.fromtimestamp(job.create_time.timestamp(), UTC),
            subscriptions=tuple(
                details.subscription
                for details in job.job_metadata.pubsub_details
                if details.subscription
            ),
        )

    def _named(self, job: PipelineJob) -> dict[str, str]:
        return {"project_id": self.cloud.project, "location": job.region, "job_id": job.ident}

    @functools.cached_property
    def _clients(self) -> Dataflow:
        return self.cloud.dataflow()

    @property
    def _retry(self) -> Any:
        return retry(self.cloud.retry_seconds)
