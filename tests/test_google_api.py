"""The stand-in for Google's REST APIs accepts only requests that Google's documents describe."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core import exceptions

from cloud.clients import Cloud, Vertex
from cloud.endpoints import Endpoints
from examples.google_api.faults import Call, Fault, HangUp, Later, Refusal, throttled
from examples.google_api.server import GoogleApi, google_api
from examples.google_api.vertex import VertexAI

PARENT = "/v1/projects/a-project/locations/us-central1"
CONTAINER = {"imageUri": "some/image"}
MODEL = {"displayName": "m", "containerSpec": CONTAINER}


def ask(google: GoogleApi, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send a request; return the status and the body of the answer."""
    connection = http.client.HTTPConnection(google.url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def clients(google: GoogleApi) -> Vertex:
    return Cloud("a-project", Endpoints(aiplatform=google.url)).vertex("us-central1")


@pytest.fixture
def google() -> Iterator[GoogleApi]:
    with google_api(VertexAI(polls=0)) as google:
        yield google


@pytest.mark.parametrize(
    ("method", "path", "body", "reason"),
    [
        ("POST", "/models:upload", {"model": MODEL, "modelID": "m"}, "modelID: unknown field"),
        ("POST", "/models:upload", {"model": {**MODEL, "displayName": 3}}, "expected string, got"),
        ("POST", "/models:upload", {"model": {"displayName": "m"}, "x": {}}, "x: unknown field"),
        ("POST", "/models:upload", {}, "model: a required field is missing"),
        (
            "POST",
            "/models:upload",
            {"model": {"displayName": "m", "containerSpec": {"args": []}}},
            "model.containerSpec.imageUri: a required field is missing",
        ),
        ("POST", "/models:upload", {"model": {**MODEL, "labels": {"a": 1}}}, "model.labels.a: exp"),
        (
            "GET",
            "/models?page_size=3",
            None,
            "page_size: unknown query parameter (did you mean 'p",
        ),
        ("GET", "/models?pageSize=many", None, "pageSize: expected int32, got str 'many'"),
        ("GET", "/models?$alt=xml", None, "$alt: unknown value 'xml'"),
        ("GET", "/modells", None, "is not in any of the documents"),
        ("PUT", "/models/m", {}, "is not in any of the documents"),
        (
            "POST",
            "/endpoints/e:deployModel",
            {"deployedModel": {"dedicatedResources": {"machineSpec": {"acceleratorType": "T4"}}}},
            "acceleratorType: unknown value 'T4'",
        ),
        (
            "POST",
            "/endpoints/e:deployModel",
            {"deployedModel": {"dedicatedResources": {"machineSpec": {"acceleratorType": 999}}}},
            "acceleratorType: unknown value 999",
        ),
        ("POST", "/models/m:copy", None, "is not in any of the documents"),
        ("POST", "/models/m:export", {"outputConfig": {}}, "models.export has no handler"),
    ],
)
def test_a_request_unknown_to_the_document_is_refused_and_fails_the_block(
    method: str, path: str, body: Any, reason: str
) -> None:
    with (  # noqa: PT012
        pytest.raises(AssertionError) as raised,
        google_api(VertexAI()) as google,
    ):
        status, answer = ask(google, method, PARENT + path, body)
        assert status in (400, 501)
        assert reason in answer["error"]["message"]
    assert reason in str(raised.value)


def test_a_body_that_is_not_json_is_refused() -> None:
    with (  # noqa: PT012
        pytest.raises(AssertionError, match="the body is not JSON"),
        google_api(VertexAI()) as google,
    ):
        connection = http.client.HTTPConnection(google.url.removeprefix("http://"), timeout=60)
        connection.request("POST", f"{PARENT}/endpoints", "{")
        assert connection.getresponse().status == 400
        connection.close()


def test_a_block_with_only_known_requests_does_not_raise(google: GoogleApi) -> None:
    assert ask(google, "GET", f"{PARENT}/models") == (200, {})
    assert google.methods() == ["models.list"]
    assert not google.rejected


def test_resources_are_created_found_changed_and_deleted(google: GoogleApi) -> None:
    created = ask(google, "POST", f"{PARENT}/endpoints?endpointId=e", {"displayName": "one"})
    name = created[1]["response"]["name"]
    assert name == "projects/123456789012/locations/us-central1/endpoints/e"
    assert ask(google, "POST", f"{PARENT}/endpoints?endpointId=e", {"displayName": "o"})[0] == 409
    _, endpoint = ask(google, "GET", f"{PARENT}/endpoints/e")
    assert endpoint["displayName"] == "one"
    change = {"displayName": "two", "description": "d", "etag": endpoint["etag"]}
    path = f"{PARENT}/endpoints/e?updateMask=displayName"
    _, changed = ask(google, "PATCH", path, change)
    assert (changed["displayName"], "description" in changed) == ("two", False)
    # The etag of this request is outdated now.
    status, refused = ask(google, "PATCH", path, change)
    assert (status, refused["error"]["status"]) == (409, "ABORTED")
    assert ask(google, "DELETE", f"{PARENT}/endpoints/e")[0] == 200
    assert ask(google, "GET", f"{PARENT}/endpoints/e")[0] == 404


def test_lists_have_pages_and_apply_filters(google: GoogleApi) -> None:
    for i in range(5):
        body = {"displayName": f"e{i % 2}", "labels": {"parity": str(i % 2)}}
        ask(google, "POST", f"{PARENT}/endpoints?endpointId=e{i}", body)
    found: list[str] = []
    token, pages = "", 0
    while pages == 0 or token:
        _, page = ask(google, "GET", f"{PARENT}/endpoints?pageSize=2&pageToken={token}")
        found += [endpoint["name"][-2:] for endpoint in page["endpoints"]]
        token, pages = page.get("nextPageToken", ""), pages + 1
    assert (found, pages) == (["e0", "e1", "e2", "e3", "e4"], 3)
    for text, names in [
        ("display_name=%22e1%22", ["e1", "e3"]),
        ("labels.parity=0", ["e0", "e2", "e4"]),
        ("labels.parity:*%20AND%20displayName=e1", ["e1", "e3"]),
        ("labels.other:*", []),
    ]:
        _, page = ask(google, "GET", f"{PARENT}/endpoints?filter={text}")
        assert [endpoint["name"][-2:] for endpoint in page.get("endpoints", [])] == names
    assert ask(google, "GET", f"{PARENT}/endpoints?filter=one%20or%20other")[0] == 400


def test_an_operation_ends_after_its_polls_and_only_then_takes_effect() -> None:
    with google_api(VertexAI(polls=2)) as google:
        _, started = ask(google, "POST", f"{PARENT}/endpoints?endpointId=e", {"displayName": "e"})
        polls = [ask(google, "GET", f"/v1/{started['name']}")[1]["done"]]
        assert ask(google, "GET", f"{PARENT}/endpoints/e")[0] == 404
        polls.append(ask(google, "GET", f"/v1/{started['name']}")[1]["done"])
        assert polls == [False, True]
        assert ask(google, "GET", f"{PARENT}/endpoints/e")[0] == 200


def test_requests_of_googles_client_are_understood_with_enums_as_numbers(google: GoogleApi) -> None:
    # Imported only here, since the import takes more than a second.
    from google.cloud import aiplatform_v1

    vertex = clients(google)
    parent = PARENT.removeprefix("/v1/")
    spec = aiplatform_v1.ModelContainerSpec(image_uri="some/image")
    model = aiplatform_v1.Model(display_name="m", container_spec=spec)
    vertex.models.upload_model(
        aiplatform_v1.UploadModelRequest(parent=parent, model=model, model_id="m")
    )
    vertex.endpoints.create_endpoint(
        parent=parent, endpoint=aiplatform_v1.Endpoint(display_name="e"), endpoint_id="e"
    )
    machine = aiplatform_v1.MachineSpec(accelerator_type=aiplatform_v1.AcceleratorType.NVIDIA_L4)
    deployed = aiplatform_v1.DeployedModel(
        model=f"{parent}/models/m@1",
        dedicated_resources=aiplatform_v1.DedicatedResources(
            machine_spec=machine, min_replica_count=2
        ),
    )
    vertex.endpoints.deploy_model(
        endpoint=f"{parent}/endpoints/e", deployed_model=deployed, traffic_split={"0": 100}
    )
    assert google.calls[-1].body["deployedModel"]["dedicatedResources"]["machineSpec"] == {
        "acceleratorType": "NVIDIA_L4"
    }
    endpoint = vertex.endpoints.get_endpoint(name=f"{parent}/endpoints/e")
    (found,) = endpoint.deployed_models
    assert found.dedicated_resources.machine_spec == machine
    assert (found.model_version_id, dict(endpoint.traffic_split)) == ("1", {found.id: 100})


def test_a_traffic_split_that_does_not_add_up_to_100_is_refused(google: GoogleApi) -> None:
    ask(google, "POST", f"{PARENT}/models:upload", {"model": MODEL, "modelId": "m"})
    ask(google, "POST", f"{PARENT}/endpoints?endpointId=e", {"displayName": "e"})
    body = {"deployedModel": {"model": f"{PARENT[4:]}/models/m"}, "trafficSplit": {"0": 90}}
    status, answer = ask(google, "POST", f"{PARENT}/endpoints/e:deployModel", body)
    assert (status, answer["error"]["message"]) == (400, "traffic_split adds up to 90, not to 100.")


def test_a_fault_refuses_a_call_fails_its_operation_or_closes_its_connection() -> None:
    faults: list[Fault] = [
        throttled(),
        Later(Refusal(404, "Image not found.")),
        HangUp(),
        HangUp(done=True),
    ]

    def next_fault(call: Call) -> Fault:
        return faults.pop(0) if faults and call.method.endswith("create") else None

    with google_api(VertexAI(polls=0), faults=next_fault) as google:
        path, body = f"{PARENT}/endpoints?endpointId=e", {"displayName": "e"}
        assert ask(google, "POST", path, body)[0] == 429
        assert ask(google, "POST", path, body)[1]["error"] == {
            "code": 5,
            "message": "Image not found.",
        }
        with pytest.raises(ConnectionError):
            ask(google, "POST", path, body)
        assert ask(google, "GET", f"{PARENT}/endpoints") == (200, {})
        with pytest.raises(ConnectionError):
            ask(google, "POST", path, body)
        assert ask(google, "GET", f"{PARENT}/endpoints/e")[0] == 200


def test_googles_client_raises_its_own_errors() -> None:
    with google_api(VertexAI()) as google, pytest.raises(exceptions.NotFound, match="models/none"):
        clients(google).models.get_model(name=f"{PARENT.removeprefix('/v1/')}/models/none")
