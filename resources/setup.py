"""Makes what is missing, one resource after the other; run again it goes on where it ended."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from google.api_core import exceptions
from google.api_core.retry import Retry

from cloud.errors import is_disabled
from common.errors import MillraceError, OutputError
from resources.declaration import LABEL, LABELLED, Resource
from resources.differences import Step, make_step, wanted
from resources.kinds.base import Kind, resource_errors
from resources.kinds.catalog import Kinds, look_at
from resources.progress import Progress

Patient = Callable[[Callable[[], Any]], Any]

# An API that was just enabled is refused for a while.
_ENABLED_SECONDS, _PAUSE_SECONDS = 180.0, 1.0


def plan(resources: Sequence[Resource], kinds: Kinds, progress: Progress) -> list[Step]:
    """A declaration -> a step for each resource. Raises OutputError, CredentialsError.

    What is made on demand is only labelled, where an earlier version made it.
    """
    chosen = wanted(resources)
    others = [r for r in resources if r.on_demand and r.kind in LABELLED]
    looked = look_at([r for r in resources if r in chosen or r in others], kinds, progress)
    steps = [make_step(r, looked[r.key], kinds[r.kind].repairs) for r in chosen]
    more = [make_step(r, looked[r.key], kinds[r.kind].repairs) for r in others]
    return steps + [step for step in more if step.action == "change"]


def set_up(resources: Sequence[Resource], kinds: Kinds, progress: Progress) -> list[Step]:
    """A declaration -> all of it is there; the steps that were taken. Raises OutputError.

    APIs come first, since nothing can be looked at before. Where anything is there already
    and differs in what cannot be set, nothing is made.
    """
    done: list[Step] = []
    for part in _parts(resources):
        patient = _until_enabled if done else _at_once
        steps = patient(functools.partial(plan, part, kinds, progress))
        if wrong := [step for step in steps if step.action == "conflict"]:
            lines = "; ".join(f"{step.resource}: {step.description}" for step in wrong)
            raise OutputError(f"nothing was made, since {lines}")
        for number, step in enumerate(steps):
            if step.action != "keep":
                progress.now(f"{number + 1} of {len(steps)}: {step.resource}")
                _take(step, kinds, patient, done)
                progress.say(f"{step.action}d  {step.resource}  {step.description}".rstrip())
                done.append(step)
    return done


def _parts(resources: Sequence[Resource]) -> tuple[list[Resource], list[Resource]]:
    """A declaration -> APIs, and all else."""
    apis = [resource for resource in resources if resource.kind == "service"]
    return apis, [resource for resource in resources if resource.kind != "service"]


def _take(step: Step, kinds: Kinds, patient: Patient, done: list[Step]) -> None:
    """A step -> taken. Raises OutputError that says how far it went."""
    resource, kind = step.resource, kinds[step.resource.kind]
    names = [difference.name for difference in step.differences]
    try:
        with resource_errors(f"{resource} cannot be made", kind.role):
            if step.action == "change":
                _change(resource, names, kind)
                return
            try:
                patient(functools.partial(kind.create, resource))
            except exceptions.Conflict:
                # Somebody else made it a moment ago; of the same form, or not.
                found = kind.look(resource)
                if found is None or make_step(resource, found, kind.repairs).action != "keep":
                    raise
    except MillraceError as error:
        far = f"{len(done)} steps are done" if done else "nothing was done before"
        raise type(error)(f"{error}; {far}: run it again to go on") from error


def _change(resource: Resource, names: Sequence[str], kind: Kind) -> None:
    """A resource, properties that differ -> they are as they shall be."""
    labels = {
        name.removeprefix(LABEL): resource.properties[name]
        for name in names
        if name.startswith(LABEL)
    }
    others = [name for name in names if not name.startswith(LABEL)]
    if labels:
        kind.relabel(resource, labels)
    if others:
        kind.repair(resource, others)


def _at_once(call: Callable[[], Any]) -> Any:
    return call()


def _until_enabled(call: Callable[[], Any]) -> Any:
    """A call -> its answer, when the API is known to be enabled everywhere."""

    def is_early(error: Exception) -> bool:
        return is_disabled(error) or is_disabled(error.__cause__ or error)

    return Retry(is_early, initial=_PAUSE_SECONDS, maximum=10.0, timeout=_ENABLED_SECONDS)(call)()
