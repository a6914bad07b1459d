"""Decides which jobs a cleanup stops and why it keeps the others, and stops them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from common.errors import MillraceError, UsageError, suggest
from common.terminal import Progress
from resources.config import Config
from resources.jobs import ROLE, PipelineJob, PipelineJobs
from resources.kinds.base import resource_errors
from resources.outcome import Outcome

# Returns the configurations whose labels a resource carries, given its kind and name.
Configs = Callable[[str, str], frozenset[str]]
_DEFAULT_PREFIX = Config.job_prefix
_LOSS = (
    "a cancel loses the messages that it has acknowledged and not written: without --cancel, it is "
    "drained"
)


@dataclass(frozen=True)
class Stop:
    """A running job, and what happens to it.

    Attributes:
        job: The job.
        action: What happens to it.
        reason: Why it is kept, empty if it is stopped.
    """

    job: PipelineJob
    action: Literal["drain", "cancel", "keep"]
    reason: str = ""

    @property
    def description(self) -> str:
        """Why the job is kept, or else its state and what a cancel loses, for the user."""
        return self.reason or f"{self.job.state}{self.loss}"

    @property
    def loss(self) -> str:
        """What a cancel loses; empty if a drain is not possible or not forgone."""
        return f"; {_LOSS}" if self.action == "cancel" and self.job.drains else ""


def belongs(job: PipelineJob, config: Config, configs: Configs) -> bool | None:
    """Return whether a job belongs to a configuration, None if that is unknown.

    The job's own labels decide first. If it has none, the labels of the subscriptions that it reads
    and of the buckets that it stages files in decide, unless they name other configurations, too.
    If they have none, the job belongs to the configuration if the configuration has a job prefix
    other than the default.

    Args:
        job: A job whose name matches a pipeline.
        config: The configuration.
        configs: Returns the configurations whose labels a resource carries.
    """
    if job.configs:
        return config.name in job.configs
    used = [
        *(configs("subscription", name) for name in job.subscriptions),
        *(configs("bucket", name) for name in job.buckets),
    ]
    known = [found for found in used if found]
    if not known:
        return True if config.job_prefix != _DEFAULT_PREFIX else None
    mine = [config.name in found for found in known]
    if not any(mine):
        return False
    return True if all(mine) and {config.name} in known else None


def choose_jobs(
    jobs: Sequence[PipelineJob],
    whose: Mapping[str, bool | None],
    pipelines: Collection[str],
    names: Sequence[str],
    *,
    cancel: bool,
) -> list[Stop]:
    """Decide what happens to each selected job.

    Args:
        jobs: The running jobs.
        whose: Whether each job belongs to this configuration, by id, None if unknown.
        pipelines: The selected pipelines.
        names: Names or patterns of jobs. Empty for all jobs.
        cancel: Whether to cancel streaming jobs instead of draining them.

    Returns:
        The decisions about the selected jobs.

    Raises:
        UsageError: A name without wildcards is not the name of a running job.
    """
    named = {job.name for job in jobs if job.pipeline is not None}
    for name in names:
        if not _is_pattern(name) and name not in named:
            running = f"running jobs: {', '.join(sorted(named)) or 'none'}"
            raise UsageError(
                f"--jobs {name}: no such job is running{suggest(name, named)}; {running}"
            )
    return [
        _stop(job, whose[job.ident], cancel=cancel, by_name=job.name in names)
        for job in jobs
        if job.pipeline in pipelines
        and (not names or any(fnmatch.fnmatchcase(job.name, name) for name in names))
    ]


def _is_pattern(name: str) -> bool:
    return any(mark in name for mark in "*?[")


def _stop(job: PipelineJob, ours: bool | None, *, cancel: bool, by_name: bool) -> Stop:
    if ours is False:
        others = f": {', '.join(sorted(job.configs))}" if job.configs else ""
        return Stop(job, "keep", f"it belongs to another configuration{others}")
    if ours is None and not by_name:
        return Stop(
            job,
            "keep",
            f"no label says which configuration it belongs to; --jobs {job.name} stops it anyway",
        )
    return Stop(job, "drain" if job.drains and not cancel else "cancel")


def used_by(
    running: Sequence[PipelineJob], whose: Mapping[str, bool | None], stopping: Collection[str]
) -> dict[str, tuple[PipelineJob, bool]]:
    """Return which jobs keep which resources.

    Args:
        running: The running jobs.
        whose: Whether each job belongs to this configuration, by id, None if unknown.
        stopping: The ids of the jobs that will be stopped.

    Returns:
        By pipeline, and by name of a subscription or an account: a job that uses it, and whether
        the job may belong to another configuration. If so, keeping the resource is not an error.
    """
    found: dict[str, tuple[PipelineJob, bool]] = {}
    for job in running:
        if job.ident in stopping:
            continue
        ours = whose.get(job.ident)
        # The job of another configuration keeps only what it is known to use, not everything that
        # its pipeline needs.
        pipeline = None if ours is False else job.pipeline
        for used in (pipeline, *job.subscriptions, job.account):
            if used:
                found.setdefault(used, (job, job.pipeline is not None and ours is not True))
    return found


def stop_jobs(
    stops: Sequence[Stop], jobs: PipelineJobs, seconds: float, cancel: bool, progress: Progress
) -> Outcome:
    """Stop jobs and wait until they have ended.

    Args:
        stops: The decisions of `choose_jobs`.
        jobs: The jobs of the configuration.
        seconds: How long to wait.
        cancel: Whether to cancel streaming jobs instead of draining them.
        progress: Receives a line for each job that is stopping, and for each that has ended.

    Returns:
        Which jobs ended and which were kept, and what failed.
    """
    outcome, asked = Outcome(), list[PipelineJob]()
    for stop in stops:
        if stop.action == "keep":
            outcome.kept.append(f"job {stop.job.name}: {stop.reason}")
            continue
        try:
            with resource_errors(f"cannot stop job {stop.job.name}", ROLE):
                how = jobs.stop(stop.job, cancel=cancel)
        except MillraceError as error:
            outcome.errors.append(str(error))
            continue
        asked.append(stop.job)
        progress.say(f"{how}  job {stop.job.name}{stop.loss}")

    def report(states: Mapping[str, str]) -> None:
        progress.now("waiting for " + ", ".join(f"{name} ({s})" for name, s in states.items()))

    try:
        with resource_errors("cannot inspect jobs", ROLE):
            left = {job.ident for job in (jobs.wait(asked, seconds, report) if asked else [])}
    except MillraceError as error:
        outcome.errors.append(str(error))
        return outcome
    for job in asked:
        if job.ident in left:
            todo = "run the command again" + (
                "" if cancel else ", or add --cancel, which loses what it has not written"
            )
            outcome.errors.append(f"job {job.name} did not end within {_length(seconds)}: {todo}")
        else:
            outcome.done.append(f"job {job.name}")
            progress.say(f"ended  job {job.name}")
    return outcome


def _length(seconds: float) -> str:
    return f"{seconds:,.0f} seconds" if 0 < seconds < 60 else f"{seconds / 60:,.0f} minutes"
