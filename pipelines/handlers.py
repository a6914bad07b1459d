"""From flags to what predicts: the model in the worker, or the endpoint that has it."""

from __future__ import annotations

import dataclasses

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud.endpoints import Endpoints
from cloud.vertex import EndpointAddress
from model_handlers.formats.architecture import check_trusted
from model_handlers.manifest import Manifest
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from model_handlers.vertex_endpoint import RequestLimits, VertexEndpointHandler
from pipelines.options import (
    CloudOptions,
    DeviceOptions,
    EndpointOptions,
    ModelOptions,
    StreamRunOptions,
)
from pipelines.options.flag import Parsed
from transforms.encode import OutputFields

CHECK_SECONDS = 15.0
Handler = TorchModelHandler | VertexEndpointHandler


def read_model(parsed: Parsed) -> Manifest:
    """Flags -> the model's manifest, as it is.

    Raises ModelError; UnsafeModel if it names code that the flags do not trust.
    """
    model = parsed.get(ModelOptions)
    manifest = read_manifest(
        model.model or "", digest=model.model_digest, feature_columns=model.feature_columns
    )
    check_trusted(manifest, model.trusted_modules or ())
    return manifest


def make_handler(
    parsed: Parsed,
    manifest: Manifest,
    fields: OutputFields,
    options: PipelineOptions,
    endpoints: Endpoints,
) -> Handler:
    """Flags, a model's own manifest and what is written -> the handler that they ask for.

    An endpoint is asked for a row that it has to know first, unless a flag says otherwise.
    Raises UsageError, EndpointError, CredentialsError.
    """
    endpoint = parsed.find(EndpointOptions)
    if endpoint is None or (endpoint.endpoint or endpoint.endpoint_url) is None:
        return _torch_handler(parsed, manifest, fields)
    if not endpoint.skip_endpoint_check:
        checker = _endpoint_handler(parsed, endpoint, manifest, fields, options, endpoints)
        # What does not answer at the start is told soon.
        seconds = min(CHECK_SECONDS, checker.limits.retry_seconds)
        checker.limits = dataclasses.replace(checker.limits, retry_seconds=seconds)
        connected = checker.load_model()
        try:
            connected.check()
        finally:
            connected.client.close()
    lean = manifest.without_rows()
    return _endpoint_handler(parsed, endpoint, lean, fields, options, endpoints)


def _rows(parsed: Parsed) -> int:
    """Flags -> rows of one forward pass; of streams, those of a batch of theirs."""
    return parsed.get(ModelOptions).rows(of_stream=parsed.find(StreamRunOptions) is not None)


def _torch_handler(parsed: Parsed, manifest: Manifest, fields: OutputFields) -> TorchModelHandler:
    model, device = parsed.get(ModelOptions), parsed.get(DeviceOptions)
    return TorchModelHandler(
        model.model or "",
        # Its golden rows come with its bytes.
        manifest.without_rows(),
        outputs=fields.needed,
        device=device.device,
        precision=device.precision,  # type: ignore[arg-type]
        compile=device.compile,
        batch_rows=_rows(parsed),
        trusted_modules=model.trusted_modules or (),
    )


def _endpoint_handler(
    parsed: Parsed,
    endpoint: EndpointOptions,
    manifest: Manifest,
    fields: OutputFields,
    options: PipelineOptions,
    endpoints: Endpoints,
) -> VertexEndpointHandler:
    google = options.view_as(GoogleCloudOptions)
    # Endpoints of the reference's form call the model's own score `anomaly_score`, whichever
    # output is chosen here.
    if manifest.score_output is None:
        manifest = manifest.choose(parsed.get(ModelOptions).score_output)
    address = EndpointAddress(
        endpoint.endpoint,
        endpoint.endpoint_url,
        endpoint.endpoint_project or google.project,
        # Beam's own default of the region is a question to gcloud.
        endpoint.endpoint_location or google.get_all_options(drop_default=True).get("region"),
        endpoints.aiplatform,
    )
    limits = RequestLimits(
        rows=endpoint.endpoint_request_rows,
        concurrency=endpoint.endpoint_concurrency,
        timeout_seconds=endpoint.endpoint_timeout_seconds,
        retry_seconds=parsed.get(CloudOptions).retry_seconds,
    )
    return VertexEndpointHandler(
        address,
        manifest,
        outputs=fields.needed,
        instance_format=endpoint.instance_format,  # type: ignore[arg-type]
        parameters=endpoint.endpoint_parameters,
        limits=limits,
        cache_rows=endpoint.endpoint_cache_rows,
        batch_rows=_rows(parsed),
    )
