"""What a run scores with and what it writes, and what its report states about that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from common.addresses import without_secrets
from common.command_line import Thresholds
from model_handlers.endpoints.handler import VertexEndpointHandler
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.thresholds import check_used, thresholds_of
from model_handlers.read_package import package_bytes
from pipelines.batch.config import RunConfig
from pipelines.batch.destinations import report_folder
from pipelines.batch.memory import work_of
from pipelines.batch.sources import Source
from pipelines.cloud_access import GCS
from pipelines.config import ModelConfig
from pipelines.handlers import Handler
from pipelines.worker_memory import Work
from transforms.files.sink.destination import Destination
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES
from transforms.output_fields import OutputFields, choose_fields, reference_fields
from transforms.provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What a run scores with, and what it writes.

    Attributes:
        name: The name of the pipeline, for the report and the output rows.
        manifest: The manifest of the model, with the chosen score and thresholds, and without
            known-good rows.
        packaged: The thresholds of the package, by field.
        fields: The fields that are written of each row.
    """

    name: str
    config: RunConfig
    handler: Handler
    manifest: Manifest
    packaged: Thresholds
    fields: OutputFields


def fields_of(model: ModelConfig, manifest: Manifest) -> OutputFields:
    """Return the fields to write of each row.

    Args:
        model: The configuration of the model, which names the fields.
        manifest: The manifest, whose fields are written if the configuration names none.

    Raises:
        UsageError: If the model or the source cannot have these fields.
    """
    if model.output_schema == "reference":
        return reference_fields(manifest)
    fields = choose_fields(manifest, model.output_fields)
    check_used(manifest, model.thresholds, fields.needed)
    return fields


def work_of_thread(
    scoring: Scoring, source: Source, schema: pa.Schema, destinations: list[Destination]
) -> Work:
    """Return what one thread of the run holds in memory."""
    model = scoring.config.model
    behind_endpoint = isinstance(scoring.handler, VertexEndpointHandler)
    return work_of(
        model,
        scoring.manifest,
        scoring.fields,
        package_bytes=0 if behind_endpoint else package_bytes(model.path, scoring.manifest),
        source=source.schema,
        written=schema,
        writers=sum(destination.part == SCORES for destination in destinations),
        remote=source.names[0].startswith(GCS),
    )


def facts_of(
    scoring: Scoring,
    provenance: Provenance,
    source: Source,
    destinations: list[Destination],
) -> dict[str, Any]:
    """Return what the report states besides its counts."""
    return {
        "run_id": provenance.run_id,
        "pipeline": provenance.pipeline,
        "model": {
            "name": provenance.model_name,
            "version": provenance.model_version,
            "digest": provenance.model_digest,
            "batch_dependence": scoring.manifest.batch_dependence,
        },
        **_prepared_at(scoring),
        "score_output": scoring.fields.score,
        **_thresholds(scoring),
        "input": [without_secrets(name) for name in source.names],
        **({} if source.table_version is None else {"table_version": source.table_version}),
        "output": [d.place for d in destinations if d.part == SCORES],
        "dead_letter_output": [d.place for d in destinations if d.part == DEAD_LETTERS],
        "report": report_folder(destinations).report,
        "max_dead_letter_share": scoring.config.max_dead_letter_share,
        "min_rows": scoring.config.min_rows,
    }


def _thresholds(scoring: Scoring) -> dict[str, Any]:
    """Return the thresholds of the fields that are computed, beside those of the package."""
    computed = scoring.manifest.fields_for(scoring.fields.needed)
    found = {
        name: {"at": at, "packaged": scoring.packaged[name]}
        for name, at in thresholds_of(scoring.manifest).items()
        if name in computed
    }
    return {"thresholds": found} if found else {}


def _prepared_at(scoring: Scoring) -> dict[str, str]:
    """Return where rows for an endpoint are prepared, if the package has steps."""
    handler = scoring.handler
    if scoring.manifest.has_steps and isinstance(handler, VertexEndpointHandler):
        return {"prepared_at": handler.prepare_at}
    return {}
