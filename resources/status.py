"""Reports resources, waiting messages and jobs, with warnings about what needs attention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cloud.clients import Cloud
from cloud.dataflow_lists import not_listed
from cloud.monitoring import latest
from common.command_names import as_typed
from common.errors import CredentialsError, JobNotMonitored, MillraceError
from common.terminal import Progress, columns
from common.units import in_bytes
from resources.declaration import LABEL, LABELLED, Resource, config_label
from resources.jobs import ROLE as JOBS_ROLE
from resources.jobs import PipelineJob, PipelineJobs, Usage
from resources.kinds.base import Found, resource_errors
from resources.kinds.catalog import Kinds, Looked, look_at_one
from resources.kinds.pubsub import Topics

_METRIC = "pubsub.googleapis.com/subscription/"


@dataclass(frozen=True)
class Backlog:
    """The unacknowledged messages of a subscription, None if unknown."""

    messages: int | None = None
    oldest_seconds: int | None = None


@dataclass(kw_only=True)
class Status:
    """What `look` found.

    Attributes:
        found: Each declared resource, and the resource as it exists.
        backlogs: The backlog of each subscription, by name.
        jobs: The active jobs, and what each has used.
        lonely: The names of the topics without a subscription.
        unseen: The regions whose jobs could not be listed.
        missing: An error for everything that could not be inspected.
    """

    found: list[tuple[Resource, Found | None]] = field(default_factory=list)
    backlogs: dict[str, Backlog] = field(default_factory=dict)
    jobs: dict[PipelineJob, Usage] = field(default_factory=dict)
    lonely: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    missing: list[MillraceError] = field(default_factory=list)

    def warnings(self, now: datetime, max_age: timedelta) -> list[str]:
        """Return a line for everything that needs attention.

        Args:
            now: The current time.
            max_age: The age above which a job is reported.
        """
        return [
            *(
                f"job {job.name} is {days(job.age(now))} old, more than {days(max_age)}: if you no "
                f"longer need it, stop it with `{as_typed('resources')} cleanup --kinds job`"
                for job in self.jobs
                if job.age(now) > max_age
            ),
            *shared(list(self.jobs)),
            *((f"{not_listed(self.unseen)}: more jobs may run there",) if self.unseen else ()),
            *(
                f"topic {name} has no subscription, so messages published to it are lost: create a "
                "subscription if you need them (gcloud pubsub subscriptions create NAME "
                f"--topic={name})"
                for name in self.lonely
            ),
        ]


def shared(jobs: Sequence[PipelineJob]) -> Iterator[str]:
    """Yield a warning for each subscription that several jobs read."""
    readers: dict[str, list[str]] = defaultdict(list)
    for job in jobs:
        for subscription in set(job.subscriptions):
            readers[subscription].append(job.name)
    for subscription, names in readers.items():
        if len(names) > 1:
            yield (
                f"jobs {' and '.join(sorted(names))} read {subscription}: each receives only part "
                "of the messages"
            )


def look(
    resources: Sequence[Resource], kinds: Kinds, jobs: PipelineJobs | None, progress: Progress
) -> Status:
    """Inspect resources, messages and jobs.

    What cannot be inspected is reported in `Status.missing`.

    Args:
        resources: The declaration.
        kinds: The kinds that reach the resources.
        jobs: The jobs of the configuration, None to leave them out.
        progress: Shows what is being inspected.

    Raises:
        CredentialsError: The credentials are missing or invalid.
    """
    status, looked = Status(), Looked()
    for number, resource in enumerate(resources):
        progress.now(f"inspecting {number + 1} of {len(resources)}: {resource} ...")
        try:
            look_at_one(resource, kinds, looked)
            status.found.append((resource, looked[resource.key]))
        except CredentialsError:
            raise
        except MillraceError as error:
            status.missing.append(error)
    _look_at_messages(status, kinds, progress)
    if jobs is not None:
        progress.now("inspecting jobs ...")
        try:
            with resource_errors("cannot inspect jobs", JOBS_ROLE):
                running, status.unseen = jobs.seen()
                for job in running:
                    status.jobs[job] = jobs.usage(job)
        except CredentialsError:
            raise
        except MillraceError as error:
            status.missing.append(JobNotMonitored(str(error)))
    progress.clear()
    return status


def _look_at_messages(status: Status, kinds: Kinds, progress: Progress) -> None:
    """Fill in the backlogs of subscriptions, and the topics without a subscription."""
    there = {r.name: r.kind for r, found in status.found if found is not None}
    subscriptions = [name for name, kind in there.items() if kind == "subscription"]
    topics = [r for r, found in status.found if r.kind == "topic" and found is not None]
    try:
        for topic in topics:
            kind = kinds["topic"]
            with resource_errors(f"cannot inspect {topic}", kind.role):
                if isinstance(kind, Topics) and not kind.subscriptions(topic):
                    status.lonely.append(topic.name)
        if subscriptions:
            progress.now("inspecting messages ...")
            with resource_errors(
                "cannot read the backlog of subscriptions", "roles/monitoring.viewer"
            ):
                status.backlogs = backlogs(kinds["subscription"].cloud, subscriptions)
    except MillraceError as error:
        # An account that may not read metrics can still see everything else.
        status.missing.append(error)


def backlogs(cloud: Cloud, subscriptions: Sequence[str]) -> dict[str, Backlog]:
    """Return the backlogs of subscriptions, as reported by Cloud Monitoring.

    Args:
        cloud: The clients of the project.
        subscriptions: The full names of the subscriptions.

    Returns:
        The backlog of each subscription, by full name.

    Raises:
        GoogleAPIError: Cloud Monitoring refuses the request or fails.
    """
    messages = _latest(cloud, "num_undelivered_messages")
    oldest = _latest(cloud, "oldest_unacked_message_age")
    return {
        name: Backlog(messages.get(ident), oldest.get(ident))
        for name in subscriptions
        if (ident := name.rpartition("/")[2])
    }


def _latest(cloud: Cloud, metric: str) -> dict[str, int]:
    """Return the latest value of a metric of Pub/Sub, by the id of the subscription."""
    found = latest(cloud, cloud.project, f"{_METRIC}{metric}")
    return {value.resource["subscription_id"]: int(value.number) for value in found}


def as_text(status: Status, now: datetime, max_age: timedelta) -> str:
    """Return the status as text for the user.

    Args:
        status: The result of `look`.
        now: The current time.
        max_age: The age above which a job is reported.
    """
    parts = [columns([_row(resource, found, status) for resource, found in status.found])]
    if status.jobs:
        rows = [("job", "state", "age", "cost so far, estimated")]
        for job, usage in status.jobs.items():
            cost = usage.dollars(streaming=job.streaming)
            rows.append((job.name, job.state, days(job.age(now)), f"{cost:,.2f} USD"))
        parts.append(columns(rows))
    parts += [f"warning: {warning}" for warning in status.warnings(now, max_age)]
    return "\n\n".join(parts)


def _row(resource: Resource, found: Found | None, status: Status) -> tuple[str, ...]:
    if found is None:
        word = "not created" if resource.on_demand else "missing"
        return (word, resource.kind, resource.name, "")
    details = [found.details]
    if resource.kind == "table":
        details.append(f"{found.rows:,} rows, {in_bytes(found.size)}")
    elif found.size:
        details.append(in_bytes(found.size))
    backlog = status.backlogs.get(resource.name)
    if backlog is not None and backlog.messages is not None:
        age = days(timedelta(seconds=backlog.oldest_seconds or 0))
        oldest = f", the oldest {age} old" if backlog.messages else ""
        details.append(f"{backlog.messages:,} waiting messages{oldest}")
    details.append(_whose(resource, found))
    return ("exists", resource.kind, resource.name, ", ".join(filter(None, details)))


def _whose(resource: Resource, found: Found) -> str:
    """Return whom a resource belongs to, empty if only this configuration uses it."""
    if resource.kind not in LABELLED:
        return ""
    if not found.ours:
        return "lacks the label created_by=millrace"
    if not found.configs:
        return "created by an earlier version: run setup to label it"
    own = {key for key in resource.properties if key.startswith(LABEL)}
    others = sorted(n for n in found.configs if f"{LABEL}{config_label(n)}" not in own)
    return f"used by configuration {', '.join(others)}" if others else ""


def as_json(status: Status, now: datetime, max_age: timedelta) -> dict[str, Any]:
    """Return the status as a JSON object.

    Args:
        status: The result of `look`.
        now: The current time.
        max_age: The age above which a job is reported.
    """

    def described(resource: Resource, found: Found | None) -> Mapping[str, Any]:
        backlog = status.backlogs.get(resource.name)
        return {
            "kind": resource.kind,
            "name": resource.name,
            "there": found is not None,
            **({"rows": found.rows, "bytes": found.size} if found else {}),
            **(vars(backlog) if backlog else {}),
        }

    return {
        "resources": [described(resource, found) for resource, found in status.found],
        "jobs": [
            {
                "id": job.ident,
                "name": job.name,
                "pipeline": job.pipeline,
                "state": job.state,
                "age_seconds": int(job.age(now).total_seconds()),
                "estimated_usd": round(usage.dollars(streaming=job.streaming), 2),
                "subscriptions": list(job.subscriptions),
            }
            for job, usage in status.jobs.items()
        ],
        "warnings": status.warnings(now, max_age),
        "errors": [str(error) for error in status.missing],
    }


def days(age: timedelta) -> str:
    """Return an age as text, in the largest unit with a value of at least two."""
    seconds = age.total_seconds()
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
