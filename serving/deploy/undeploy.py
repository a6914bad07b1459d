"""python -m serving undeploy: remove models from a Vertex AI endpoint."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from common.errors import UsageError
from serving.deploy.flags import make_cloud
from serving.deploy.run import say
from serving.deploy.traffic import without
from serving.deploy.unsent import send_nothing
from serving.deploy.vertex import VertexRegion, shares_of

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import DeployedModel, Endpoint


def undeploy(args: argparse.Namespace) -> int:
    """Remove models from an endpoint, and delete the endpoint if the flags say so.

    Args:
        args: The flags, as `parse_undeploy` returns them.

    Returns:
        The exit code 0.

    Raises:
        UsageError: If it is unclear which model to remove, or no model would answer requests.
        EndpointError: If there is no such endpoint, or Vertex AI refuses a step.
        CredentialsError: If there are no usable Google Cloud credentials.
    """
    region = VertexRegion(make_cloud(args), args.region, say)
    if args.dry_run:
        send_nothing(region, sys.stdout, reads=True)
    endpoint = region.get(args.endpoint)
    split = shares_of(endpoint)
    chosen = choose_deployed(args, endpoint)
    for deployed in chosen:
        split = without(split, deployed.id)
        region.undeploy(endpoint, deployed, split)
    if args.delete_endpoint:
        region.delete(endpoint)
    if args.dry_run:
        return 0
    total = len(endpoint.deployed_models)
    print(
        f"undeployed {len(chosen)} of {total} models from endpoint {endpoint.display_name}, "
        f"{total - len(chosen)} left"
    )
    if args.delete_endpoint:
        print(f"deleted endpoint {endpoint.name}")
    return 0


def choose_deployed(args: argparse.Namespace, endpoint: Endpoint) -> list[DeployedModel]:
    """Return the models to remove, models without traffic first.

    Args:
        args: The flags, as `parse_undeploy` returns them.
        endpoint: The endpoint with its models.

    Raises:
        UsageError: If it is unclear which model to remove, or no model would answer requests.
    """
    there, split = list(endpoint.deployed_models), shares_of(endpoint)
    if args.all:
        return sorted(there, key=lambda deployed: split.get(deployed.id, 0))
    ids = ", ".join(deployed.id for deployed in there)
    chosen = [d for d in there if args.deployed_model in (None, d.id)]
    if args.deployed_model and not chosen:
        raise UsageError(
            f"--deployed_model {args.deployed_model} is not on endpoint {args.endpoint}, which has "
            + (f"models {ids}" if ids else "no models")
        )
    if len(chosen) > 1:
        raise UsageError(
            f"endpoint {args.endpoint} has {len(there)} models: choose one with --deployed_model "
            f"({ids}), or pass --all"
        )
    for deployed in chosen:
        if split.get(deployed.id) == 100:
            raise UsageError(
                f"deployed model {deployed.id} answers all requests of endpoint {args.endpoint}: "
                "move its traffic to another model first (deploy --traffic_percent), or pass --all"
            )
    if args.delete_endpoint and len(chosen) < len(there):
        kept = ", ".join(deployed.id for deployed in there if deployed not in chosen)
        raise UsageError(
            f"--delete_endpoint: endpoint {args.endpoint} would still have models {kept}: pass "
            "--all to undeploy them too, or leave out --delete_endpoint"
        )
    return chosen
