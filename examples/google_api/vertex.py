"""The stand-in for Vertex AI: models with versions, and endpoints that serve them."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from google.cloud.aiplatform_v1.types import AcceleratorType

from examples.google_api.faults import Call, Refusal
from examples.google_api.server import Service
from examples.google_api.store import listed, patched

_TYPE = "type.googleapis.com/google.cloud.aiplatform.v1."
PROJECT_NUMBER = "123456789012"


class VertexAI(Service):
    """The stand-in for Vertex AI; like Google, it answers with the number of the project."""

    document = "aiplatform.v1"
    enums: ClassVar = (AcceleratorType,)

    def values(self, values: dict[str, str]) -> dict[str, str]:
        """Return the parameters with the project's number in place of its id."""
        return {key: _numbered(value) for key, value in values.items()}

    # Models

    def models_upload(self, call: Call) -> dict[str, Any]:
        """Upload a new model, or a new version of a model."""
        body, model = call.body, call.body["model"]
        if body.get("parentModel"):
            name = _numbered(body["parentModel"])
            self.store.get(name)
        else:
            name = f"{call.name}/models/{body.get('modelId') or self.number()}"
            if self.store.under(f"{name}/versions"):
                raise Refusal(409, f"Model {name} already exists.")

        def finish() -> dict[str, Any]:
            number = str(len(self.store.under(f"{name}/versions")) + 1)
            now = self.now()
            # Labels of the model and the version are merged. Google's documents do not say which
            # of two labels with the same key wins.
            first = self.store.get(f"{name}/versions/1") if number != "1" else {}
            version = {
                **model,
                "labels": model.get("labels", {}) | first.get("labels", {}),
                "name": name,
                "versionId": number,
                "versionAliases": ["default"] if number == "1" else [],
                "createTime": now,
                "versionCreateTime": now,
            }
            if number == "1":
                self.store.create(name, version)
            self.store.create(f"{name}/versions/{number}", version)
            uploaded = {"model": name, "modelVersionId": number}
            return {"@type": f"{_TYPE}UploadModelResponse", **uploaded}

        return self.start(name, finish)

    def models_get(self, call: Call) -> dict[str, Any]:
        """Return a version of a model, by default the default version, and its deployments."""
        model = self._model(call.name)
        deployed = self._deployed(model["name"])
        return {**model, "deployedModels": deployed} if deployed else model

    def models_list(self, call: Call) -> dict[str, Any]:
        """List the default version of each model."""
        return listed(call, "models", self.store.under(f"{call.values['parent']}/models"))

    def models_list_versions(self, call: Call) -> dict[str, Any]:
        """List all versions of a model."""
        name = call.values["name"]
        self.store.get(name)
        return listed(call, "models", self.store.under(f"{name}/versions"))

    def models_delete(self, call: Call) -> dict[str, Any]:
        """Delete a model that no endpoint serves, with all its versions."""
        self.store.get(call.name)
        for deployed in self._deployed(call.name):
            message = f"Model {call.name} is deployed on {deployed['endpoint']}."
            raise Refusal(400, message, "FAILED_PRECONDITION")

        def finish() -> dict[str, Any]:
            for version in self.store.under(f"{call.name}/versions"):
                self.store.delete(f"{call.name}/versions/{version['versionId']}")
            self.store.delete(call.name)
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return self.start(call.name, finish)

    def _deployed(self, model: str) -> list[dict[str, str]]:
        return [
            {"endpoint": found["name"], "deployedModelId": deployed["id"]}
            for found in self.store.all()
            for deployed in found.get("deployedModels", [])
            if deployed["model"] == model
        ]

    def _model(self, name: str) -> dict[str, Any]:
        base, _, version = name.partition("@")
        found = self.store.get(base)
        if version in ("", "default"):
            return found
        return self.store.get(f"{base}/versions/{version}")

    # Endpoints

    def endpoints_create(self, call: Call) -> dict[str, Any]:
        """Create an endpoint."""
        parent = call.values["parent"]
        name = f"{parent}/endpoints/{call.values.get('endpointId') or self.number()}"
        if any(found["name"] == name for found in self.store.under(f"{parent}/endpoints")):
            raise Refusal(409, f"Endpoint {name} already exists.")

        def finish() -> dict[str, Any]:
            endpoint = self._changed({**call.body, "name": name, "createTime": self.now()})
            if endpoint.get("dedicatedEndpointEnabled"):
                _, number, _, region, _, ident = name.split("/")
                host = f"{ident}.{region}-{number}.prediction.vertexai.goog"
                endpoint["dedicatedEndpointDns"] = host
            self.store.create(name, endpoint)
            return {"@type": f"{_TYPE}Endpoint", **endpoint}

        return self.start(name, finish)

    def endpoints_get(self, call: Call) -> dict[str, Any]:
        """Return an endpoint."""
        return self.store.get(call.name)

    def endpoints_list(self, call: Call) -> dict[str, Any]:
        """List the endpoints of a region."""
        return listed(call, "endpoints", self.store.under(f"{call.values['parent']}/endpoints"))

    def endpoints_patch(self, call: Call) -> dict[str, Any]:
        """Change the fields that the update mask names."""
        endpoint = self.store.get(call.values["name"])
        if call.body.get("etag") not in (None, endpoint["etag"]):
            raise Refusal(409, f"Etag of {call.name} is not the current one.", "ABORTED")
        if "trafficSplit" in call.body:
            _check_split(call.body["trafficSplit"], _ids(endpoint))
        patched(endpoint, call.body, call.values.get("updateMask", ""))
        return self._changed(endpoint)

    def endpoints_delete(self, call: Call) -> dict[str, Any]:
        """Delete an endpoint that has no models."""
        if _ids(self.store.get(call.name)):
            message = f"Endpoint {call.name} has deployed or being-deployed DeployedModel(s)."
            raise Refusal(400, message, "FAILED_PRECONDITION")

        def finish() -> dict[str, Any]:
            self.store.delete(call.name)
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return self.start(call.name, finish)

    def endpoints_deploy_model(self, call: Call) -> dict[str, Any]:
        """Deploy a model to an endpoint, with its share of the traffic."""
        endpoint = self.store.get(call.name)
        requested = call.body["deployedModel"]
        model = self._model(_numbered(requested["model"]))
        ident = requested.get("id") or str(10**15 + self.number())
        split = call.body.get("trafficSplit", {})
        _check_split(split, [*_ids(endpoint), "0"])

        def finish() -> dict[str, Any]:
            wanted = requested.get("dedicatedResources", {}).get("minReplicaCount", 1)
            deployed = {
                "displayName": model["displayName"],
                **requested,
                "id": ident,
                "model": model["name"],
                "modelVersionId": model["versionId"],
                "createTime": self.now(),
                "status": {"availableReplicaCount": wanted},
            }
            endpoint.setdefault("deployedModels", []).append(deployed)
            if split:
                shares = {ident if key == "0" else key: share for key, share in split.items()}
                endpoint["trafficSplit"] = shares
            self._changed(endpoint)
            return {"@type": f"{_TYPE}DeployModelResponse", "deployedModel": deployed}

        return self.start(call.name, finish)

    def endpoints_undeploy_model(self, call: Call) -> dict[str, Any]:
        """Remove a deployed model, which must have no traffic now or in the new split."""
        endpoint = self.store.get(call.name)
        gone, ids = call.body["deployedModelId"], _ids(endpoint)
        if gone not in ids:
            raise Refusal(404, f"DeployedModel {gone} is not found in {call.name}.")
        split = call.body.get("trafficSplit") or endpoint.get("trafficSplit", {})
        if split.get(gone) and ids != [gone]:
            message = f"DeployedModel {gone} still has traffic."
            raise Refusal(400, message, "FAILED_PRECONDITION")
        if ids != [gone]:
            _check_split(split, ids)

        def finish() -> dict[str, Any]:
            kept = [d for d in endpoint["deployedModels"] if d["id"] != gone]
            shares = {key: share for key, share in split.items() if key != gone and kept}
            self._changed(endpoint).update(deployedModels=kept, trafficSplit=shares)
            return {"@type": f"{_TYPE}UndeployModelResponse"}

        return self.start(call.name, finish)

    def _changed(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        endpoint["etag"] = f"etag-{self.number()}"
        return endpoint

    def operations_get(self, call: Call) -> dict[str, Any]:
        """Count a poll of an operation, and return the operation."""
        return self.poll(call.name)


def _numbered(name: str) -> str:
    return re.sub(r"^projects/[^/]+/", f"projects/{PROJECT_NUMBER}/", name)


def _ids(endpoint: dict[str, Any]) -> list[str]:
    return [deployed["id"] for deployed in endpoint.get("deployedModels", [])]


def _check_split(split: dict[str, int], ids: list[str]) -> None:
    if unknown := set(split) - set(ids):
        raise Refusal(400, f"traffic_split has unknown DeployedModel ids {sorted(unknown)}.")
    if split and sum(split.values()) != 100:
        raise Refusal(400, f"traffic_split adds up to {sum(split.values())}, not to 100.")
