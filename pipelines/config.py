"""What every command that scores is asked to do, as values: made of flags once, at its start."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import CloudOptions, DeviceOptions, EndpointOptions, ModelOptions
from pipelines.options.flag import Parsed
from pipelines.options.shared import OutputSchema

# What runs the model: this worker, or the endpoint that has it.
Predictor = DeviceOptions | EndpointOptions


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model, and what of its answers is written.

    score_output, output_fields: None for the manifest's. batch_rows: rows of a record batch at
    most, and of one forward pass in the worker.
    """

    path: str
    digest: str | None
    trusted_modules: tuple[str, ...]
    feature_columns: tuple[str, ...] | None
    score_output: str | None
    output_fields: tuple[str, ...] | None
    output_schema: OutputSchema
    batch_rows: int

    @classmethod
    def of(cls, flags: ModelOptions, output_schema: OutputSchema, default_rows: int) -> ModelConfig:
        """Flags that name a model, and the rows of a batch where they do not say -> the model."""
        return cls(
            path=str(flags.model),
            digest=flags.model_digest,
            trusted_modules=flags.trusted_modules or (),
            feature_columns=flags.feature_columns,
            score_output=flags.score_output,
            output_fields=flags.output_fields,
            output_schema=output_schema,
            batch_rows=flags.batch_rows or default_rows,
        )


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """What batch runs, streams and replays have in common. pipeline: its name."""

    pipeline: str
    model: ModelConfig
    predictor: Predictor
    cloud: CloudOptions


def predictor_of(parsed: Parsed) -> Predictor:
    """Flags -> the endpoint that they name, else how the model runs in the worker."""
    endpoint = parsed.find(EndpointOptions)
    if endpoint is not None and (endpoint.endpoint or endpoint.endpoint_url):
        return endpoint
    return parsed.get(DeviceOptions)
