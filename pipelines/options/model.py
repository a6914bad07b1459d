"""Flags of the model: which it is, where it runs, and what of its answers is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.options.flag import flag
from pipelines.options.forms import AT_LEAST_0, AT_LEAST_1, DEVICE, HTTP_URL, SHA256

Precision = Literal["float32", "bf16", "fp16"]
InstanceFormat = Literal["list", "named"]
# Rows of a record batch. Rows of a stream wait for the rest of theirs.
BATCH_ROWS, STREAM_BATCH_ROWS = 32_768, 4_096


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and what of its answers is written."""

    model: str | None = flag(
        "model package: a folder with model.json, a .mar, or a model file",
        label="Model package",
        param_type="GCS_READ_FOLDER",
        metavar="PATH",
    )
    model_digest: str | None = flag(
        "sha256 that the model file must have; the run fails if it has another",
        label="Model digest",
        form=SHA256,
        metavar="SHA256",
    )
    trusted_modules: tuple[str, ...] | None = flag(
        "top-level Python modules that the model package's `architecture` may import; workers "
        "need them installed (default: none)",
        label="Trusted modules",
        metavar="A,B",
    )
    feature_columns: tuple[str, ...] | None = flag(
        "for a model file without model.json: its input columns, in order",
        label="Feature columns",
        metavar="A,B,C",
    )
    score_output: str | None = flag(
        "model output written as the column `score` (default: the manifest's)",
        label="Score output",
        metavar="NAME",
    )
    output_fields: tuple[str, ...] | None = flag(
        "model outputs and source columns to write besides id, score and lineage "
        "(default: the manifest's)",
        label="Output fields",
        metavar="A,B",
    )
    batch_rows: int | None = flag(
        "rows of a record batch at most, and with the model in the worker of one forward pass "
        "(default: 32768, of streams 4096)",
        label="Rows a batch",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )


@dataclass(frozen=True)
class DeviceOptions:
    """How the model runs in the worker."""

    device: str = flag(
        "auto, cpu, cuda or cuda:N",
        "auto",
        label="Device",
        form=DEVICE,
    )
    precision: Precision = flag(
        "bf16 and fp16 run the model under autocast; they pay on CUDA",
        "float32",
        label="Precision",
        param_type="ENUM",
    )
    compile: bool = flag(
        "torch.compile the model (not for TorchScript); pays on CUDA",
        False,
        label="Compile the model",
        param_type="BOOLEAN",
    )


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """The endpoint that has the model."""

    endpoint: str | None = flag(
        "Vertex AI endpoint: projects/P/locations/L/endpoints/ID, an id, or a display name",
        label="Endpoint",
        metavar="NAME",
    )
    endpoint_url: str | None = flag(
        "address of the endpoint where it is not Google's public one: of a private endpoint in "
        "your network, or of any server that answers as Vertex AI does",
        label="Endpoint URL",
        form=HTTP_URL,
        metavar="URL",
    )
    endpoint_project: str | None = flag(
        "project of the endpoint, for an id or a display name (default: --project)",
        label="Endpoint project",
        metavar="PROJECT",
    )
    endpoint_location: str | None = flag(
        "location of the endpoint, for an id or a display name (default: --region)",
        label="Endpoint location",
        metavar="LOCATION",
    )
    instance_format: InstanceFormat = flag(
        "list sends the features of a row in order, named an object by column",
        "list",
        label="Instance format",
        param_type="ENUM",
    )
    endpoint_parameters: str | None = flag(
        "JSON object that is sent as the parameters of each request",
        label="Endpoint parameters",
        metavar="JSON",
    )
    endpoint_request_rows: int = flag(
        "rows of one request at most; it is split as well where it would be too large",
        100,
        label="Rows a request",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    endpoint_concurrency: int = flag(
        "requests that a worker process has in flight at most; fewer while the endpoint pushes "
        "back",
        8,
        label="Requests in flight",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    endpoint_timeout_seconds: int = flag(
        "how long one request may take",
        60,
        label="Request timeout",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    endpoint_cache_rows: int = flag(
        "predictions that a worker process remembers, by the features of their row; 0 for none",
        0,
        label="Cached predictions",
        param_type="NUMBER",
        form=AT_LEAST_0,
    )
    skip_endpoint_check: bool = flag(
        "start without asking the endpoint for one known row first",
        False,
        label="Skip the endpoint check",
        param_type="BOOLEAN",
    )
