"""python -m serving status: list Vertex AI endpoints and their models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from common.terminal import columns
from serving.deploy.flags import make_cloud
from serving.deploy.run import say
from serving.deploy.vertex import VertexRegion

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import DeployedModel, Endpoint

_COLUMNS = (
    *("endpoint", "id", "deployed model", "model", "version", "traffic", "replicas"),
    *("machine", "age"),
)


def status(args: argparse.Namespace) -> int:
    """Print endpoints and their deployed models, as a table or as JSON.

    Args:
        args: The flags, as `status_parser` parses them.

    Returns:
        The exit code 0.

    Raises:
        UsageError: If a flag is wrong.
        EndpointError: If there is no such endpoint, or the endpoints cannot be read.
        CredentialsError: If there are no usable Google Cloud credentials.
    """
    region = VertexRegion(make_cloud(args), args.region, say)
    endpoints = [region.get(args.endpoint)] if args.endpoint else region.endpoints()
    found = [describe_endpoint(endpoint) for endpoint in endpoints]
    if args.json:
        print(json.dumps(found, indent=1))
    elif found:
        print(table(found, datetime.now(UTC)))
    else:
        print(f"no endpoints in {args.region} of project {region.project}")
    return 0


def describe_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    """Return an endpoint and its deployed models as a JSON object."""
    return {
        "endpoint": endpoint.name,
        "display_name": endpoint.display_name,
        "created": _time(endpoint),
        "dedicated_dns": endpoint.dedicated_endpoint_dns or None,
        "labels": dict(endpoint.labels),
        "deployed_models": [
            _deployed(deployed, endpoint.traffic_split.get(deployed.id, 0))
            for deployed in endpoint.deployed_models
        ],
    }


def _deployed(deployed: DeployedModel, traffic: int) -> dict[str, Any]:
    resources = deployed.dedicated_resources
    machine = resources.machine_spec
    return {
        "id": deployed.id,
        "display_name": deployed.display_name,
        "model": deployed.model,
        "version": deployed.model_version_id,
        "traffic_percent": traffic,
        "available_replicas": deployed.status.available_replica_count,
        "min_replicas": resources.min_replica_count,
        "max_replicas": resources.max_replica_count,
        "machine_type": machine.machine_type,
        "accelerator": machine.accelerator_type.name if machine.accelerator_count else None,
        "accelerators": machine.accelerator_count,
        "service_account": deployed.service_account or None,
        "created": _time(deployed),
    }


def _time(resource: Endpoint | DeployedModel) -> str:
    return str(resource.create_time.isoformat(timespec="seconds"))


def table(endpoints: Sequence[dict[str, Any]], now: datetime) -> str:
    """Return a text table of endpoints, with one line per deployed model.

    Args:
        endpoints: The endpoints, as `describe_endpoint` returns them.
        now: The current time, from which the ages are computed.
    """
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for endpoint in endpoints:
        head = (endpoint["display_name"], endpoint["endpoint"].rpartition("/")[2])
        if not endpoint["deployed_models"]:
            age = _age(endpoint["created"], now)
            rows.append((*head, "none", "", "", "", "", "", age))
        for deployed in endpoint["deployed_models"]:
            rows.append((*head, *_cells(deployed), _age(deployed["created"], now)))
    return columns(rows)


def _cells(deployed: dict[str, Any]) -> tuple[str, ...]:
    machine = deployed["machine_type"]
    if deployed["accelerator"]:
        machine += f" + {deployed['accelerators']} {deployed['accelerator']}"
    return (
        deployed["id"],
        deployed["display_name"],
        deployed["version"],
        f"{deployed['traffic_percent']} %",
        f"{deployed['available_replicas']} of {deployed['min_replicas']}-"
        f"{deployed['max_replicas']}",
        machine,
    )


def _age(created: str, now: datetime) -> str:
    """Return how long ago a moment was, in the largest unit that fits."""
    seconds = (now - datetime.fromisoformat(created)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
