"""The configuration that batch runs, streams and replays share, built once from the flags."""

from __future__ import annotations

from dataclasses import dataclass

from common.command_line import Thresholds, parse_thresholds
from pipelines.options import CloudOptions, DeviceOptions, EndpointOptions, ModelOptions
from pipelines.options.flag import Parsed
from pipelines.options.shared import OutputSchema

# Where the model runs: in the worker, or behind an endpoint.
Predictor = DeviceOptions | EndpointOptions


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model, and which of its outputs are written.

    Attributes:
        path: The package, the archive or the model file.
        digest: The digest that the package or its model file must have, or None for any.
        score_output: The output that is the score, or None for the one that the manifest names.
        output_fields: The outputs, fields and source columns to write, or None for those of the
            manifest.
        thresholds: Thresholds in place of those of the manifest, by field.
        batch_rows: The maximum number of rows in a batch, and in a forward pass in the worker.
        batch_bytes: The maximum number of bytes of input in a batch of several rows.
    """

    path: str
    digest: str | None
    trusted_modules: tuple[str, ...]
    feature_columns: tuple[str, ...] | None
    score_output: str | None
    output_fields: tuple[str, ...] | None
    thresholds: Thresholds
    output_schema: OutputSchema
    batch_rows: int
    batch_bytes: int

    @classmethod
    def of(cls, flags: ModelOptions, output_schema: OutputSchema, default_rows: int) -> ModelConfig:
        """Return the configuration of the model that the flags name.

        Args:
            flags: The flags of the model.
            output_schema: The columns of the results.
            default_rows: The maximum number of rows in a batch if the flags do not set it.
        """
        return cls(
            path=str(flags.model),
            digest=flags.model_digest,
            trusted_modules=flags.trusted_modules or (),
            feature_columns=flags.feature_columns,
            score_output=flags.score_output,
            output_fields=flags.output_fields,
            thresholds=parse_thresholds(flags.thresholds or ()),
            output_schema=output_schema,
            batch_rows=flags.batch_rows or default_rows,
            batch_bytes=flags.batch_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """The part of the configuration that batch runs, streams and replays have in common.

    Attributes:
        pipeline: The name of the pipeline.
        predictor: How the model runs in the worker, or the endpoint that serves it.
    """

    pipeline: str
    model: ModelConfig
    predictor: Predictor
    cloud: CloudOptions


def predictor_of(parsed: Parsed) -> Predictor:
    """Return the endpoint if the flags name one, else how the model runs in the worker."""
    endpoint = parsed.find(EndpointOptions)
    if endpoint is not None and (endpoint.endpoint or endpoint.endpoint_url):
        return endpoint
    return parsed.get(DeviceOptions)
