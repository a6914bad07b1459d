"""The flags of a server, and the variables that Vertex AI sets in its container.

Source: "Custom container requirements" of Vertex AI's documentation.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from common.addresses import path_fault
from common.command_line import (
    CommandParser,
    Thresholds,
    names,
    non_negative,
    parse_thresholds,
    positive,
    positive_integer,
)
from common.command_names import as_typed
from common.errors import UsageError

# `python -m serving deploy` sets the first two in the container. Other images ignore them.
DIGEST_VARIABLE = "MILLRACE_MODEL_DIGEST"
TRUSTED_VARIABLE = "MILLRACE_TRUSTED_MODULES"
PACKAGES_VARIABLE = "MILLRACE_EXTRA_PACKAGES"
_OTHERS = ("deploy", "undeploy", "status")
# Vertex AI refuses requests above 1.5 MB before they reach a container.
MAX_REQUEST_BYTES = 1_500_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a server, named like the flags that set them.

    Attributes:
        ends_when_failed: Whether the server exits if the model fails. It does so if someone started
            it by hand. In a container it keeps running, and its health route reports the reason.
    """

    model_path: str
    model_digest: str | None = None
    trusted_modules: tuple[str, ...] = ()
    extra_packages: tuple[str, ...] = ()
    feature_columns: tuple[str, ...] | None = None
    score_output: str | None = None
    thresholds: Thresholds = field(default_factory=dict)
    outputs: str = "score"
    fixed_outputs: bool = False
    instance_keys: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "float32"
    threads: int = 1
    host: str = "127.0.0.1"
    port: int = 8080
    health_route: str | None = None
    predict_route: str | None = None
    max_request_bytes: int = MAX_REQUEST_BYTES
    max_batch_rows: int = 4096
    max_batch_wait_ms: float = 0.0
    read_timeout_seconds: float = 30.0
    max_connections: int = 1024
    max_in_flight: int = 512
    drain_seconds: float = 30.0
    ends_when_failed: bool = False


def _device(text: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _route(text: str) -> str:
    # Starlette would read a brace as the start of a path parameter.
    if not text.startswith("/") or {*"{}"} & {*text}:
        raise argparse.ArgumentTypeError(
            f"expected a path that starts with / and has no braces, got {text!r}"
        )
    return text


def make_parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the parser of a server's flags.

    Args:
        environment: The environment variables, which set some of the defaults.
    """
    parser = CommandParser(
        "serving",
        "Serve a model package over HTTP, with the interface that Vertex AI expects.",
        epilog=f"other commands: {', '.join(as_typed(f'serving {name}') for name in _OTHERS)}; "
        "each lists its flags with --help",
    )
    _add_model_flags(parser.add_argument_group("model").add_argument, environment)
    _add_server_flags(parser.add_argument, environment)
    by_hand = not any(name.startswith("AIP_") for name in environment)
    parser.set_defaults(ends_when_failed=by_hand)
    return parser


def _add_model_flags(model: Callable[..., Any], environment: Mapping[str, str]) -> None:
    model(
        "--model_path",
        default=environment.get("AIP_STORAGE_URI") or None,
        metavar="PATH",
        help="model package: a folder that contains model.json or a single .mar, a .mar file, or a "
        "model file; on this machine or in Cloud Storage (default: the environment variable "
        "AIP_STORAGE_URI)",
    )
    model(
        "--model_digest",
        default=environment.get(DIGEST_VARIABLE) or None,
        metavar="SHA256",
        help="expected digest of the package, or sha256 of its model file (default: the "
        f"environment variable {DIGEST_VARIABLE})",
    )
    model(
        "--trusted_modules",
        type=names,
        default=environment.get(TRUSTED_VARIABLE) or (),
        metavar="A,B",
        help="top-level Python modules from which the package's architecture and functions may be "
        f"imported (default: the environment variable {TRUSTED_VARIABLE}, or none)",
    )
    model(
        "--extra_packages",
        type=names,
        default=environment.get(PACKAGES_VARIABLE) or (),
        metavar="A.whl,B.whl",
        help="wheels with your own code, on this machine or in Cloud Storage; the server uses them "
        f"without installing them (default: the environment variable {PACKAGES_VARIABLE}, or none)",
    )
    model(
        "--feature_columns",
        type=names,
        metavar="A,B,C",
        help="input columns in order, for a model file without model.json",
    )
    _add_inference_flags(model)


def _add_inference_flags(model: Callable[..., Any]) -> None:
    """Add the flags that say what predictions contain."""
    model(
        "--score_output",
        metavar="NAME",
        help="output to use as the score (default: the manifest's score output)",
    )
    model(
        "--outputs",
        default="score",
        metavar="all|score|A,B",
        help="fields of a prediction. all: every output and field of the model; score: "
        "anomaly_score and the manifest's output fields; A,B: these outputs and fields (default: "
        "score). A request can choose others with `parameters.outputs`",
    )
    model(
        "--thresholds",
        nargs="+",
        default=(),
        metavar="FIELD=A,B",
        help="numbers at which the step `cut` of a field cuts, in place of those of the manifest",
    )
    model(
        "--fixed_outputs",
        action="store_true",
        help="do not let requests choose other outputs; the server then keeps only one copy of the "
        "model in memory",
    )
    model(
        "--instance_keys",
        type=names,
        default=(),
        metavar="A,B",
        help="fields of an instance, such as its id, that are copied to its prediction; they need "
        "not be features",
    )
    _add_device_flags(model)


def _add_device_flags(model: Callable[..., Any]) -> None:
    """Add the flags that say how the model computes."""
    model(
        "--device", type=_device, default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    model(
        "--precision",
        default="float32",
        choices=("float32", "tf32", "bf16", "fp16", "auto"),
        help="precision in which the model runs; auto takes the fastest that keeps the known-good "
        "rows of the package within its tolerance (default: float32)",
    )
    model(
        "--threads",
        type=positive_integer,
        default=1,
        help="CPU threads of one torch operation (default: 1)",
    )


def _add_server_flags(add: Callable[..., Any], environment: Mapping[str, str]) -> None:
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; a container needs 0.0.0.0 (default: 127.0.0.1)",
    )
    add(
        "--port",
        type=_port,
        default=environment.get("AIP_HTTP_PORT") or "8080",
        help="port to listen on; 0 picks a free one (default: the environment variable "
        "AIP_HTTP_PORT, or 8080)",
    )
    add(
        "--health_route",
        type=_route,
        default=environment.get("AIP_HEALTH_ROUTE") or None,
        help="additional path that answers health checks (default: the environment variable "
        "AIP_HEALTH_ROUTE)",
    )
    add(
        "--predict_route",
        type=_route,
        default=environment.get("AIP_PREDICT_ROUTE") or None,
        help="additional path that answers predictions (default: the environment variable "
        "AIP_PREDICT_ROUTE)",
    )
    add(
        "--max_request_bytes",
        type=positive_integer,
        default=MAX_REQUEST_BYTES,
        help=f"maximum size of a request body, in bytes (default: {MAX_REQUEST_BYTES})",
    )
    _add_limits(add)


def _add_limits(add: Callable[..., Any]) -> None:
    """Add the flags that limit how much the server accepts at once, and for how long."""
    add(
        "--max_batch_rows",
        type=positive_integer,
        default=4096,
        help="maximum number of rows in a forward pass (default: 4096)",
    )
    add(
        "--max_batch_wait_ms",
        type=non_negative,
        default=0.0,
        help="after a forward pass, wait up to this many milliseconds for more requests to share "
        "the next one; an idle model never waits (default: 0)",
    )
    add(
        "--read_timeout_seconds",
        type=positive,
        default=30.0,
        metavar="SECONDS",
        help="how long a client may take to send a complete request, and then to read the "
        "response, in seconds; a slower client gets status 408 or is disconnected (default: 30)",
    )
    add(
        "--max_connections",
        type=positive_integer,
        default=1024,
        metavar="N",
        help="maximum number of open connections; beyond it, a new connection closes the one that "
        "has waited longest for a complete request, or gets status 503 if all are busy (default: "
        "1024)",
    )
    add(
        "--max_in_flight",
        type=positive_integer,
        default=512,
        help="maximum number of complete requests in progress; further requests get status 503 "
        "(default: 512)",
    )
    add(
        "--drain_seconds",
        type=non_negative,
        default=30.0,
        help="how long requests in progress may take after SIGTERM, in seconds (default: 30)",
    )


def parse_settings(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of a server.

    Args:
        argv: The flags of the command line.
        environment: The environment variables, which set some of the defaults.

    Raises:
        UsageError: If a flag is wrong, or no model package is named.
    """
    args = make_parser(environment).parse_args(argv)
    if args.model_path is None:
        raise UsageError("--model_path is missing: expected the path of a model package")
    if fault := path_fault(args.model_path):
        raise UsageError(f"--model_path: {fault}")
    args.thresholds = parse_thresholds(
        [part for text in args.thresholds for part in text.split(",")]
    )
    return Settings(**{setting.name: getattr(args, setting.name) for setting in fields(Settings)})
