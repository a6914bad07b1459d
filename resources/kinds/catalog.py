"""Maps each kind of resource to its class, and inspects resources of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloud.clients import Cloud
from cloud.owner import OWNER
from common.terminal import Progress
from resources.config import Config
from resources.declaration import IN_USE, Resource, config_label
from resources.differences import is_absent
from resources.kinds.base import Found, Kind, resource_errors
from resources.kinds.bigquery import Datasets, QueryDatasets, Tables
from resources.kinds.project import Accounts, Roles, Services
from resources.kinds.pubsub import Subscriptions, Topics
from resources.kinds.registry import RegistryModels
from resources.kinds.storage import Buckets, Models, UploadedFiles
from resources.package import Package

KINDS: Mapping[str, type[Kind]] = {
    "service": Services,
    "account": Accounts,
    "role": Roles,
    "bucket": Buckets,
    "model": Models,
    "files": UploadedFiles,
    "dataset": Datasets,
    "table": Tables,
    "query_dataset": QueryDatasets,
    "topic": Topics,
    "subscription": Subscriptions,
    "registry_model": RegistryModels,
}

Kinds = Mapping[str, Kind]
Looked = dict[tuple[str, str], Found | None]


def open_kinds(cloud: Cloud, config: Config, package: Package | None = None) -> Kinds:
    """Return an instance of every kind, by name.

    Args:
        cloud: The clients of the project.
        config: The configuration.
        package: The package to upload, None if the model is not declared.
    """
    labels = {**config.labels, **OWNER, config_label(config.name): IN_USE}
    kinds = {name: kind(cloud, labels) for name, kind in KINDS.items()}
    return {
        **kinds,
        "bucket": Buckets(cloud, labels, f"{config.folder}/"),
        "model": Models(cloud, labels, package),
        "registry_model": RegistryModels(cloud, labels, config.bucket),
    }


def look_at(resources: Sequence[Resource], kinds: Kinds, progress: Progress) -> Looked:
    """Inspect resources.

    Args:
        resources: The resources, each after those that it needs.
        kinds: The kinds that reach the resources.
        progress: Shows which resource is being inspected.

    Returns:
        Each resource as it exists, or None, by kind and name.

    Raises:
        ResourceError: A resource cannot be inspected.
        CredentialsError: The credentials are missing or invalid.
    """
    looked: Looked = {}
    for number, resource in enumerate(resources):
        progress.now(f"inspecting {number + 1} of {len(resources)}: {resource} ...")
        look_at_one(resource, kinds, looked)
    progress.clear()
    return looked


def look_at_one(resource: Resource, kinds: Kinds, looked: Looked) -> None:
    """Inspect a resource and store the result.

    Args:
        resource: The resource.
        kinds: The kinds that reach the resources.
        looked: The results so far. Receives the result of this resource.

    Raises:
        ResourceError: The resource cannot be inspected.
        CredentialsError: The credentials are missing or invalid.
    """
    kind, found = kinds[resource.kind], None
    if not is_absent(resource, looked):
        with resource_errors(f"cannot inspect {resource}", kind.role):
            found = kind.look(resource)
    looked[resource.key] = found
