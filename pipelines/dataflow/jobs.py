"""Jobs of Dataflow, as they are found, looked at and started by templates. Loads no Beam."""

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
# Regions of a project without jobs are asked as well; more pages are nobody's patience.
_MOST_LISTED = 2_000


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as it was at one moment. facts: None where it does not tell them, or not yet.

    steps: name and kind of each transform; empty unless all of the job was asked for.
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
        """Whether its state stays as it is."""
        return self.state in _ENDED

    def seconds(self, now: datetime) -> float:
        """The present -> how long it has been there, to its end where it has ended.

        This machine's clock may be behind Dataflow's.
        """
        end = self.changed if self.has_ended else now
        return max(0.0, (end - self.created).total_seconds())


@dataclass(frozen=True)
class JobMessages:
    """What happened to a job. errors: texts, oldest first; news: all others. workers: now."""

    errors: Sequence[str] = ()
    news: Sequence[str] = ()
    workers: int | None = None


@dataclass(frozen=True)
class Jobs:
    """The jobs of a cloud's project. Methods raise errors of Google's clients, unless they say."""

    cloud: Cloud

    def get(self, ident: str, region: str, *, whole: bool = False) -> Job:
        """A job's id and region -> the job; whole with its facts and steps."""
        from google.cloud.dataflow_v1beta3 import GetJobRequest, JobView

        view = JobView.JOB_VIEW_ALL if whole else JobView.JOB_VIEW_SUMMARY
        request = GetJobRequest(
            project_id=self.cloud.project, location=region, job_id=ident, view=view
        )
        return _job(self._clients.jobs.get_job(request=request, **self._patience))

    def find(self, ident: str, region: str | None) -> Job:
        """A job's id or name, its region if it is known -> the job, whole.

        By name the newest. Raises UsageError where there is none, CredentialsError, and JobError
        where it may be in a region that could not be listed.
        """
        with job_errors(f"job {ident} cannot be looked at", VIEWER):
            if region is not None and _ID.fullmatch(ident):
                try:
                    return self.get(ident, region, whole=True)
                except (exceptions.NotFound, exceptions.BadRequest):
                    pass
            name = None if _ID.fullmatch(ident) else ident
            listed, unseen = self.listed(name)
            found = [job for job in listed if ident in (job.ident, job.name)]
            here = [job for job in found if region in (None, job.region)]
            # An id is that of one job, but of a name the newest may not be listed.
            may_lack = bool(unseen) and region in (None, *unseen)
            if may_lack and (name is not None or not here):
                raise exceptions.ServiceUnavailable(not_listed(unseen))
            if here:
                newest = max(here, key=lambda job: job.created)
                return self.get(newest.ident, newest.region, whole=True)
        if found:
            raise UsageError(f"job {ident} is not in {region}: say --region {found[0].region}")
        raise UsageError(
            f"project {self.cloud.project} has no job {ident}: check the id and --project; "
            f"gcloud dataflow jobs list --project {self.cloud.project} lists them"
        )

    def listed(self, name: str | None = None) -> tuple[list[Job], list[str]]:
        """A name, or none for all -> jobs, without facts and steps; regions without an answer."""
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
        """A job's name and region -> those that have not ended: while one is replaced, two."""
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
        """A job -> its metrics."""
        from google.cloud.dataflow_v1beta3 import MetricUpdate

        answer = self._clients.metrics.get_job_metrics(request=_named(job), **self._patience)
        return read_metrics(MetricUpdate.to_dict(update) for update in answer.metrics)

    def messages(self, job: Job, since: datetime | None = None) -> JobMessages:
        """A job -> what happened to it, from a moment on."""
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
        """A stream -> what waits: `lag`, `seconds` and `bytes` of the job, `messages` of Pub/Sub.

        What Cloud Monitoring does not know, or not yet, is left out.
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
        # Of stages that work at once the slowest counts, but what waits waits in all.
        return {
            kind: sum(values) if kind == "bytes" else max(values)
            for kind, values in found.items()
            if values
        }

    def launch(self, request: Mapping[str, Any]) -> str:
        """A LaunchFlexTemplateRequest as JSON -> the id of the job.

        Where an answer gets lost, the job is looked for before it is started again. Raises
        JobError, CredentialsError.
        """
        from google.cloud.dataflow_v1beta3 import LaunchFlexTemplateRequest
        from google.protobuf.json_format import ParseDict

        asked = LaunchFlexTemplateRequest()
        ParseDict(request, type(asked).pb(asked))
        name, region = asked.launch_parameter.job_name, asked.location
        before = self._active_before(name, region, update=asked.launch_parameter.update)
        lost = False

        def started() -> str:
            nonlocal lost
            try:
                answer = self._clients.templates.launch_flex_template(
                    request=asked, timeout=REQUEST_SECONDS
                )
            except Exception as error:
                lost = lost or is_passing(error)
                # One that was not to be seen yet makes the next attempt a conflict.
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
        with job_errors(f"job {name} cannot be looked for", DEVELOPER):
            found = self.active(name, region)
        if found and not update:
            raise UsageError(
                f"--job_name {name}: such a job runs already ({found[0].ident}): choose another "
                "name, or say --update to replace a stream"
            )
        return {job.ident for job in found}

    @functools.cached_property
    def _clients(self) -> Dataflow:
        return self.cloud.dataflow()

    @property
    def _patience(self) -> dict[str, Any]:
        return {"retry": retry(self.cloud.retry_seconds), "timeout": REQUEST_SECONDS}


def job_errors(what: str, role: str) -> AbstractContextManager[None]:
    """What cannot be done, the role that it takes -> errors of the block raised as JobError."""
    return translate_errors(JobError, what, role)


def _named(job: Job) -> dict[str, str]:
    return {"project_id": job.project, "location": job.region, "job_id": job.ident}


def _moment(given: datetime | None, otherwise: datetime) -> datetime:
    """A time of Google's client, which knows nanoseconds, or None -> a time."""
    return datetime.fromtimestamp(given.timestamp(), UTC) if given else otherwise


def _job(answer: Any) -> Job:
    """A Job of Google's client -> a Job."""
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
