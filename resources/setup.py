"""Creates missing resources one after the other. A second run continues after an interruption."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from google.api_core import exceptions
from google.api_core.retry import Retry

from cloud.errors import is_disabled
from common.errors import MillraceError, ResourceError
from common.terminal import Progress
from resources.declaration import LABEL, LABELLED, Resource
from resources.differences import Step, make_step, wanted
from resources.kinds.base import Kind, resource_errors
from resources.kinds.catalog import Kinds, look_at

Patient = Callable[[Callable[[], Any]], Any]

# Google refuses calls to an API for a while after the API has been enabled.
_ENABLED_SECONDS, _PAUSE_SECONDS = 180.0, 1.0


def plan(resources: Sequence[Resource], kinds: Kinds, progress: Progress) -> list[Step]:
    """Decide what setup does with each resource.

    Resources that are created on demand get a step only if their labels are to be updated.

    Args:
        resources: The declaration.
        kinds: The kinds that reach the resources.
        progress: Shows which resource is being inspected.

    Returns:
        A step for each resource.

    Raises:
        ResourceError: A resource cannot be inspected.
        CredentialsError: The credentials are missing or invalid.
    """
    chosen = wanted(resources)
    others = [r for r in resources if r.on_demand and r.kind in LABELLED]
    looked = look_at([r for r in resources if r in chosen or r in others], kinds, progress)
    steps = [make_step(r, looked[r.key], kinds[r.kind].repairs) for r in chosen]
    more = [make_step(r, looked[r.key], kinds[r.kind].repairs) for r in others]
    return steps + [step for step in more if step.action == "change"]


def set_up(resources: Sequence[Resource], kinds: Kinds, progress: Progress) -> list[Step]:
    """Create what is missing and change what differs.

    APIs are enabled first, because nothing else can be inspected before. After that, nothing is
    created if an existing resource differs in a property that setup cannot or may not set.

    Args:
        resources: The declaration.
        kinds: The kinds that reach the resources.
        progress: Receives a line for each change.

    Returns:
        The steps that changed something.

    Raises:
        ResourceError: There is a conflict, or a resource cannot be inspected, created or changed.
        CredentialsError: The credentials are missing or invalid.
    """
    done: list[Step] = []
    for part in _parts(resources):
        patient = _until_enabled if done else _at_once
        steps = patient(functools.partial(plan, part, kinds, progress))
        if wrong := [step for step in steps if step.action == "conflict"]:
            lines = "; ".join(f"{step.resource}: {step.description}" for step in wrong)
            raise ResourceError(
                f"conflicts: {lines}; no resource except APIs was created or changed"
            )
        for number, step in enumerate(steps):
            if step.action != "keep":
                progress.now(f"{number + 1} of {len(steps)}: {step.resource} ...")
                _take(step, kinds, patient, done)
                progress.say(f"{step.action}d  {step.resource}  {step.changes}".rstrip())
                done.append(step)
    return done


def _parts(resources: Sequence[Resource]) -> tuple[list[Resource], list[Resource]]:
    """Split a declaration into the APIs and the other resources."""
    apis = [resource for resource in resources if resource.kind == "service"]
    return apis, [resource for resource in resources if resource.kind != "service"]


def _take(step: Step, kinds: Kinds, patient: Patient, done: list[Step]) -> None:
    """Carry out a step. If it fails, raise an error that says how many steps are done."""
    resource, kind = step.resource, kinds[step.resource.kind]
    names = [difference.name for difference in step.differences]
    try:
        with resource_errors(f"cannot {step.action} {resource}", kind.role):
            if step.action == "change":
                _change(resource, names, kind)
                return
            try:
                patient(functools.partial(kind.create, resource))
            except exceptions.Conflict:
                # Someone else created it a moment ago, possibly with other properties.
                found = kind.look(resource)
                if found is None or make_step(resource, found, kind.repairs).action != "keep":
                    raise
    except MillraceError as error:
        far = f"changes made so far: {len(done) or 'none'}"
        raise type(error)(f"{error}; {far}; run setup again to continue") from error


def _change(resource: Resource, names: Sequence[str], kind: Kind) -> None:
    """Set the labels and properties that differ."""
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
    """Retry a call until all of Google's servers know that its API is enabled."""

    def is_early(error: Exception) -> bool:
        return is_disabled(error) or is_disabled(error.__cause__ or error)

    return Retry(is_early, initial=_PAUSE_SECONDS, maximum=10.0, timeout=_ENABLED_SECONDS)(call)()
