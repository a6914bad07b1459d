"""python -m serving undeploy: models away from an endpoint of Vertex AI."""

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
    """The flags, as parse_undeploy gives them -> the exit code. Raises MillraceError."""
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
    left = len(endpoint.deployed_models) - len(chosen)
    print(f"undeployed {len(chosen)} of endpoint {endpoint.display_name}, {left} left")
    if args.delete_endpoint:
        print(f"deleted endpoint {endpoint.name}")
    return 0


def choose_deployed(args: argparse.Namespace, endpoint: Endpoint) -> list[DeployedModel]:
    """Flags, an endpoint -> the models to take away, those without traffic first.

    Raises UsageError where it is unclear which, or where nobody would answer afterwards.
    """
    there, split = list(endpoint.deployed_models), shares_of(endpoint)
    if args.all:
        return sorted(there, key=lambda deployed: split.get(deployed.id, 0))
    ids = ", ".join(deployed.id for deployed in there)
    chosen = [d for d in there if args.deployed_model in (None, d.id)]
    if args.deployed_model and not chosen:
        raise UsageError(
            f"--deployed_model {args.deployed_model}: endpoint {args.endpoint} has {ids or 'none'}"
        )
    if len(chosen) > 1:
        raise UsageError(
            f"endpoint {args.endpoint} has {len(there)} models: name one with --deployed_model "
            f"({ids}), or say --all"
        )
    for deployed in chosen:
        if split.get(deployed.id) == 100:
            raise UsageError(
                f"deployed model {deployed.id} answers all requests of endpoint {args.endpoint}: "
                "give another its traffic first (deploy --traffic_percent), or say --all"
            )
    if args.delete_endpoint and len(chosen) < len(there):
        raise UsageError(f"--delete_endpoint: models would be left ({ids}): say --all")
    return chosen
