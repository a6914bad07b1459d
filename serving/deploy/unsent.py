"""Requests that are printed instead of sent, for --dry_run."""

from __future__ import annotations

import json
from typing import Any, TextIO
from urllib.parse import parse_qsl, urlsplit

import requests
from requests.adapters import HTTPAdapter

from serving.deploy.vertex import VertexRegion

Resource = dict[str, Any]

_TYPE = "type.googleapis.com/google.cloud.aiplatform.v1."


class Unsent(HTTPAdapter):
    """Prints each request with its body, and answers as if all went well.

    endpoint: the only thing that is there, if anything is. reads: requests that only read are
    sent, unprinted.
    """

    def __init__(self, out: TextIO, endpoint: Resource | None, *, reads: bool) -> None:
        super().__init__()
        self._out, self._endpoint, self._reads = out, endpoint, reads

    def send(self, request: requests.PreparedRequest, *args: Any, **rest: Any) -> requests.Response:
        """A request -> the answer to it, or to be made of it."""
        if self._reads and request.method == "GET":
            return super().send(request, *args, **rest)
        url = urlsplit(request.url or "")
        query = {k: v for k, v in parse_qsl(url.query) if not k.startswith("$")}
        path = str(url.path) + (
            "?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else ""
        )
        body = json.loads(request.body or "{}")
        print(f"{request.method} {path}", file=self._out)
        if body:
            print(json.dumps(body, indent=2), file=self._out)
        if request.method == "GET":
            status, answer = self._there(str(url.path))
        else:
            status, answer = 200, _changed(str(request.method), str(url.path), body)
        response = requests.Response()
        response.status_code, response.request, response.url = status, request, request.url or ""
        response._content = json.dumps(answer).encode()
        return response

    def _there(self, path: str) -> tuple[int, Resource]:
        """What is read -> the status and the body of the answer."""
        if path.endswith("/endpoints"):
            return 200, {"endpoints": [self._endpoint]} if self._endpoint else {}
        if self._endpoint and "/endpoints/" in path:
            return 200, self._endpoint
        return 404, {"error": {"code": 404, "message": "it is not there"}}


def _changed(method: str, path: str, body: Resource) -> Resource:
    """A request that changes something -> what it brings: the operation, already ended."""
    parent = path.removeprefix("/v1/").rpartition("/")[0]
    if method == "PATCH":
        return body
    if path.endswith(":upload"):
        name = f"{parent}/models/{body.get('modelId')}"
        done: Resource = {
            "@type": f"{_TYPE}UploadModelResponse",
            "model": name,
            "modelVersionId": "1",
        }
    elif path.endswith("/endpoints"):
        done = {**body, "@type": f"{_TYPE}Endpoint", "name": f"{parent}/endpoints/ENDPOINT_ID"}
    elif path.endswith(":deployModel"):
        deployed = {"id": "DEPLOYED_MODEL_ID"}
        done = {"@type": f"{_TYPE}DeployModelResponse", "deployedModel": deployed}
    elif path.endswith(":undeployModel"):
        done = {"@type": f"{_TYPE}UndeployModelResponse"}
    else:
        done = {"@type": "type.googleapis.com/google.protobuf.Empty"}
    return {"name": "operations/none", "done": True, "response": done}


def send_nothing(
    region: VertexRegion, out: TextIO, endpoint: Resource | None = None, *, reads: bool = False
) -> None:
    """A region -> its clients send nothing from now on, or only what reads."""
    for client in (region.clients.models, region.clients.endpoints):
        session = client.transport._session
        for scheme in ("http://", "https://"):
            session.mount(scheme, Unsent(out, endpoint, reads=reads))
