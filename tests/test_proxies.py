"""Proxies of the environment: which connections they serve, and how their failures are reported."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import grpc
import pytest
import requests
from command_line import RunCommand
from faulty_endpoint import faulty_endpoint, refusal
from google.auth.exceptions import TransportError
from google.auth.transport.requests import Request
from requests.utils import should_bypass_proxies

from cloud import retry_pacing
from cloud.endpoint_client import EndpointClient
from cloud.errors import explain
from cloud.proxies import find_proxy, spare_loopback
from common.errors import EndpointError
from pipelines.batch_local import COMMAND

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "no_grpc_proxy")
FAR = "http://model.example/predict"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies, which is restored after the test."""
    for name in NAMES:
        for variable in (name, name.upper()):
            # Set first, so that a variable that the test sets is removed afterwards.
            monkeypatch.setenv(variable, "")
            monkeypatch.delenv(variable)
    return monkeypatch


@pytest.fixture
def dead_proxy() -> Iterator[str]:
    """The address of a port on which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy"])
@pytest.mark.slow
def test_a_run_on_this_machine_needs_no_proxy(
    name: str,
    dead_proxy: str,
    environment: pytest.MonkeyPatch,
    example: Path,
    tmp_path: Path,
    run_command: RunCommand,
) -> None:
    environment.setenv(name, f"http://{dead_proxy}")
    environment.setenv("NO_PROXY", "localhost")
    flags = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": tmp_path,
        # Beam connects these workers by gRPC.
        "direct_num_workers": 2,
        "direct_running_mode": "multi_threading",
    }
    code, _, err = run_command(COMMAND, flags)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("before", "bypassing"),
    [
        ({}, ()),
        ({"NO_PROXY": "inner.example"}, ("inner.example",)),
        ({"no_proxy": "inner.example, .corp.example"}, ("inner.example", "a.corp.example")),
        ({"NO_PROXY": "localhost"}, ()),
    ],
)
def test_loopback_bypasses_the_proxy_in_python_and_grpc(
    before: dict[str, str], bypassing: tuple[str, ...], environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("https_proxy", "http://proxy.example:3128")
    for name, value in before.items():
        environment.setenv(name, value)
    spare_loopback()
    for host in ("localhost", "127.0.0.1", "::1", *bypassing):
        assert proxy_bypass(host)
        assert should_bypass_proxies(f"http://{f'[{host}]' if ':' in host else host}:80", None)
    assert not proxy_bypass("model.example")
    assert getproxies()["https"] == "http://proxy.example:3128"


def test_loopback_is_added_once_to_the_variables_of_each_library() -> None:
    environment = {"no_grpc_proxy": "a.example", "no_proxy": "*"}
    spare_loopback(environment)
    once = dict(environment)
    spare_loopback(environment)
    own = "localhost,127.0.0.1,::1"
    assert environment == once == {"no_grpc_proxy": f"a.example,{own}", "no_proxy": "*"}


@pytest.mark.slow
def test_grpc_reaches_this_machine_directly(
    dead_proxy: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("https_proxy", f"http://{dead_proxy}")
    environment.setenv("no_proxy", "*")
    spare_loopback()
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        for host in ("localhost", "127.0.0.1"):
            with grpc.insecure_channel(f"{host}:{port}") as channel:
                grpc.channel_ready_future(channel).result(timeout=20)
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({"HTTP_PROXY": "proxy.example:3128"}, FAR, "http://proxy.example:3128"),
        ({"https_proxy": "https://proxy.example"}, "https://a.example", "https://proxy.example"),
        ({"all_proxy": "http://proxy.example:1"}, FAR, "http://proxy.example:1"),
        ({"https_proxy": "http://proxy.example:1"}, FAR, None),
        ({"http_proxy": "http://proxy.example:1", "NO_PROXY": ".example"}, FAR, None),
        ({"http_proxy": "http://proxy.example:1"}, "http://localhost:8080/predict", None),
        ({"http_proxy": "http://proxy.example:1"}, "http://127.0.0.2:8080/predict", None),
        ({"http_proxy": "http://proxy.example:1"}, "http://[::1]:8080/predict", None),
        ({}, FAR, None),
    ],
)
def test_the_proxy_of_a_url(
    variables: dict[str, str], url: str, proxy: str | None, environment: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert find_proxy(url) == proxy


@pytest.mark.parametrize(
    "proxy", ["socks5://user:secret@proxy.example:1080", "socks4://proxy.example", "http://", "a:b"]
)
def test_a_proxy_that_is_not_for_http_is_named(proxy: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", proxy)
    with pytest.raises(EndpointError, match="cannot use the proxy") as raised:
        EndpointClient(FAR, "e")
    message = str(raised.value)
    assert "expected an HTTP proxy such as http://HOST:PORT" in message
    assert "http_proxy" in message
    assert "no_proxy" in message
    assert "secret" not in message


Post = Callable[..., bytes]


@pytest.fixture
def post(environment: pytest.MonkeyPatch) -> Iterator[Post]:
    """A function that sends a request through a proxy, and returns the answer."""
    environment.setattr(retry_pacing, "FIRST_BACKOFF", 0.001)
    clients = []

    def send(proxy: str, url: str = FAR) -> bytes:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            environment.setenv(name, proxy)
        clients.append(EndpointClient(url, "e", retry_seconds=0.05))
        return clients[-1].run(clients[-1].post(b'{"instances":[]}', bytes, patience=1))

    yield send
    for client in clients:
        client.close()


def test_requests_go_through_a_proxy_without_a_scheme(post: Post) -> None:
    with faulty_endpoint(lambda instances: instances) as proxy:
        post(proxy.url.removeprefix("http://"))
        assert [request.headers["host"] for request in proxy.requests] == ["model.example"]


def test_a_dead_proxy_is_named_and_never_blamed_on_a_row(post: Post, dead_proxy: str) -> None:
    with pytest.raises(EndpointError) as raised:
        post(dead_proxy)
    assert f"the proxy {dead_proxy} of the environment cannot be reached" in str(raised.value)
    with pytest.raises(EndpointError, match=r"proxy\.invalid:1 of .* cannot be reached"):
        post("proxy.invalid:1")


def test_a_proxy_that_refuses_is_named(post: Post) -> None:
    with faulty_endpoint(list, lambda _: refusal(407)) as proxy:
        address = proxy.url.removeprefix("http://")
        with pytest.raises(EndpointError, match="the proxy of the environment requires a user"):
            post(address)
        with pytest.raises(EndpointError, match=f"the proxy {address} .* refused .*: 404"):
            post(address, "https://model.example/predict")


@pytest.mark.parametrize("proxy", ["http://{}", "socks5://{}"])
def test_a_proxy_that_google_s_clients_cannot_use_is_named(
    proxy: str, dead_proxy: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("http_proxy", proxy.format(dead_proxy))
    with pytest.raises(requests.exceptions.RequestException) as raised:
        requests.get("http://bigquery.googleapis.com/x", timeout=5)
    advice = "; check https_proxy, http_proxy and no_proxy: expected an HTTP proxy"
    assert explain(raised.value).endswith(advice)
    with pytest.raises(TransportError) as fetching:
        Request()("http://oauth2.googleapis.com/token")
    assert explain(fetching.value).startswith("cannot fetch credentials: ")
    assert explain(fetching.value).endswith(advice)
