"""The models and endpoints of Vertex AI in one region, and methods that change them.

Each method that changes something prints what it does and waits for Google's operation. It raises
EndpointError, with a message of one line, if the operation fails.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cloud.clients import REQUEST_SECONDS, Cloud
from cloud.errors import explain, retry, translate_errors
from common.command_names import as_typed
from common.errors import EndpointError, UsageError, suggest
from serving.deploy.traffic import Split

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import DeployedModel, Endpoint, Model, ModelContainerSpec

Say = Callable[[str], None]

_FULL_NAME = re.compile(r"projects/[^/]+/locations/(?P<region>[^/]+)/endpoints/[^/]+")
# The ids that Vertex AI accepts for a new endpoint.
_ENDPOINT_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
# The pause between two polls of an operation, in seconds, and the factor by which it grows.
_FIRST_PAUSE, _LAST_PAUSE, _GROWTH = 0.05, 10.0, 1.5
_SAY_SECONDS = 30.0


class Detached(KeyboardInterrupt):
    """Ctrl-C while an operation runs; the message says how to check the operation."""


class VertexRegion:
    """The models and endpoints of a project in one region.

    All methods raise EndpointError if Vertex AI refuses a request, and CredentialsError if there
    are no usable Google Cloud credentials.

    Args:
        cloud: The connection to Google Cloud.
        region: The region.
        say: A function that is called with one line of progress for each step.
    """

    def __init__(self, cloud: Cloud, region: str, say: Say) -> None:
        self.say = say
        self.project, self.region = cloud.project, region
        self.parent = f"projects/{cloud.project}/locations/{region}"
        self.clients = cloud.vertex(region)
        self._seconds = cloud.retry_seconds
        self._once: dict[str, Any] = {"timeout": REQUEST_SECONDS, "retry": None}
        self._call = self._once | {"retry": retry(self._seconds)}

    # Reads

    def versions(self, model_id: str) -> list[Model]:
        """Return the versions of a model; an empty list if the model does not exist."""
        from google.api_core.exceptions import NotFound

        name = f"{self.parent}/models/{model_id}"
        with self._vertex_errors(f"versions of model {model_id} cannot be listed"):
            try:
                return list(self.clients.models.list_model_versions(name=name, **self._call))
            except NotFound:
                return []

    def endpoints(self, filter: str = "") -> list[Endpoint]:
        """Return the endpoints that match a filter, in Vertex AI's syntax."""
        request = {"parent": self.parent, "filter": filter}
        with self._vertex_errors(f"endpoints of {self.region} cannot be listed"):
            return list(self.clients.endpoints.list_endpoints(request=request, **self._call))

    def find(self, endpoint: str) -> Endpoint | None:
        """Find an endpoint by its display name, id or full name.

        Returns:
            The endpoint, or None if no endpoint has this display name.

        Raises:
            EndpointError: If several endpoints have this display name, or there is no endpoint with
                this id or full name.
            UsageError: If the full name is in another region.
        """
        full = _FULL_NAME.fullmatch(endpoint)
        if full and full["region"] != self.region:
            raise UsageError(
                f"--endpoint {endpoint} is not in {self.region}: pass its region as --region"
            )
        if full or endpoint.isdecimal():
            name = endpoint if full else f"{self.parent}/endpoints/{endpoint}"
            with self._vertex_errors(f"endpoint {endpoint} cannot be read"):
                return self.clients.endpoints.get_endpoint(name=name, **self._call)
        found = self.endpoints(f'display_name="{endpoint}"')
        if len(found) > 1:
            names = ", ".join(e.name.rpartition("/")[2] for e in found)
            raise EndpointError(
                f"{len(found)} endpoints of {self.region} have the display name {endpoint}: "
                f"pass the id of one of them as --endpoint: {names}"
            )
        return found[0] if found else None

    def get(self, endpoint: str) -> Endpoint:
        """Return an endpoint by its display name, id or full name.

        Raises:
            EndpointError: If there is no such endpoint, or several have this display name.
            UsageError: If the full name is in another region.
        """
        found = self.find(endpoint)
        if found is None:
            every = [e.display_name for e in self.endpoints()]
            raise EndpointError(
                f"no endpoint {endpoint} in {self.region} of project {self.project}"
                f"{suggest(endpoint, every)}: check --endpoint, --region and --project"
            )
        return found

    # Changes

    def upload(
        self,
        model_id: str,
        *,
        is_new: bool,
        description: str,
        folder: str,
        container: ModelContainerSpec,
        labels: Mapping[str, str],
    ) -> Model:
        """Upload a new version of a model.

        Args:
            model_id: The id of the model in the registry.
            is_new: Whether this is the first version of the model.
            description: The description of the version, by which it is found again.
            folder: The folder in Cloud Storage with the files of the package.
            container: The container that serves the model.
            labels: The labels of the model.

        Returns:
            The new version, with its name, id and display name.
        """
        from google.cloud.aiplatform_v1 import types

        model = types.Model(
            display_name=model_id,
            version_description=description,
            artifact_uri=folder,
            container_spec=container,
            labels=labels,
        )
        # Choosing the id here keeps two deployments at the same time from creating two models.
        named = (
            {"model_id": model_id}
            if is_new
            else {"parent_model": f"{self.parent}/models/{model_id}"}
        )
        request = types.UploadModelRequest(parent=self.parent, model=model, **named)
        what = f"uploading model {model_id} from {folder}"
        with self._vertex_errors(f"model {model_id} cannot be uploaded"):
            started = self.clients.models.upload_model(request=request, **self._once)
            answer = self._wait(started.operation, what, types.UploadModelResponse)
        return types.Model(
            name=answer.model, version_id=answer.model_version_id, display_name=model_id
        )

    def create(self, display_name: str, labels: Mapping[str, str], *, dedicated: bool) -> Endpoint:
        """Create an endpoint, whose id is its display name if Vertex AI accepts that as an id.

        Args:
            display_name: The display name of the endpoint.
            labels: The labels of the endpoint.
            dedicated: Whether the endpoint gets its own network address.

        Returns:
            The new endpoint, or the one with this name that another deployment has created.
        """
        from google.api_core.exceptions import Conflict, NotFound
        from google.cloud.aiplatform_v1 import types

        endpoint = types.Endpoint(
            display_name=display_name, labels=labels, dedicated_endpoint_enabled=dedicated
        )
        is_id = _ENDPOINT_ID.fullmatch(display_name)
        request = types.CreateEndpointRequest(
            parent=self.parent, endpoint=endpoint, endpoint_id=display_name if is_id else ""
        )
        with self._vertex_errors(f"endpoint {display_name} cannot be created"):
            try:
                started = self.clients.endpoints.create_endpoint(request=request, **self._once)
            except Conflict:
                # Another deployment is creating this endpoint, or an interrupted one has.
                name = f"{self.parent}/endpoints/{display_name}"
                patient = self._once | {"retry": retry(self._seconds, NotFound)}
                found = self.clients.endpoints.get_endpoint(name=name, **patient)
                if found.display_name != display_name:
                    raise
                return found
            what = f"creating endpoint {display_name}"
            return self._wait(started.operation, what, types.Endpoint)

    def deploy(self, endpoint: Endpoint, deployed: DeployedModel, split: Split) -> str:
        """Deploy a model to an endpoint.

        Args:
            endpoint: The endpoint.
            deployed: The model and its machines.
            split: The traffic of all models by id; the new model has the id "0" here.

        Returns:
            The id of the deployed model.
        """
        from google.cloud.aiplatform_v1 import types

        what = f"deploying {deployed.display_name} to {endpoint.display_name}"
        with self._vertex_errors(
            f"{deployed.display_name} cannot be deployed to {endpoint.display_name}"
        ):
            started = self.clients.endpoints.deploy_model(
                endpoint=endpoint.name, deployed_model=deployed, traffic_split=split, **self._once
            )
            answer = self._wait(started.operation, what, types.DeployModelResponse)
        return str(answer.deployed_model.id)

    def set_traffic(self, endpoint: Endpoint, split: Split) -> None:
        """Set the traffic of an endpoint.

        Args:
            endpoint: The endpoint as it was read. Vertex AI refuses the change if the endpoint has
                changed since then.
            split: The traffic of all models by id.
        """
        from google.cloud.aiplatform_v1 import types
        from google.protobuf.field_mask_pb2 import FieldMask

        changed = types.Endpoint(name=endpoint.name, etag=endpoint.etag, traffic_split=split)
        with self._vertex_errors(f"traffic of {endpoint.display_name} cannot be changed"):
            self.clients.endpoints.update_endpoint(
                endpoint=changed, update_mask=FieldMask(paths=["traffic_split"]), **self._once
            )

    def undeploy(self, endpoint: Endpoint, deployed: DeployedModel, split: Split) -> None:
        """Remove a model from an endpoint.

        Args:
            endpoint: The endpoint.
            deployed: The model to remove.
            split: The traffic of the remaining models by id.
        """
        from google.cloud.aiplatform_v1 import types

        what = f"undeploying {deployed.id} ({deployed.display_name}) from {endpoint.display_name}"
        with self._vertex_errors(f"{deployed.display_name} cannot be undeployed"):
            started = self.clients.endpoints.undeploy_model(
                endpoint=endpoint.name,
                deployed_model_id=deployed.id,
                traffic_split=split,
                **self._once,
            )
            self._wait(started.operation, what, types.UndeployModelResponse)

    def delete(self, endpoint: Endpoint) -> None:
        """Delete an endpoint that has no models."""
        with self._vertex_errors(f"endpoint {endpoint.display_name} cannot be deleted"):
            started = self.clients.endpoints.delete_endpoint(name=endpoint.name, **self._call)
            self._wait(started.operation, f"deleting endpoint {endpoint.display_name}", None)

    @contextmanager
    def _vertex_errors(self, what: str) -> Iterator[None]:
        with translate_errors(EndpointError, f"{what} (project {self.project}, {self.region})"):
            yield

    def _wait(self, operation: Any, what: str, kind: Any) -> Any:
        """Wait for an operation to end, and return its answer of type `kind`."""
        from google.api_core.exceptions import from_grpc_status

        started = said = time.monotonic()
        pause = _FIRST_PAUSE
        self.say(f"{what} ...")
        try:
            while not operation.done:
                time.sleep(pause)
                pause = min(pause * _GROWTH, _LAST_PAUSE)
                operation = self.clients.operations.get_operation(operation.name, **self._call)
                if time.monotonic() - said > _SAY_SECONDS:
                    said = time.monotonic()
                    self.say(f"{what} ... {said - started:.0f} s")
        except KeyboardInterrupt as interrupt:
            raise Detached(
                f"{what} continues on Google Cloud (operation {operation.name}); run the same "
                f"command again to continue, or list endpoints with `{as_typed('serving status')} "
                f"--project {self.project} --region {self.region}`"
            ) from interrupt
        if operation.HasField("error"):
            status = operation.error
            error = from_grpc_status(status.code, status.message)
            raise EndpointError(f"{what} failed: {explain(error)}")
        if kind is None:
            return None
        answer = kind.pb(kind())
        operation.response.Unpack(answer)
        return kind.wrap(answer)


def deployed_on(endpoint: Endpoint, model: Model) -> DeployedModel | None:
    """Return a version of a model as it is deployed on an endpoint, or None if it is not.

    Names are compared without the project, since Google's answers contain the project's number in
    place of its id.
    """
    wanted = model.name.partition("/locations/")[2].partition("@")[0]
    for deployed in endpoint.deployed_models:
        name = deployed.model.partition("/locations/")[2].partition("@")[0]
        if (name, deployed.model_version_id) == (wanted, model.version_id):
            return deployed
    return None


def shares_of(endpoint: Endpoint) -> Split:
    """Return the traffic of an endpoint's models, in percent by id, without shares of 0."""
    return {ident: share for ident, share in endpoint.traffic_split.items() if share}
