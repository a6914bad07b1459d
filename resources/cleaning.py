"""The command cleanup: what it would do, and with --yes just that."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from google.api_core import exceptions

from cloud.endpoints import is_plain
from cloud.errors import is_disabled
from common.errors import MillraceError, UsageError
from resources.cleanup import Choice, Removal, choose_removals, losses, lost_text, remove
from resources.config import Config
from resources.declaration import Resource, declare
from resources.jobs import ROLE as JOBS_ROLE
from resources.jobs import PipelineJob, PipelineJobs
from resources.kinds.base import resource_errors
from resources.kinds.catalog import Kinds, Looked, look_at, open_kinds
from resources.kinds.names import JOB, REMOVABLE
from resources.kinds.pubsub import Subscriptions
from resources.outcome import Outcome
from resources.place import DONE, FAILED, check_project, configure
from resources.progress import Progress, aligned, progressing
from resources.status import backlogs
from resources.stopping import Stop, belongs, choose_jobs, stop_jobs, used_by

WAITING = "waiting messages"


@dataclass(frozen=True)
class _Running:
    """Jobs that run, with whose they are by id."""

    jobs: list[PipelineJob]
    whose: Mapping[str, bool | None]


def run_cleanup(args: argparse.Namespace) -> int:
    """Tells what would be removed; with --yes removes it."""
    config, cloud = configure(args)
    kinds, jobs, choice = (
        open_kinds(cloud, config),
        PipelineJobs(cloud, config),
        _choice(args, config),
    )
    check_project(cloud, args)
    resources = declare(config)
    with progressing() as progress:
        running = _running(jobs, kinds, config)
        stops = _stops(args, choice, running)
        looked = _look(resources, kinds, choice, progress)
        removals = _choose(resources, looked, choice, running, stops)
        if not args.yes:
            progress.say(_preview(removals, stops))
            return DONE
        _confirm(args, config, removals, kinds)
        ended = stop_jobs(stops, jobs, args.wait.total_seconds(), args.cancel, progress)
        if removals and stops:
            # A job that has not ended keeps what it uses.
            running = _running(jobs, kinds, config)
            removals = _choose(resources, looked, choice, running, [])
        gone = remove(removals, choice, kinds, progress)
    return _report(ended + gone)


def _choice(args: argparse.Namespace, config: Config) -> Choice:
    """Arguments -> what they choose. Raises UsageError where they contradict each other."""
    kinds = args.kinds
    if args.truncate and args.jobs and not kinds:
        raise UsageError(
            "--jobs chooses jobs alone, --truncate tables alone: say --kinds job,table"
        )
    if args.jobs and kinds and JOB not in kinds:
        raise UsageError(f"--jobs chooses jobs, and --kinds {','.join(kinds)} leaves them out")
    kinds = kinds or ((JOB,) if args.jobs else ("table",) if args.truncate else REMOVABLE)
    if args.truncate and set(kinds) - {"table", JOB}:
        raise UsageError("--truncate empties tables and removes nothing: expected --kinds table")
    pipelines = args.pipelines or config.pipelines
    if not set(pipelines).intersection(config.pipelines):
        raise UsageError(
            f"--pipelines {','.join(pipelines)}: the configuration has none of them, but "
            f"{', '.join(config.pipelines)}"
        )
    return Choice(
        kinds=kinds,
        pipelines=pipelines,
        declared=config.pipelines,
        truncate=args.truncate,
        config=config.name,
    )


def _running(jobs: PipelineJobs, kinds: Kinds, config: Config) -> _Running:
    """Raises OutputError where jobs cannot be seen, and so nothing can be removed safely."""
    with resource_errors("jobs cannot be looked at", JOBS_ROLE):
        try:
            found = jobs.running()
            whole = [jobs.whole(job) if job.pipeline else job for job in found]
        except exceptions.Forbidden as error:
            if is_disabled(error):
                # Where there is no Dataflow no job runs.
                return _Running([], {})
            raise
    there = [job for job in whole if job is not None]
    seen: dict[tuple[str, str], frozenset[str]] = {}

    def configs(kind: str, name: str) -> frozenset[str]:
        if (kind, name) not in seen:
            seen[kind, name] = _configs(kinds, kind, name)
        return seen[kind, name]

    whose = {job.ident: belongs(job, config, configs) for job in there if job.pipeline}
    return _Running(there, whose)


def _configs(kinds: Kinds, kind: str, name: str) -> frozenset[str]:
    """What a job uses -> the configurations whose labels it carries; none where it hides them."""
    try:
        with resource_errors(f"{kind} {name} cannot be looked at", kinds[kind].role):
            found = kinds[kind].look(Resource(kind, name))
    except MillraceError:
        return frozenset()
    return found.configs if found else frozenset()


def _stops(args: argparse.Namespace, choice: Choice, running: _Running) -> list[Stop]:
    if JOB not in choice.kinds:
        return []
    return choose_jobs(running.jobs, running.whose, choice.pipelines, args.jobs, cancel=args.cancel)


def _look(
    resources: Sequence[Resource], kinds: Kinds, choice: Choice, progress: Progress
) -> Looked:
    """What is there, with what keeps it and what would be lost with it."""
    looked = look_at([r for r in resources if r.kind in choice.looking], kinds, progress)
    there = [r for r in resources if choice.has(r) and looked.get(r.key) is not None]
    waiting = _waiting(kinds, [r for r in there if r.kind == "subscription"])
    for resource in there:
        found = looked[resource.key]
        assert found is not None, "it is there"
        if resource.name in waiting and waiting[resource.name] != 0:
            found = replace(found, losses={WAITING: waiting[resource.name]})
        if not choice.truncate:
            kind = kinds[resource.kind]
            with resource_errors(f"{resource} cannot be looked at", kind.role):
                found = replace(found, holds=kind.holds(resource))
        looked[resource.key] = found
    progress.clear()
    return looked


def _waiting(kinds: Kinds, subscriptions: Sequence[Resource]) -> dict[str, int | None]:
    """Subscriptions -> messages that wait by Cloud Monitoring, None where it does not tell."""
    names = [resource.name for resource in subscriptions]
    cloud = kinds["subscription"].cloud
    knows = not (is_plain(cloud.endpoints.pubsub) and cloud.endpoints.monitoring is None)
    if not names or not knows:
        return dict.fromkeys(names)
    try:
        with resource_errors(
            "the backlog of subscriptions cannot be read", "roles/monitoring.viewer"
        ):
            return {name: found.messages for name, found in backlogs(cloud, names).items()}
    except MillraceError:
        return dict.fromkeys(names)


def _choose(
    resources: Sequence[Resource],
    looked: Looked,
    choice: Choice,
    running: _Running,
    stops: Sequence[Stop],
) -> list[Removal]:
    stopping = {stop.job.ident for stop in stops if stop.action != "keep"}
    return choose_removals(
        resources, looked, choice, used_by(running.jobs, running.whose, stopping)
    )


def _preview(removals: Sequence[Removal], stops: Sequence[Stop]) -> str:
    rows: list[tuple[str, ...]] = [
        (stop.action, JOB, stop.job.name, stop.description) for stop in stops
    ]
    rows += [(r.action, r.resource.kind, r.resource.name, r.description) for r in removals]
    if not rows:
        return "nothing is there to be removed"
    lost = losses(removals)
    warning = f"; {lost_text(lost)} would be lost" if lost else ""
    return f"{aligned(rows)}\nnothing was touched: --yes does it{warning}"


def _confirm(
    args: argparse.Namespace, config: Config, removals: Sequence[Removal], kinds: Kinds
) -> None:
    """Raises UsageError where something would be lost and nobody said the project's name."""
    said = args.project_confirm
    if said == config.project:
        return
    lost = losses(removals)
    if not any(lost.values()):
        lost = {name: count for name, count in lost.items() if name != WAITING}
        lost |= _peeked(removals, kinds)
    if not lost:
        return
    if said is None and sys.stdin.isatty():
        print(_preview(removals, ()))
        said = input(f"{lost_text(lost)} will be lost. Type the project's name to go on: ").strip()
    if said != config.project:
        wrong = f"got {said!r}" if said else "it was not given"
        raise UsageError(
            f"{lost_text(lost)} would be lost: expected --project_confirm {config.project}, "
            f"{wrong}; nothing was touched"
        )


def _peeked(removals: Sequence[Removal], kinds: Kinds) -> dict[str, int | None]:
    """Removals -> messages that wait in their subscriptions now, as far as a look shows them.

    Cloud Monitoring is minutes late, and knows nothing of a new subscription.
    """
    kind = kinds["subscription"]
    assert isinstance(kind, Subscriptions)
    going = [r.resource for r in removals if r.resource.kind == "subscription" and _goes(r)]
    if not going:
        return {}
    with ThreadPoolExecutor(len(going)) as pool:
        found = list(pool.map(kind.peek, going))
    if any(count is None for count in found):
        return {WAITING: None}
    total = sum(count for count in found if count is not None)
    return {f"{WAITING} or more": total} if total else {}


def _goes(removal: Removal) -> bool:
    return removal.action == "remove"


def _report(outcome: Outcome) -> int:
    errors = [*outcome.errors, *outcome.blocked]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    done = [f"{len(outcome.emptied)} emptied"] if outcome.emptied else []
    if outcome.done or not done:
        done.append(f"{len(outcome.done)} removed or ended")
    print(f"{', '.join(done)}, {len(outcome.kept)} kept, {len(errors)} failed")
    for kept in outcome.kept:
        print(f"kept  {kept}")
    if outcome.errors:
        print("run it again to go on", file=sys.stderr)
    return FAILED if errors else DONE
