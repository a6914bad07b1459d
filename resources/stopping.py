"""Which jobs a cleanup stops, why it leaves the others alone, and how it stops them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from common.errors import MillraceError, UsageError, suggest
from resources.config import Config
from resources.jobs import ROLE, PipelineJob, PipelineJobs
from resources.kinds.base import resource_errors
from resources.outcome import Outcome
from resources.progress import Progress

# Kind and name of what a job uses -> the configurations whose labels it carries.
Configs = Callable[[str, str], frozenset[str]]
_DEFAULT_PREFIX = Config.job_prefix


@dataclass(frozen=True)
class Stop:
    """A job that runs, and what becomes of it. reason: why it is kept."""

    job: PipelineJob
    action: Literal["drain", "cancel", "keep"]
    reason: str = ""

    @property
    def description(self) -> str:
        """Its state, or why it is kept."""
        return self.reason or self.job.state


def belongs(job: PipelineJob, config: Config, configs: Configs) -> bool | None:
    """A job with our names -> whether it is this configuration's; None where nothing tells.

    Its own labels tell first, then those of the subscriptions that it reads and of the buckets that
    it stages in. Where there are none, a prefix of the configuration's own tells.
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
    """Jobs that run, whose they are by id, what a user chose -> what becomes of those he means.

    names: with wildcards; none for all. Pure. Raises UsageError for a name that no job has.
    """
    named = {job.name for job in jobs if job.pipeline is not None}
    for name in names:
        if not _is_pattern(name) and name not in named:
            running = f"running: {', '.join(sorted(named))}" if named else "none of ours runs"
            raise UsageError(f"--jobs {name}: no such job runs{suggest(name, named)}: {running}")
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
    """Jobs that run, whose they are, ids of those that are stopped -> who uses what.

    By pipeline and by name of a subscription or an account. With each job whether it may be of
    another configuration, so that what it uses is kept and nothing went wrong.
    """
    found: dict[str, tuple[PipelineJob, bool]] = {}
    for job in running:
        if job.ident in stopping:
            continue
        ours = whose.get(job.ident)
        # Of another configuration's job only what it is known to use is in use.
        pipeline = None if ours is False else job.pipeline
        for used in (pipeline, *job.subscriptions, job.account):
            if used:
                found.setdefault(used, (job, job.pipeline is not None and ours is not True))
    return found


def stop_jobs(
    stops: Sequence[Stop], jobs: PipelineJobs, seconds: float, cancel: bool, progress: Progress
) -> Outcome:
    """Jobs -> they have ended, as far as they did in time."""
    outcome, asked = Outcome(), list[PipelineJob]()
    for stop in stops:
        if stop.action == "keep":
            outcome.kept.append(f"job {stop.job.name}: {stop.reason}")
            continue
        try:
            with resource_errors(f"job {stop.job.name} cannot be stopped", ROLE):
                how = jobs.stop(stop.job, cancel=cancel)
        except MillraceError as error:
            outcome.errors.append(str(error))
            continue
        asked.append(stop.job)
        progress.say(f"{how}  job {stop.job.name}")

    def report(states: Mapping[str, str]) -> None:
        progress.now("waiting for " + ", ".join(f"{name} ({s})" for name, s in states.items()))

    try:
        with resource_errors("jobs cannot be looked at", ROLE):
            left = {job.ident for job in (jobs.wait(asked, seconds, report) if asked else [])}
    except MillraceError as error:
        outcome.errors.append(str(error))
        return outcome
    for job in asked:
        if job.ident in left:
            outcome.errors.append(
                f"job {job.name} has not ended in {_length(seconds)}: run it again, or say --cancel"
            )
        else:
            outcome.done.append(f"job {job.name}")
            progress.say(f"ended  job {job.name}")
    return outcome


def _length(seconds: float) -> str:
    return f"{seconds:,.0f} seconds" if 0 < seconds < 60 else f"{seconds / 60:,.0f} minutes"
