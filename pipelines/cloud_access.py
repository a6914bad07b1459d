"""Access to Google Cloud from flags: the billing project, service addresses and credentials."""

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
    """Return the service addresses, and prepare Beam's file access to Cloud Storage.

    Args:
        parsed: The command line.
        options: Beam's options.

    Raises:
        CredentialsError: If a flag names a bucket and there are no credentials. Beam would
            search for them for half a minute and then continue without.
        UsageError: If an address in --api_endpoints is malformed.
    """
    endpoints = Endpoints.resolve(parsed.get(CloudOptions).api_endpoints or ())
    if is_plain(endpoints.pubsub):
        # The clients that the local runner creates read only this variable.
        os.environ["PUBSUB_EMULATOR_HOST"] = grpc_target(endpoints.pubsub or "")
    texts = _texts(parsed, options)
    open_storage(endpoints, needed=any(text.removeprefix("@").startswith(GCS) for text in texts))
    return endpoints


def open_storage(endpoints: Endpoints, *, needed: bool) -> None:
    """Prepare Beam's file access to Cloud Storage.

    Args:
        endpoints: The service addresses.
        needed: Whether the run reads or writes Cloud Storage.

    Raises:
        CredentialsError: If Cloud Storage is needed and there are no credentials.
    """
    if endpoints.storage is not None:
        os.environ["STORAGE_EMULATOR_HOST"] = rest_url(endpoints.storage)
    if needed and is_plain(endpoints.storage):
        use_no_credentials()
    elif needed:
        credentials(endpoints.storage)


def _texts(parsed: Parsed, options: PipelineOptions) -> list[str]:
    """Return every text value of the flags, and every element of their lists."""
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
    """Return the Cloud whose project is billed.

    Args:
        cloud: The flags for Google Cloud.
        options: Beam's options, of which --project names a project.
        endpoints: The service addresses.
        tables: Names of tables. The project of one is billed if nothing else names a project.

    Raises:
        UsageError: If neither a flag, nor the credentials, nor a table names a project.
        CredentialsError: If no project is named and there are no usable credentials.
    """
    project = (
        cloud.billing_project
        or options.view_as(GoogleCloudOptions).project
        or (None if is_plain(endpoints.bigquery) else default_project())
        or next(filter(None, (project_of(table or "") for table in tables)), None)
    )
    if project is None:
        raise UsageError("no billing project: pass --billing_project or --project")
    return Cloud(project, endpoints, float(cloud.retry_seconds))
