"""What can be done with a resource of any kind, and how errors of doing it are told."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from cloud.owner import OWNER
from common.errors import MillraceError, OutputError
from resources.declaration import CONFIG_LABEL, LABEL, Resource


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is there: its properties, whether it carries our label, what would be lost with it.

    configs: names of the configurations whose labels it carries. losses: what would be lost
    besides rows, by its name; None where nobody knows how much. holds: names of what is in it or
    uses it, and so keeps it. details: beside rows and bytes, for people.
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
        """Labels and properties -> Found, with the labels among its properties."""
        shown = {f"{LABEL}{key}": value for key, value in dict(labels or {}).items()}
        return cls(
            properties={**properties, **shown},
            ours=is_ours(labels),
            configs=configs_of(labels),
            **rest,
        )


class Kept(MillraceError):
    """It is not removed, since others use it; nothing went wrong."""


@dataclass(frozen=True)
class Kind:
    """Resources of one kind. labels: of whatever is made.

    look, create, repair and delete raise errors of Google's clients; `resource_errors` turns them
    into ours.
    """

    cloud: Cloud
    labels: Mapping[str, str] = field(default_factory=lambda: OWNER)
    # Google's role that has what they take.
    role: ClassVar[str] = ""
    # How it is told that something keeps it.
    held: ClassVar[str] = "{} is in it"

    @classmethod
    def held_by(cls, holder: str) -> str:
        """What keeps a resource of this kind -> why it is not removed."""
        return cls.held.format(holder)

    def look(self, resource: Resource) -> Found | None:
        """A resource -> what is there of it, None if it is not there."""
        raise NotImplementedError

    def create(self, resource: Resource) -> None:
        """A resource that is not there -> made. Raises exceptions.Conflict if it is there."""
        raise NotImplementedError

    def repairs(self, name: str, found: str | None) -> bool:
        """A property's name, its value as it is -> whether `mend` can set it."""
        return False

    def repair(self, resource: Resource, names: list[str]) -> None:
        """A resource of ours, names of properties -> with these as they shall be."""
        raise NotImplementedError

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """A resource of ours, labels -> with these besides its own; without those that are None."""
        raise NotImplementedError

    def holds(self, resource: Resource) -> tuple[str, ...]:
        """A resource that is there -> names of what is in it or uses it, and so keeps it.

        As many as are needed to tell whether it can go.
        """
        return ()

    def delete(self, resource: Resource) -> None:
        """A resource -> gone. Raises exceptions.NotFound, or Kept where others use it."""
        raise NotImplementedError

    @property
    def _retry(self) -> Any:
        return retry(self.cloud.retry_seconds)


def is_ours(labels: Mapping[str, str] | None) -> bool:
    """Labels -> whether what carries them was made by us."""
    return OWNER.items() <= dict(labels or {}).items()


def configs_of(labels: Mapping[str, str] | None) -> frozenset[str]:
    """Labels -> the names of the configurations that use what carries them."""
    return frozenset(
        key.removeprefix(CONFIG_LABEL) for key in dict(labels or {}) if key.startswith(CONFIG_LABEL)
    )


def merged_labels(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Labels as they are, changes as `relabel` takes them -> labels as they shall be."""
    merged = {**labels, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def resource_errors(what: str, role: str) -> AbstractContextManager[None]:
    """What cannot be done, the role that it takes -> errors of the block raised as OutputError."""
    return translate_errors(OutputError, what, role)
