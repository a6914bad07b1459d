"""The four commands: arguments in, exit code out."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from google.api_core import exceptions

from cloud.clients import Cloud, default_project
from cloud.endpoints import Endpoints
from model_handlers.errors import UsageError
from resources import status as statuses
from resources.cleanup import (
    JOB,
    REMOVABLE,
    Choice,
    Outcome,
    Removal,
    choose,
    chosen_jobs,
    lost_rows,
    remove,
    stop_jobs,
    used_by,
)
from resources.config import Config, read_config
from resources.declaration import Resource, declare
from resources.jobs import ROLE as JOBS_ROLE
from resources.jobs import Job, Jobs
from resources.kind import is_disabled, told
from resources.kinds import Kinds, look_at, open_kinds
from resources.package import open_package
from resources.plan import Step
from resources.progress import Progress, aligned
from resources.setup import plan, set_up
from resources.storage import Models

DONE, FAILED, TO_DO = 0, 1, 3


def _configure(args: argparse.Namespace) -> tuple[Config, Cloud]:
    endpoints = Endpoints.resolve(args.api_endpoints)
    names = ("project", "model", "trusted_modules")
    given = {name: getattr(args, name, None) for name in names}
    # Whoever speaks to emulators has no credentials that could name one.
    is_googles = not any(vars(endpoints).values())
    config = read_config(args.config, given, default_project if is_googles else lambda: None)
    return config, Cloud(config.project, endpoints, args.retry_seconds)


@contextmanager
def _progress() -> Iterator[Progress]:
    progress = Progress(sys.stdout, sys.stderr)
    try:
        yield progress
    finally:
        progress.clear()


def _of_kinds(resources: Sequence[Resource], kinds: Sequence[str] | None) -> list[Resource]:
    return [r for r in resources if kinds is None or r.kind in kinds]


def _wanted(args: argparse.Namespace) -> tuple[list[Resource], Kinds]:
    """Arguments of plan and setup -> what is declared, and how it is reached."""
    config, cloud = _configure(args)
    with_model = config.model is not None and (args.kinds is None or "model" in args.kinds)
    package = open_package(str(config.model), config.trusted_modules) if with_model else None
    resources = declare(
        config,
        example_rows=args.load_example,
        model_digest=package.digest if package else None,
    )
    return _of_kinds(resources, args.kinds), open_kinds(cloud, config, package)


def run_plan(args: argparse.Namespace) -> int:
    """Looks, and tells what setup would do."""
    resources, kinds = _wanted(args)
    with _progress() as progress:
        steps = plan(resources, kinds, progress)
    if args.json:
        print(json.dumps([step.as_json() for step in steps], indent=1))
    else:
        print(_as_table(steps))
    return TO_DO if any(step.action != "keep" for step in steps) else DONE


def _as_table(steps: Sequence[Step]) -> str:
    to_do = [step for step in steps if step.action != "keep"]
    rows = [(step.action, step.resource.kind, step.resource.name, step.told) for step in to_do]
    kept = f"{len(steps) - len(to_do)} of {len(steps)} resources are as they shall be"
    return "\n".join(filter(None, (aligned(rows), kept)))


def run_setup(args: argparse.Namespace) -> int:
    """Makes what is missing."""
    resources, kinds = _wanted(args)
    with _progress() as progress:
        done = set_up(resources, kinds, progress)
    print(f"all is there: {len(done)} {'step was' if len(done) == 1 else 'steps were'} taken")
    models = kinds["model"]
    if isinstance(models, Models) and models.package is not None:
        for resource in (r for r in resources if r.kind == "model"):
            print(f"the model is --model {models.package.address(models.folder(resource))}")
    return DONE


def run_status(args: argparse.Namespace) -> int:
    """Looks, and tells what there is."""
    config, cloud = _configure(args)
    jobs = Jobs(cloud, config) if args.kinds is None or JOB in args.kinds else None
    kinds = open_kinds(cloud, config)
    resources = _of_kinds(declare(config), args.kinds)
    with _progress() as progress:
        found = statuses.look(resources, kinds, jobs, progress)
    now = datetime.now(UTC)
    if args.json:
        print(json.dumps(statuses.as_json(found, now, args.max_age), indent=1))
    else:
        print(statuses.as_text(found, now, args.max_age))
        for error in found.missing:
            print(f"error: {error}", file=sys.stderr)
    return FAILED if found.missing else DONE


def run_cleanup(args: argparse.Namespace) -> int:
    """Tells what would be removed; with --yes removes it."""
    config, cloud = _configure(args)
    kinds, jobs, choice = open_kinds(cloud, config), Jobs(cloud, config), _choice(args, config)
    with _progress() as progress:
        removals = _removals(declare(config), kinds, choice, progress)
        running = _running(jobs)
        stopping = chosen_jobs(running, choice, lambda name: fnmatch.fnmatchcase(name, args.jobs))
        if not args.yes:
            progress.say(_preview(removals, stopping, cancel=args.cancel))
            return DONE
        _confirm(args, config, removals)
        ended = stop_jobs(stopping, jobs, args.wait.total_seconds(), args.cancel, progress)
        busy = used_by(_running(jobs)) if removals else {}
        gone = remove(removals, busy, kinds, progress)
    return _report(ended, gone)


def _removals(
    resources: Sequence[Resource], kinds: Kinds, choice: Choice, progress: Progress
) -> list[Removal]:
    # Whether an account was made here tells about its roles too.
    looking = {*choice.kinds, *(("account",) if "role" in choice.kinds else ())}
    looked = look_at([r for r in resources if r.kind in looking], kinds, progress)
    return choose(resources, looked, choice)


def _running(jobs: Jobs) -> list[Job]:
    """Raises OutputError where jobs cannot be seen, and so nothing can be removed safely."""
    with told("jobs cannot be looked at", JOBS_ROLE):
        try:
            return jobs.running()
        except exceptions.Forbidden as error:
            if is_disabled(error):
                # Where there is no Dataflow no job runs.
                return []
            raise


def _choice(args: argparse.Namespace, config: Config) -> Choice:
    kinds = args.kinds or (("table",) if args.truncate else REMOVABLE)
    if args.truncate and set(kinds) - {"table", JOB}:
        raise UsageError("--truncate empties tables and removes nothing: expected --kinds table")
    pipelines = args.pipelines or config.pipelines
    return Choice(kinds, pipelines, config.pipelines, args.truncate)


def _preview(removals: Sequence[Removal], stopping: Sequence[Job], *, cancel: bool) -> str:
    rows = []
    for job in stopping:
        how = "drain" if job.drains and not cancel else "cancel"
        rows.append((how, JOB, job.name, job.state))
    rows += [(r.action, r.resource.kind, r.resource.name, r.told) for r in removals]
    if not rows:
        return "nothing is there to be removed"
    lost = lost_rows(removals)
    warning = f"; {lost:,} rows of tables would be lost" if lost else ""
    return f"{aligned(rows)}\nnothing was touched: --yes does it{warning}"


def _confirm(args: argparse.Namespace, config: Config, removals: Sequence[Removal]) -> None:
    """Raises UsageError where rows would be lost and nobody said the project's name."""
    lost = lost_rows(removals)
    if not lost:
        return
    said = args.project_confirm
    if said is None and sys.stdin.isatty():
        print(_preview(removals, (), cancel=False))
        said = input(f"{lost:,} rows will be lost. Type the project's name to go on: ").strip()
    if said != config.project:
        wrong = f"got {said!r}" if said else "it was not given"
        raise UsageError(
            f"{lost:,} rows of tables would be lost: expected --project_confirm {config.project}, "
            f"{wrong}; nothing was touched"
        )


def _report(*outcomes: Outcome) -> int:
    done = sum(len(outcome.done) for outcome in outcomes)
    kept = sum(len(outcome.kept) for outcome in outcomes)
    errors = [error for outcome in outcomes for error in outcome.errors]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    print(f"{done} removed or ended, {kept} kept, {len(errors)} failed")
    if errors:
        print("run it again to go on", file=sys.stderr)
    return FAILED if errors else DONE


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "plan": run_plan,
    "setup": run_setup,
    "status": run_status,
    "cleanup": run_cleanup,
}
