"""Which class knows which kind of resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloud.clients import Cloud
from cloud.owner import OWNER
from resources.config import Config
from resources.declaration import IN_USE, Resource, config_label
from resources.differences import is_absent
from resources.kinds.base import Found, Kind, resource_errors
from resources.kinds.bigquery import Datasets, Tables
from resources.kinds.project import Accounts, Roles, Services
from resources.kinds.pubsub import Subscriptions, Topics
from resources.kinds.registry import RegistryModels
from resources.kinds.storage import Buckets, Models, UploadedFiles
from resources.package import Package
from resources.progress import Progress

KINDS: Mapping[str, type[Kind]] = {
    "service": Services,
    "account": Accounts,
    "role": Roles,
    "bucket": Buckets,
    "model": Models,
    "files": UploadedFiles,
    "dataset": Datasets,
    "table": Tables,
    "topic": Topics,
    "subscription": Subscriptions,
    "registry_model": RegistryModels,
}

Kinds = Mapping[str, Kind]
Looked = dict[tuple[str, str], Found | None]


def open_kinds(cloud: Cloud, config: Config, package: Package | None = None) -> Kinds:
    """What is needed to reach resources -> one value a kind. package: for the model."""
    labels = {**config.labels, **OWNER, config_label(config.name): IN_USE}
    kinds = {name: kind(cloud, labels) for name, kind in KINDS.items()}
    return {
        **kinds,
        "bucket": Buckets(cloud, labels, f"{config.folder}/"),
        "model": Models(cloud, labels, package),
        "registry_model": RegistryModels(cloud, labels, config.bucket),
    }


def look_at(resources: Sequence[Resource], kinds: Kinds, progress: Progress) -> Looked:
    """Resources -> what is there of each. Raises OutputError, CredentialsError."""
    looked: Looked = {}
    for number, resource in enumerate(resources):
        progress.now(f"looking at {number + 1} of {len(resources)}: {resource}")
        look_at_one(resource, kinds, looked)
    progress.clear()
    return looked


def look_at_one(resource: Resource, kinds: Kinds, looked: Looked) -> None:
    """A resource, what was seen before -> it is in `looked` too."""
    kind, found = kinds[resource.kind], None
    if not is_absent(resource, looked):
        with resource_errors(f"{resource} cannot be looked at", kind.role):
            found = kind.look(resource)
    looked[resource.key] = found
