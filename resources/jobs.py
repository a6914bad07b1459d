"""Finds the Dataflow jobs of the pipelines by their names, and others that read their messages."""

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
from common.addresses import split_gcs_path
from resources.config import Config
from resources.declaration import declare
from resources.kinds.base import configs_of
from resources.kinds.storage import SCHEME

if TYPE_CHECKING:
    from cloud.clients import Dataflow

ROLE = "roles/dataflow.developer"
_POLL_SECONDS = 5.0
_ENDED = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")
# The parts of job names that the reference uses, by pipeline. The longest match decides, because
# the name of a local pipeline is a prefix of the name of the Vertex pipeline.
_STEMS = {
    "batch_local": "batch-",
    "batch_vertex": "batch-vertex-",
    "stream_local": "streaming-",
    "stream_vertex": "streaming-vertex-",
}


@dataclass(frozen=True, kw_only=True)
class PipelineJob:
    """A job that has not ended.

    Attributes:
        ident: The id of the job.
        name: The name of the job.
        region: The region of the job.
        pipeline: The pipeline that the job runs according to its name, None for other names.
        state: The state in lowercase, such as `running`.
        streaming: Whether the job is a streaming job.
        created: When the job was created.
        subscriptions: The subscriptions that the job reads, as far as Dataflow reports them.
        configs: The configurations of the job's labels. Only `PipelineJobs.whole` fills it.
        buckets: The buckets that the job stages files in. Only `PipelineJobs.whole` fills it.
        account: The account that the workers run as. Only `PipelineJobs.whole` fills it.
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
        """Whether the job can be drained: it is a streaming job that has started."""
        return self.streaming and self.state in ("running", "draining")

    def age(self, now: datetime) -> timedelta:
        """Return the time since the job was created."""
        return now - self.created


@dataclass(frozen=True)
class Usage:
    """What a job has used so far.

    Attributes:
        vcpu: vCPU seconds.
        memory: GB seconds of memory.
        disk: GB seconds of disk.
    """

    vcpu: float = 0.0
    memory: float = 0.0
    disk: float = 0.0

    def dollars(self, *, streaming: bool) -> float:
        """Return an estimate in USD at the hourly list prices of us-central1, without shuffle.

        Source: "Dataflow pricing".

        Args:
            streaming: Whether the prices of streaming jobs apply.
        """
        hourly = self.vcpu * (0.069 if streaming else 0.056) + self.memory * 0.003557
        return (hourly + self.disk * 0.000054) / 3600


def pipeline_of(name: str, prefix: str) -> str | None:
    """Return the pipeline that a job runs according to its name, None for other names.

    Args:
        name: The name of the job.
        prefix: The configuration's prefix of job names.
    """
    fitting = [
        (len(stem), pipeline)
        for pipeline, stem in _STEMS.items()
        if name.startswith(f"{prefix}-{stem}")
    ]
    return max(fitting)[1] if fitting else None


@dataclass(frozen=True)
class PipelineJobs:
    """The Dataflow jobs of a configuration. The methods raise errors of Google's clients."""

    cloud: Cloud
    config: Config

    def running(self) -> list[PipelineJob]:
        """Return all jobs of `seen`, and retry until every region is listed.

        Raises:
            ServiceUnavailable: A region could still not be listed when the retries ended. Jobs may
                run there.
        """

        def listed() -> list[PipelineJob]:
            jobs, unseen = self.seen()
            if unseen:
                raise exceptions.ServiceUnavailable(not_listed(unseen))
            return jobs

        return self._retry(listed)()  # type: ignore[no-any-return]

    def seen(self) -> tuple[list[PipelineJob], list[str]]:
        """Return the active jobs of all regions, and the regions that could not be listed.

        The jobs are those whose names match a pipeline, and those that read a subscription of the
        configuration.
        """
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
        """Return the job with the fields that a list leaves out, None if it has ended since."""
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
        """Return what a job has used, with zeros for what Dataflow does not report yet."""
        answer = self._clients.metrics.get_job_metrics(request=self._named(job), retry=self._retry)
        totals = {
            metric.name.name: float(metric.scalar)
            for metric in answer.metrics
            if isinstance(metric.scalar, (int, float))
        }
        memory = totals.get("TotalMemoryUsage", 0.0) / 1024
        return Usage(totals.get("TotalVcpuTime", 0.0), memory, totals.get("TotalPdUsage", 0.0))

    def stop(self, job: PipelineJob, *, cancel: bool) -> str:
        """Drain or cancel a job.

        A job that is already stopping in this way is left alone.

        Args:
            job: The job.
            cancel: Whether to cancel a job that could be drained.

        Returns:
            The state that the job enters: `draining` or `cancelling`.
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
            # The job has ended since it was listed.
        return "draining" if drain else "cancelling"

    def wait(
        self,
        jobs: Sequence[PipelineJob],
        seconds: float,
        report: Callable[[Mapping[str, str]], None],
    ) -> list[PipelineJob]:
        """Wait until jobs have ended.

        Args:
            jobs: The jobs to wait for.
            seconds: How long to wait.
            report: Receives the state of each remaining job, by name, at every poll.

        Returns:
            The jobs that have not ended in time.
        """
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
