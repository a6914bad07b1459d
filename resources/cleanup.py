"""Removes what setup made: jobs first, and nothing that a job still uses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from google.api_core import exceptions

from model_handlers.errors import MillraceError, OutputError
from resources.bigquery import Tables
from resources.declaration import Resource
from resources.jobs import ROLE as JOBS_ROLE
from resources.jobs import Job, Jobs
from resources.kind import Found, Kept, told
from resources.kinds import KINDS, Kinds, Looked
from resources.progress import Progress, in_bytes

JOB = "job"
# What a user may choose: all but APIs, which others may use, and the model, which is a file.
REMOVABLE = (JOB, *(kind for kind in KINDS if kind not in ("service", "model")))


@dataclass(frozen=True)
class Choice:
    """What is to be removed. pipelines: whose resources; declared: those that there are.

    truncate: tables are emptied and stay, with what they are in.
    """

    kinds: Collection[str]
    pipelines: Collection[str]
    declared: Collection[str]
    truncate: bool = False

    def has(self, resource: Resource) -> bool:
        """Whether a resource is chosen: no pipeline that is not chosen needs it."""
        users = set(resource.pipelines) & set(self.declared)
        return resource.kind in self.kinds and users <= set(self.pipelines)


@dataclass(frozen=True)
class Removal:
    """One resource that is there, and what becomes of it. reason: why it is kept."""

    resource: Resource
    found: Found
    action: Literal["remove", "truncate", "keep"]
    reason: str = ""

    @property
    def told(self) -> str:
        """What goes with it, or why it stays."""
        if self.reason:
            return self.reason
        rows = f"{self.found.rows:,} rows" if self.resource.kind == "table" else ""
        size = in_bytes(self.found.size) if self.found.size else ""
        return ", ".join(filter(None, (rows, size, self.found.told)))


@dataclass
class Outcome:
    """How a cleanup ended: what was done, what was kept and why, what went wrong."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def choose(resources: Sequence[Resource], looked: Looked, choice: Choice) -> list[Removal]:
    """A declaration, what is there of it, what a user chose -> removals, users before what is used.

    Pure.
    """
    return [
        _removal(resource, found, looked, choice)
        for resource in reversed(resources)
        if choice.has(resource) and (found := looked.get(resource.key)) is not None
    ]


def _removal(resource: Resource, found: Found, looked: Looked, choice: Choice) -> Removal:
    kind = found.properties.get("type", "").partition(" ")[0]
    if resource.kind == "table" and kind != "TABLE":
        return Removal(resource, found, "keep", f"it is a {kind}, not a table")
    must_be_ours = resource.on_demand or not KINDS[resource.kind].removes_unlabelled
    if must_be_ours and not found.ours:
        return Removal(resource, found, "keep", "it was not made here: it lacks our label")
    account = next((looked.get(key) for key in resource.needs if key[0] == "account"), None)
    if account is not None and not account.ours:
        return Removal(resource, found, "keep", "the account was not made here")
    return Removal(resource, found, "truncate" if choice.truncate else "remove")


def chosen_jobs(jobs: Sequence[Job], choice: Choice, fits: Callable[[str], bool]) -> list[Job]:
    """Jobs that run, what a user chose, whether a name is meant -> those to stop."""
    if JOB not in choice.kinds:
        return []
    return [job for job in jobs if job.pipeline in choice.pipelines and fits(job.name)]


def used_by(running: Sequence[Job]) -> dict[str, str]:
    """Jobs that run -> why what they use stays, by pipeline and by name of a subscription."""
    return {
        used: f"job {job.name} still runs"
        for job in running
        for used in (job.pipeline, *job.subscriptions)
        if used is not None
    }


def lost_rows(removals: Sequence[Removal]) -> int:
    """Removals -> rows of tables that go."""
    return sum(r.found.rows for r in removals if r.action != "keep" and r.resource.kind == "table")


def stop_jobs(
    stopping: Sequence[Job], jobs: Jobs, seconds: float, cancel: bool, progress: Progress
) -> Outcome:
    """Jobs -> they have ended, as far as they did in time."""
    outcome, asked = Outcome(), []
    for job in stopping:
        try:
            with told(f"job {job.name} cannot be stopped", JOBS_ROLE):
                how = jobs.stop(job, cancel=cancel)
        except MillraceError as error:
            outcome.errors.append(str(error))
            continue
        asked.append(job)
        progress.say(f"{how}  job {job.name}")

    def tell(states: Mapping[str, str]) -> None:
        progress.now("waiting for " + ", ".join(f"{name} ({s})" for name, s in states.items()))

    try:
        with told("jobs cannot be looked at", JOBS_ROLE):
            left = jobs.wait(asked, seconds, tell) if asked else []
    except MillraceError as error:
        outcome.errors.append(str(error))
        return outcome
    for job in asked:
        if job in left or any(other.ident == job.ident for other in left):
            outcome.errors.append(
                f"job {job.name} has not ended in {seconds / 60:,.0f} minutes: run it again, or "
                "say --cancel"
            )
        else:
            outcome.done.append(f"job {job.name}")
            progress.say(f"ended  job {job.name}")
    return outcome


def remove(
    removals: Sequence[Removal], busy: Mapping[str, str], kinds: Kinds, progress: Progress
) -> Outcome:
    """Removals, what jobs still use -> done, as far as nothing stands against it.

    busy: who uses it, by pipeline and by name of a subscription. Goes on after an error.
    """
    outcome, still_there = Outcome(), list[Resource]()
    for number, removal in enumerate(removals):
        resource = removal.resource
        progress.now(f"{number + 1} of {len(removals)}: {resource}")
        try:
            _check(removal, busy, still_there)
            with told(f"{resource} cannot be removed", kinds[resource.kind].role):
                _remove(removal, kinds)
        except MillraceError as error:
            still_there.append(resource)
            if isinstance(error, Kept):
                outcome.kept.append(str(resource))
                progress.say(f"kept  {resource}  {error}")
            else:
                outcome.errors.append(str(error))
        else:
            outcome.done.append(str(resource))
            past = "truncated" if removal.action == "truncate" else "removed"
            progress.say(f"{past}  {resource}  {removal.told}".rstrip())
    progress.clear()
    return outcome


def _check(removal: Removal, busy: Mapping[str, str], still_there: Sequence[Resource]) -> None:
    """Raises Kept, or OutputError where a job that runs stands against it."""
    resource = removal.resource
    if removal.action == "keep":
        raise Kept(removal.reason)
    for used in (*resource.pipelines, resource.name):
        if used in busy:
            raise OutputError(f"{resource} was not touched: {busy[used]}")
    for other in still_there:
        if resource.key in other.needs:
            raise Kept(f"{other} needs it, and is still there")


def _remove(removal: Removal, kinds: Kinds) -> None:
    kind = kinds[removal.resource.kind]
    try:
        if removal.action == "truncate" and isinstance(kind, Tables):
            kind.truncate(removal.resource)
        else:
            kind.delete(removal.resource)
    except exceptions.NotFound:
        # Somebody else was quicker, or an attempt before this one.
        return
