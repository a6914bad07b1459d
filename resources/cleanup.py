"""Removes what setup made for this configuration, and nothing that others or a job use."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from google.api_core import exceptions

from common.command_names import as_typed
from common.errors import MillraceError
from common.units import in_bytes
from resources.declaration import LABELLED, Resource, config_label
from resources.jobs import PipelineJob
from resources.kinds.base import Found, Kept, resource_errors
from resources.kinds.bigquery import Tables
from resources.kinds.catalog import KINDS, Kinds, Looked
from resources.outcome import Outcome
from resources.progress import Progress

# What carries no label belongs to whom the thing belongs that it is in, or of.
_OWNERS = {"role": "account", "files": "bucket"}
_DELETED_TOPIC = "_deleted-topic_"

Busy = Mapping[str, tuple[PipelineJob, bool]]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is to be removed. pipelines: whose resources; declared: those that there are.

    truncate: tables are emptied and stay, with what they are in. config: the name of the
    configuration whose label it must carry, None for any.
    """

    kinds: Collection[str]
    pipelines: Collection[str]
    declared: Collection[str]
    truncate: bool = False
    config: str | None = None

    def has(self, resource: Resource) -> bool:
        """Whether a resource is chosen: no pipeline that is not chosen needs it."""
        users = set(resource.pipelines) & set(self.declared)
        return resource.kind in self.kinds and users <= set(self.pipelines)

    @property
    def looking(self) -> set[str]:
        """Kinds that are looked at: whose a role is tells its account."""
        return {*self.kinds, *(_OWNERS[kind] for kind in self.kinds if kind in _OWNERS)}


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One resource that is there, and what becomes of it.

    reason: why it is kept; of a release, who uses it too. job: that stands against it, and is
    ours, so that it can be stopped.
    """

    resource: Resource
    found: Found
    action: Literal["remove", "truncate", "release", "keep"]
    reason: str = ""
    job: str | None = None

    @property
    def description(self) -> str:
        """What goes with it, or why it stays."""
        if self.reason:
            return self.reason
        rows = f"{self.found.rows:,} rows" if self.resource.kind == "table" else ""
        size = in_bytes(self.found.size) if self.found.size else ""
        lost = (_counted(count, what) for what, count in self.found.losses.items())
        return ", ".join(filter(None, (rows, size, self.found.details, *lost)))


@dataclass
class _Choosing:
    """What was decided of the resources before: names of those that go, those that stay."""

    gone: set[str] = field(default_factory=set)
    staying: list[Resource] = field(default_factory=list)


def choose_removals(
    resources: Sequence[Resource],
    looked: Looked,
    choice: Choice,
    busy: Busy | None = None,
) -> list[Removal]:
    """A declaration, what is there of it, what a user chose -> removals, users before what is used.

    busy: which job uses it, by pipeline and by name of a subscription or account. Pure: the
    preview, and what is done, are this list.
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
    """A resource and what is known -> what becomes of it."""
    removal = partial(Removal, resource=resource, found=found)
    if reason := _foreign(resource, looked, choice) or _other_form(resource, found):
        return removal(action="keep", reason=reason)
    for used in (*resource.pipelines, resource.name, resource.properties.get("member", "")):
        if used in busy:
            job, is_others = busy[used]
            reason = f"job {job.name} still runs"
            return removal(action="keep", reason=reason, job=None if is_others else job.name)
    if others := _others(resource, looked, choice):
        can_release = resource.kind in LABELLED and not choice.truncate
        reason = f"configuration {', '.join(others)} uses it too"
        return removal(action="release" if can_release else "keep", reason=reason)
    if choice.truncate:
        return removal(action="truncate")
    for other in so_far.staying:
        if resource.key in other.needs:
            return removal(action="keep", reason=f"{other} needs it, and stays")
    for held in found.holds:
        if held not in so_far.gone:
            return removal(action="keep", reason=KINDS[resource.kind].held_by(held))
    return removal(action="remove")


def _owner(resource: Resource, looked: Looked) -> tuple[Found | None, str]:
    """A resource -> what carries the label that counts for it, and how that is called."""
    kind = _OWNERS.get(resource.kind)
    if kind is None:
        return looked.get(resource.key), "it"
    return next((looked.get(key) for key in resource.needs if key[0] == kind), None), f"the {kind}"


def _foreign(resource: Resource, looked: Looked, choice: Choice) -> str:
    """A resource -> why it is not this configuration's to remove, empty where it is."""
    owner, it = _owner(resource, looked)
    if owner is None or not owner.ours:
        lacks = ": it lacks our label" if it == "it" else ""
        return f"{it} was not made here{lacks}"
    if choice.config is None or resource.kind not in (*LABELLED, *_OWNERS):
        return ""
    if not owner.configs:
        return (
            f"{it} carries no configuration's label, since an earlier version made it: run setup, "
            "which adds the label, then cleanup again"
        )
    if choice.config not in owner.configs:
        return f"{it} belongs to configuration {', '.join(sorted(owner.configs))}"
    return ""


def _others(resource: Resource, looked: Looked, choice: Choice) -> list[str]:
    """A resource of ours -> the other configurations that use it."""
    owner, _ = _owner(resource, looked)
    if choice.config is None or owner is None:
        return []
    return sorted(owner.configs - {choice.config})


def _other_form(resource: Resource, found: Found) -> str:
    """What has our label and is something else by now -> what it is."""
    kind = found.properties.get("type", "").partition(" ")[0]
    if resource.kind == "table" and kind != "TABLE":
        return f"it is a {kind}, not a table"
    wanted = resource.properties.get("topic")
    topic = found.properties.get("topic", wanted)
    if topic not in (wanted, _DELETED_TOPIC):
        return f"it is a subscription of {topic}, not of ours"
    return ""


def lost_rows(removals: Sequence[Removal]) -> int:
    """Removals -> rows of tables that go."""
    return sum(r.found.rows for r in _going(removals) if r.resource.kind == "table")


def losses(removals: Sequence[Removal]) -> dict[str, int | None]:
    """Removals -> what would be lost, how much of each; None where nobody knows how much."""
    lost: dict[str, int | None] = {}
    unknown = set[str]()
    for removal in _going(removals):
        for what, count in removal.found.losses.items():
            if count is None:
                unknown.add(what)
            else:
                lost[what] = (lost.get(what) or 0) + count
    lost |= {f"more {what}" if what in lost else what: None for what in sorted(unknown)}
    if rows := lost_rows(removals):
        lost["rows of tables"] = rows
    return lost


def lost_text(lost: Mapping[str, int | None]) -> str:
    """Losses -> a text of them."""
    return " and ".join(_counted(count, what) for what, count in lost.items())


def _going(removals: Sequence[Removal]) -> list[Removal]:
    return [r for r in removals if r.action in ("remove", "truncate")]


def _counted(count: int | None, what: str) -> str:
    return f"an unknown number of {what}" if count is None else f"{count:,} {what}"


def remove(
    removals: Sequence[Removal], choice: Choice, kinds: Kinds, progress: Progress
) -> Outcome:
    """Removals as they were chosen -> done, as far as nothing has changed since.

    Goes on after an error.
    """
    outcome, still_there, blocked = Outcome(), list[Resource](), dict[str, list[Resource]]()
    for number, removal in enumerate(removals):
        resource = removal.resource
        progress.now(f"{number + 1} of {len(removals)}: {resource}")
        try:
            _check(removal, still_there)
            with resource_errors(f"{resource} cannot be removed", kinds[resource.kind].role):
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
    what = str(kept[0]) if len(kept) == 1 else f"what it may use ({len(kept)} resources)"
    return (
        f"{what} was not touched: job {job} still runs: stop it first, with "
        f"`{as_typed('resources')} cleanup --kinds job --jobs {job} --yes` if it is yours"
    )


def _check(removal: Removal, still_there: Sequence[Resource]) -> None:
    """Raises Kept where it is kept, or needed by what could not be removed."""
    if removal.action == "keep":
        raise Kept(removal.reason)
    for other in still_there:
        if removal.action == "remove" and removal.resource.key in other.needs:
            raise Kept(f"{other} needs it, and is still there")


def _carry_out(removal: Removal, choice: Choice, kinds: Kinds) -> None:
    """A removal -> done; raises Kept where it is not ours any more, or only lost our label."""
    resource, kind = removal.resource, kinds[removal.resource.kind]
    try:
        if resource.kind not in _OWNERS:
            again = kind.look(resource)
            if again is None:
                return
            looked: Looked = {resource.key: again}
            reason = _foreign(resource, looked, choice)
            if not reason and removal.action != "release" and _others(resource, looked, choice):
                reason = "another configuration uses it by now"
            if reason:
                raise Kept(reason)
        if removal.action == "release" and choice.config is not None:
            kind.relabel(resource, {config_label(choice.config): None})
            raise Kept(f"{removal.reason}; it has lost the label of this one")
        if removal.action == "truncate" and isinstance(kind, Tables):
            kind.truncate(resource)
        else:
            kind.delete(resource)
    except exceptions.NotFound:
        # Somebody else was quicker, or an attempt before this one.
        return
