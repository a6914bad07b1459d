"""Compares existing resources with the declaration, and decides what setup does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from resources.declaration import LABEL, Resource
from resources.kinds.base import Found

Action = Literal["keep", "create", "change", "conflict"]


@dataclass(frozen=True)
class Difference:
    """A property that differs from the declaration.

    Attributes:
        name: The name of the property.
        wanted: The declared value.
        found: The existing value, None if the property is missing.
    """

    name: str
    wanted: str
    found: str | None

    def __str__(self) -> str:
        if self.found is None:
            return f"lacks {self.name} ({self.wanted})"
        return f"{self.name} is {self.found}, expected {self.wanted}"

    @property
    def change(self) -> str:
        """What setup has done about the difference, for the user."""
        if self.found is None:
            return f"added {self.name} ({self.wanted})"
        return f"{self.name} from {self.found} to {self.wanted}"


@dataclass(frozen=True)
class Step:
    """A resource and what setup does with it."""

    resource: Resource
    action: Action
    differences: tuple[Difference, ...] = ()

    @property
    def description(self) -> str:
        """The differences and, for a conflict, what to do about it, for the user."""
        text = "; ".join(map(str, self.differences))
        return f"{text}: {_ADVICE}" if self.action == "conflict" else text

    @property
    def changes(self) -> str:
        """What the step has changed in an existing resource, for the user."""
        return "; ".join(difference.change for difference in self.differences)

    def as_json(self) -> dict[str, Any]:
        """Return the step as a JSON object."""
        return {
            "kind": self.resource.kind,
            "name": self.resource.name,
            "action": self.action,
            "differences": [asdict(difference) for difference in self.differences],
        }


_HOLDERS = ("service", "bucket", "dataset")
_ADVICE = "change or remove it, or choose another name in the configuration file"


def differences(resource: Resource, found: Found) -> tuple[Difference, ...]:
    """Return the declared properties whose existing values differ.

    Properties that are not declared do not count.

    Args:
        resource: The resource as declared.
        found: The resource as it exists.
    """
    # The names of columns are case-insensitive.
    present = {name.lower(): value for name, value in found.properties.items()}
    return tuple(
        Difference(name, wanted, present.get(name.lower()))
        for name, wanted in resource.properties.items()
        if present.get(name.lower()) != wanted
    )


def make_step(
    resource: Resource, found: Found | None, repairs: Callable[[str, str | None], bool]
) -> Step:
    """Return what setup does with a resource.

    A resource that Millrace did not create is never changed.

    Args:
        resource: The resource as declared.
        found: The resource as it exists, None if it does not.
        repairs: Says whether a property can be set, given its name and its existing value.
    """
    if found is None:
        return Step(resource, "create")
    differing = differences(resource, found)
    if not found.ours:
        # It is used as it is and does not get a label, so cleanup will not remove it.
        differing = tuple(d for d in differing if not d.name.startswith(LABEL))
    if not differing:
        return Step(resource, "keep")
    repairable = found.ours and all(
        d.name.startswith(LABEL) or repairs(d.name, d.found) for d in differing
    )
    return Step(resource, "change" if repairable else "conflict", differing)


def wanted(resources: Sequence[Resource]) -> list[Resource]:
    """Return the resources that setup creates: all except those created on demand."""
    return [resource for resource in resources if not resource.on_demand]


def is_absent(resource: Resource, looked: Mapping[tuple[str, str], Found | None]) -> bool:
    """Return whether a resource cannot exist because something that it needs does not.

    A disabled API cannot be asked about its resources, and a missing bucket or dataset holds none.

    Args:
        resource: The resource as declared.
        looked: The resources that were inspected before it.
    """
    return any(
        kind in _HOLDERS and (kind, name) in looked and looked[kind, name] is None
        for kind, name in resource.needs
    )
