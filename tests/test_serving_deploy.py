"""serving deploy, undeploy and status: Google's real client with a stand-in for Vertex AI.

The stand-in checks each request against Google's discovery document. A test that sent a request
unknown to the document fails at the end.
"""

import hashlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.cloud import storage
from tiny_model import write_tiny

import cloud.clients
from common.errors import CredentialsError
from examples.google_api.faults import (
    Call,
    Fault,
    Later,
    Refusal,
    api_disabled,
    permission_denied,
    quota_exceeded,
)
from examples.google_api.server import GoogleApi, google_api
from examples.google_api.vertex import VertexAI
from examples.local_cloud import LocalCloud
from model_handlers.manifests.manifest import GoldenRows, Manifest
from model_handlers.manifests.model_json import write_manifest
from model_handlers.trials.try_package import try_package
from model_handlers.write_package import write_mar, write_package
from serving.__main__ import main
from serving.deploy import package_files
from serving.settings import parse_settings

IMAGE = "us-docker.pkg.dev/a-project/images/serving:1"
PARENT = "projects/123456789012/locations/us-central1"
ENDPOINT = f"{PARENT}/endpoints/pytorch-autoencoder-custom-endpoint"
# The requests of a deployment to an empty project.
FIRST = [
    "endpoints.list",
    "models.listVersions",
    "models.upload",
    "endpoints.create",
    "endpoints.deployModel",
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are not tried, because most packages of these tests contain none."""
    monkeypatch.setattr(package_files, "try_package", lambda *_: None)


@pytest.fixture
def package(tmp_path: Path, make_manifest: Callable[..., Manifest]) -> Callable[[str], Path]:
    """Return a function that writes a package of a version, and next to it the same as a .mar."""

    def make(version: str = "1") -> Path:
        data = f"weights {version}".encode()
        sha256 = hashlib.sha256(data).hexdigest()
        manifest = make_manifest(name="Fraud Model", version=version, sha256=sha256)
        folder = tmp_path / f"package-{version}"
        write_package(folder, data, manifest)
        write_mar(folder.with_suffix(".mar"), data, manifest, "# a handler")
        return folder

    return make


@pytest.fixture
def bucket(emulators: LocalCloud, request: pytest.FixtureRequest) -> storage.Bucket:
    return emulators.cloud.storage().bucket("bucket")


@pytest.fixture
def staging(request: pytest.FixtureRequest) -> str:
    """A folder in Cloud Storage that no other test uses."""
    return f"gs://bucket/deploy/{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def google() -> Iterator[GoogleApi]:
    with google_api(VertexAI(polls=1)) as google:
        yield google


@pytest.fixture
def run(
    google: GoogleApi,
    emulators: LocalCloud,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Return a function that runs a command; it returns the exit code, the output and stderr."""
    addresses = f"aiplatform={google.url},storage={emulators.endpoints.storage}"

    def run(command: str, *flags: str | Path) -> tuple[int, str, str]:
        place = ["--project", "a-project", "--api_endpoints", addresses]
        code = main([command, *map(str, flags), *place])
        return code, *capsys.readouterr()

    return run


def custom(package: Path, staging: str, *flags: str) -> list[str]:
    return ["--model", str(package), "--image", IMAGE, "--staging", staging, *flags]


def body_of(google: GoogleApi, method: str) -> Any:
    """Return the body of the last call of a method."""
    return next(c.body for c in reversed(google.calls) if c.method.endswith(method))


def endpoint_of(google: GoogleApi) -> dict[str, Any]:
    return google.services[0].store.get(ENDPOINT)


def changes(google: GoogleApi) -> list[str]:
    """Return the calls that changed something, in order."""
    reads = {"endpoints.list", "endpoints.get", "models.listVersions", "operations.get"}
    return [method for method in google.methods() if method not in reads]


def test_the_container_trusts_the_modules_that_the_flag_names(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    folder = package()
    manifest = json.loads((folder / "model.json").read_text())
    weights = manifest | {"format": "state_dict", "architecture": "nets:Net"}
    (folder / "model.json").write_text(json.dumps(weights))
    code, _, said = run("deploy", *custom(folder, staging))
    assert code == 1
    assert "add --trusted_modules nets" in said
    assert not changes(google)
    assert run("deploy", *custom(folder, staging, "--trusted_modules", "nets,layers"))[0] == 0
    spec = body_of(google, "upload")["model"]["containerSpec"]
    variables = {pair["name"]: pair["value"] for pair in spec["env"]}
    settings = parse_settings([], variables | {"AIP_STORAGE_URI": staging})
    assert settings.trusted_modules == ("nets", "layers")


def test_a_package_whose_known_good_rows_fail_is_not_deployed(
    google: GoogleApi,
    run: Run,
    staging: str,
    tmp_path: Path,
    make_manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(package_files, "try_package", try_package)
    manifest = write_tiny(tmp_path, make_manifest)
    assert run("deploy", *custom(tmp_path, staging))[0] == 0
    done = len(google.calls)
    golden = GoldenRows({"x": [[1.0, 2.0, 3.0]]}, {"total": [7.0]})
    (tmp_path / "model.json").write_text(write_manifest(replace(manifest, golden=golden)))
    code, out, said = run("deploy", *custom(tmp_path, staging))
    assert (code, out, len(google.calls)) == (1, "", done)
    assert "known-good row 0, output total is 6.0, expected 7.0" in said


def test_a_package_is_staged_uploaded_and_deployed_as_the_flags_say(
    google: GoogleApi,
    run: Run,
    package: Callable[..., Path],
    staging: str,
    bucket: storage.Bucket,
) -> None:
    flags = ["--machine_type", "g2-standard-8", "--accelerator", "NVIDIA_L4:1"]
    flags += ["--min_replicas", "2", "--max_replicas", "5", "--service_account", "a@b.example"]
    flags += ["--container_args", "--outputs all", "--labels", "team=fraud", "--dedicated"]
    folder = package()
    code, out, said = run("deploy", *custom(folder, staging, *flags))
    assert code == 0
    assert [m for m in google.methods() if m != "operations.get"] == FIRST

    model = body_of(google, "upload")["model"]
    names = {blob.name for blob in bucket.list_blobs(prefix=staging.removeprefix("gs://bucket/"))}
    uri = model["artifactUri"].removeprefix("gs://bucket/")
    assert names == {f"{uri}/model.json", f"{uri}/model.pt"}
    assert bucket.blob(f"{uri}/model.pt").download_as_bytes() == b"weights 1"
    sha256 = hashlib.sha256(b"weights 1").hexdigest()
    assert model["containerSpec"] == {
        "imageUri": IMAGE,
        "args": ["--outputs", "all"],
        "env": [{"name": "MILLRACE_MODEL_DIGEST", "value": sha256}],
        "ports": [{"containerPort": 8080}],
        "predictRoute": "/predict",
        "healthRoute": "/health",
    }
    # The server in the container parses these values into the intended settings.
    variables = {pair["name"]: pair["value"] for pair in model["containerSpec"]["env"]}
    settings = parse_settings(model["containerSpec"]["args"], variables | {"AIP_STORAGE_URI": uri})
    assert (settings.model_digest, settings.outputs) == (sha256, "all")
    assert model["displayName"] == body_of(google, "upload")["modelId"] == "fraud-model"
    assert model["labels"]["model_digest"] == sha256[:63]
    assert {"created_by": "millrace", "team": "fraud"}.items() <= model["labels"].items()

    endpoint = endpoint_of(google)
    assert endpoint["labels"] == {"created_by": "millrace", "team": "fraud"}
    (deployed,) = endpoint["deployedModels"]
    assert (deployed["model"], deployed["modelVersionId"]) == (f"{PARENT}/models/fraud-model", "1")
    assert deployed["dedicatedResources"] == {
        "machineSpec": {
            "machineType": "g2-standard-8",
            "acceleratorType": "NVIDIA_L4",
            "acceleratorCount": 1,
        },
        "minReplicaCount": 2,
        "maxReplicaCount": 5,
    }
    assert deployed["serviceAccount"] == "a@b.example"
    assert endpoint["trafficSplit"] == {deployed["id"]: 100}
    assert f"endpoint {ENDPOINT}\n" in out
    assert f"address https://{endpoint['dedicatedEndpointDns']}\n" in out
    assert f"Fraud Model 1, traffic 100 % to {deployed['id']}" in out
    assert "deploying Fraud Model-1 to pytorch-autoencoder-custom-endpoint ..." in said


def test_a_second_run_finds_everything_and_changes_nothing(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    command = ["deploy", *custom(package(), staging)]
    assert run(*command)[0] == 0
    before = changes(google)
    code, _, said = run(*command)
    assert (code, changes(google)) == (0, before)
    assert "already has this content as version 1" in said
    # Files that exist with the same content are not written again.
    assert said.count("uploaded gs://") == 0


def test_a_second_version_shares_the_traffic_and_can_be_rolled_back(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    old, new = package("1"), package("2")
    run("deploy", *custom(old, staging))
    first = endpoint_of(google)["deployedModels"][0]["id"]
    code, out, _ = run("deploy", *custom(new, staging, "--traffic_percent", "10"))
    assert code == 0
    assert body_of(google, "upload")["parentModel"].endswith("/models/fraud-model")
    second = endpoint_of(google)["deployedModels"][1]["id"]
    assert endpoint_of(google)["trafficSplit"] == {first: 90, second: 10}
    assert f"90 % to {first}, 10 % to {second}" in out
    assert "gets no requests" not in out
    # The new version gets more traffic, then the old one gets all of it again. Nothing is uploaded
    # or deployed.
    del google.calls[:]
    run("deploy", *custom(new, staging, "--traffic_percent", "50"))
    assert endpoint_of(google)["trafficSplit"] == {first: 50, second: 50}
    code, out, _ = run("deploy", *custom(old, staging))
    assert endpoint_of(google)["trafficSplit"] == {first: 100}
    (costs,) = (line for line in out.splitlines() if "gets no requests, but costs" in line)
    assert costs.startswith(f"deployed model {second} (")
    assert "python -m serving undeploy --endpoint " in costs
    assert costs.endswith(f"--deployed_model {second}`")
    assert changes(google) == ["endpoints.patch", "endpoints.patch"]


def test_googles_container_gets_the_archive_under_the_name_that_it_expects(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str, bucket: storage.Bucket
) -> None:
    archive = package().with_suffix(".mar")
    code, out, _ = run(
        "deploy", "--model", archive, "--staging", staging, "--region", "europe-west4"
    )
    assert code == 0
    model = body_of(google, "upload")["model"]
    image = "europe-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest"
    assert model["containerSpec"] == {"imageUri": image}
    name = model["artifactUri"].removeprefix("gs://bucket/") + "/model.mar"
    assert bucket.blob(name).download_as_bytes() == archive.read_bytes()
    assert "/locations/europe-west4/endpoints/pytorch-autoencoder-endpoint" in out


def test_a_folder_in_cloud_storage_is_used_without_a_copy(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str, bucket: storage.Bucket
) -> None:
    for path in package().iterdir():
        bucket.blob(f"{staging[12:]}/{path.name}").upload_from_filename(str(path))
    assert run("deploy", "--model", f"gs://bucket/{staging[12:]}/", "--image", IMAGE)[0] == 0
    assert body_of(google, "upload")["model"]["artifactUri"] == f"gs://bucket/{staging[12:]}"


def test_googles_container_cannot_use_an_archive_in_place_that_has_another_name(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str, bucket: storage.Bucket
) -> None:
    archive = package().with_suffix(".mar")
    bucket.blob(f"{staging[12:]}/other.mar").upload_from_filename(str(archive))
    code, _, err = run("deploy", "--model", f"{staging}/")
    assert code == 1
    assert "expects an archive named model.mar, got other.mar: rename it, or pass --model " in err
    assert f"--model {staging}/other.mar with --staging gs://BUCKET/FOLDER" in err
    assert changes(google) == []


def test_another_image_creates_another_version_of_the_same_model(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    folder = package()
    run("deploy", *custom(folder, staging))
    run("deploy", "--model", folder, "--image", f"{IMAGE}2", "--staging", staging)
    assert body_of(google, "deployModel")["deployedModel"]["model"].endswith("/fraud-model@2")


def printed_requests(out: str) -> list[tuple[str, str, Any]]:
    """Parse the output of --dry_run: method, path and body of each request to Vertex AI."""
    found = re.findall(r"^(GET|POST|PATCH|DELETE) (/\S+)\n(\{\n.*?^\})?", out, re.S | re.M)
    return [(method, path, json.loads(body) if body else None) for method, path, body in found]


def test_a_dry_run_prints_the_requests_that_a_real_run_sends(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    command = ["deploy", *custom(package(), staging, "--min_replicas", "2")]
    code, out, said = run(*command, "--dry_run")
    assert (code, google.calls, said) == (0, [], "")
    assert len(re.findall(rf"^POST {staging}/\S+/model\.(json|pt) \(", out, re.M)) == 2
    printed = printed_requests(out)
    assert run(*command)[0] == 0
    sent = [call for call in google.calls if not call.method.endswith("operations.get")]
    assert len(sent) == len(printed) == len(FIRST)
    for call, (_, path, body) in zip(sent, printed, strict=True):
        text = json.dumps(body).replace("projects/a-project", "projects/123456789012")
        assert json.loads(text) == (call.body or None), path


def test_a_dry_run_needs_no_credentials_and_reads_nothing_from_cloud_storage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cloud.clients, "_default", lambda: pytest.fail("it looked for credentials"))
    flags = ["--model", "gs://nowhere/model", "--project", "p", "--traffic_percent", "20"]
    assert main(["deploy", *flags, "--dry_run"]) == 0
    (deployed,) = [r for r in printed_requests(capsys.readouterr().out) if "deployModel" in r[1]]
    assert deployed[2]["trafficSplit"] == {"OTHER_MODEL_ID": 80, "0": 20}


@pytest.mark.parametrize("model", ["here/model.mar", "gs://bucket/model.mar", "gs://b/model.json"])
def test_a_package_outside_a_folder_of_cloud_storage_needs_a_staging_folder(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    assert main(["deploy", "--model", model, "--project", "p", "--dry_run"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: --staging is missing: expected gs://BUCKET/FOLDER")


def test_a_dry_run_without_credentials_needs_the_project_but_no_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise CredentialsError("no credentials: log in")

    monkeypatch.setattr(cloud.clients, "_default", refuse)
    flags = ["deploy", "--model", "gs://nowhere/model"]
    assert main([*flags, "--dry_run"]) == 2
    assert capsys.readouterr().err.startswith("error: --project is missing: expected the id")
    assert main(flags) == 1
    assert capsys.readouterr().err.startswith(
        "error: no credentials: log in [see docs/operate/perm"
    )


def test_status_shows_models_versions_traffic_and_replicas(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    assert run("status")[1] == "no endpoints in us-central1 of project a-project\n"
    run("deploy", *custom(package("1"), staging, "--accelerator", "NVIDIA_TESLA_T4:2"))
    run("deploy", *custom(package("2"), staging, "--traffic_percent", "25"))
    code, out, _ = run("status", "--endpoint", "pytorch-autoencoder-custom-endpoint")
    assert code == 0
    head, *lines = out.splitlines()
    columns = "endpoint, id, deployed model, model, version, traffic, replicas, machine, age"
    assert ", ".join(re.split(r"  +", head)) == columns
    assert [re.split(r"  +", line)[3:8] for line in lines] == [
        ["Fraud Model-1", "1", "75 %", "1 of 1-1", "n1-standard-4 + 2 NVIDIA_TESLA_T4"],
        ["Fraud Model-2", "2", "25 %", "1 of 1-1", "n1-standard-4"],
    ]
    (found,) = json.loads(run("status", "--json")[1])
    assert found["endpoint"] == ENDPOINT
    assert [model["traffic_percent"] for model in found["deployed_models"]] == [75, 25]
    assert found["deployed_models"][0]["accelerator"] == "NVIDIA_TESLA_T4"


def test_undeploy_keeps_the_last_model_with_traffic_unless_all_is_passed(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    run("deploy", *custom(package("1"), staging))
    name = ["--endpoint", "pytorch-autoencoder-custom-endpoint"]
    code, _, said = run("undeploy", *name)
    assert code == 2
    assert "answers all requests" in said
    run("deploy", *custom(package("2"), staging, "--traffic_percent", "25"))
    first, second = (d["id"] for d in endpoint_of(google)["deployedModels"])
    code, _, said = run("undeploy", *name)
    assert (code, f"choose one with --deployed_model ({first}, {second})" in said) == (2, True)
    code, _, said = run("undeploy", *name, "--deployed_model", first, "--delete_endpoint")
    assert (code, f"would still have models {second}: pass --all" in said) == (2, True)
    code, _, said = run("undeploy", *name, "--deployed_model", "none")
    assert (code, f", which has models {first}, {second}" in said) == (2, True)
    assert "undeployModel" not in str(google.methods())
    # The other model takes the traffic of the removed one.
    assert run("undeploy", *name, "--deployed_model", first)[0] == 0
    assert endpoint_of(google)["trafficSplit"] == {second: 100}


def test_undeploy_all_removes_every_model_and_the_endpoint_on_demand(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    for version, percent in (("1", 100), ("2", 25), ("3", 0)):
        run("deploy", *custom(package(version), staging, "--traffic_percent", str(percent)))
    flags = ["--endpoint", "pytorch-autoencoder-custom-endpoint", "--all", "--delete_endpoint"]
    before = len(google.calls)
    code, out, _ = run("undeploy", *flags, "--dry_run")
    assert code == 0
    assert [path.rpartition(":")[2] for _, path, _ in printed_requests(out)][:3] == [
        "undeployModel"
    ] * 3
    assert google.methods()[before:] == ["endpoints.list"]
    code, out, _ = run("undeploy", *flags)
    assert code == 0
    endpoint = "endpoint pytorch-autoencoder-custom-endpoint"
    assert f"undeployed 3 of 3 models from {endpoint}, 0 left" in out
    assert run("status")[1].startswith("no endpoints")


def test_a_deployment_killed_after_any_call_and_run_again_ends_in_the_same_state(
    emulators: LocalCloud,
    package: Callable[..., Path],
    staging: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = package()

    def attempt(google: GoogleApi) -> int:
        addresses = f"aiplatform={google.url},storage={emulators.endpoints.storage}"
        place = ["--project", "a-project", "--api_endpoints", addresses]
        return main(["deploy", *custom(folder, staging), *place])

    for survives in range(len(FIRST) + 1):
        # After that many calls, every call is refused.
        broken: list[Fault] = [permission_denied("aiplatform.any.thing", "all")]

        def fault(call: Call, after: int = survives, broken: list[Fault] = broken) -> Fault:
            return broken[0] if broken and call.number >= after else None

        with google_api(VertexAI(polls=0), faults=fault) as google:
            assert attempt(google) == (1 if survives < len(FIRST) else 0)
            broken.clear()
            assert attempt(google) == 0
            assert len(google.services[0].store.under(f"{PARENT}/models/fraud-model/versions")) == 1
            endpoint = endpoint_of(google)
            (deployed,) = endpoint["deployedModels"]
            assert endpoint["trafficSplit"] == {deployed["id"]: 100}
            assert deployed["modelVersionId"] == "1"
    capsys.readouterr()


def test_ctrl_c_names_the_running_operation_and_how_to_check_it(
    emulators: LocalCloud,
    package: Callable[..., Path],
    staging: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vertex = VertexAI(polls=0)

    def interrupt(call: Call) -> Fault:
        if call.method.endswith("deployModel"):
            vertex.polls = 10**6
        if "endpoints.operations" in call.method:
            os.kill(os.getpid(), signal.SIGINT)
        return None

    with google_api(vertex, faults=interrupt) as google:
        addresses = f"aiplatform={google.url},storage={emulators.endpoints.storage}"
        place = ["--project", "a-project", "--api_endpoints", addresses]
        assert main(["deploy", *custom(package(), staging), *place]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("stopped: deploying Fraud Model-1 to pytorch-autoencoder-custom-endp")
    assert f"continues on Google Cloud (operation {ENDPOINT}/operations/" in said
    assert "run the same command again to continue, or list endpoints with" in said
    assert "`python -m serving status --project a-project --region us-central1`" in said


@pytest.mark.parametrize("name", ["pytorch-autoencoder-custom-endpoint", "another"])
def test_an_endpoint_that_another_deployment_creates_first_is_used_if_the_name_matches(
    name: str, google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    endpoint = {"name": ENDPOINT, "displayName": name, "etag": "e"}

    def meanwhile(call: Call) -> Fault:
        if call.method.endswith("endpoints.create"):
            google.services[0].store.create(ENDPOINT, endpoint)
        return None

    google.faults = meanwhile
    code, _, said = run("deploy", *custom(package(), staging))
    assert (code, "already exists" in said) == ((0, False) if name in ENDPOINT else (1, True))
    assert len(endpoint.get("deployedModels", [])) == (name in ENDPOINT)


@pytest.mark.parametrize(
    ("method", "fault", "parts"),
    [
        (
            "models.upload",
            permission_denied("aiplatform.models.upload", "//aiplatform.googleapis.com/x"),
            [
                "model fraud-model cannot be uploaded (project a-project, us-central1)",
                "aiplatform.models.upload",
                "grant the account the role roles/aiplatform.user",
            ],
        ),
        (
            "endpoints.deployModel",
            permission_denied("iam.serviceAccounts.actAs", "a@b.example"),
            ["grant the account the role roles/iam.serviceAccountUser"],
        ),
        (
            "endpoints.list",
            api_disabled("aiplatform.googleapis.com", "a-project"),
            ["gcloud services enable aiplatform.googleapis.com"],
        ),
        (
            "endpoints.deployModel",
            quota_exceeded("aiplatform.googleapis.com/custom_model_serving_cpus"),
            ["custom_model_serving_cpus", "a quota of the project is exhausted"],
        ),
        (
            "models.upload",
            Later(Refusal(404, f"Image {IMAGE} not found.")),
            ["uploading model fraud-model", "failed: Image", "check the image's name"],
        ),
        (
            "endpoints.deployModel",
            Later(Refusal(400, "Model server exited unexpectedly.")),
            ["deploying Fraud Model-1", "failed: Model server exited unexpectedly."],
        ),
        ("endpoints.list", Refusal(404, "Project not found"), ["Project not found", "check the"]),
    ],
    ids=["upload role", "act as", "API", "quota", "image", "server", "project"],
)
def test_a_refusal_by_google_is_reported_in_one_line(
    method: str,
    fault: Fault,
    parts: list[str],
    google: GoogleApi,
    run: Run,
    package: Callable[..., Path],
    staging: str,
) -> None:
    google.faults = lambda call: fault if call.method.endswith(method) else None
    code, out, said = run("deploy", *custom(package(), staging))
    assert (code, out) == (1, "")
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert said.endswith(f"{line}\n")
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--traffic_percent", "30"],
            "no other model of the endpoint has traffic, so none can take the remaining 70 %",
        ),
        (["--staging", "/tmp/x"], "--staging: expected gs://BUCKET/FOLDER, got '/tmp/x'"),
        (["--accelerator", "NVIDIA_TESLA_T5"], "(did you mean 'NVIDIA_TESLA_T4"),
        (["--min_replicas", "3", "--max_replicas", "2"], "--max_replicas 2 is below"),
        (["--region", "us-central"], "expected a region such as us-central1"),
        (
            ["--labels", "Team=x"],
            "expected KEY=VALUE, each of at most 63 lowercase letters, digits, _ and -",
        ),
        (["--traffic_percent", "101"], "expected a whole number from 0 to 100"),
        (["--image", "us-docker.pkg.dev/vertex-ai/prediction/x:latest"], "container needs a .mar"),
        (["--model_digest", "0" * 64], "--model_digest expects sha256 000"),
        (["--model", "/nowhere"], "no model at /nowhere"),
        (["--mode", "x"], "unknown arguments --mode"),
    ],
)
def test_wrong_flags_are_reported_before_anything_is_created(
    flags: list[str], said: str, google: GoogleApi, run: Run, package: Callable[..., Path]
) -> None:
    code, _, err = run("deploy", *custom(package(), "gs://bucket/s", *flags))
    assert code in (1, 2)
    assert said in err
    assert changes(google) == []


def test_a_deployed_version_or_endpoint_is_not_changed_silently(
    google: GoogleApi, run: Run, package: Callable[..., Path], staging: str
) -> None:
    folder = package()
    run("deploy", *custom(folder, staging))
    code, _, said = run("deploy", *custom(folder, staging, "--max_replicas", "4"))
    assert code == 2
    assert "this version is already deployed as " in said
    assert " with --max_replicas 1, not 4: undeploy it first" in said
    code, _, said = run("deploy", *custom(folder, staging, "--accelerator", "NVIDIA_TESLA_T4:1"))
    assert code == 2
    assert "this version is already deployed as " in said
    assert " with --accelerator none, not NVIDIA_TESLA_T4: undeploy it first" in said
    code, _, said = run("deploy", *custom(folder, staging, "--dedicated"))
    assert (code, "has a shared address, which cannot be changed" in said) == (2, True)
    assert changes(google) == FIRST[2:]


def test_an_endpoint_that_is_missing_or_ambiguous_is_reported(google: GoogleApi, run: Run) -> None:
    vertex = google.services[0]
    for ident in ("1", "2"):
        name = f"{PARENT}/endpoints/{ident}"
        endpoint = {"name": name, "displayName": "scores", "createTime": vertex.now()}
        vertex.store.create(name, endpoint)
    code, _, said = run("status", "--endpoint", "scoers")
    assert (code, "no endpoint scoers in us-central1" in said) == (1, True)
    assert "(did you mean 'scores" in said
    code, _, said = run("undeploy", "--endpoint", "scores")
    assert (code, "2 endpoints of us-central1 have the display name scores" in said) == (1, True)
    assert run("status", "--endpoint", f"{PARENT}/endpoints/2")[0] == 0
    assert run("status", "--endpoint", "3")[0] == 1
    elsewhere = ENDPOINT.replace("us-central1", "europe-west4")
    code, _, said = run("status", "--endpoint", elsewhere)
    assert (code, "is not in us-central1: pass its region as --region" in said) == (2, True)


def test_missing_credentials_are_reported_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    cloud.clients._default.cache_clear()
    assert main(["status"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "GOOGLE_APPLICATION_CREDENTIALS" in said
