"""The command lines of deploy, undeploy and status."""

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

# Of the system whose names are kept: served by Google's container, or by one of one's own.
PREBUILT_ENDPOINT = "pytorch-autoencoder-endpoint"
CUSTOM_ENDPOINT = "pytorch-autoencoder-custom-endpoint"
# Source: "Prebuilt containers for inference" of Vertex AI's documentation. The newest one there
# is; tags other than latest are not supported.
_PREBUILT = "{}-docker.pkg.dev/vertex-ai/prediction/pytorch-{}.2-4:latest"
# How long an error that passes by itself is waited out; somebody sits before the screen.
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
                f"expected KEY=VALUE of small letters, digits, _ and -, got {key}={value}"
            )
    return found


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = CommandParser(f"serving {command}", description)
    add = parser.add_argument
    add("--project", help="default: that of the credentials")
    add("--region", type=_region, default="us-central1", help="default: us-central1")
    add("--endpoint", metavar="NAME", help="display name, id or full name of the endpoint")
    add(
        "--api_endpoints",
        default="",
        metavar="SERVICE=ADDRESS,...",
        help="other addresses of aiplatform and storage, as in aiplatform=http://localhost:8090",
    )
    return parser


def deploy_parser() -> argparse.ArgumentParser:
    """Nothing -> the parser of deploy's flags."""
    parser = _parser("deploy", "Serve a model package with an endpoint of Vertex AI.")
    parser.epilog = (
        f"`{as_typed('serving status')}` lists endpoints and what is deployed there, "
        f"`{as_typed('serving undeploy')}` takes a model away."
    )
    add = parser.add_argument
    add("--model", required=True, metavar="PATH", help="model package; gs:// as well")
    add("--model_digest", metavar="SHA256", help="sha256 that the model file must have")
    add(
        "--trusted_modules",
        type=names,
        default=(),
        metavar="A,B",
        help="top-level Python modules that the package's architecture may import; the --image "
        "needs them installed (default: none)",
    )
    add("--model_id", help="id in the registry (default: the package's name)")
    add(
        "--staging",
        type=_folder,
        metavar="gs://BUCKET/FOLDER",
        help="where a package is uploaded to that is no folder of Cloud Storage",
    )
    add("--service_account", metavar="EMAIL", help="that the container runs as")
    add("--labels", type=_labels, default={}, metavar="KEY=VALUE,...")
    add("--dedicated", action="store_true", help="a new endpoint gets an address of its own")
    add(
        "--dry_run",
        action="store_true",
        help="print the requests for a project that is empty yet; send nothing",
    )
    add(
        "--traffic_percent",
        type=_percent,
        default=100,
        metavar="N",
        help="share of the new model; the others keep the rest in their proportions (default: 100)",
    )
    _add_machines(parser)
    return parser


def _add_machines(parser: argparse.ArgumentParser) -> None:
    """Which container runs, on what."""
    add = parser.add_argument_group("container").add_argument
    add("--image", help="container image, as of serving/Dockerfile (default: Google's TorchServe)")
    add(
        "--container_args",
        default="",
        help="flags of your own image: --container_args='--outputs all'",
    )
    add("--machine_type", default="n1-standard-4", help="default: n1-standard-4")
    add("--min_replicas", type=positive_integer, default=1, help="default: 1")
    add("--max_replicas", type=positive_integer, help="default: as many as --min_replicas")
    add("--accelerator", metavar="TYPE[:N]", help="as NVIDIA_L4 or NVIDIA_TESLA_T4:2")


def parse_deploy(argv: Sequence[str]) -> argparse.Namespace:
    """The command line of deploy -> its flags. Raises UsageError."""
    args = deploy_parser().parse_args(argv)
    # After `--help`: it loads Google's clients.
    from serving.deploy.artifact import is_in_place

    if fault := path_fault(args.model):
        raise UsageError(f"--model: {fault}")
    if args.staging is None and not is_in_place(args.model):
        raise UsageError(
            "--staging is missing: expected gs://BUCKET/FOLDER, where the model is uploaded to "
            "for the container to read it"
        )
    args.max_replicas = args.max_replicas or args.min_replicas
    if args.max_replicas < args.min_replicas:
        raise UsageError(
            f"--max_replicas {args.max_replicas} is below --min_replicas {args.min_replicas}"
        )
    args.prebuilt = args.image is None or "/vertex-ai/prediction/" in args.image
    if args.prebuilt and args.container_args:
        raise UsageError("--container_args: Google's own containers take none")
    if args.image is None:
        continent = args.region.partition("-")[0]
        place = continent if continent in ("europe", "asia") else "us"
        args.image = _PREBUILT.format(place, "gpu" if args.accelerator else "cpu")
    args.endpoint = args.endpoint or (PREBUILT_ENDPOINT if args.prebuilt else CUSTOM_ENDPOINT)
    return args


def undeploy_parser() -> argparse.ArgumentParser:
    """Nothing -> the parser of undeploy's flags."""
    parser = _parser("undeploy", "Take a model, or all of them, from an endpoint of Vertex AI.")
    add = parser.add_argument
    add("--deployed_model", metavar="ID", help="which one, as `status` lists them")
    add("--all", action="store_true", help="all models, and so the last one with traffic")
    add("--delete_endpoint", action="store_true", help="and the endpoint, if none is left")
    add(
        "--dry_run",
        action="store_true",
        help="read what is there and print the requests that would change it; change nothing",
    )
    return parser


def parse_undeploy(argv: Sequence[str]) -> argparse.Namespace:
    """The command line of undeploy -> its flags. Raises UsageError."""
    args = undeploy_parser().parse_args(argv)
    if args.endpoint is None:
        raise UsageError("--endpoint is missing: expected its display name, id or full name")
    if args.all and args.deployed_model:
        raise UsageError("--all and --deployed_model exclude each other")
    return args


def status_parser() -> argparse.ArgumentParser:
    """Nothing -> the parser of status' flags."""
    parser = _parser("status", "Endpoints of Vertex AI with their models (default: all).")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def make_cloud(args: argparse.Namespace, *, sends_nothing: bool = False) -> Cloud:
    """The flags of a command -> where it goes. Raises UsageError, CredentialsError.

    sends_nothing: no credentials are needed, though they may name the project.
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
