"""The model in Vertex AI's registry, which `python -m serving deploy` registers."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from google.api_core import exceptions

from common.addresses import split_gcs_path
from common.command_names import as_typed
from common.errors import ResourceError
from resources.declaration import Resource
from resources.kinds.base import Found, Kept, Kind, is_ours

if TYPE_CHECKING:
    from cloud.clients import Vertex

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class RegistryModels(Kind):
    """Registered models with all their versions. Setup never creates one.

    A deployment does not record its configuration. A model whose files are in another bucket is
    therefore treated as another configuration's.

    Attributes:
        bucket: The bucket of the configuration.
    """

    bucket: str = ""
    role: ClassVar = "roles/aiplatform.user"

    @functools.cached_property
    def clients(self) -> dict[str, Vertex]:
        """The clients of Vertex AI, by region."""
        return {}

    @classmethod
    def held_by(cls, holder: str) -> str:
        """Return the reason for keeping a model that an endpoint serves."""
        return f"{holder} serves it: run `{as_typed('serving undeploy')}` first"

    def look(self, resource: Resource) -> Found | None:
        """Return the model with its endpoints, None if it does not exist."""
        try:
            model = self._clients(resource).models.get_model(name=resource.name, retry=self._retry)
        except exceptions.NotFound:
            return None
        deployed = [d.endpoint.rpartition("/")[2] for d in model.deployed_models]
        details = f"deployed on endpoint {', '.join(deployed)}" if deployed else "not deployed"
        elsewhere = (
            bool(model.artifact_uri) and split_gcs_path(model.artifact_uri)[0] != self.bucket
        )
        if elsewhere:
            details += f", its files are in {model.artifact_uri}"
        return Found(ours=is_ours(model.labels) and not elsewhere, details=details)

    def holds(self, resource: Resource) -> tuple[str, ...]:
        """Return the names of the endpoints that serve the model."""
        model = self._clients(resource).models.get_model(name=resource.name, retry=self._retry)
        return tuple(f"endpoint {deployed.endpoint}" for deployed in model.deployed_models)

    def delete(self, resource: Resource) -> None:
        """Delete the model, or raise Kept if an endpoint serves it."""
        clients = self._clients(resource)
        for endpoint in self.holds(resource):
            raise Kept(self.held_by(endpoint))
        operation = clients.models.delete_model(name=resource.name, retry=self._retry).operation
        while not operation.done:
            time.sleep(_POLL_SECONDS)
            operation = clients.operations.get_operation(operation.name, retry=self._retry)
        if operation.HasField("error"):
            raise ResourceError(f"cannot remove {resource}: {operation.error.message}")

    def _clients(self, resource: Resource) -> Vertex:
        region = resource.name.split("/")[3]
        if region not in self.clients:
            self.clients[region] = self.cloud.vertex(region)
        return self.clients[region]
