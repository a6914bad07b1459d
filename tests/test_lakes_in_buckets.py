"""Tables of Delta Lake and Iceberg are read from Cloud Storage, wherever its address points."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from apache_beam.internal.gcp import auth
from command_line import Result, RunCommand, assert_one_line_error
from lake_tables import write_delta, write_iceberg
from libraries import need_library

from cloud import clients
from common.errors import InputError
from examples.local_cloud import LocalCloud
from model_handlers.manifests.manifest import Manifest
from pipelines.batch_local import COMMAND
from transforms.files.lake_folders import LakeFolder
from transforms.lakes.storage import delta_options, iceberg_files
from transforms.lakes.table import _delta_version

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the address and the credentials of a run after the test."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "")
    monkeypatch.setattr(auth._Credentials, "_credentials_init", False)
    monkeypatch.setattr(auth._Credentials, "_credentials", None)


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of the credentials in the environment, where no file is yet."""
    path = tmp_path / "account.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    clients._default.cache_clear()
    yield path
    clients._default.cache_clear()


@pytest.fixture
def run(
    tmp_path: Path, run_command: RunCommand, tiny_package: tuple[str, Manifest]
) -> Callable[..., Result]:
    """A function that runs batch_local with a model of the columns a, b and c."""

    def call(storage: str, **flags: Any) -> Result:
        own = {
            "model": tiny_package[0],
            "output_files": tmp_path / "out",
            "output_fields": "day",
            "id_column": "id",
            "run_id": "r",
            "direct_num_workers": 1,
            "api_endpoints": f"storage={storage}",
        }
        return run_command(COMMAND, own | flags)

    return call


def scored(tmp_path: Path, run_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the scores of a run without what differs from run to run, and its report."""
    report = json.loads((tmp_path / f"out/{run_id}/report.json").read_text())
    table = pq.read_table(tmp_path / f"out/{run_id}/scores").sort_by("row_id")
    return table.drop(["scored_at", "run_id"]).to_pylist(), report


def upload(emulators: LocalCloud, folder: Path, prefix: str) -> str:
    """Copy a folder into the bucket, and return its path there."""
    bucket = emulators.cloud.storage().bucket("bucket")
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.blob(f"{prefix}/{path.relative_to(folder)}").upload_from_filename(path)
    return f"gs://bucket/{prefix}"


@pytest.fixture(params=["delta", "iceberg"])
def table(
    request: pytest.FixtureRequest, emulators: LocalCloud, tmp_path: Path
) -> tuple[Path, str]:
    """Two tables with the same rows: on the disk, and in a bucket."""
    folder, prefix = tmp_path / request.param, f"{tmp_path.name}/{request.param}"
    if request.param == "delta":
        write_delta(folder)
        return folder, upload(emulators, folder, prefix)
    write_iceberg(str(folder))
    write_iceberg(
        f"gs://bucket/{prefix}",
        **{
            "gcs.service.host": emulators.endpoints.storage or "",
            "gcs.oauth2.token": "none",
            "gcs.oauth2.token-expires-at": "4102444800000",
        },
    )
    return folder, f"gs://bucket/{prefix}"


def test_a_table_in_a_bucket_has_the_rows_of_the_one_on_the_disk(
    run: Any, emulators: LocalCloud, table: tuple[Path, str], tmp_path: Path
) -> None:
    folder, remote = table
    storage = emulators.endpoints.storage
    assert run(storage, input_files=folder, run_id="local")[0] == 0
    expected, report = scored(tmp_path, "local")
    code, _, err = run(storage, input_files=remote)
    assert (code, err) == (0, "")
    found, own = scored(tmp_path, "r")
    keys = ("row_id", "day", "score")
    assert [[row[key] for key in keys] for row in found] == [
        [row[key] for key in keys] for row in expected
    ]
    assert "x" not in {row["row_id"] for row in found}
    assert own["input"] == [remote]
    counts = ("rows_in", "rows_expected", "files_read")
    assert [own[count] for count in counts] == [report[count] for count in counts]


@pytest.mark.parametrize("table", ["delta"], indirect=True)
def test_workers_read_a_table_from_the_same_address(
    run: Any,
    emulators: LocalCloud,
    table: tuple[Path, str],
    multi_processing: dict[str, Any],
    tmp_path: Path,
) -> None:
    code, _, err = run(emulators.endpoints.storage, input_files=table[1], **multi_processing)
    assert (code, err) == (0, "")
    ids = {row["row_id"] for row in scored(tmp_path, "r")[0]}
    assert ids == {"w", "y", "z"}


def test_a_bucket_or_a_version_that_does_not_exist_is_an_error(
    run: Any, emulators: LocalCloud, table: tuple[Path, str]
) -> None:
    storage, (_, remote) = emulators.endpoints.storage, table
    result = run(storage, input_files=remote, table_version=99)
    assert_one_line_error(result, 1, f"table {remote} ", "99: --table_version may be")
    result = run(storage, input_files=f"{remote}/nothing")
    assert_one_line_error(result, 1, f"{remote}/nothing")
    result = run(storage, input_files="gs://no-such-bucket/table")
    parts = ("gs://no-such-bucket/table", "check the project, the name and the location")
    assert_one_line_error(result, 1, *parts)


def test_a_table_that_lacks_a_file_is_an_error(
    run: Any, emulators: LocalCloud, table: tuple[Path, str]
) -> None:
    bucket, prefix = emulators.cloud.storage().bucket("bucket"), table[1].removeprefix("gs://")
    for blob in bucket.list_blobs(prefix=f"{prefix.partition('/')[2]}/"):
        if blob.name.endswith(".parquet"):
            blob.delete()
    code, _, err = run(emulators.endpoints.storage, input_files=table[1])
    assert code == 1
    last = err.splitlines()[-1]
    assert table[1] in last
    assert "check that the files of the table are complete" in last


MARKERS = {"Delta Lake": "_delta_log/0.json", "Apache Iceberg": "metadata/v1.metadata.json"}
LIBRARIES = {"Delta Lake": "deltalake", "Apache Iceberg": "pyiceberg"}


@contextmanager
def refusing(marker: str, status: int, hint: int) -> Iterator[str]:
    """Run a server of Cloud Storage that lists a file of a table, and refuses to send it.

    Args:
        marker: The path of the file in the table.
        status: The status of the answers.
        hint: The status of the answer to a request for the hint of an Iceberg table.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            listing = self.path.startswith("/storage/v1/b/bucket/o?")
            item = {"name": f"table/{marker}", "bucket": "bucket", "size": "2", "generation": "1"}
            item["updated"] = "2026-11-20T00:00:00.000Z"
            body = json.dumps({"items": [item]} if listing else {}).encode()
            self.send_response(200 if listing else hint if "version-hint" in self.path else status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("kind", "status", "hint", "advice"),
    [
        ("Delta Lake", 403, 404, "grant the account the role roles/storage.objectViewer"),
        ("Delta Lake", 401, 404, "the credentials were rejected: log in again"),
        ("Apache Iceberg", 403, 403, "grant the account the role roles/storage.objectViewer"),
        ("Apache Iceberg", 403, 404, "grant the account the role roles/storage.objectViewer"),
    ],
)
@pytest.mark.slow
def test_a_table_that_the_account_may_not_read_is_an_error(
    run: Any, kind: str, status: int, hint: int, advice: str
) -> None:
    need_library(LIBRARIES[kind])
    with refusing(MARKERS[kind], status, hint) as storage:
        result = run(storage, input_files="gs://bucket/table")
    assert_one_line_error(result, 1, f"{kind} table gs://bucket/table cannot be read", advice)
    assert not any(internal in result[2] for internal in ("\x1b", "Error performing", "metadata="))


@pytest.mark.parametrize("path", ["gs://bucket/table", "gs://bucket/t/metadata/v1.metadata.json"])
def test_a_table_needs_credentials_unless_the_address_is_plain(
    run: Any, path: str, account: Path
) -> None:
    result = run("https://private.example", input_files=path)
    assert_one_line_error(result, 1, "gcloud auth application-default login")


def test_a_private_address_reaches_both_libraries(
    monkeypatch: pytest.MonkeyPatch, account: Path
) -> None:
    need_library("pyiceberg")
    secrets = {"client_id": "c", "client_secret": "s", "refresh_token": "r"}
    account.write_text(json.dumps({"type": "authorized_user"} | secrets))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "https://storage-x.p.googleapis.com")
    options = delta_options("gs://bucket/table")
    assert options is not None
    assert options["google_base_url"] == "https://storage-x.p.googleapis.com"
    assert not {"google_skip_signature", "allow_http"} & set(options)
    found = iceberg_files().fs_by_scheme("gs", "bucket")
    # Arrow shows the address of its client only when it is pickled.
    assert b"storage-x.p.googleapis.com" in str(found.__reduce__()).encode()


def test_credentials_that_the_library_of_delta_lake_does_not_take_are_an_error(
    monkeypatch: pytest.MonkeyPatch, account: Path
) -> None:
    need_library("deltalake")
    source = {"credential_source": {"file": str(account)}, "token_url": "https://sts.example/t"}
    kind = {"type": "external_account", "audience": "a", "subject_token_type": "t"}
    account.write_text(json.dumps(kind | source))
    with pytest.raises(InputError, match=r"external_account.*; use the credentials of a service"):
        _delta_version(LakeFolder("gs://bucket/table", "Delta Lake"), None)


@pytest.mark.parametrize("root", ["/tmp/table", "table", "s3://bucket/table"])
def test_other_filesystems_get_no_options(root: str) -> None:
    assert delta_options(root) is None
