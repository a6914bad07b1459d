"""Flags of every run: access to Google Cloud, and the run itself."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options.flag import flag
from pipelines.options.forms import DURATION, RUN_ID


@dataclass(frozen=True)
class CloudOptions:
    """Google Cloud."""

    billing_project: str | None = flag(
        "project to bill for queries, jobs and reads (default: --project, or the project of the "
        "credentials)",
        label="Billing project",
        metavar="PROJECT",
    )
    api_endpoints: tuple[str, ...] | None = flag(
        "addresses of services such as bigquery, bigquerystorage, storage and pubsub, if they are "
        "not the public ones: private endpoints, or emulators (default: the environment "
        "variables BIGQUERY_EMULATOR_HOST, BIGQUERY_STORAGE_EMULATOR_HOST, STORAGE_EMULATOR_HOST, "
        "PUBSUB_EMULATOR_HOST)",
        label="API endpoints",
        metavar="SERVICE=ADDRESS",
    )
    retry_seconds: int = flag(
        "how long to retry transient errors of Google Cloud and of prediction endpoints, in "
        "seconds",
        120,
        label="Retry seconds",
        param_type="NUMBER",
        form=DURATION,
    )


@dataclass(frozen=True)
class RunOptions:
    """The run."""

    run_id: str | None = flag(
        "name of the run; a second run with the same name replaces the first "
        "(default: the start time and a random suffix; for a replay, derived from its input)",
        label="Run id",
        form=RUN_ID,
        metavar="NAME",
    )
    json_summary: bool = flag(
        "print the report as JSON on standard output instead of the summary",
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
