"""Which run scored a row, with which model, and when."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from model_handlers.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which run of which pipeline with which model: what every row that leaves carries."""

    run_id: str
    pipeline: str
    model_name: str
    model_version: str
    model_digest: str

    @classmethod
    def of(
        cls, manifest: Manifest, run_id: str = "unnamed", pipeline: str = "unnamed"
    ) -> Provenance:
        """A model's manifest, a run and a pipeline's name -> Provenance."""
        return cls(
            run_id=run_id,
            pipeline=pipeline,
            model_name=manifest.name,
            model_version=manifest.version,
            model_digest=manifest.sha256,
        )


def utc_now() -> datetime.datetime:
    """The present moment, with its time zone."""
    return datetime.datetime.now(datetime.UTC)
