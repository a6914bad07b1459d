"""Find Dataflow jobs, read their state, and start them from templates.

This module does not import Beam.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from google.api_core import exceptions

from cloud.clients import REQUEST_SECONDS, Cloud
from cloud.dataflow_lists import not_listed, read_jobs
from cloud.errors import is_passing, retry, translate_errors
from cloud.monitoring import latest
from common.errors import JobError, UsageError
from pipelines.dataflow.facts import JobFacts, read_facts
from pipelines.dataflow.metrics import JobMetrics, read_metrics

if TYPE_CHECKING:
    from cloud.clients import Dataflow

VIEWER, DEVELOPER = "roles/dataflow.viewer", "roles/dataflow.developer"
_ID = re.compile(r"\d{4}-\d\d-\d\d_\d\d_\d\d_\d\d-\d+")
_ENDED = {"done", "failed", "cancelled", "updated", "drained"}
# The list has pages for regions without jobs too, and a project may have very many jobs: reading
# all of them would take too long.
_MOST_LISTED = 2_000


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as it was at one moment.

    Attributes:
        ident: The id of the job.
        state: Dataflow's state in lowercase, such as `running` or `done`.
        changed: When the job entered this state.
        replaced_by: The id of the job that replaced it; empty if there is none.
        facts: None if the job carries no facts, or does not carry them yet.
        steps: The kind of each transform, by name. Empty unless the whole job was requested.
    """

    ident: str
    name: str
    project: str
    region: str
    state: str
    streaming: bool
    created: datetime
    changed: datetime
    replaced_by: str = ""
    facts: JobFacts | None = None
    steps: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether the job is in a final state."""
        return self.state in _ENDED

    def seconds(self, now: datetime) -> float:
        """Return the age of the job in seconds, up to its end if it has ended.

        The age is never negative, although this machine's clock may be behind Dataflow's.

        Args:
            now: The current time.
        """
        end = self.changed if self.has_ended else now
        return max(0.0, (end - self.created).total_seconds())


@dataclass(frozen=True)
class JobMessages:
    """The messages of a job.

    Attributes:
        errors: The texts of error messages, oldest first.
        news: The texts of all other messages, oldest first.
        workers: How many workers the job has now; None if no message says it.
    """

    errors: Sequence[str] = ()
    news: Sequence[str] = ()
    workers: int | None = None


@dataclass(frozen=True)
class Jobs:
    """The jobs of a cloud's project.

    Unless a method documents otherwise, it raises the errors of Google's clients.
    """

    cloud: Cloud

    def get(self, ident: str, region: str, *, whole: bool = False) -> Job:
        """Return a job.

        Args:
            ident: The id of the job.
            region: The region of the job.
            whole: Whether to read its facts and steps too.
        """
        from google.cloud.dataflow_v1beta3 import GetJobRequest, JobView

        view = JobView.JOB_VIEW_ALL if whole else JobView.JOB_VIEW_SUMMARY
        request = GetJobRequest(
            project_id=self.cloud.project, location=region, job_id=ident, view=view
        )
        return _job(self._clients.jobs.get_job(request=request, **self._patience))

    def find(self, ident: str, region: str | None) -> Job:
        """Return a job with its facts and steps; if several have the name, the newest.

        Args:
            ident: The id or name of the job.
            region: Its region; None if it is not known.

        Raises:
            UsageError: There is no such job, or it is in another region.
            CredentialsError: There are no credentials that can be used.
            JobError: Dataflow cannot be queried, or the job may be in a region that could not be
                listed.
        """
        with job_errors(f"job {ident} cannot be looked up", VIEWER):
            if region is not None and _ID.fullmatch(ident):
                try:
                    return self.get(ident, region, whole=True)
                except (exceptions.NotFound, exceptions.BadRequest):
                    pass
            name = None if _ID.fullmatch(ident) else ident
            listed, unseen = self.listed(name)
            found = [job for job in listed if ident in (job.ident, job.name)]
            here = [job for job in found if region in (None, job.region)]
            # An id belongs to one job, but the newest job of a name may be in a region that could
            # not be listed.
            may_lack = bool(unseen) and region in (None, *unseen)
            if may_lack and (name is not None or not here):
                raise exceptions.ServiceUnavailable(not_listed(unseen))
            if here:
                newest = max(here, key=lambda job: job.created)
                return self.get(newest.ident, newest.region, whole=True)
        if found:
            raise UsageError(f"job {ident} is not in {region}: pass --region {found[0].region}")
        raise UsageError(
            f"project {self.cloud.project} has no job {ident}: check the id and --project; to list "
            f"the jobs, run gcloud dataflow jobs list --project {self.cloud.project}"
        )

    def listed(self, name: str | None = None) -> tuple[list[Job], list[str]]:
        """List the jobs of the project, in all regions.

        Args:
            name: List only jobs of this name; None for all.

        Returns:
            The jobs, without facts and steps, and the regions that did not respond.
        """
        from google.cloud.dataflow_v1beta3 import JobView, ListJobsRequest

        request = ListJobsRequest(
            project_id=self.cloud.project,
            view=JobView.JOB_VIEW_SUMMARY,
            page_size=_MOST_LISTED,
            name=name,
        )
        answer = self._clients.jobs.aggregated_list_jobs(request=request, **self._patience)
        jobs, unseen = read_jobs(answer.pages, most=_MOST_LISTED)
        return list(map(_job, jobs)), unseen

    def active(self, name: str, region: str) -> list[Job]:
        """Return the jobs of a name that have not ended: two while one replaces the other.

        Args:
            name: The name of the jobs.
            region: The region of the jobs.
        """
        from google.cloud.dataflow_v1beta3 import JobView, ListJobsRequest

        request = ListJobsRequest(
            project_id=self.cloud.project,
            location=region,
            filter=ListJobsRequest.Filter.ACTIVE,
            view=JobView.JOB_VIEW_SUMMARY,
        )
        answer = self._clients.jobs.list_jobs(request=request, **self._patience)
        jobs, unseen = read_jobs(answer.pages)
        if unseen:
            raise exceptions.ServiceUnavailable(not_listed(unseen))
        return [_job(job) for job in jobs if job.name == name]

    def metrics(self, job: Job) -> JobMetrics:
        """Return the metrics of a job."""
        from google.cloud.dataflow_v1beta3 import MetricUpdate

        answer = self._clients.metrics.get_job_metrics(request=_named(job), **self._patience)
        return read_metrics(MetricUpdate.to_dict(update) for update in answer.metrics)

    def messages(self, job: Job, since: datetime | None = None) -> JobMessages:
        """Return the messages of a job.

        Args:
            job: The job.
            since: Leave out earlier messages; None for all.
        """
        from google.cloud.dataflow_v1beta3 import JobMessageImportance, ListJobMessagesRequest

        basic = JobMessageImportance.JOB_MESSAGE_BASIC
        request = ListJobMessagesRequest(**_named(job), minimum_importance=basic, start_time=since)
        pages = self._clients.messages.list_job_messages(request=request, **self._patience).pages
        errors: list[str] = []
        news: list[str] = []
        workers = None
        for page in pages:
            for message in page.job_messages:
                bad = message.message_importance == JobMessageImportance.JOB_MESSAGE_ERROR
                (errors if bad else news).append(message.message_text)
            for event in page.autoscaling_events:
                if event.current_num_workers:
                    workers = int(event.current_num_workers)
        return JobMessages(errors, news, workers)

    def backlog(self, job: Job) -> dict[str, float]:
        """Return how much a stream still has to process, as far as Cloud Monitoring knows it.

        Returns:
            `lag` (seconds), `seconds` of estimated processing time and `bytes` of the job, and
            `messages` in its subscription. Values that Cloud Monitoring does not have, or does not
            have yet, are left out.
        """
        ours = {"metric.labels.job_id": job.ident}

        def of_job(metric: str) -> list[float]:
            metric = f"dataflow.googleapis.com/job/{metric}"
            return [value.number for value in latest(self.cloud, job.project, metric, ours)]

        found = {
            "lag": of_job("system_lag"),
            "bytes": of_job("backlog_bytes"),
            "seconds": of_job("estimated_backlog_processing_time"),
        }
        if job.facts is not None and job.facts.subscription is not None:
            _, project, _, name = job.facts.subscription.split("/")
            metric = "pubsub.googleapis.com/subscription/num_undelivered_messages"
            label = {"resource.labels.subscription_id": name}
            found["messages"] = [v.number for v in latest(self.cloud, project, metric, label)]
        # Stages run concurrently, so the slowest one determines times. Bytes wait in all of them,
        # so they add up.
        return {
            kind: sum(values) if kind == "bytes" else max(values)
            for kind, values in found.items()
            if values
        }

    def launch(self, request: Mapping[str, Any]) -> str:
        """Start a Flex Template and return the id of the job.

        If a response is lost, the job may have started. This method looks for it before it sends
        the request again.

        Args:
            request: A LaunchFlexTemplateRequest as JSON.

        Raises:
            UsageError: A job of this name is running, and the request does not replace it.
            JobError: The job cannot be started.
            CredentialsError: There are no credentials that can be used.
        """
        from google.cloud.dataflow_v1beta3 import LaunchFlexTemplateRequest
        from google.protobuf.json_format import ParseDict

        message = LaunchFlexTemplateRequest()
        ParseDict(request, type(message).pb(message))
        name, region = message.launch_parameter.job_name, message.location
        before = self._active_before(name, region, update=message.launch_parameter.update)
        lost = False

        def started() -> str:
            nonlocal lost
            try:
                answer = self._clients.templates.launch_flex_template(
                    request=message, timeout=REQUEST_SECONDS
                )
            except Exception as error:
                lost = lost or is_passing(error)
                # A job that was started, but is not listed yet, makes the next attempt a conflict.
                if not (is_passing(error) or (lost and isinstance(error, exceptions.Conflict))):
                    raise
                new = [job for job in self.active(name, region) if job.ident not in before]
                if not new:
                    raise
                return new[0].ident
            return str(answer.job.id)

        with job_errors(f"job {name} cannot be started", DEVELOPER):
            return str(retry(self.cloud.retry_seconds)(started)())

    def _active_before(self, name: str, region: str, *, update: bool) -> set[str]:
        with job_errors(f"jobs named {name} cannot be listed", DEVELOPER):
            found = self.active(name, region)
        if found and not update:
            raise UsageError(
                f"--job_name {name}: a job of this name is already running ({found[0].ident}): "
                "choose another name, or pass --update to replace a stream"
            )
        return {job.ident for job in found}

    @functools.cached_property
    def _clients(self) -> Dataflow:
        return self.cloud.dataflow()

    @property
    def _patience(self) -> dict[str, Any]:
        return {"retry": retry(self.cloud.retry_seconds), "timeout": REQUEST_SECONDS}


def job_errors(what: str, role: str) -> AbstractContextManager[None]:
    """Raise the errors of Google's clients in the block as JobError.

    Missing credentials become a CredentialsError.

    Args:
        what: What cannot be done; the message starts with it.
        role: The role that the account needs for it, for the message.
    """
    return translate_errors(JobError, what, role)


def _named(job: Job) -> dict[str, str]:
    return {"project_id": job.project, "location": job.region, "job_id": job.ident}


def _moment(given: datetime | None, otherwise: datetime) -> datetime:
    """Convert a time of Google's client, which has nanoseconds; None becomes `otherwise`."""
    return datetime.fromtimestamp(given.timestamp(), UTC) if given else otherwise


def _job(answer: Any) -> Job:
    """Convert a Job of Google's client."""
    from google.cloud.dataflow_v1beta3 import JobState, JobType, KindType
    from google.protobuf.json_format import MessageToDict

    raw = MessageToDict(type(answer).pb(answer).environment.sdk_pipeline_options)
    created = _moment(answer.create_time, datetime.fromtimestamp(0, UTC))
    return Job(
        ident=answer.id,
        name=answer.name,
        project=answer.project_id,
        region=answer.location,
        state=JobState(answer.current_state).name.removeprefix("JOB_STATE_").lower(),
        streaming=answer.type_ == JobType.JOB_TYPE_STREAMING,
        created=created,
        changed=_moment(answer.current_state_time, created),
        replaced_by=answer.replaced_by_job_id,
        facts=read_facts(raw.get("options", {})),
        steps={
            step.name: KindType(step.kind).name.removesuffix("_KIND").lower()
            for step in answer.pipeline_description.original_pipeline_transform
        },
    )
