"""What there is, what waits, what runs, and what somebody should look at."""

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
from common.errors import CredentialsError, MillraceError
from common.units import in_bytes
from resources.declaration import LABEL, LABELLED, Resource, config_label
from resources.jobs import ROLE as JOBS_ROLE
from resources.jobs import PipelineJob, PipelineJobs, Usage
from resources.kinds.base import Found, resource_errors
from resources.kinds.catalog import Kinds, Looked, look_at_one
from resources.kinds.pubsub import Topics
from resources.progress import Progress, aligned

_METRIC = "pubsub.googleapis.com/subscription/"


@dataclass(frozen=True)
class Backlog:
    """Of a subscription: messages that were not acknowledged, and the age of the oldest."""

    messages: int | None = None
    oldest_seconds: int | None = None


@dataclass(kw_only=True)
class Status:
    """All of it. missing: what was asked for and could not be looked at, with the reason.

    unseen: regions whose jobs could not be listed.
    """

    found: list[tuple[Resource, Found | None]] = field(default_factory=list)
    backlogs: dict[str, Backlog] = field(default_factory=dict)
    jobs: dict[PipelineJob, Usage] = field(default_factory=dict)
    lonely: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def warnings(self, now: datetime, max_age: timedelta) -> list[str]:
        """The present, how old a job may be -> what somebody should look at. Pure."""
        return [
            *(
                f"job {job.name} has been there for {days(job.age(now))}, more than "
                f"{days(max_age)}: stop it with `{as_typed('resources')} cleanup --kinds job` if "
                "nobody needs it"
                for job in self.jobs
                if job.age(now) > max_age
            ),
            *shared(list(self.jobs)),
            *((f"{not_listed(self.unseen)}: there may be more",) if self.unseen else ()),
            *(f"topic {name} has no subscription: its messages are lost" for name in self.lonely),
        ]


def shared(jobs: Sequence[PipelineJob]) -> Iterator[str]:
    """Jobs -> a warning for each subscription that several read."""
    readers: dict[str, list[str]] = defaultdict(list)
    for job in jobs:
        for subscription in set(job.subscriptions):
            readers[subscription].append(job.name)
    for subscription, names in readers.items():
        if len(names) > 1:
            yield (
                f"jobs {' and '.join(sorted(names))} read {subscription}: each gets a part of "
                "the messages"
            )


def look(
    resources: Sequence[Resource], kinds: Kinds, jobs: PipelineJobs | None, progress: Progress
) -> Status:
    """A declaration, the jobs if they are to be looked at -> Status.

    What cannot be looked at is told in `missing`. Raises CredentialsError.
    """
    status, looked = Status(), Looked()
    for number, resource in enumerate(resources):
        progress.now(f"looking at {number + 1} of {len(resources)}: {resource}")
        try:
            look_at_one(resource, kinds, looked)
            status.found.append((resource, looked[resource.key]))
        except CredentialsError:
            raise
        except MillraceError as error:
            status.missing.append(str(error))
    _look_at_messages(status, kinds, progress)
    if jobs is not None:
        progress.now("looking at jobs")
        try:
            with resource_errors("jobs cannot be looked at", JOBS_ROLE):
                running, status.unseen = jobs.seen()
                for job in running:
                    status.jobs[job] = jobs.usage(job)
        except CredentialsError:
            raise
        except MillraceError as error:
            status.missing.append(str(error))
    progress.clear()
    return status


def _look_at_messages(status: Status, kinds: Kinds, progress: Progress) -> None:
    """Fills in what subscriptions hold, and which topics have none."""
    there = {r.name: r.kind for r, found in status.found if found is not None}
    subscriptions = [name for name, kind in there.items() if kind == "subscription"]
    topics = [r for r, found in status.found if r.kind == "topic" and found is not None]
    try:
        for topic in topics:
            kind = kinds["topic"]
            with resource_errors(f"{topic} cannot be looked at", kind.role):
                if isinstance(kind, Topics) and not kind.subscriptions(topic):
                    status.lonely.append(topic.name)
        if subscriptions:
            progress.now("looking at messages")
            with resource_errors(
                "the backlog of subscriptions cannot be read", "roles/monitoring.viewer"
            ):
                status.backlogs = backlogs(kinds["subscription"].cloud, subscriptions)
    except MillraceError as error:
        # Whoever has no right to see metrics may see all the rest.
        status.missing.append(str(error))


def backlogs(cloud: Cloud, subscriptions: Sequence[str]) -> dict[str, Backlog]:
    """Full names -> the backlog of each, by Cloud Monitoring. Raises GoogleAPIError."""
    messages = _latest(cloud, "num_undelivered_messages")
    oldest = _latest(cloud, "oldest_unacked_message_age")
    return {
        name: Backlog(messages.get(ident), oldest.get(ident))
        for name in subscriptions
        if (ident := name.rpartition("/")[2])
    }


def _latest(cloud: Cloud, metric: str) -> dict[str, int]:
    """A metric of Pub/Sub -> its last value by the subscription's id."""
    found = latest(cloud, cloud.project, f"{_METRIC}{metric}")
    return {value.resource["subscription_id"]: int(value.number) for value in found}


def as_text(status: Status, now: datetime, max_age: timedelta) -> str:
    """A status -> the page that people read."""
    parts = [aligned([_row(resource, found, status) for resource, found in status.found])]
    if status.jobs:
        rows = [("job", "state", "age", "cost so far, estimated")]
        for job, usage in status.jobs.items():
            cost = usage.dollars(streaming=job.streaming)
            rows.append((job.name, job.state, days(job.age(now)), f"{cost:,.2f} USD"))
        parts.append(aligned(rows))
    parts += [f"warning: {warning}" for warning in status.warnings(now, max_age)]
    return "\n\n".join(parts)


def _row(resource: Resource, found: Found | None, status: Status) -> tuple[str, ...]:
    if found is None:
        return ("missing" if not resource.on_demand else "none", resource.kind, resource.name, "")
    details = [found.details]
    if resource.kind == "table":
        details.append(f"{found.rows:,} rows, {in_bytes(found.size)}")
    elif found.size:
        details.append(in_bytes(found.size))
    backlog = status.backlogs.get(resource.name)
    if backlog is not None and backlog.messages is not None:
        age = days(timedelta(seconds=backlog.oldest_seconds or 0))
        oldest = f", the oldest {age} old" if backlog.messages else ""
        details.append(f"{backlog.messages:,} messages wait{oldest}")
    details.append(_whose(resource, found))
    return ("there", resource.kind, resource.name, ", ".join(filter(None, details)))


def _whose(resource: Resource, found: Found) -> str:
    """A resource that is there -> whose it is, where it is not this configuration's alone."""
    if resource.kind not in LABELLED:
        return ""
    if not found.ours:
        return "lacks our label"
    if not found.configs:
        return "made by an earlier version: setup labels it"
    own = {key for key in resource.properties if key.startswith(LABEL)}
    others = sorted(n for n in found.configs if f"{LABEL}{config_label(n)}" not in own)
    return f"used by configuration {', '.join(others)}" if others else ""


def as_json(status: Status, now: datetime, max_age: timedelta) -> dict[str, Any]:
    """A status -> the same for programs."""

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
        "errors": status.missing,
    }


def days(age: timedelta) -> str:
    """An age -> a text in the unit that fits."""
    seconds = age.total_seconds()
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
