"""Builds all clients of Google's services.

A `Cloud` is a value that travels to workers, which build their clients themselves. Emulators and
other addresses without encryption get no credentials. All other clients use the credentials of the
environment, and building one fails with a CredentialsError if there are none.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cloud.endpoints import Endpoints, grpc_target, is_plain, rest_url
from cloud.errors import RETRY_SECONDS, explain
from common.errors import CredentialsError

if TYPE_CHECKING:
    from google.api_core.operations_v1 import AbstractOperationsClient
    from google.cloud import bigquery, storage
    from google.cloud.aiplatform_v1 import EndpointServiceClient, ModelServiceClient
    from google.cloud.bigquery_storage_v1.services.big_query_read import BigQueryReadClient
    from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteClient
    from google.cloud.dataflow_v1beta3 import (
        FlexTemplatesServiceClient,
        JobsV1Beta3Client,
        MessagesV1Beta3Client,
        MetricsV1Beta3Client,
    )
    from google.pubsub_v1.services.publisher import PublisherClient
    from google.pubsub_v1.services.schema_service import SchemaServiceClient
    from google.pubsub_v1.services.subscriber import SubscriberClient

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
# The timeout of one request of BigQuery's REST client.
REQUEST_SECONDS = 120.0

# Otherwise each new client of Cloud Storage also requests the description of the bucket, for the
# attributes of traces. Beam makes a new client for each file that it opens.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")


@dataclass(frozen=True)
class Cloud:
    """The addresses of Google's services, and the project that pays for calls.

    Attributes:
        project: The project that is billed for jobs and read sessions.
        endpoints: The address of each service. By default the emulator variables set them, which
            Google's own clients read too.
        retry_seconds: How long transient errors are retried, in seconds.
    """

    project: str
    endpoints: Endpoints = field(default_factory=Endpoints.resolve)
    retry_seconds: float = RETRY_SECONDS

    def bigquery(self) -> bigquery.Client:
        """Return a new REST client of BigQuery, for tables and jobs.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        from google.cloud import bigquery

        address = self.endpoints.bigquery
        found = credentials(address)
        return bigquery.Client(
            project=self.project,
            credentials=found,
            _http=_session(found),
            client_options={"api_endpoint": rest_url(address)} if address else None,
        )

    def bigquery_read(self) -> BigQueryReadClient:
        """Return the client of BigQuery's Storage Read API, one per process.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        return _read_client(self.endpoints.bigquerystorage)

    def bigquery_write(self) -> BigQueryWriteClient:
        """Return the client of BigQuery's Storage Write API, one per process.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        return _write_client(self.endpoints.bigquerystorage)

    def publisher(self) -> PublisherClient:
        """Return Pub/Sub's client for topics, one per process.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        return _publisher_client(self.endpoints.pubsub)

    def subscriber(self) -> SubscriberClient:
        """Return Pub/Sub's client for subscriptions, one per process.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        return _subscriber_client(self.endpoints.pubsub)

    def schemas(self) -> SchemaServiceClient:
        """Return Pub/Sub's client for schemas, one per process.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        return _schema_client(self.endpoints.pubsub)

    def storage(self) -> storage.Client:
        """Return a new client of Cloud Storage.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        from google.cloud import storage

        address = self.endpoints.storage
        return storage.Client(
            project=self.project,
            credentials=credentials(address),
            client_options={"api_endpoint": rest_url(address)} if address else None,
        )

    def vertex(self, region: str) -> Vertex:
        """Return new clients of Vertex AI in a region, over REST.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        from google.api_core.operations_v1 import AbstractOperationsClient, OperationsRestTransport
        from google.cloud.aiplatform_v1 import EndpointServiceClient, ModelServiceClient

        address = self.endpoints.aiplatform
        place: dict[str, Any] = {
            "host": rest_url(address or f"{region}-aiplatform.googleapis.com"),
            "credentials": credentials(address),
        }
        models, endpoints = (
            client(transport=client.get_transport_class("rest")(**place))
            for client in (ModelServiceClient, EndpointServiceClient)
        )
        # The operations client inside these clients uses paths under /ui, which the API does not
        # document.
        operations = OperationsRestTransport(**place)
        return Vertex(models, endpoints, AbstractOperationsClient(transport=operations))

    def dataflow(self) -> Dataflow:
        """Return new clients of Dataflow, over REST.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        from google.cloud.dataflow_v1beta3 import (
            FlexTemplatesServiceClient,
            JobsV1Beta3Client,
            MessagesV1Beta3Client,
            MetricsV1Beta3Client,
        )

        address = self.endpoints.dataflow
        place: dict[str, Any] = {
            "host": rest_url(address or "dataflow.googleapis.com"),
            "credentials": credentials(address),
        }
        return Dataflow(
            *(
                client(transport=client.get_transport_class("rest")(**place))
                for client in (
                    JobsV1Beta3Client,
                    MetricsV1Beta3Client,
                    MessagesV1Beta3Client,
                    FlexTemplatesServiceClient,
                )
            )
        )

    def discovered(self, service: str, version: str) -> Any:
        """Return a new client that is generated from a service's discovery document.

        It is for services that a run calls only a few times. `cloud.discovered.execute` sends its
        requests.

        Args:
            service: The service, as the fields of `Endpoints` name it.
            version: The version of its API, for example `v1`.

        Raises:
            CredentialsError: There are no usable credentials.
        """
        from googleapiclient.discovery import build

        address = getattr(self.endpoints, service)
        return build(
            service,
            version,
            credentials=credentials(address),
            client_options={"api_endpoint": rest_url(address)} if address else None,
            static_discovery=True,
        )


@dataclass(frozen=True)
class Dataflow:
    """The clients of Dataflow: jobs, their metrics and log messages, and Flex Templates."""

    jobs: JobsV1Beta3Client
    metrics: MetricsV1Beta3Client
    messages: MessagesV1Beta3Client
    templates: FlexTemplatesServiceClient


@dataclass(frozen=True)
class Vertex:
    """The clients of Vertex AI: models, endpoints, and the operations that both start."""

    models: ModelServiceClient
    endpoints: EndpointServiceClient
    operations: AbstractOperationsClient


def credentials(address: str | None = None) -> Any:
    """Return the credentials for a service.

    Args:
        address: The address of the service, None for Google's own host.

    Returns:
        Anonymous credentials for an address without encryption, else those of the environment.

    Raises:
        CredentialsError: The environment has no usable credentials.
    """
    if is_plain(address):
        from google.auth.credentials import AnonymousCredentials

        return AnonymousCredentials()
    return _default()[0]


def default_project() -> str | None:
    """Return the project that the environment's credentials name, or None if they name none.

    Raises:
        CredentialsError: The environment has no usable credentials.
    """
    return _default()[1]


@functools.cache
def _default() -> tuple[Any, str | None]:
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    # Outside Google Cloud, each attempt to reach the metadata server takes seconds. On a Google
    # machine whose metadata server is slow, the firmware still identifies the machine.
    os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
    try:
        return google.auth.default(scopes=[SCOPE])  # type: ignore[no-any-return]
    except GoogleAuthError as error:
        raise CredentialsError(explain(error)) from error


def _session(found: Any) -> Any:
    """Return a session with a timeout for BigQuery's client, which by itself would wait forever."""
    from google.auth.transport.requests import AuthorizedSession

    class Session(AuthorizedSession):  # type: ignore[misc]
        def request(self, *args: Any, timeout: Any = None, **rest: Any) -> Any:
            return super().request(*args, timeout=timeout or REQUEST_SECONDS, **rest)

    session = Session(found)
    session.configure_mtls_channel()
    return session


# A process shares one channel: it carries any number of concurrent calls, and opening another one
# costs a handshake.
@functools.cache
def _read_client(address: str | None) -> BigQueryReadClient:
    from google.cloud.bigquery_storage_v1.services.big_query_read import BigQueryReadClient
    from google.cloud.bigquery_storage_v1.services.big_query_read.transports import (
        BigQueryReadGrpcTransport,
    )

    return _grpc_client(BigQueryReadClient, BigQueryReadGrpcTransport, address)  # type: ignore[no-any-return]


@functools.cache
def _write_client(address: str | None) -> BigQueryWriteClient:
    from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteClient
    from google.cloud.bigquery_storage_v1.services.big_query_write.transports import (
        BigQueryWriteGrpcTransport,
    )

    return _grpc_client(BigQueryWriteClient, BigQueryWriteGrpcTransport, address)  # type: ignore[no-any-return]


@functools.cache
def _publisher_client(address: str | None) -> PublisherClient:
    from google.pubsub_v1.services.publisher import PublisherClient
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

    return _grpc_client(PublisherClient, PublisherGrpcTransport, address)  # type: ignore[no-any-return]


@functools.cache
def _subscriber_client(address: str | None) -> SubscriberClient:
    from google.pubsub_v1.services.subscriber import SubscriberClient
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

    return _grpc_client(SubscriberClient, SubscriberGrpcTransport, address)  # type: ignore[no-any-return]


@functools.cache
def _schema_client(address: str | None) -> SchemaServiceClient:
    from google.pubsub_v1.services.schema_service import SchemaServiceClient
    from google.pubsub_v1.services.schema_service.transports import SchemaServiceGrpcTransport

    return _grpc_client(SchemaServiceClient, SchemaServiceGrpcTransport, address)  # type: ignore[no-any-return]


# Pings detect a connection that a proxy dropped silently, which would otherwise hang calls.
# Emulators get no pings, because gRPC's Python servers close a connection that pings so often.
_KEEPALIVE = (("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000))


def _grpc_client(client: Any, transport: Any, address: str | None) -> Any:
    if address is None or not is_plain(address):

        def open_channel(*args: Any, options: Any, **rest: Any) -> Any:
            return transport.create_channel(*args, options=[*options, *_KEEPALIVE], **rest)

        return client(
            credentials=credentials(address),
            client_options={"api_endpoint": grpc_target(address)} if address else None,
            transport=functools.partial(transport, channel=open_channel),
        )
    import grpc

    # A response may be larger than gRPC's default of 4 MB. The clients' own channels allow it too.
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = grpc.insecure_channel(grpc_target(address), options=unlimited)
    return client(transport=transport(channel=channel))
