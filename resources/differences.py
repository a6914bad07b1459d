"""What there is and what there shall be -> what is to be done. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from resources.declaration import LABEL, Resource
from resources.kinds.base import Found

Action = Literal["keep", "create", "change", "conflict"]


@dataclass(frozen=True)
class Difference:
    """One property that is not as it shall be. found: None where it is missing."""

    name: str
    wanted: str
    found: str | None

    def __str__(self) -> str:
        if self.found is None:
            return f"lacks {self.name} ({self.wanted})"
        return f"{self.name} is {self.found}, expected {self.wanted}"


@dataclass(frozen=True)
class Step:
    """A resource and what is to be done with it."""

    resource: Resource
    action: Action
    differences: tuple[Difference, ...] = ()

    @property
    def description(self) -> str:
        """Why, for people."""
        text = "; ".join(map(str, self.differences))
        return f"{text}: {_ADVICE}" if self.action == "conflict" else text

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kind": self.resource.kind,
            "name": self.resource.name,
            "action": self.action,
            "differences": [asdict(difference) for difference in self.differences],
        }


_HOLDERS = ("service", "bucket", "dataset")
_ADVICE = "change or remove it, or choose another name in the config"


def differences(resource: Resource, found: Found) -> tuple[Difference, ...]:
    """A resource and what is there -> the properties that differ; what it has besides is fine."""
    # Names of columns are the same in any case.
    present = {name.lower(): value for name, value in found.properties.items()}
    return tuple(
        Difference(name, wanted, present.get(name.lower()))
        for name, wanted in resource.properties.items()
        if present.get(name.lower()) != wanted
    )


def make_step(
    resource: Resource, found: Found | None, repairs: Callable[[str, str | None], bool]
) -> Step:
    """A resource, what is there, which properties can be set -> the step.

    What was not made by us is never changed.
    """
    if found is None:
        return Step(resource, "create")
    differing = differences(resource, found)
    if not found.ours:
        # It is taken as it is, and does not become ours by being used.
        differing = tuple(d for d in differing if not d.name.startswith(LABEL))
    if not differing:
        return Step(resource, "keep")
    repairable = found.ours and all(
        d.name.startswith(LABEL) or repairs(d.name, d.found) for d in differing
    )
    return Step(resource, "change" if repairable else "conflict", differing)


def wanted(resources: Sequence[Resource]) -> list[Resource]:
    """A declaration -> what setup makes: all but what nobody asked for."""
    return [resource for resource in resources if not resource.on_demand]


def is_absent(resource: Resource, looked: Mapping[tuple[str, str], Found | None]) -> bool:
    """A resource, what was seen so far -> whether it cannot be there for lack of what it needs.

    A disabled API answers nothing about its resources, and what is not there holds none.
    """
    return any(
        kind in _HOLDERS and (kind, name) in looked and looked[kind, name] is None
        for kind, name in resource.needs
    )
