"""Removes what setup created for this configuration, unless others or a job use it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from google.api_core import exceptions

from common.command_names import as_typed
from common.errors import MillraceError
from common.terminal import Progress
from common.units import in_bytes
from resources.declaration import LABELLED, Resource, config_label
from resources.jobs import PipelineJob
from resources.kinds.base import Found, Kept, resource_errors
from resources.kinds.bigquery import Tables
from resources.kinds.catalog import KINDS, Kinds, Looked
from resources.outcome import Outcome

# These kinds carry no label. They belong to the owner of their account or bucket.
_OWNERS = {"role": "account", "files": "bucket"}
_DELETED_TOPIC = "_deleted-topic_"

Busy = Mapping[str, tuple[PipelineJob, bool]]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the user selected for removal.

    Attributes:
        kinds: The selected kinds of resources.
        pipelines: The selected pipelines.
        declared: All pipelines of the configuration.
        truncate: Whether to empty tables instead of removing them.
        config: The name of the configuration whose label a resource must carry, None for any.
    """

    kinds: Collection[str]
    pipelines: Collection[str]
    declared: Collection[str]
    truncate: bool = False
    config: str | None = None

    def has(self, resource: Resource) -> bool:
        """Return whether a resource is of a selected kind and only selected pipelines need it."""
        users = set(resource.pipelines) & set(self.declared)
        return resource.kind in self.kinds and users <= set(self.pipelines)

    @property
    def looking(self) -> set[str]:
        """The kinds to inspect, including those that say whom a role or files belong to."""
        return {*self.kinds, *(_OWNERS[kind] for kind in self.kinds if kind in _OWNERS)}


@dataclass(frozen=True, kw_only=True)
class Removal:
    """An existing resource, and what happens to it.

    Attributes:
        resource: The resource as declared.
        found: The resource as it exists.
        action: `release` removes only the label of this configuration.
        reason: Why the resource is kept. For a release, which configurations also use it.
        job: The name of this configuration's running job that uses the resource, if any.
    """

    resource: Resource
    found: Found
    action: Literal["remove", "truncate", "release", "keep"]
    reason: str = ""
    job: str | None = None

    @property
    def description(self) -> str:
        """Why the resource is kept, or else what is lost with it, for the user."""
        if self.reason:
            return self.reason
        rows = f"{self.found.rows:,} rows" if self.resource.kind == "table" else ""
        size = in_bytes(self.found.size) if self.found.size else ""
        lost = (_counted(count, what) for what, count in self.found.losses.items())
        return ", ".join(filter(None, (rows, size, self.found.details, *lost)))


@dataclass
class _Choosing:
    """The decisions so far: the names of resources to remove, and the resources to keep."""

    gone: set[str] = field(default_factory=set)
    staying: list[Resource] = field(default_factory=list)


def choose_removals(
    resources: Sequence[Resource],
    looked: Looked,
    choice: Choice,
    busy: Busy | None = None,
) -> list[Removal]:
    """Decide what happens to each selected resource that exists.

    It calls no service: the preview and the removal both use its result.

    Args:
        resources: The declaration.
        looked: The resources as they exist.
        choice: What the user selected.
        busy: The jobs that keep resources, by pipeline and by name of a subscription or an account,
            and whether each may belong to another configuration.

    Returns:
        The removals, each before the resources that it needs.
    """
    removals, so_far = list[Removal](), _Choosing()
    for resource in reversed(resources):
        found = looked.get(resource.key)
        if not choice.has(resource) or found is None:
            continue
        removal = _removal(resource, found, looked, choice=choice, so_far=so_far, busy=busy or {})
        if removal.action == "remove":
            so_far.gone.add(resource.name)
        else:
            so_far.staying.append(resource)
        removals.append(removal)
    return removals


def _removal(
    resource: Resource,
    found: Found,
    looked: Looked,
    *,
    choice: Choice,
    so_far: _Choosing,
    busy: Busy,
) -> Removal:
    """Return what happens to an existing resource."""
    removal = partial(Removal, resource=resource, found=found)
    if reason := _foreign(resource, looked, choice) or _other_form(resource, found):
        return removal(action="keep", reason=reason)
    for used in (*resource.pipelines, resource.name, resource.properties.get("member", "")):
        if used in busy:
            job, is_others = busy[used]
            reason = f"job {job.name} is still running"
            return removal(action="keep", reason=reason, job=None if is_others else job.name)
    if others := _others(resource, looked, choice):
        can_release = resource.kind in LABELLED and not choice.truncate
        reason = f"also used by configuration {', '.join(others)}"
        return removal(action="release" if can_release else "keep", reason=reason)
    if choice.truncate:
        return removal(action="truncate")
    for other in so_far.staying:
        if resource.key in other.needs:
            return removal(action="keep", reason=f"{other} needs it and is kept")
    for held in found.holds:
        if held not in so_far.gone:
            return removal(action="keep", reason=KINDS[resource.kind].held_by(held))
    return removal(action="remove")


def _owner(resource: Resource, looked: Looked) -> tuple[Found | None, str]:
    """Return the resource whose label decides about this one, and the word for it in messages."""
    kind = _OWNERS.get(resource.kind)
    if kind is None:
        return looked.get(resource.key), "it"
    return next((looked.get(key) for key in resource.needs if key[0] == kind), None), f"the {kind}"


def _foreign(resource: Resource, looked: Looked, choice: Choice) -> str:
    """Return why this configuration may not remove a resource, empty if it may."""
    owner, it = _owner(resource, looked)
    if owner is None or not owner.ours:
        lacks = ": it lacks the label created_by=millrace" if it == "it" else ""
        return f"{it} was not created by Millrace{lacks}"
    if choice.config is None or resource.kind not in (*LABELLED, *_OWNERS):
        return ""
    if not owner.configs:
        return (
            f"{it} has no label that names its configuration, because an earlier version of "
            "Millrace created it: run setup to add the label, then run cleanup again"
        )
    if choice.config not in owner.configs:
        return f"{it} belongs to configuration {', '.join(sorted(owner.configs))}"
    return ""


def _others(resource: Resource, looked: Looked, choice: Choice) -> list[str]:
    """Return the names of the other configurations that use a resource."""
    owner, _ = _owner(resource, looked)
    if choice.config is None or owner is None:
        return []
    return sorted(owner.configs - {choice.config})


def _other_form(resource: Resource, found: Found) -> str:
    """Return why an existing resource is not what was declared, empty if it is."""
    kind = found.properties.get("type", "").partition(" ")[0]
    if resource.kind == "table" and kind != "TABLE":
        return f"it is a {kind}, not a table"
    wanted = resource.properties.get("topic")
    topic = found.properties.get("topic", wanted)
    if topic not in (wanted, _DELETED_TOPIC):
        return f"it is a subscription of {topic}, not of {wanted}"
    return ""


def lost_rows(removals: Sequence[Removal]) -> int:
    """Return the number of rows in the tables that would be removed or emptied."""
    return sum(r.found.rows for r in _going(removals) if r.resource.kind == "table")


def losses(removals: Sequence[Removal]) -> dict[str, int | None]:
    """Return what the removals would lose.

    Returns:
        Counts by what is counted (table rows, files, waiting messages), None if a count is
        unknown.
    """
    lost: dict[str, int | None] = {}
    unknown = set[str]()
    for removal in _going(removals):
        for what, count in removal.found.losses.items():
            if count is None:
                unknown.add(what)
            else:
                lost[what] = (lost.get(what) or 0) + count
    lost |= {f"additional {what}" if what in lost else what: None for what in sorted(unknown)}
    if rows := lost_rows(removals):
        lost["table rows"] = rows
    return lost


def lost_text(lost: Mapping[str, int | None]) -> str:
    """Return the losses as text."""
    return " and ".join(_counted(count, what) for what, count in lost.items())


def _going(removals: Sequence[Removal]) -> list[Removal]:
    return [r for r in removals if r.action in ("remove", "truncate")]


def _counted(count: int | None, what: str) -> str:
    if count is None:
        return f"an unknown number of {what}"
    # "1 or more waiting messages" keeps the plural.
    one = count == 1 and not what.startswith("or more")
    return f"{count:,} {what.removesuffix('s') if one else what}"


def remove(
    removals: Sequence[Removal], choice: Choice, kinds: Kinds, progress: Progress
) -> Outcome:
    """Carry out the removals, and continue after errors.

    Except for roles and files, each resource is inspected again first. It is kept if it no longer
    belongs to this configuration, or if another has started to use it.

    Args:
        removals: The decisions of `choose_removals`.
        choice: What the user selected.
        kinds: The kinds that reach the resources.
        progress: Receives a line for each resource.

    Returns:
        What was removed and kept, and what failed.
    """
    outcome, still_there, blocked = Outcome(), list[Resource](), dict[str, list[Resource]]()
    for number, removal in enumerate(removals):
        resource = removal.resource
        progress.now(f"{number + 1} of {len(removals)}: {resource} ...")
        try:
            _check(removal, still_there)
            with resource_errors(f"cannot remove {resource}", kinds[resource.kind].role):
                _carry_out(removal, choice, kinds)
        except MillraceError as error:
            still_there.append(resource)
            if not isinstance(error, Kept):
                outcome.errors.append(str(error))
            elif removal.job is not None:
                blocked.setdefault(removal.job, []).append(resource)
                progress.say(f"kept  {resource}  {error}")
            else:
                outcome.kept.append(f"{resource}: {error}")
                progress.say(f"kept  {resource}  {error}")
        else:
            emptied = removal.action == "truncate"
            (outcome.emptied if emptied else outcome.done).append(str(resource))
            past = "truncated" if emptied else "removed"
            progress.say(f"{past}  {resource}  {removal.description}".rstrip())
    outcome.blocked += [_still_runs(job, kept) for job, kept in blocked.items()]
    progress.clear()
    return outcome


def _still_runs(job: str, kept: Sequence[Resource]) -> str:
    what = str(kept[0]) if len(kept) == 1 else f"{len(kept)} resources that it may use"
    return (
        f"job {job} is still running, so cleanup kept {what}: if the job is yours, stop it first "
        f"with `{as_typed('resources')} cleanup --kinds job --jobs {job} --yes`"
    )


def _check(removal: Removal, still_there: Sequence[Resource]) -> None:
    """Raise Kept if the resource is to be kept, or if a resource that remains needs it."""
    if removal.action == "keep":
        raise Kept(removal.reason)
    for other in still_there:
        if removal.action == "remove" and removal.resource.key in other.needs:
            raise Kept(f"{other} needs it and still exists")


def _carry_out(removal: Removal, choice: Choice, kinds: Kinds) -> None:
    """Carry out a removal. Raise Kept if it was a release, or if others use the resource now."""
    resource, kind = removal.resource, kinds[removal.resource.kind]
    try:
        if resource.kind not in _OWNERS:
            again = kind.look(resource)
            if again is None:
                return
            looked: Looked = {resource.key: again}
            reason = _foreign(resource, looked, choice)
            if not reason and removal.action != "release" and _others(resource, looked, choice):
                reason = "another configuration has started to use it"
            if reason:
                raise Kept(reason)
        if removal.action == "release" and choice.config is not None:
            kind.relabel(resource, {config_label(choice.config): None})
            raise Kept(f"{removal.reason}; the label of this configuration was removed")
        if removal.action == "truncate" and isinstance(kind, Tables):
            kind.truncate(resource)
        else:
            kind.delete(resource)
    except exceptions.NotFound:
        # Someone else removed it, or an earlier attempt whose response was lost.
        return
