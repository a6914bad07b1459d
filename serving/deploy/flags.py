"""The flags of deploy, undeploy and status."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cloud.endpoints import Endpoints, is_plain
from cloud.regions import region_fault
from common.addresses import path_fault
from common.command_line import CommandParser, names, positive_integer
from common.command_names import as_typed
from common.errors import CredentialsError, UsageError

if TYPE_CHECKING:
    from cloud.clients import Cloud

# The endpoint names of the reference implementation, for Google's container and for a custom one.
PREBUILT_ENDPOINT = "pytorch-autoencoder-endpoint"
CUSTOM_ENDPOINT = "pytorch-autoencoder-custom-endpoint"
# The newest image with TorchServe; Google supports only its tag `latest`. Source: "Prebuilt
# containers for inference" in Vertex AI's documentation.
_PREBUILT = "{}-docker.pkg.dev/vertex-ai/prediction/pytorch-{}.2-4:latest"
# How long transient errors are retried. It is short, since a user is waiting at the terminal.
_RETRY_SECONDS = 20.0


def _region(text: str) -> str:
    if fault := region_fault(text):
        raise argparse.ArgumentTypeError(fault)
    return text


def _percent(text: str) -> int:
    if not text.isdecimal() or int(text) > 100:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 100, got {text!r}")
    return int(text)


def _folder(text: str) -> str:
    if not re.fullmatch(r"gs://[^/]+(/.*)?", text):
        raise argparse.ArgumentTypeError(f"expected gs://BUCKET/FOLDER, got {text!r}")
    return text


def _labels(text: str) -> dict[str, str]:
    found = dict(pair.partition("=")[::2] for pair in text.split(","))
    for key, value in found.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch(
            r"[a-z0-9_-]{0,63}", value
        ):
            raise argparse.ArgumentTypeError(
                "expected KEY=VALUE, each of at most 63 lowercase letters, digits, _ and -, and "
                f"KEY starting with a letter, got {key}={value}"
            )
    return found


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = CommandParser(f"serving {command}", description)
    add = parser.add_argument
    add("--project", help="project id (default: the project of the credentials)")
    add(
        "--region",
        type=_region,
        default="us-central1",
        help="region of the endpoint (default: us-central1)",
    )
    add("--endpoint", metavar="NAME", help="display name, id or full name of the endpoint")
    add(
        "--api_endpoints",
        default="",
        metavar="SERVICE=ADDRESS,...",
        help="addresses to use instead of Google's for aiplatform and storage, for example "
        "aiplatform=http://localhost:8090",
    )
    return parser


def deploy_parser() -> argparse.ArgumentParser:
    """Return the parser of deploy's flags."""
    parser = _parser("deploy", "Deploy a model package to a Vertex AI endpoint.")
    parser.epilog = (
        f"`{as_typed('serving status')}` lists endpoints and their models. "
        f"`{as_typed('serving undeploy')}` removes a model from an endpoint."
    )
    _add_package(parser)
    _add_target(parser)
    _add_machines(parser)
    return parser


def _add_package(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the package and its version in the model registry."""
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="PATH",
        help="model package, on this machine or in Cloud Storage",
    )
    add(
        "--model_digest",
        metavar="SHA256",
        help="expected digest of the package, or sha256 of its model file",
    )
    add(
        "--trusted_modules",
        type=names,
        default=(),
        metavar="A,B",
        help="top-level Python modules that the package may import; they must be installed in the "
        "--image (default: none)",
    )
    add("--model_id", help="id in the model registry (default: from the package's name)")
    add(
        "--staging",
        type=_folder,
        metavar="gs://BUCKET/FOLDER",
        help="folder for uploaded packages; required unless --model is a folder in Cloud Storage",
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the deployed model and its endpoint."""
    add = parser.add_argument
    add(
        "--service_account",
        metavar="EMAIL",
        help="service account that the container runs as (default: Vertex AI's default)",
    )
    add(
        "--labels",
        type=_labels,
        default={},
        metavar="KEY=VALUE,...",
        help="labels of the model and of a new endpoint",
    )
    add(
        "--dedicated",
        action="store_true",
        help="give a new endpoint its own network address",
    )
    add(
        "--dry_run",
        action="store_true",
        help="print the requests, but send nothing; Google Cloud is not read, so they are the "
        "requests of a first deployment",
    )
    add(
        "--traffic_percent",
        type=_percent,
        default=100,
        metavar="N",
        help="percentage of the traffic for the new model; the other models share the rest in the "
        "same proportions as before (default: 100)",
    )


def _add_machines(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the container and its machines."""
    add = parser.add_argument_group("container").add_argument
    add(
        "--image",
        help="container image, for example built from serving/Dockerfile (default: Google's "
        "TorchServe image)",
    )
    add(
        "--container_args",
        default="",
        help="flags for a container of your own, as in --container_args='--outputs all'",
    )
    add(
        "--machine_type",
        default="n1-standard-4",
        help="machine type of each replica (default: n1-standard-4)",
    )
    add(
        "--min_replicas",
        type=positive_integer,
        default=1,
        help="minimum number of replicas (default: 1)",
    )
    add(
        "--max_replicas",
        type=positive_integer,
        help="maximum number of replicas (default: the same as --min_replicas)",
    )
    add(
        "--accelerator",
        metavar="TYPE[:N]",
        help="accelerators of each replica, as in NVIDIA_L4 or NVIDIA_TESLA_T4:2 (default: none)",
    )


def parse_deploy(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags of deploy, with defaults filled in.

    Raises:
        UsageError: If a flag is missing or wrong, or flags contradict each other.
    """
    args = deploy_parser().parse_args(argv)
    # Imported only now, so that `--help` is fast: this import loads Google's clients.
    from serving.deploy.package_files import is_in_place

    if fault := path_fault(args.model):
        raise UsageError(f"--model: {fault}")
    if args.staging is None and not is_in_place(args.model):
        raise UsageError(
            "--staging is missing: expected gs://BUCKET/FOLDER, to which the model is uploaded for "
            "the container"
        )
    args.max_replicas = args.max_replicas or args.min_replicas
    if args.max_replicas < args.min_replicas:
        raise UsageError(
            f"--max_replicas {args.max_replicas} is below --min_replicas {args.min_replicas}"
        )
    args.prebuilt = args.image is None or "/vertex-ai/prediction/" in args.image
    if args.prebuilt and args.container_args:
        raise UsageError(
            "--container_args applies to an --image of your own: Google's containers take no "
            "arguments"
        )
    if args.image is None:
        continent = args.region.partition("-")[0]
        place = continent if continent in ("europe", "asia") else "us"
        args.image = _PREBUILT.format(place, "gpu" if args.accelerator else "cpu")
    args.endpoint = args.endpoint or (PREBUILT_ENDPOINT if args.prebuilt else CUSTOM_ENDPOINT)
    return args


def undeploy_parser() -> argparse.ArgumentParser:
    """Return the parser of undeploy's flags."""
    parser = _parser("undeploy", "Remove one model or all models from a Vertex AI endpoint.")
    add = parser.add_argument
    add(
        "--deployed_model",
        metavar="ID",
        help="id of the deployed model, as `status` shows it (default: the only model)",
    )
    add(
        "--all",
        action="store_true",
        help="remove all models, including the last one that answers requests",
    )
    add(
        "--delete_endpoint",
        action="store_true",
        help="also delete the endpoint; refused if this command would leave models on it",
    )
    add(
        "--dry_run",
        action="store_true",
        help="read the endpoint and print the requests that would change it, but change nothing",
    )
    return parser


def parse_undeploy(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags of undeploy.

    Raises:
        UsageError: If a flag is missing or wrong, or flags contradict each other.
    """
    args = undeploy_parser().parse_args(argv)
    if args.endpoint is None:
        raise UsageError("--endpoint is missing: expected its display name, id or full name")
    if args.all and args.deployed_model:
        raise UsageError("--all and --deployed_model cannot be used together: choose one of them")
    return args


def status_parser() -> argparse.ArgumentParser:
    """Return the parser of status' flags."""
    parser = _parser(
        "status",
        "List Vertex AI endpoints and their models: all endpoints, or only the one that "
        "--endpoint names.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def make_cloud(args: argparse.Namespace, *, sends_nothing: bool = False) -> Cloud:
    """Return the project and addresses that the flags of a command name.

    Args:
        args: The flags of the command.
        sends_nothing: Whether the command sends no requests. It then needs no credentials, but
            still takes the project from them if there are any.

    Raises:
        UsageError: If no project is named, or an address is wrong.
        CredentialsError: If credentials are needed and there are none.
    """
    from cloud.clients import Cloud, default_project

    endpoints = Endpoints.resolve(args.api_endpoints.split(",") if args.api_endpoints else ())
    local = is_plain(endpoints.aiplatform)
    try:
        project = args.project or (None if local else default_project())
    except CredentialsError:
        if not sends_nothing:
            raise
        project = None
    if project is None:
        raise UsageError("--project is missing: expected the id of the project")
    return Cloud(project, endpoints, _RETRY_SECONDS)
