"""python -m serving deploy: put a model package behind a Vertex AI endpoint.

The command finds what exists and creates nothing twice. It finds the files in Cloud Storage by
their digest, the version of the model by its description, the endpoint by its name and the deployed
model by its version. An interrupted deployment can therefore be run again.
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
from common.command_names import as_typed
from common.errors import UsageError, suggest
from serving.deploy.flags import make_cloud
from serving.deploy.package_files import Artifact, read_artifact, stage, uploader
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
        MachineSpec,
        Model,
        ModelContainerSpec,
    )

# A label by which users find a model. It cannot identify a version, since Google merges the labels
# of a model with the labels of its versions.
DIGEST_LABEL = "model_digest"


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def _nothing(_: str) -> None:
    """Print no progress in a dry run, which prints its requests instead."""


def deploy(args: argparse.Namespace) -> int:
    """Deploy a model package, and print the endpoint, the deployed model and the traffic.

    Args:
        args: The flags, as `parse_deploy` returns them.

    Returns:
        The exit code 0.

    Raises:
        UsageError: If a flag is wrong, or does not fit the existing endpoint.
        ModelError: If the package cannot be used.
        OutputError: If the package cannot be uploaded.
        EndpointError: If Vertex AI refuses a step.
        CredentialsError: If there are no usable Google Cloud credentials.
    """
    cloud, resources = make_cloud(args, sends_nothing=args.dry_run), _resources(args)
    if args.dry_run:
        # No credentials are sent to a plain HTTP address.
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
    # Report flags that do not fit the endpoint before anything is created.
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
    """Return the endpoint that a dry run assumes.

    It is None, or an endpoint with another model if the new model gets only part of the traffic.
    """
    if args.traffic_percent == 100:
        return None
    return {
        "name": f"{parent}/endpoints/ENDPOINT_ID",
        "displayName": args.endpoint,
        "deployedModels": [{"id": "OTHER_MODEL_ID"}],
        "trafficSplit": {"OTHER_MODEL_ID": 100},
    }


def _unread(args: argparse.Namespace) -> Artifact:
    """Return a placeholder for a package in Cloud Storage, which a dry run does not read."""
    return Artifact(
        name="model",
        version="VERSION",
        model_digest=args.model_digest or "digest",
        files={},
        folder=args.model.rstrip("/"),
    )


def _print_upload(bucket: str, name: str, data: bytes) -> None:
    print(f"POST {SCHEME}{bucket}/{name} ({len(data):,} bytes)")


def model_container(args: argparse.Namespace, artifact: Artifact) -> ModelContainerSpec:
    """Return the container for a model.

    Google's own containers need only the image: they know their routes and their port.

    Args:
        args: The flags, as `parse_deploy` returns them.
        artifact: The package that the container serves.
    """
    from google.cloud.aiplatform_v1 import types

    if args.prebuilt:
        return types.ModelContainerSpec(image_uri=args.image)
    variables = {DIGEST_VARIABLE: artifact.model_digest}
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
    """Return the version of the model with this content and container, uploaded if needed."""
    container = model_container(args, artifact)
    content = [artifact.digest, folder, type(container).to_json(container, sort_keys=True)]
    build = hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]
    model_id = args.model_id or artifact.id
    versions = region.versions(model_id)
    description = f"{artifact.name} {artifact.version}, build {build}"
    for found in (v for v in versions if v.version_description == description):
        region.say(f"model {model_id} already has this content as version {found.version_id}")
        return found
    # A label holds at most 63 characters, and a digest has 64.
    labels = args.labels | OWNER | {DIGEST_LABEL: artifact.model_digest[:63].lower()}
    uploaded = region.upload(
        model_id,
        is_new=not versions,
        description=description,
        folder=folder,
        container=container,
        labels=labels,
    )
    region.say(f"model {model_id} has a new version: {uploaded.version_id}")
    return uploaded


def _check_endpoint(args: argparse.Namespace, endpoint: Endpoint | None) -> None:
    """Raise UsageError if the flags do not fit the endpoint, which may not exist yet."""
    give(shares_of(endpoint) if endpoint else {}, "0", args.traffic_percent)
    if endpoint and args.dedicated and not endpoint.dedicated_endpoint_enabled:
        raise UsageError(
            f"--dedicated: endpoint {args.endpoint} has a shared address, which cannot be changed: "
            "choose another --endpoint"
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
    """Make the version serve its share of the traffic, and deploy it first if needed."""
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
    for other in (one for one in endpoint.deployed_models if one.id not in split):
        undeploy = (
            f"serving undeploy --endpoint {args.endpoint} --project {region.project} --region "
            f"{region.region} --deployed_model {other.id}"
        )
        print(
            f"deployed model {other.id} ({other.display_name}) gets no requests, but costs as "
            f"before: to remove it, run `{as_typed(undeploy)}`"
        )


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
    """Raise UsageError if a version is already deployed, on other machines than requested."""
    has, wants = found.dedicated_resources, resources
    pairs: dict[str, tuple[Any, Any]] = {
        "--machine_type": (has.machine_spec.machine_type, wants.machine_spec.machine_type),
        "--min_replicas": (has.min_replica_count, wants.min_replica_count),
        "--max_replicas": (has.max_replica_count, wants.max_replica_count),
        "--accelerator": (_gpu_name(has.machine_spec), _gpu_name(wants.machine_spec)),
        "--service_account": (found.service_account, args.service_account or ""),
    }
    for flag, (is_now, wanted) in pairs.items():
        if is_now != wanted:
            raise UsageError(
                f"this version is already deployed as {found.id} with {flag} {is_now or 'none'}, "
                f"not {wanted or 'none'}: undeploy it first"
            )


def _gpu_name(machine: MachineSpec) -> str:
    """Return the type of the GPUs of a machine, or an empty text if it has none."""
    return str(machine.accelerator_type.name) if machine.accelerator_type else ""


def _resources(args: argparse.Namespace) -> DedicatedResources:
    """Return the machines that the flags describe, or raise UsageError."""
    from google.cloud.aiplatform_v1 import types

    machine = types.MachineSpec(machine_type=args.machine_type)
    if args.accelerator:
        name, _, count = args.accelerator.partition(":")
        known = [kind.name for kind in types.AcceleratorType if kind]
        if name not in known or not (count or "1").isdecimal():
            raise UsageError(
                f"--accelerator {args.accelerator}: expected TYPE or TYPE:N"
                f"{suggest(name, known)}, for example NVIDIA_TESLA_T4:2"
            )
        machine.accelerator_type = types.AcceleratorType[name]
        machine.accelerator_count = int(count or 1)
    return types.DedicatedResources(
        machine_spec=machine,
        min_replica_count=args.min_replicas,
        max_replica_count=args.max_replicas,
    )
