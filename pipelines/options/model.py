"""Flags of the model: which model to use, where to run it, and which outputs to write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.options.flag import flag
from pipelines.options.forms import AT_LEAST_0, AT_LEAST_1, DEVICE, DURATION, HTTP_URL, SHA256

Precision = Literal["float32", "tf32", "bf16", "fp16", "auto"]
InstanceFormat = Literal["list", "named"]
PrepareAt = Literal["auto", "worker", "server"]
# The default number of rows in a batch: fewer in streams, where a row waits for the rest of its
# batch to be scored.
BATCH_ROWS, STREAM_BATCH_ROWS = 32_768, 4_096


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and which of its outputs are written."""

    model: str | None = flag(
        "model package: a folder with model.json, a .mar archive, or a model file",
        label="Model package",
        param_type="GCS_READ_FOLDER",
        metavar="PATH",
    )
    model_digest: str | None = flag(
        "digest that the package must have, or SHA-256 that its model file must have; the run "
        "fails if they have others",
        label="Model digest",
        form=SHA256,
        metavar="SHA256",
    )
    trusted_modules: tuple[str, ...] | None = flag(
        "top-level Python modules from which the `architecture` of the model package and the "
        "functions of its steps may be imported; they must be installed on the workers, or in "
        "--extra_packages (default: none)",
        label="Trusted modules",
        metavar="A,B",
    )
    extra_packages: tuple[str, ...] | None = flag(
        "wheels with your own code, on this machine or in a bucket; workers of this process use "
        "them without installing them, Dataflow's workers install them when they start",
        label="Extra packages",
        metavar="A.whl,B.whl",
    )
    feature_columns: tuple[str, ...] | None = flag(
        "input columns in order, for a model file without model.json",
        label="Feature columns",
        metavar="A,B,C",
    )
    score_output: str | None = flag(
        "output or field of the model to write as the column `score` (default: score_output of "
        "model.json; without model.json, the output with one float per row, if there is only one)",
        label="Score output",
        metavar="NAME",
    )
    output_fields: tuple[str, ...] | None = flag(
        "outputs and fields of the model, and source columns, to write in addition to row_id, "
        "score, scored_at and the columns that name the run and the model (default: output_fields "
        "of model.json, or all outputs and fields if it has none)",
        label="Output fields",
        metavar="A,B",
    )
    thresholds: tuple[str, ...] | None = flag(
        "numbers at which the step `cut` of a field cuts, in place of those of model.json, such as "
        "decision=0.4,0.9; several fields are separated by spaces or commas",
        label="Thresholds",
        metavar="FIELD=A,B",
    )
    batch_rows: int | None = flag(
        "maximum number of rows in a batch; a model in the worker scores a batch in one forward "
        "pass (default: 32768; for streams, 4096)",
        label="Rows per batch",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    batch_bytes: int = flag(
        "maximum number of bytes of input in a batch, for wide rows; a row that is larger is a "
        "batch of its own",
        256 << 20,
        label="Bytes per batch",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )


@dataclass(frozen=True)
class DeviceOptions:
    """How the model runs in the worker."""

    device: str = flag(
        "device that runs the model: auto, cpu, cuda or cuda:N; cuda uses every GPU of the worker, "
        "and auto the same, or the CPU if there is none",
        "auto",
        label="Device",
        form=DEVICE,
    )
    precision: Precision = flag(
        "numeric precision of the model: tf32, bf16 and fp16 are faster on CUDA; auto takes the "
        "fastest that keeps the known-good rows of the package within its tolerance",
        "float32",
        label="Precision",
        param_type="ENUM",
    )
    compile: bool = flag(
        "compile the model with torch.compile, which is faster only on CUDA; not for TorchScript",
        False,
        label="Compile the model",
        param_type="BOOLEAN",
    )


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """The endpoint that serves the model."""

    endpoint: str | None = flag(
        "Vertex AI endpoint: projects/P/locations/L/endpoints/ID, an id, or a display name",
        label="Endpoint",
        metavar="NAME",
    )
    endpoint_url: str | None = flag(
        "address of the endpoint if it is not Google's public one: a private endpoint in your "
        "network, or any server that responds like Vertex AI",
        label="Endpoint URL",
        form=HTTP_URL,
        metavar="URL",
    )
    endpoint_project: str | None = flag(
        "project of the endpoint, if --endpoint is an id or a display name (default: --project)",
        label="Endpoint project",
        metavar="PROJECT",
    )
    endpoint_location: str | None = flag(
        "location of the endpoint, if --endpoint is an id or a display name (default: --region)",
        label="Endpoint location",
        metavar="LOCATION",
    )
    instance_format: InstanceFormat | None = flag(
        "form of a row in a request: list is the list of its features in order; named is an object "
        "with column names (default: list, or named if the model has several inputs)",
        label="Instance format",
        param_type="ENUM",
    )
    prepare_at: PrepareAt = flag(
        "where the steps of the model package turn rows into tensors: worker sends tensors, server "
        "sends the columns of the source; auto chooses server if the endpoint is Millrace's server "
        "with the same steps",
        "auto",
        label="Where rows are prepared",
        param_type="ENUM",
    )
    endpoint_parameters: str | None = flag(
        "JSON object to send as the parameters of each request",
        label="Endpoint parameters",
        metavar="JSON",
    )
    endpoint_request_rows: int = flag(
        "maximum number of rows in a request; a request with too many bytes is split as well",
        100,
        label="Rows per request",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    endpoint_concurrency: int = flag(
        "maximum number of requests that a worker process has in flight; fewer while the endpoint "
        "is overloaded",
        8,
        label="Requests in flight",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    endpoint_timeout_seconds: int = flag(
        "how long to wait for the response to a request, in seconds",
        60,
        label="Request timeout",
        param_type="NUMBER",
        form=DURATION,
    )
    endpoint_cache_rows: int = flag(
        "number of predictions that a worker process caches for rows with equal features; 0 "
        "disables the cache",
        0,
        label="Cached predictions",
        param_type="NUMBER",
        form=AT_LEAST_0,
    )
    skip_endpoint_check: bool = flag(
        "start without first sending a test row to the endpoint",
        False,
        label="Skip the endpoint check",
        param_type="BOOLEAN",
    )
