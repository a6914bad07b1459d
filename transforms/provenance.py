"""Provenance: which run scored a row, and with which model."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from model_handlers.manifests.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The run, the pipeline and the model that every output row and dead letter names.

    Attributes:
        model_digest: The digest of the manifest, which covers everything that determines the
            predictions.
    """

    run_id: str
    pipeline: str
    model_name: str
    model_version: str
    model_digest: str

    @classmethod
    def of(
        cls, manifest: Manifest, run_id: str = "unnamed", pipeline: str = "unnamed"
    ) -> Provenance:
        """Return the provenance of rows that a run of a pipeline scores.

        Args:
            manifest: The manifest of the model.
            run_id: The id of the run.
            pipeline: The name of the pipeline.
        """
        return cls(
            run_id=run_id,
            pipeline=pipeline,
            model_name=manifest.name,
            model_version=manifest.version,
            model_digest=manifest.digest,
        )


def utc_now() -> datetime.datetime:
    """Return the current time, in UTC and with its time zone."""
    return datetime.datetime.now(datetime.UTC)
