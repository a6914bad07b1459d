"""The URL for predictions of an endpoint, found by its full name, its id or its display name."""

import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from faulty_endpoint import HTML_PAGE, NAME, RESOURCE, faulty_endpoint, refusal

from cloud import vertex
from cloud.vertex import EndpointAddress, token_for
from common.errors import EndpointError, UsageError

DISPLAY_NAME = str(RESOURCE["displayName"])
Answer = tuple[int, bytes] | Mapping[str, Any]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vertex, "_LOOKUP_BACKOFF", 0.001)


@contextmanager
def api(answer: Callable[[str], Answer]) -> Iterator[str]:
    """Run a Vertex AI API in the block that answers each path, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got = answer(self.path)
            status, body = got if isinstance(got, tuple) else (200, orjson.dumps(got))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def url_of(endpoint: str | None, service: str | None = None, **fields: Any) -> str:
    client = EndpointAddress(endpoint=endpoint, service=service, **fields).connect()
    client.close()
    return client.url


def by_name(endpoint: str, service: str) -> str:
    return url_of(endpoint, service, project="demo-project", location="us-central1")


def failure(endpoint: str, service: str) -> str:
    with pytest.raises(EndpointError) as raised:
        by_name(endpoint, service)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("endpoint", [NAME, "1", DISPLAY_NAME])
def test_an_endpoint_is_found_by_its_full_name_its_id_and_its_display_name(endpoint: str) -> None:
    with faulty_endpoint(lambda rows: rows) as server:
        assert by_name(endpoint, server.url) == server.predict_url


def test_a_full_name_needs_no_project_and_overrides_one() -> None:
    with faulty_endpoint(lambda rows: rows) as server:
        assert url_of(NAME, server.url) == server.predict_url
        assert url_of(NAME, server.url, project="x", location="y") == server.predict_url


def test_a_display_name_is_looked_up_with_a_filter() -> None:
    asked = []

    def answer(path: str) -> Answer:
        asked.append(urlsplit(path))
        return {"endpoints": [RESOURCE]}

    with api(answer) as service:
        assert by_name(DISPLAY_NAME, service) == f"{service}/v1/{NAME}:predict"
    (url,) = asked
    assert url.path == "/v1/projects/demo-project/locations/us-central1/endpoints"
    assert parse_qs(url.query) == {"filter": [f'display_name="{DISPLAY_NAME}"']}


def test_several_endpoints_of_a_display_name_are_reported_with_their_full_names() -> None:
    other = RESOURCE | {"name": NAME[:-1] + "2"}
    with api(lambda _: {"endpoints": [RESOURCE, other]}) as service:
        message = failure(DISPLAY_NAME, service)
    assert f"2 endpoints have that display name ({NAME}, {NAME[:-1]}2)" in message


def test_an_unknown_display_name_is_reported_with_a_similar_one() -> None:
    with api(lambda _: {"endpoints": [RESOURCE]}) as service:
        message = failure("pytorch-autoencoder-endpiont", service)
    assert (
        "has no endpoint with that display name in us-central1 "
        f"(did you mean '{DISPLAY_NAME}'?)" in message
    )
    with api(lambda _: {}) as service:
        assert "project demo-project has no endpoint with that display name in" in failure(
            "x", service
        )


def test_a_dedicated_endpoint_has_its_own_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vertex, "credentials", lambda: None)
    host = "1.us-central1-7.prediction.vertexai.goog"
    dedicated = RESOURCE | {"dedicatedEndpointEnabled": True, "dedicatedEndpointDns": host}
    with api(lambda _: dedicated) as service:
        assert by_name("1", service) == f"https://{host}/v1/{NAME}:predict"


def test_a_private_endpoint_has_a_url_in_the_network() -> None:
    uri = "http://1.aiplatform.googleapis.com/v1/models/7:predict"
    models = [{"id": "1"}, {"id": "7", "privateEndpoints": {"predictHttpUri": uri}}]
    with api(lambda _: RESOURCE | {"deployedModels": models}) as service:
        assert by_name("1", service) == uri


def test_behind_private_service_connect_the_address_is_required() -> None:
    behind = RESOURCE | {"privateServiceConnectConfig": {"enablePrivateServiceConnect": True}}
    with api(lambda _: behind) as service:
        assert "pass its address in your network as --endpoint_url" in failure("1", service)
    # With an address, the service is not called.
    url = url_of(NAME, service, url="http://10.1.2.3")
    assert url == f"http://10.1.2.3/v1/{NAME}:predict"


def test_an_address_without_an_endpoint_is_reported_with_its_flag() -> None:
    with faulty_endpoint(lambda rows: rows, lambda _: refusal(404)) as server:
        for endpoint in (None, NAME):
            address = EndpointAddress(endpoint=endpoint, url=f"{server.url}/folder")
            client = address.connect()
            with pytest.raises(EndpointError) as raised:
                client.run(client.post(b'{"instances":[1]}', len))
            asked = (
                f"; check --endpoint_url ({client.url} was requested), and that a model is deployed"
            )
            assert asked in str(raised.value)
            client.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((403, refusal(403, "denied").body), "403 Forbidden: denied; grant the account the role"),
        ((403, refusal(403, "Billing is disabled").body), "no active billing account"),
        ((404, refusal(404, "no such").body), "404 Not Found: no such; check the name, --endpoint"),
        ((401, refusal(401).body), "401 Unauthorized: Unauthorized; log in again"),
        ((404, HTML_PAGE), "404 Not Found: an HTML page; check"),
        ((503, b""), "503 Service Unavailable; check the service"),
        ((200, HTML_PAGE), "did not return a JSON object: check --api_endpoints (aiplatform)"),
        ((200, b"[1]"), "did not return a JSON object: check --api_endpoints (aiplatform)"),
        ({**RESOURCE, "deployedModels": []}, "endpoint 1: no model is deployed there; deploy one"),
        ({"name": NAME}, "endpoint 1: no model is deployed there; deploy one"),
    ],
)
def test_errors_of_the_api_are_reported_in_one_line(answer: Answer, message: str) -> None:
    with api(lambda _: answer) as service:
        assert message in failure("1", service)


def test_a_lookup_is_retried_if_the_api_is_busy() -> None:
    answers = [(429, b""), (503, b""), RESOURCE]
    with api(lambda _: answers.pop(0)) as service:  # type: ignore[arg-type,return-value]
        assert by_name("1", service) == f"{service}/v1/{NAME}:predict"


def test_an_api_that_cannot_be_reached_is_reported() -> None:
    assert failure("1", "http://nowhere.invalid") == (
        "endpoint 1: nowhere.invalid cannot be found (DNS)"
    )
    with faulty_endpoint(lambda rows: rows) as server:
        url = server.url
    assert "cannot be reached: " in failure("1", url)


@pytest.mark.parametrize(
    ("endpoint", "url", "expected"),
    [
        (None, "http://h:1", "http://h:1/predict"),
        (None, "http://h:1/", "http://h:1/predict"),
        (None, "http://h:1/predict", "http://h:1/predict"),
        (None, "http://h:1/predictions/my-model", "http://h:1/predictions/my-model"),
        (None, "http://h/v1/models/7:predict", "http://h/v1/models/7:predict"),
        (None, "http://h/v1/x:rawPredict", "http://h/v1/x:rawPredict"),
        (None, f"http://h/v1/{NAME}", f"http://h/v1/{NAME}:predict"),
        (NAME, f"http://h/v1/{NAME}", f"http://h/v1/{NAME}:predict"),
        (NAME, "http://h", f"http://h/v1/{NAME}:predict"),
        ("fraud", "http://h", "http://h/predict"),
    ],
)
def test_the_path_for_predictions_is_added_to_a_url_if_it_is_missing(
    endpoint: str | None, url: str, expected: str
) -> None:
    assert url_of(endpoint, url=url) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected --endpoint, --endpoint_url, or both"),
        ({"url": "localhost:80"}, "--endpoint_url localhost:80: expected http://... or https"),
        ({"endpoint": "projects/p/endpoints/1"}, "expected projects/PROJECT/locations/LOCATION/"),
        ({"endpoint": "1"}, "pass --endpoint_project and --endpoint_location too"),
        ({"endpoint": "fraud", "project": "p"}, "--endpoint fraud is an id or a display name"),
        (
            {"endpoint": "fraud", "project": "p", "location": "us-centrall1"},
            "--endpoint_location: 'us-centrall1': expected a region .*did you mean 'us-central1'",
        ),
    ],
)
def test_an_incomplete_address_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("/", "\\/").replace("...", ".*")):
        EndpointAddress(**fields)


def test_an_address_can_be_pickled() -> None:
    address = EndpointAddress(endpoint="fraud", project="p", location="l")
    assert pickle.loads(pickle.dumps(address)) == address


def test_tokens_are_sent_only_to_google_and_only_encrypted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vertex, "credentials", lambda: "a token")
    google = "us-central1-aiplatform.googleapis.com"
    for host in (google, "1.us-central1-7.prediction.vertexai.goog"):
        assert token_for(f"https://{host}/v1/{NAME}:predict") == "a token"
        assert token_for(f"http://{host}/v1/{NAME}:predict") is None
    for host in ("evil-googleapis.com", f"{google}.evil.com", "10.1.2.3", f"{google}@evil.com"):
        assert token_for(f"https://{host}/predict") is None
