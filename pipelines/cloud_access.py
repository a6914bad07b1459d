"""From flags to Google Cloud: which project pays, where the services are, may we at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud.clients import Cloud, credentials, default_project
from cloud.endpoints import Endpoints, grpc_target, is_plain, rest_url
from common.errors import UsageError
from common.private_beam.any_runner import use_no_credentials
from pipelines.options import CloudOptions
from pipelines.options.flag import Parsed
from transforms.bigquery.schema import project_of

GCS = "gs://"


def connect(parsed: Parsed, options: PipelineOptions) -> Endpoints:
    """Flags -> the endpoints, with Beam's file access to Cloud Storage made ready.

    Raises CredentialsError where a flag names a bucket and there are no credentials:
    Beam would try for half a minute, then go on without.
    """
    endpoints = Endpoints.resolve(parsed.get(CloudOptions).api_endpoints or ())
    if is_plain(endpoints.pubsub):
        # The local runner's own clients read nothing else.
        os.environ["PUBSUB_EMULATOR_HOST"] = grpc_target(endpoints.pubsub or "")
    texts = _texts(parsed, options)
    open_storage(endpoints, needed=any(text.removeprefix("@").startswith(GCS) for text in texts))
    return endpoints


def open_storage(endpoints: Endpoints, *, needed: bool) -> None:
    """Endpoints -> Beam's file access to Cloud Storage is ready. Raises CredentialsError."""
    if endpoints.storage is not None:
        os.environ["STORAGE_EMULATOR_HOST"] = rest_url(endpoints.storage)
    if needed and is_plain(endpoints.storage):
        use_no_credentials()
    elif needed:
        credentials(endpoints.storage)


def _texts(parsed: Parsed, options: PipelineOptions) -> list[str]:
    """Flags -> every text that is given, lists apart."""
    google = options.view_as(GoogleCloudOptions)
    values = [google.temp_location, google.staging_location]
    for group in parsed.groups.values():
        for field in fields(group):
            value = getattr(group, field.name)
            values += value if isinstance(value, tuple) else [value]
    return [value for value in values if isinstance(value, str)]


def make_cloud(
    cloud: CloudOptions,
    options: PipelineOptions,
    endpoints: Endpoints,
    tables: Iterable[str | None] = (),
) -> Cloud:
    """Flags, endpoints and the names of tables -> the Cloud that pays.

    Raises UsageError where no project is named, CredentialsError.
    """
    project = (
        cloud.billing_project
        or options.view_as(GoogleCloudOptions).project
        or (None if is_plain(endpoints.bigquery) else default_project())
        or next(filter(None, (project_of(table or "") for table in tables)), None)
    )
    if project is None:
        raise UsageError("which project pays? say --billing_project or --project")
    return Cloud(project, endpoints, float(cloud.retry_seconds))
