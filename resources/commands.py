"""The four commands. Each takes the parsed arguments and returns the exit code."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from common.terminal import columns, print_error, progressing
from model_handlers.trials.try_package import try_package
from resources import status as statuses
from resources.cleaning import run_cleanup
from resources.declaration import Resource, declare
from resources.differences import Step
from resources.jobs import PipelineJobs
from resources.kinds.catalog import Kinds, open_kinds
from resources.kinds.names import JOB
from resources.kinds.storage import Models
from resources.package import open_package
from resources.place import DONE, FAILED, check_project, configure
from resources.setup import plan, set_up

TO_DO = 3


def _of_kinds(resources: Sequence[Resource], kinds: Sequence[str] | None) -> list[Resource]:
    return [r for r in resources if kinds is None or r.kind in kinds]


def _wanted(args: argparse.Namespace, *, tried: bool = False) -> tuple[list[Resource], Kinds]:
    """Return the declared resources for plan and setup, and the kinds that reach them.

    With `tried`, the model is loaded in another process, and refused if it does not work.
    """
    config, cloud = configure(args)
    with_model = config.model is not None and (args.kinds is None or "model" in args.kinds)
    package = open_package(str(config.model), config.trusted_modules) if with_model else None
    check_project(cloud, args)
    if package is not None and tried:
        try_package(str(config.model), config.trusted_modules)
    resources = declare(
        config,
        example_rows=args.load_example,
        model_digest=package.digest if package else None,
        manifest=package.manifest if package else None,
    )
    return _of_kinds(resources, args.kinds), open_kinds(cloud, config, package)


def run_plan(args: argparse.Namespace) -> int:
    """Print what setup would do, and return 3 if there is anything to do."""
    resources, kinds = _wanted(args)
    with progressing() as progress:
        steps = plan(resources, kinds, progress)
    if args.json:
        print(json.dumps([step.as_json() for step in steps], indent=1))
    else:
        print(_as_table(steps))
    return TO_DO if any(step.action != "keep" for step in steps) else DONE


def _as_table(steps: Sequence[Step]) -> str:
    to_do = [step for step in steps if step.action != "keep"]
    rows = [
        (step.action, step.resource.kind, step.resource.name, step.description) for step in to_do
    ]
    kept = f"{len(steps) - len(to_do)} of {len(steps)} resources are up to date"
    if conflicts := sum(step.action == "conflict" for step in steps):
        conflict = "1 conflict" if conflicts == 1 else f"{conflicts} conflicts"
        kept += (
            f"; {conflict}: setup creates no resource except APIs until every conflict is resolved"
        )
    return "\n".join(filter(None, (columns(rows), kept)))


def run_setup(args: argparse.Namespace) -> int:
    """Create the missing resources, and print the value for --model if there is a model."""
    resources, kinds = _wanted(args, tried=True)
    with progressing() as progress:
        done = set_up(resources, kinds, progress)
    print(f"setup complete: {len(done)} {'change' if len(done) == 1 else 'changes'} made")
    models = kinds["model"]
    if isinstance(models, Models) and models.package is not None:
        for resource in (r for r in resources if r.kind == "model"):
            print(
                f"to use the model, pass --model {models.package.address(models.folder(resource))}"
            )
    return DONE


def run_status(args: argparse.Namespace) -> int:
    """Print the existing resources, waiting messages, jobs and warnings.

    Returns:
        1 if anything could not be inspected, else 0.
    """
    config, cloud = configure(args)
    check_project(cloud, args)
    jobs = PipelineJobs(cloud, config) if args.kinds is None or JOB in args.kinds else None
    kinds = open_kinds(cloud, config)
    resources = _of_kinds(declare(config), args.kinds)
    with progressing() as progress:
        found = statuses.look(resources, kinds, jobs, progress)
    now = datetime.now(UTC)
    if args.json:
        print(json.dumps(statuses.as_json(found, now, args.max_age), indent=1))
    else:
        print(statuses.as_text(found, now, args.max_age))
        for error in found.missing:
            print_error(error)
    return FAILED if found.missing else DONE


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "plan": run_plan,
    "setup": run_setup,
    "status": run_status,
    "cleanup": run_cleanup,
}
