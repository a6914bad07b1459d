"""Flags of every run: Google Cloud, and the run itself."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options.flag import flag
from pipelines.options.forms import AT_LEAST_1, RUN_ID


@dataclass(frozen=True)
class CloudOptions:
    """Google Cloud."""

    billing_project: str | None = flag(
        "project that pays for queries, jobs and reads (default: --project, or the credentials')",
        label="Billing project",
        metavar="PROJECT",
    )
    api_endpoints: tuple[str, ...] | None = flag(
        "other addresses of bigquery, bigquerystorage, storage and pubsub: private endpoints, or "
        "emulators (default: BIGQUERY_EMULATOR_HOST, BIGQUERY_STORAGE_EMULATOR_HOST, "
        "STORAGE_EMULATOR_HOST, PUBSUB_EMULATOR_HOST)",
        label="API endpoints",
        metavar="SERVICE=ADDRESS",
    )
    retry_seconds: int = flag(
        "how long errors of Google's services that pass by themselves are waited out",
        120,
        label="Retry seconds",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )


@dataclass(frozen=True)
class RunOptions:
    """The run itself."""

    run_id: str | None = flag(
        "name of the run; a second run with the same name replaces the first "
        "(default: the time of the start)",
        label="Run id",
        form=RUN_ID,
        metavar="NAME",
    )
    json_summary: bool = flag(
        "print the report as JSON on standard output instead of a summary",
        False,
        label="JSON summary",
        param_type="BOOLEAN",
        in_template=False,
    )
    debug: bool = flag(
        "show tracebacks and Beam's own log",
        False,
        label="Debug",
        param_type="BOOLEAN",
        in_template=False,
    )
