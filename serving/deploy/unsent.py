"""Print requests instead of sending them, for --dry_run."""

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
    """An HTTP adapter that prints each request with its body, and answers as if it had succeeded.

    Args:
        out: The file to print to.
        endpoint: The endpoint that answers to reads contain, or None if none exists.
        reads: Whether requests that only read are sent, without being printed.
    """

    def __init__(self, out: TextIO, endpoint: Resource | None, *, reads: bool) -> None:
        super().__init__()
        self._out, self._endpoint, self._reads = out, endpoint, reads

    def send(self, request: requests.PreparedRequest, *args: Any, **rest: Any) -> requests.Response:
        """Return an answer: the real one to a read that is sent, otherwise a made-up one."""
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
            status, answer = self._found(str(url.path))
        else:
            status, answer = 200, _changed(str(request.method), str(url.path), body)
        response = requests.Response()
        response.status_code, response.request, response.url = status, request, request.url or ""
        response._content = json.dumps(answer).encode()
        return response

    def _found(self, path: str) -> tuple[int, Resource]:
        """Return the status and the body of the answer to a read."""
        if path.endswith("/endpoints"):
            return 200, {"endpoints": [self._endpoint]} if self._endpoint else {}
        if self._endpoint and "/endpoints/" in path:
            return 200, self._endpoint
        return 404, {"error": {"code": 404, "message": "not found"}}


def _changed(method: str, path: str, body: Resource) -> Resource:
    """Return the answer to a request that changes something: an operation that is already done."""
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
    """Make the clients of a region print their requests instead of sending them.

    Args:
        region: The region whose clients are changed.
        out: The file to print to.
        endpoint: The endpoint that answers to reads contain, or None if none exists.
        reads: Whether requests that only read are still sent, without being printed.
    """
    for client in (region.clients.models, region.clients.endpoints):
        session = client.transport._session
        for scheme in ("http://", "https://"):
            session.mount(scheme, Unsent(out, endpoint, reads=reads))
