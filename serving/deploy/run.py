"""python -m serving deploy: a model package behind an endpoint of Vertex AI.

What is there already is found and not made twice: the content in Cloud Storage by its digest,
the model's version by its description, the endpoint by its name, the deployed model by its
version. So a run that was broken off can be run again.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cloud.endpoints import Endpoints
from cloud.owner import OWNER
from common.errors import UsageError, suggest
from serving.deploy.artifact import Artifact, read_artifact, stage, uploader
from serving.deploy.flags import make_cloud
from serving.deploy.traffic import give
from serving.deploy.unsent import send_nothing
from serving.deploy.vertex import VertexRegion, deployed_on, shares_of
from serving.fetch import SCHEME
from serving.settings import DIGEST_VARIABLE, TRUSTED_VARIABLE

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import (
        DedicatedResources,
        DeployedModel,
        Endpoint,
        Model,
        ModelContainerSpec,
    )

# Labels, by which things are found, but no version is known again: Google merges those of a model
# with those of its versions.
DIGEST_LABEL = "model_digest"


def say(line: str) -> None:
    """A line of progress, beside the output."""
    print(line, file=sys.stderr, flush=True)


def _nothing(_: str) -> None:
    """Of a dry run, whose output says it all."""


def deploy(args: argparse.Namespace) -> int:
    """The flags, as parse_deploy gives them -> the exit code. Raises MillraceError."""
    cloud, resources = make_cloud(args, sends_nothing=args.dry_run), _resources(args)
    if args.dry_run:
        # A plain address, to which no credentials go.
        cloud = replace(cloud, endpoints=Endpoints(aiplatform="http://dry-run"))
    region = VertexRegion(cloud, args.region, _nothing if args.dry_run else say)
    if args.dry_run:
        send_nothing(region, sys.stdout, _imagined(args, region.parent))
    if args.dry_run and args.model.startswith(SCHEME):
        artifact = _unread(args)
    else:
        artifact = read_artifact(
            args.model,
            cloud,
            prebuilt=args.prebuilt,
            digest=args.model_digest,
            trusted_modules=args.trusted_modules,
        )
    # What the flags cannot have is told before anything is made.
    endpoint = region.find(args.endpoint)
    _check_endpoint(args, endpoint)
    put = _print_upload if args.dry_run else uploader(cloud, say)
    folder = stage(artifact, args.staging, put)
    model = _ensure_version(region, args, artifact, folder)
    if endpoint is None:
        labels = args.labels | OWNER
        endpoint = region.create(args.endpoint, labels, dedicated=args.dedicated)
    _ensure_deployed(region, args, endpoint, model=model, artifact=artifact, resources=resources)
    return 0


def _imagined(args: argparse.Namespace, parent: str) -> dict[str, Any] | None:
    """The endpoint that a dry run takes for granted: one with a model, if it is to share."""
    if args.traffic_percent == 100:
        return None
    return {
        "name": f"{parent}/endpoints/ENDPOINT_ID",
        "displayName": args.endpoint,
        "deployedModels": [{"id": "OTHER_MODEL_ID"}],
        "trafficSplit": {"OTHER_MODEL_ID": 100},
    }


def _unread(args: argparse.Namespace) -> Artifact:
    """A package in Cloud Storage that is not to be read -> what can be said of it."""
    return Artifact(
        name="model",
        version="VERSION",
        sha256=args.model_digest or "digest",
        files={},
        folder=args.model.rstrip("/"),
    )


def _print_upload(bucket: str, name: str, data: bytes) -> None:
    print(f"POST {SCHEME}{bucket}/{name} ({len(data):,} bytes)")


def model_container(args: argparse.Namespace, artifact: Artifact) -> ModelContainerSpec:
    """Flags, a model -> its container. Google's own know routes and port by themselves."""
    from google.cloud.aiplatform_v1 import types

    if args.prebuilt:
        return types.ModelContainerSpec(image_uri=args.image)
    variables = {DIGEST_VARIABLE: artifact.sha256}
    if args.trusted_modules:
        variables[TRUSTED_VARIABLE] = ",".join(args.trusted_modules)
    return types.ModelContainerSpec(
        image_uri=args.image,
        args=shlex.split(args.container_args),
        env=[types.EnvVar(name=name, value=value) for name, value in variables.items()],
        ports=[types.Port(container_port=8080)],
        predict_route="/predict",
        health_route="/health",
    )


def _ensure_version(
    region: VertexRegion, args: argparse.Namespace, artifact: Artifact, folder: str
) -> Model:
    """The version of the model that is made of just this; uploaded if there is none."""
    container = model_container(args, artifact)
    content = [artifact.digest, folder, type(container).to_json(container, sort_keys=True)]
    build = hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]
    model_id = args.model_id or artifact.id
    versions = region.versions(model_id)
    description = f"{artifact.name} {artifact.version}, build {build}"
    for found in (v for v in versions if v.version_description == description):
        region.say(f"model {model_id} has this content as version {found.version_id}")
        return found
    # A label has 63 characters; a digest one more.
    labels = args.labels | OWNER | {DIGEST_LABEL: artifact.sha256[:63].lower()}
    made = region.upload(
        model_id,
        is_new=not versions,
        description=description,
        folder=folder,
        container=container,
        labels=labels,
    )
    region.say(f"model {model_id} has a new version: {made.version_id}")
    return made


def _check_endpoint(args: argparse.Namespace, endpoint: Endpoint | None) -> None:
    """Flags, the endpoint if there is one -> nothing. Raises UsageError."""
    give(shares_of(endpoint) if endpoint else {}, "0", args.traffic_percent)
    if endpoint and args.dedicated and not endpoint.dedicated_endpoint_enabled:
        raise UsageError(
            f"--dedicated: endpoint {args.endpoint} is a shared one, which cannot be changed: "
            "name another --endpoint"
        )


def _ensure_deployed(
    region: VertexRegion,
    args: argparse.Namespace,
    endpoint: Endpoint,
    *,
    model: Model,
    artifact: Artifact,
    resources: DedicatedResources,
) -> None:
    """The version serves with its share of the traffic; deployed if it is not yet."""
    split, found = shares_of(endpoint), deployed_on(endpoint, model)
    if found is None:
        split = give(split, "0", args.traffic_percent)
        ident = region.deploy(endpoint, _wanted(args, model, artifact, resources), split)
        split = {ident if key == "0" else key: share for key, share in split.items()}
    else:
        ident = found.id
        _check_same(args, found, resources)
        split = give(split, ident, args.traffic_percent)
        if split != shares_of(endpoint):
            region.set_traffic(endpoint, split)
    if args.dry_run:
        return
    shares = ", ".join(f"{share} % to {key}" for key, share in split.items())
    print(f"endpoint {endpoint.name}")
    if endpoint.dedicated_endpoint_dns:
        print(f"address https://{endpoint.dedicated_endpoint_dns}")
    print(f"deployed model {ident}: {artifact.name} {artifact.version}, traffic {shares}")


def _wanted(
    args: argparse.Namespace, model: Model, artifact: Artifact, resources: DedicatedResources
) -> DeployedModel:
    from google.cloud.aiplatform_v1 import types

    return types.DeployedModel(
        model=f"{model.name.partition('@')[0]}@{model.version_id}",
        display_name=f"{artifact.name}-{artifact.version}",
        dedicated_resources=resources,
        service_account=args.service_account or "",
    )


def _check_same(
    args: argparse.Namespace, found: DeployedModel, resources: DedicatedResources
) -> None:
    """A version that is deployed already, what is asked for -> nothing. Raises UsageError."""
    has, wants = found.dedicated_resources, resources
    pairs: dict[str, tuple[Any, Any]] = {
        "--machine_type": (has.machine_spec.machine_type, wants.machine_spec.machine_type),
        "--min_replicas": (has.min_replica_count, wants.min_replica_count),
        "--max_replicas": (has.max_replica_count, wants.max_replica_count),
        "--accelerator": (
            has.machine_spec.accelerator_type.name,
            wants.machine_spec.accelerator_type.name,
        ),
        "--service_account": (found.service_account, args.service_account or ""),
    }
    for flag, (is_now, wanted) in pairs.items():
        if is_now != wanted:
            raise UsageError(
                f"{flag}: this version is deployed already, as {found.id} with {is_now or 'none'} "
                f"where {wanted or 'none'} is asked for: undeploy it first"
            )


def _resources(args: argparse.Namespace) -> DedicatedResources:
    """Flags -> the machines. Raises UsageError."""
    from google.cloud.aiplatform_v1 import types

    machine = types.MachineSpec(machine_type=args.machine_type)
    if args.accelerator:
        name, _, count = args.accelerator.partition(":")
        known = [kind.name for kind in types.AcceleratorType if kind]
        if name not in known or not (count or "1").isdecimal():
            raise UsageError(
                f"--accelerator {args.accelerator}: expected TYPE or TYPE:N"
                f"{suggest(name, known)}, as NVIDIA_TESLA_T4:2"
            )
        machine.accelerator_type = types.AcceleratorType[name]
        machine.accelerator_count = int(count or 1)
    return types.DedicatedResources(
        machine_spec=machine,
        min_replica_count=args.min_replicas,
        max_replica_count=args.max_replicas,
    )
