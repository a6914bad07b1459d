"""The operations on a resource of any kind, and the translation of their errors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from cloud.owner import OWNER
from common.errors import MillraceError, ResourceError
from resources.declaration import CONFIG_LABEL, LABEL, Resource


@dataclass(frozen=True, kw_only=True)
class Found:
    """A resource as it exists in Google Cloud.

    Attributes:
        properties: The properties that can be compared with the declaration.
        ours: Whether Millrace created it.
        rows: The number of rows that it holds.
        size: The number of bytes that it holds.
        details: Anything else for the user to know.
        configs: The names of the configurations whose labels it carries.
        losses: What removing it would lose in addition to rows: counts by what is counted, None
            for an unknown count.
        holds: The names of what it contains, or of what uses it. They prevent its removal.
    """

    properties: Mapping[str, str] = field(default_factory=dict)
    ours: bool = True
    rows: int = 0
    size: int = 0
    details: str = ""
    configs: frozenset[str] = frozenset()
    losses: Mapping[str, int | None] = field(default_factory=dict)
    holds: tuple[str, ...] = ()

    @classmethod
    def labelled(
        cls, labels: Mapping[str, str] | None, properties: Mapping[str, str], **rest: Any
    ) -> Found:
        """Return a resource whose owner, configurations and some properties are from its labels.

        Args:
            labels: The labels of the resource. Each becomes a property, too.
            properties: The other properties.
            **rest: The other attributes.
        """
        shown = {f"{LABEL}{key}": value for key, value in dict(labels or {}).items()}
        return cls(
            properties={**properties, **shown},
            ours=is_ours(labels),
            configs=configs_of(labels),
            **rest,
        )


class Kept(MillraceError):
    """A resource was kept because others use it. This is not a failure."""


@dataclass(frozen=True)
class Kind:
    """The operations on the resources of one kind.

    They raise errors of Google's clients, which `resource_errors` translates.

    Attributes:
        cloud: The clients of the project.
        labels: The labels of every resource that is created.
    """

    cloud: Cloud
    labels: Mapping[str, str] = field(default_factory=lambda: OWNER)
    # The role with the permissions that the operations need.
    role: ClassVar[str] = ""
    # The reason for keeping a resource, with the name of what it holds.
    held: ClassVar[str] = "it contains {}"

    @classmethod
    def held_by(cls, holder: str) -> str:
        """Return the reason for keeping a resource, given one of the names of `Found.holds`."""
        return cls.held.format(holder)

    def look(self, resource: Resource) -> Found | None:
        """Return the resource as it exists, None if it does not."""
        raise NotImplementedError

    def create(self, resource: Resource) -> None:
        """Create the resource. Raise exceptions.Conflict if it exists."""
        raise NotImplementedError

    def repairs(self, name: str, found: str | None) -> bool:
        """Return whether `repair` can set a property.

        Args:
            name: The name of the property.
            found: Its existing value, None if the property is missing.
        """
        return False

    def repair(self, resource: Resource, names: list[str]) -> None:
        """Set properties of a resource to their declared values.

        Args:
            resource: The resource as declared.
            names: The names of the properties to set.
        """
        raise NotImplementedError

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """Change the labels of a resource. Other labels are left alone.

        Args:
            resource: The resource.
            labels: The labels to set, by key; None as the value removes the label.
        """
        raise NotImplementedError

    def holds(self, resource: Resource) -> tuple[str, ...]:
        """Return the names of what the resource contains, or of what uses it.

        There may be more. The names are enough to decide whether it can be removed.
        """
        return ()

    def delete(self, resource: Resource) -> None:
        """Delete the resource. Raise exceptions.NotFound, or Kept if others use it."""
        raise NotImplementedError

    @property
    def _retry(self) -> Any:
        return retry(self.cloud.retry_seconds)


def is_ours(labels: Mapping[str, str] | None) -> bool:
    """Return whether the labels are those of a resource that Millrace created."""
    return OWNER.items() <= dict(labels or {}).items()


def configs_of(labels: Mapping[str, str] | None) -> frozenset[str]:
    """Return the names of the configurations in the labels of a resource."""
    return frozenset(
        key.removeprefix(CONFIG_LABEL) for key in dict(labels or {}) if key.startswith(CONFIG_LABEL)
    )


def merged_labels(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the labels after the changes of a `relabel`.

    Args:
        labels: The existing labels.
        changes: The labels to set, by key; None as the value removes the label.
    """
    merged = {**labels, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def resource_errors(what: str, role: str) -> AbstractContextManager[None]:
    """Raise errors of Google's clients in the block as ResourceError.

    Args:
        what: What failed, for the message.
        role: The role that the calls need, for the advice.
    """
    return translate_errors(ResourceError, what, role)
