"""Builds the handler that scores: a model in the worker, or an endpoint that serves it."""

from __future__ import annotations

import dataclasses
import functools

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud.endpoints import Endpoints
from cloud.vertex import EndpointAddress
from common.terminal import long_step
from model_handlers.endpoints.endpoint import RequestLimits
from model_handlers.endpoints.handler import VertexEndpointHandler
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.thresholds import with_thresholds
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from model_handlers.trusted_code import TrustedCode, check_trusted, warn_of_changes
from pipelines.command import say
from pipelines.config import ModelConfig, ScoringConfig
from pipelines.endpoint_check import Way, find_way
from pipelines.options import DeviceOptions, EndpointOptions
from transforms.output_fields import OutputFields

CHECK_SECONDS = 15.0
Handler = TorchModelHandler | VertexEndpointHandler


def read_model(model: ModelConfig) -> Manifest:
    """Read the manifest of a model, unchanged, and warn if the code that it names has changed.

    Raises:
        ModelError: If there is no usable model package.
        UnsafeModel: If the package names modules that --trusted_modules does not list.
    """
    manifest = read_manifest(model.path, digest=model.digest, feature_columns=model.feature_columns)
    check_trusted(manifest, model.trusted_modules)
    code = TrustedCode.of_package(model.trusted_modules, model.path)
    warn_of_changes(manifest, code, lambda text: say(f"warning: {text}"))
    return manifest


def scoring_manifest(model: ModelConfig, packaged: Manifest) -> Manifest:
    """Return the manifest with which a run scores: with its score and thresholds, without rows.

    Args:
        model: The configuration of the model, which may name another score and other thresholds.
        packaged: The manifest of the package.

    Raises:
        UsageError: If the model has no such score or thresholds.
    """
    own = with_thresholds(packaged.choose(model.score_output), model.thresholds)
    return own.without_rows()


def make_handler(
    config: ScoringConfig,
    manifest: Manifest,
    fields: OutputFields,
    options: PipelineOptions,
    endpoints: Endpoints,
) -> Handler:
    """Return the handler that scores. An endpoint is first checked with one test row.

    Args:
        config: The configuration of the run.
        manifest: The manifest of the model, unchanged.
        fields: The fields that are written, which determine the outputs that are needed.
        options: Beam's options, with the default project and region of an endpoint.
        endpoints: The service addresses.

    Raises:
        UsageError: If the flags for the endpoint or the device are invalid.
        EndpointError: If the endpoint does not respond or serves another model. Not with
            --skip_endpoint_check.
        CredentialsError: If there are no usable credentials for the endpoint.
    """
    predictor = config.predictor
    if isinstance(predictor, DeviceOptions):
        return _torch_handler(config.model, predictor, manifest, fields)
    address = _address(predictor, options, endpoints)
    make = functools.partial(_endpoint_handler, config, predictor, fields, address)

    def make_checker(way: Way) -> VertexEndpointHandler:
        checker = make(manifest=manifest, way=way)
        # At the start, an endpoint that does not respond is reported soon.
        seconds = min(CHECK_SECONDS, checker.limits.retry_seconds)
        checker.limits = dataclasses.replace(checker.limits, retry_seconds=seconds)
        return checker

    with long_step("waiting for the endpoint to score a test row"):
        way = find_way(predictor, manifest, make_checker)
    return make(manifest=manifest.without_rows(), way=way)


def _torch_handler(
    model: ModelConfig, device: DeviceOptions, manifest: Manifest, fields: OutputFields
) -> TorchModelHandler:
    return TorchModelHandler(
        model.path,
        # The worker reads the known-good rows from the package together with the model.
        manifest.without_rows(),
        outputs=manifest.outputs_for(fields.needed),
        device=device.device,
        precision=device.precision,
        compile=device.compile,
        batch_rows=model.batch_rows,
        batch_bytes=model.batch_bytes,
        trusted_modules=model.trusted_modules,
    )


def _address(
    endpoint: EndpointOptions, options: PipelineOptions, endpoints: Endpoints
) -> EndpointAddress:
    google = options.view_as(GoogleCloudOptions)
    return EndpointAddress(
        endpoint=endpoint.endpoint,
        url=endpoint.endpoint_url,
        project=endpoint.endpoint_project or google.project,
        # Beam's own default for the region runs gcloud, so only a given region is read.
        location=endpoint.endpoint_location
        or google.get_all_options(drop_default=True).get("region"),
        service=endpoints.aiplatform,
    )


def _endpoint_handler(
    config: ScoringConfig,
    endpoint: EndpointOptions,
    fields: OutputFields,
    address: EndpointAddress,
    *,
    manifest: Manifest,
    way: Way,
) -> VertexEndpointHandler:
    # Endpoints in the format of the reference name the model's own score `anomaly_score`,
    # whichever output is chosen here. The handler therefore needs the manifest's own choice.
    if manifest.score_output is None:
        manifest = manifest.choose(config.model.score_output)
    limits = RequestLimits(
        rows=endpoint.endpoint_request_rows,
        concurrency=endpoint.endpoint_concurrency,
        timeout_seconds=endpoint.endpoint_timeout_seconds,
        retry_seconds=config.cloud.retry_seconds,
    )
    return VertexEndpointHandler(
        address,
        manifest,
        outputs=manifest.outputs_for(fields.needed),
        instance_format=endpoint.instance_format,
        parameters=way.parameters,
        limits=limits,
        cache_rows=endpoint.endpoint_cache_rows,
        package=config.model.path,
        trusted_modules=config.model.trusted_modules,
        prepare_at=way.place,
        batch_rows=config.model.batch_rows,
        batch_bytes=config.model.batch_bytes,
    )
