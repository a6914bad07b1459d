"""The command line of a server, and the variables that Vertex AI sets in its container.

Source: "Custom container requirements" of Vertex AI's documentation.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from common.addresses import path_fault
from common.command_line import CommandParser, names, non_negative, positive, positive_integer
from common.errors import UsageError

# What `python -m serving deploy` tells the container; one that is not ours ignores it.
DIGEST_VARIABLE = "MILLRACE_MODEL_DIGEST"
TRUSTED_VARIABLE = "MILLRACE_TRUSTED_MODULES"
# Vertex AI refuses requests above 1.5 MB before they reach a container.
MAX_REQUEST_BYTES = 1_500_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server needs to know; the flags of the same names say what each is.

    ends_when_failed: no balancer asks for its health, which would tell; somebody has started it
    and waits.
    """

    model_path: str
    model_digest: str | None = None
    trusted_modules: tuple[str, ...] = ()
    feature_columns: tuple[str, ...] | None = None
    score_output: str | None = None
    outputs: str = "score"
    fixed_outputs: bool = False
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


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _route(text: str) -> str:
    # A brace would be a parameter to Starlette.
    if not text.startswith("/") or {*"{}"} & {*text}:
        raise argparse.ArgumentTypeError(
            f"expected a path that starts with / and has no braces, got {text!r}"
        )
    return text


def make_parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The environment, which has the defaults -> the parser of a server's flags."""
    parser = CommandParser(
        "serving", "Serve a model package over HTTP, as Vertex AI's containers do."
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
        help="model package: a folder with model.json or with one .mar, a .mar, or a model file; "
        "gs:// as well (default: AIP_STORAGE_URI)",
    )
    model(
        "--model_digest",
        default=environment.get(DIGEST_VARIABLE) or None,
        metavar="SHA256",
        help=f"sha256 that the model file must have (default: {DIGEST_VARIABLE})",
    )
    model(
        "--trusted_modules",
        type=names,
        default=environment.get(TRUSTED_VARIABLE) or (),
        metavar="A,B",
        help="top-level Python modules that the package's architecture may import (default: "
        f"{TRUSTED_VARIABLE}, else none)",
    )
    model(
        "--feature_columns",
        type=names,
        metavar="A,B,C",
        help="for a model file without model.json: its input columns, in order",
    )
    model("--score_output", metavar="NAME", help="output that is the score (default: manifest's)")
    model(
        "--outputs",
        default="score",
        metavar="all|score|A,B",
        help="fields of a prediction: all outputs; anomaly_score and the manifest's output fields; "
        "or names (default: score). `parameters.outputs` of a request may choose others",
    )
    model(
        "--fixed_outputs",
        action="store_true",
        help="requests may choose no others, which saves a second copy of the model",
    )
    model("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    model("--precision", default="float32", choices=("float32", "bf16", "fp16"))
    model("--threads", type=positive_integer, default=1, help="threads per operation (default: 1)")


def _add_server_flags(add: Callable[..., Any], environment: Mapping[str, str]) -> None:
    add("--host", default="127.0.0.1", help="address to listen on; a container needs 0.0.0.0")
    add(
        "--port",
        type=_port,
        default=environment.get("AIP_HTTP_PORT") or "8080",
        help="default: AIP_HTTP_PORT, else 8080; 0 takes a free one",
    )
    add("--health_route", type=_route, default=environment.get("AIP_HEALTH_ROUTE") or None)
    add("--predict_route", type=_route, default=environment.get("AIP_PREDICT_ROUTE") or None)
    add("--max_request_bytes", type=positive_integer, default=MAX_REQUEST_BYTES)
    _add_limits(add)


def _add_limits(add: Callable[..., Any]) -> None:
    """How much the server takes at once, and for how long."""
    add(
        "--max_batch_rows",
        type=positive_integer,
        default=4096,
        help="rows of one pass (default: 4096)",
    )
    add(
        "--max_batch_wait_ms",
        type=non_negative,
        default=0.0,
        help="how long a request may wait for others after a pass; never where the model is idle "
        "(default: 0)",
    )
    add(
        "--read_timeout_seconds",
        type=positive,
        default=30.0,
        metavar="SECONDS",
        help="how long a client may take to send a whole request, and as long again to take its "
        "answer; 408 after that (default: 30)",
    )
    add(
        "--max_connections",
        type=positive_integer,
        default=1024,
        metavar="N",
        help="above it, a new connection ends the one that has waited longest without a whole "
        "request (default: 1024)",
    )
    add(
        "--max_in_flight",
        type=positive_integer,
        default=512,
        help="whole requests beyond are answered 503 at once (default: 512)",
    )
    add(
        "--drain_seconds",
        type=non_negative,
        default=30.0,
        help="how long requests in flight may take after SIGTERM (default: 30)",
    )


def parse_settings(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """The command line, the environment -> Settings. Raises UsageError."""
    args = make_parser(environment).parse_args(argv)
    if args.model_path is None:
        raise UsageError("--model_path is missing: expected the path of a model package")
    if fault := path_fault(args.model_path):
        raise UsageError(f"--model_path: {fault}")
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
