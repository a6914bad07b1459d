"""Clients of local servers: which addresses they call, and where they send credentials."""

import datetime
import ipaddress
import json
import os
import pickle
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud, _default, credentials, default_project
from cloud.endpoints import VARIABLES, Endpoints
from common.errors import CredentialsError, UsageError
from pipelines.batch_local import COMMAND
from pipelines.beam_args import beam_options
from pipelines.cloud_access import connect, make_cloud
from pipelines.command import main
from pipelines.options import CloudOptions, SinkOptions, SourceOptions
from pipelines.options.flag import Parsed, parse_flags

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TABLE = {"projectId": "p", "datasetId": "d", "tableId": "t"}
LOCAL = ["--api_endpoints", "bigquery=localhost:1"]
TOKEN = "a-token-of-the-test"
KEY = rsa.generate_private_key(65537, 2048)
KEY_PEM = KEY.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)


class Server:
    """A server that answers with an empty table, a bucket or a token, and records all headers."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                self._answer({"name": "b", "tableReference": TABLE})

            def do_POST(self) -> None:
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                self._answer({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600})

            def _answer(self, body: Any) -> None:
                text = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.01,)).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """A function that starts a Server, which is closed after the test."""
    servers: list[Server] = []

    def start(certificate: Path | None = None) -> Server:
        servers.append(Server(certificate))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a key and a certificate for 127.0.0.1, which REST clients trust."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, KEY.public_key(), 1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(host, critical=False)
        .sign(KEY, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(KEY_PEM + signed.public_bytes(serialization.Encoding.PEM))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    return path


@pytest.fixture
def tokens(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """The server that issues tokens for the service account in the environment's credentials."""
    server = serve()
    account = {
        "type": "service_account",
        "project_id": "the-accounts-project",
        "private_key_id": "1",
        "private_key": KEY_PEM.decode(),
        "client_email": "tester@example.com",
        "token_uri": f"http://127.0.0.1:{server.port}/token",
    }
    path = tmp_path / "account.json"
    path.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    _default.cache_clear()
    yield server
    _default.cache_clear()


@pytest.fixture
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment without credentials, on a machine outside Google Cloud."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", *VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    # This address refuses connections. The real one might just not respond.
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    _default.cache_clear()
    yield
    _default.cache_clear()


CALLS = {
    "bigquery": lambda cloud: cloud.bigquery().get_table("p.d.t"),
    "storage": lambda cloud: cloud.storage().get_bucket("b"),
    "aiplatform": lambda cloud: cloud.vertex("r").endpoints.get_endpoint(
        name="projects/p/locations/r/endpoints/e"
    ),
}


@pytest.mark.parametrize("service", CALLS)
def test_credentials_are_sent_to_https(
    service: str, serve: Callable[..., Server], certificate: Path, tokens: Server
) -> None:
    server = serve(certificate)
    CALLS[service](Cloud("p", Endpoints(**{service: f"https://127.0.0.1:{server.port}"})))
    assert [h["authorization"] for h in server.headers] == [f"Bearer {TOKEN}"]
    assert len(tokens.headers) == 1


@pytest.mark.parametrize("scheme", ["", "http://"])
@pytest.mark.parametrize("service", CALLS)
def test_credentials_are_never_sent_to_a_plain_address(
    service: str, scheme: str, serve: Callable[..., Server], tokens: Server
) -> None:
    server = serve()
    CALLS[service](Cloud("p", Endpoints(**{service: f"{scheme}127.0.0.1:{server.port}"})))
    assert len(server.headers) == 1
    assert "authorization" not in server.headers[0]
    assert TOKEN not in str(server.headers)
    assert tokens.headers == []


@pytest.mark.parametrize("service", CALLS)
def test_a_given_address_overrides_the_variable_that_the_client_reads(
    service: str, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, other = serve(), serve()
    monkeypatch.setenv(VARIABLES[service], f"http://127.0.0.1:{other.port}")
    CALLS[service](Cloud("p", Endpoints(**{service: f"http://127.0.0.1:{given.port}"})))
    assert (len(given.headers), len(other.headers)) == (1, 0)


@pytest.mark.parametrize("service", CALLS)
def test_a_cloud_without_endpoints_uses_the_variables(
    service: str, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tokens: Server
) -> None:
    server = serve()
    monkeypatch.setenv(VARIABLES[service], f"http://127.0.0.1:{server.port}")
    CALLS[service](Cloud("p"))
    assert len(server.headers) == 1
    assert "authorization" not in server.headers[0]


@pytest.fixture
def grpc_calls() -> Iterator[tuple[int, list[dict[str, str]]]]:
    """The port of a server of the Storage Read API, and the metadata of the calls that it receives.

    Its response is larger than gRPC allows by default.
    """
    calls: list[dict[str, str]] = []

    def create(_: Any, context: grpc.ServicerContext) -> types.ReadSession:
        calls.append({key: str(value) for key, value in context.invocation_metadata()})
        schema = types.ArrowSchema(serialized_schema=bytes(5 << 20))
        return types.ReadSession(arrow_schema=schema)

    handler = grpc.unary_unary_rpc_method_handler(
        create, types.CreateReadSessionRequest.deserialize, types.ReadSession.serialize
    )
    service = "google.cloud.bigquery.storage.v1.BigQueryRead"
    unlimited = [("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(2), options=unlimited)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {"CreateReadSession": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, calls
    server.stop(None).wait()


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_the_storage_apis_work_unencrypted_without_credentials_and_accept_large_responses(
    scheme: str, grpc_calls: tuple[int, list[dict[str, str]]], tokens: Server
) -> None:
    port, calls = grpc_calls
    cloud = Cloud("p", Endpoints(bigquerystorage=f"{scheme}127.0.0.1:{port}"))
    session = cloud.bigquery_read().create_read_session(
        parent="projects/p", read_session=types.ReadSession(), timeout=30.0
    )
    assert len(session.arrow_schema.serialized_schema) == 5 << 20
    assert len(calls) == 1
    assert "authorization" not in calls[0]
    assert tokens.headers == []


def test_a_process_opens_one_channel_per_address() -> None:
    first, same, other = (
        Cloud(project, Endpoints(bigquerystorage=f"127.0.0.1:{port}"))
        for project, port in (("p", 1), ("q", 1), ("p", 2))
    )
    for kind in (Cloud.bigquery_read, Cloud.bigquery_write):
        assert kind(first) is kind(same)
        assert kind(first) is not kind(other)


def test_a_cloud_can_be_sent_to_workers() -> None:
    cloud = Cloud(
        "p",
        Endpoints(
            bigquery="localhost:1", bigquerystorage="localhost:2", storage="https://x.example"
        ),
        7.0,
    )
    assert pickle.loads(pickle.dumps(cloud)) == cloud


def test_the_default_project_is_that_of_the_credentials(tokens: Server) -> None:
    assert default_project() == "the-accounts-project"
    assert tokens.headers == []


def cloud_of(parsed: Parsed, options: PipelineOptions) -> Cloud:
    tables = (parsed.get(SinkOptions).output_table, parsed.get(SourceOptions).input_table)
    return make_cloud(parsed.get(CloudOptions), options, connect(parsed, options), tables)


@pytest.mark.parametrize(
    ("flags", "project"),
    [
        (["--billing_project", "payer", "--project", "p", "--input_table", "tables.d.t"], "payer"),
        (["--project", "owner", "--input_table", "tables-project.d.t"], "owner"),
        (["--input_table", "tables-project.d.t"], "the-accounts-project"),
        (
            [*LOCAL, "--input_table", "the-tables.d.t"],
            "the-tables",
        ),
        (
            [*LOCAL, "--input_table", "a.com:the-tables.d.t"],
            "a.com:the-tables",
        ),
        (
            [*LOCAL, "--output_table", "the-output.d.t", "--input_table", "the-tables.d.t"],
            "the-output",
        ),
    ],
)
def test_the_billed_project_is_the_flags_then_the_credentials_then_the_tables(
    flags: list[str], project: str, tokens: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    parsed = parse_flags(
        COMMAND.name, COMMAND.about, COMMAND.options, [*flags, "--retry_seconds", "7"]
    )
    options = beam_options(parsed.beam_args)
    found = cloud_of(parsed, options)
    assert (found.project, found.retry_seconds) == (project, 7.0)
    assert tokens.headers == []


@pytest.mark.parametrize("table", ["d.t", "nonsense"])
def test_without_a_project_the_error_names_the_flag(table: str) -> None:
    flags = [*LOCAL, "--input_table", table]
    parsed = parse_flags(COMMAND.name, COMMAND.about, COMMAND.options, flags)
    options = beam_options(parsed.beam_args)
    with pytest.raises(UsageError, match=r"no billing project.*--billing_project or --project"):
        cloud_of(parsed, options)


@pytest.mark.parametrize(
    "use", [Cloud.bigquery, Cloud.bigquery_read, Cloud.bigquery_write, Cloud.storage]
)
def test_without_credentials_no_client_is_created(
    use: Callable[[Cloud], Any], no_credentials: None
) -> None:
    with pytest.raises(CredentialsError) as raised:
        use(Cloud("p"))
    assert str(raised.value) == (
        "no usable Google Cloud credentials (Your default credentials were not found); run "
        "`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
    )


def test_a_missing_credentials_file_is_reported(
    no_credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(CredentialsError, match=r"nothing\.json was not found.*gcloud auth"):
        credentials()


def test_the_metadata_server_is_tried_once(no_credentials: None) -> None:
    listener = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    asked = []

    def hang_up(request: Any, *_: Any) -> None:
        asked.append(request)
        request.close()

    listener.process_request = hang_up  # type: ignore[method-assign, assignment]
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    program = "from cloud.clients import credentials; credentials()"
    environment = os.environ | {"GCE_METADATA_IP": f"127.0.0.1:{listener.server_port}"}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    listener.shutdown()
    thread.join()
    listener.server_close()
    assert "CredentialsError: no usable Google Cloud credentials" in ended.stderr
    assert len(asked) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--input_table", "a-project.d.t", "--output_files", "{out}"],
        ["--input_query", "SELECT 1", "--output_files", "{out}"],
        ["--input_query", "SELECT 1", "--project", "a-project", "--output_files", "{out}"],
        [
            "--input_query",
            "@gs://bucket/q.sql",
            "--project",
            "a-project",
            "--output_files",
            "{out}",
        ],
        ["--input_files", "gs://bucket/rows.parquet", "--output_files", "{out}"],
        ["--input_files", "{rows}", "--output_files", "gs://bucket/out"],
        ["--input_files", "{rows}", "--output_table", "a-project.d.t"],
        ["--input_files", "{rows}", "--output_files", "{out}", "--temp_location", "gs://bucket/t"],
    ],
    ids=lambda flags: " ".join(flags[:4]),
)
def test_a_run_without_credentials_prints_one_line(
    flags: list[str],
    no_credentials: None,
    example: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"out": tmp_path / "out", "rows": example / "transactions.parquet"}
    argv = [flag.format(**places) for flag in flags]
    code = main(COMMAND, [*argv, "--model", str(example / "model")])
    printed, message = capsys.readouterr()
    assert (code, printed) == (1, "")
    assert message.startswith("error: no usable Google Cloud credentials (")
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()
