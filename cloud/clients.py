"""The one place where clients of Google's services are built.

A `Cloud` is a value that travels to workers; clients are made where they are used.
Emulators and other plain addresses get no credentials; everything else takes those
of the environment and fails at once, in one line, where there are none.
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
    from google.pubsub_v1.services.subscriber import SubscriberClient

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
# Of one request: a server that says nothing for so long is taken for dead.
REQUEST_SECONDS = 120.0


@dataclass(frozen=True)
class Cloud:
    """Where calls go and who pays for them.

    project: billed for jobs and read sessions. endpoints: by default what the emulator
    variables say, as Google's own clients read them. retry_seconds: how long errors that
    pass by themselves are waited out.
    """

    project: str
    endpoints: Endpoints = field(default_factory=Endpoints.resolve)
    retry_seconds: float = RETRY_SECONDS

    def bigquery(self) -> bigquery.Client:
        """A REST client of BigQuery: tables and jobs. Raises CredentialsError."""
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
        """The Storage Read API's client, one a process. Raises CredentialsError."""
        return _read_client(self.endpoints.bigquerystorage)

    def bigquery_write(self) -> BigQueryWriteClient:
        """The Storage Write API's client, one a process. Raises CredentialsError."""
        return _write_client(self.endpoints.bigquerystorage)

    def publisher(self) -> PublisherClient:
        """Pub/Sub's client for topics, one a process. Raises CredentialsError."""
        return _publisher_client(self.endpoints.pubsub)

    def subscriber(self) -> SubscriberClient:
        """Pub/Sub's client for subscriptions, one a process. Raises CredentialsError."""
        return _subscriber_client(self.endpoints.pubsub)

    def storage(self) -> storage.Client:
        """A client of Cloud Storage. Raises CredentialsError."""
        from google.cloud import storage

        address = self.endpoints.storage
        return storage.Client(
            project=self.project,
            credentials=credentials(address),
            client_options={"api_endpoint": rest_url(address)} if address else None,
        )

    def vertex(self, region: str) -> Vertex:
        """The clients of Vertex AI in a region, over REST. Raises CredentialsError."""
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
        # The clients' own would ask under /ui, which the API's documents do not have.
        operations = OperationsRestTransport(**place)
        return Vertex(models, endpoints, AbstractOperationsClient(transport=operations))

    def dataflow(self) -> Dataflow:
        """The clients of Dataflow, over REST. Raises CredentialsError."""
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
        """A service, as `Endpoints` names it -> its client as Google's document describes it.

        For services that are asked a few times a run. cloud.discovered.execute runs its
        requests. Raises CredentialsError.
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
    """The clients of Dataflow: jobs, what they used, what happened to them, and templates."""

    jobs: JobsV1Beta3Client
    metrics: MetricsV1Beta3Client
    messages: MessagesV1Beta3Client
    templates: FlexTemplatesServiceClient


@dataclass(frozen=True)
class Vertex:
    """The clients of Vertex AI: models, endpoints, and the operations that these start."""

    models: ModelServiceClient
    endpoints: EndpointServiceClient
    operations: AbstractOperationsClient


def credentials(address: str | None = None) -> Any:
    """A service's address -> credentials for it. Raises CredentialsError."""
    if is_plain(address):
        from google.auth.credentials import AnonymousCredentials

        return AnonymousCredentials()
    return _default()[0]


def default_project() -> str | None:
    """Nothing -> the project that the environment's credentials name, if any.

    Raises CredentialsError where there are none.
    """
    return _default()[1]


@functools.cache
def _default() -> tuple[Any, str | None]:
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    # Where the answer is no, each question to Google's metadata server takes seconds; where it
    # is yes and the server is slow, the machine's firmware says so as well.
    os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
    try:
        return google.auth.default(scopes=[SCOPE])  # type: ignore[no-any-return]
    except GoogleAuthError as error:
        raise CredentialsError(explain(error)) from error


def _session(found: Any) -> Any:
    """Credentials -> the session of BigQuery's client, which itself would wait for ever."""
    from google.auth.transport.requests import AuthorizedSession

    class Session(AuthorizedSession):  # type: ignore[misc]
        def request(self, *args: Any, timeout: Any = None, **rest: Any) -> Any:
            return super().request(*args, timeout=timeout or REQUEST_SECONDS, **rest)

    session = Session(found)
    session.configure_mtls_channel()
    return session


# A channel carries any number of calls at once; opening one costs a handshake.
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


# A connection that a proxy dropped without a word is found out, instead of waited on. Not on
# emulators: gRPC's servers in Python hang up on whoever asks so often.
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

    # A response may be larger than gRPC's default of 4 MB, as in the clients' own channels.
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = grpc.insecure_channel(grpc_target(address), options=unlimited)
    return client(transport=transport(channel=channel))
