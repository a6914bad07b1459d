"""The format of a stream's messages, and the fields that are written of each row."""

from __future__ import annotations

from dataclasses import replace

from cloud.clients import Cloud
from common.errors import UsageError
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.thresholds import check_used
from pipelines.batch.sources import read_text
from pipelines.config import ModelConfig
from pipelines.field_names import check_known, named_by_user
from pipelines.options import EndpointOptions
from pipelines.stream.config import MessageConfig, StreamConfig
from transforms.json_rows.row_format import RowFormat
from transforms.messages.avro import field_names
from transforms.messages.avro_revisions import AvroRevisions, parse_revisions
from transforms.messages.decode import MessageFormat
from transforms.output_fields import OutputFields, choose_fields, reference_fields
from transforms.row_schemas import CARRIED, DECODED_AT, PREDICT_STARTED_AT, REQUESTED_AT
from transforms.source_columns import VECTOR_COLUMN


def stream_fields(
    model: ModelConfig,
    window_seconds: int | None,
    manifest: Manifest,
    timings: tuple[str, ...] = (),
) -> OutputFields:
    """Return the fields that are written of each row.

    Args:
        model: The flags of the model, which choose the fields.
        window_seconds: The length of the windows written with each row; None for no windows.
        manifest: The manifest of the model.
        timings: The times that are written with each row, as in OutputFields.

    Raises:
        UsageError: The model has no such field, or the field cannot be chosen.
    """
    if model.output_schema == "reference":
        return replace(reference_fields(manifest), stream=True, window_seconds=window_seconds)
    fields = choose_fields(manifest, model.output_fields, stream=True, timings=timings)
    check_used(manifest, model.thresholds, fields.needed)
    return replace(fields, window_seconds=window_seconds)


def row_timings(config: StreamConfig) -> tuple[str, ...]:
    """Return the columns that --row_timings adds, in the order of their times."""
    if not config.sinks.row_timings:
        return ()
    at_endpoint = isinstance(config.predictor, EndpointOptions)
    return DECODED_AT, REQUESTED_AT if at_endpoint else PREDICT_STARTED_AT


def message_format(
    messages: MessageConfig, manifest: Manifest, fields: OutputFields, cloud: Cloud | None
) -> MessageFormat:
    """Return the format in which messages are read.

    Args:
        messages: The flags of the messages.
        manifest: The manifest of the model.
        fields: The fields that are written, which include columns of the messages.
        cloud: The Cloud that fetches revisions of Avro schemas; None if nothing does.

    Raises:
        UsageError: The Avro schema is not valid, or lacks a feature or a field that a flag names.
    """
    carried = tuple((n, kind) for n, kind in CARRIED if n not in manifest.features)
    row_format = RowFormat(manifest, messages.id_column, fields.source, carried)
    avro = None if messages.avro_schema is None else _avro(messages, messages.avro_schema, cloud)
    found = MessageFormat(row_format, messages.kind, avro, messages.max_bytes)
    if avro is not None:
        _check_avro(avro, row_format)
    return found


def _avro(messages: MessageConfig, schema: str, cloud: Cloud | None) -> AvroRevisions:
    """Return the schemas that the flags name, after checking that they can be used."""
    paths = parse_revisions(messages.avro_revisions)
    given = {name: read_text(f"@{path}", "avro_revisions") for name, path in paths.items()}
    avro = AvroRevisions(read_text(schema, "avro_schema"), tuple(given.items()), cloud)
    avro.check()
    return avro


def _check_avro(avro: AvroRevisions, own: RowFormat) -> None:
    """Raise UsageError if the schema lacks a feature, or a field that a flag names."""
    manifest, names = own.manifest, field_names(avro.schema)
    missing = [name for name in manifest.features if name not in names]
    if missing and VECTOR_COLUMN not in names:
        raise UsageError(
            f"--avro_schema lacks the feature {missing[0]!r} of model {manifest.name}, and has no "
            f"array {VECTOR_COLUMN!r} either"
        )
    check_known(named_by_user(manifest, own.id_column, own.keep), names, "--avro_schema")
