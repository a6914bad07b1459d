"""The command cleanup: previews the removal, and with --yes carries out exactly that."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from google.api_core import exceptions

from cloud.endpoints import is_plain
from cloud.errors import is_disabled
from common.errors import MillraceError, ResourceError, UsageError
from common.terminal import Progress, columns, print_error, progressing
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
from resources.status import backlogs
from resources.stopping import Stop, belongs, choose_jobs, stop_jobs, used_by

WAITING = "waiting messages"


@dataclass(frozen=True)
class _Running:
    """The running jobs, and whether each belongs to this configuration, by id (None if unknown)."""

    jobs: list[PipelineJob]
    whose: Mapping[str, bool | None]


def run_cleanup(args: argparse.Namespace) -> int:
    """Print what would be removed, or remove it if --yes is given."""
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
            progress.say(_preview(removals, stops, config.project))
            return DONE
        _confirm(args, config, removals, kinds)
        ended = stop_jobs(stops, jobs, args.wait.total_seconds(), args.cancel, progress)
        if removals and stops:
            # What a job uses is kept if the job did not end in time.
            running = _running(jobs, kinds, config)
            removals = _choose(resources, looked, choice, running, [])
        gone = remove(removals, choice, kinds, progress)
    return _report(ended + gone)


def _choice(args: argparse.Namespace, config: Config) -> Choice:
    """Return what the arguments select. Raise UsageError if they contradict each other."""
    kinds = args.kinds
    if args.truncate and args.jobs and not kinds:
        raise UsageError(
            "--jobs selects jobs and --truncate selects tables: to do both, add --kinds job,table"
        )
    if args.jobs and kinds and JOB not in kinds:
        raise UsageError(
            f"--jobs selects jobs, but --kinds {','.join(kinds)} leaves them out: add job to "
            "--kinds, or leave out --jobs"
        )
    kinds = kinds or ((JOB,) if args.jobs else ("table",) if args.truncate else REMOVABLE)
    if args.truncate and set(kinds) - {"table", JOB}:
        raise UsageError(
            "--truncate only empties tables: expected --kinds table, or --kinds job,table"
        )
    pipelines = args.pipelines or config.pipelines
    if not set(pipelines).intersection(config.pipelines):
        raise UsageError(
            f"--pipelines {','.join(pipelines)}: the configuration does not include them; it "
            f"includes {', '.join(config.pipelines)}"
        )
    return Choice(
        kinds=kinds,
        pipelines=pipelines,
        declared=config.pipelines,
        truncate=args.truncate,
        config=config.name,
    )


def _running(jobs: PipelineJobs, kinds: Kinds, config: Config) -> _Running:
    """Return the running jobs.

    Raises:
        ResourceError: The jobs cannot be listed, so nothing can be removed safely.
    """
    with resource_errors("cannot inspect jobs", JOBS_ROLE):
        try:
            found = jobs.running()
            whole = [jobs.whole(job) if job.pipeline else job for job in found]
        except exceptions.Forbidden as error:
            if is_disabled(error):
                # Without the API of Dataflow no job can run.
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
    """Return the configurations whose labels a resource carries, empty if it cannot be read."""
    try:
        with resource_errors(f"cannot inspect {kind} {name}", kinds[kind].role):
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
    """Return the existing resources, with what they hold and what removing them would lose."""
    looked = look_at([r for r in resources if r.kind in choice.looking], kinds, progress)
    there = [r for r in resources if choice.has(r) and looked.get(r.key) is not None]
    waiting = _waiting(kinds, [r for r in there if r.kind == "subscription"])
    for resource in there:
        found = looked[resource.key]
        assert found is not None, "missing resources were left out above"
        if resource.name in waiting and waiting[resource.name] != 0:
            found = replace(found, losses={WAITING: waiting[resource.name]})
        if not choice.truncate:
            kind = kinds[resource.kind]
            with resource_errors(f"cannot inspect {resource}", kind.role):
                found = replace(found, holds=kind.holds(resource))
        looked[resource.key] = found
    progress.clear()
    return looked


def _waiting(kinds: Kinds, subscriptions: Sequence[Resource]) -> dict[str, int | None]:
    """Return the number of waiting messages that Cloud Monitoring reports, None if unknown."""
    names = [resource.name for resource in subscriptions]
    cloud = kinds["subscription"].cloud
    knows = not (is_plain(cloud.endpoints.pubsub) and cloud.endpoints.monitoring is None)
    if not names or not knows:
        return dict.fromkeys(names)
    try:
        with resource_errors("cannot read the backlog of subscriptions", "roles/monitoring.viewer"):
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


def _table(removals: Sequence[Removal], stops: Sequence[Stop]) -> str:
    rows: list[tuple[str, ...]] = [
        (stop.action, JOB, stop.job.name, stop.description) for stop in stops
    ]
    rows += [(r.action, r.resource.kind, r.resource.name, r.description) for r in removals]
    return columns(rows)


def _preview(removals: Sequence[Removal], stops: Sequence[Stop], project: str) -> str:
    if not removals and not stops:
        return "nothing to remove"
    todo = "pass --yes"
    if lost := losses(removals):
        # Without a terminal, --yes alone would be refused.
        todo += f" and --project_confirm {project} ({lost_text(lost)} would be lost)"
    return f"{_table(removals, stops)}\nnothing was changed; to apply, {todo}"


def _confirm(
    args: argparse.Namespace, config: Config, removals: Sequence[Removal], kinds: Kinds
) -> None:
    """Raise UsageError if anything would be lost and the project id does not confirm it."""
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
        print(_table(removals, ()))
        said = input(f"{lost_text(lost)} will be lost. Type the project id to continue: ").strip()
    if said != config.project:
        got = f" (got {said!r})" if said else ""
        raise UsageError(
            f"{lost_text(lost)} would be lost: to confirm, pass --project_confirm "
            f"{config.project}{got}; nothing was changed"
        )


def _peeked(removals: Sequence[Removal], kinds: Kinds) -> dict[str, int | None]:
    """Return how many messages wait in the subscriptions to remove, as far as a pull shows.

    Cloud Monitoring is minutes late and has no value for a new subscription.
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
    return {f"or more {WAITING}": total} if total else {}


def _goes(removal: Removal) -> bool:
    return removal.action == "remove"


def _report(outcome: Outcome) -> int:
    errors = [*outcome.errors, *outcome.blocked]
    for error in errors:
        print_error(ResourceError(error))
    done = [f"{len(outcome.emptied)} emptied"] if outcome.emptied else []
    if outcome.done or not done:
        done.append(f"{len(outcome.done)} removed or ended")
    print(f"{', '.join(done)}, {len(outcome.kept)} kept, {len(errors)} failed")
    for kept in outcome.kept:
        print(f"kept  {kept}")
    if outcome.errors:
        print("run the command again to continue", file=sys.stderr)
    return FAILED if errors else DONE
