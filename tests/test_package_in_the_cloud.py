"""A package whose steps read files is set up, deployed, fetched, served and loaded by workers."""

import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from apache_beam.internal.gcp import auth
from command_line import RunCommand
from google.cloud import storage
from raw_model import FAULTS, GOOD, ROWS, write_raw_package
from resources_world import SMALL, World, worlds
from serving_client import process, until_ready
from waiting import wait_until

from examples.google_api.server import google_api
from examples.google_api.vertex import VertexAI
from examples.local_cloud import LocalCloud
from model_handlers.manifests.manifest import Manifest
from model_handlers.read_package import read_package
from model_handlers.write_package import write_mar
from pipelines import batch_local
from serving.__main__ import main
from serving.settings import DIGEST_VARIABLE

VOCABULARY = "kinds.txt"
ARGUMENTS = "--outputs logits --instance_keys id"
IMAGE = "us-docker.pkg.dev/a-project/images/serving:1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A package with a vocabulary, and next to it the same as a .mar."""
    folder = tmp_path_factory.mktemp("made") / "raw"
    manifest = write_raw_package(folder)
    package = read_package(str(folder))
    write_mar(folder.with_suffix(".mar"), package.data, manifest, "# a handler", package.files)
    return folder, manifest


@pytest.fixture
def cloud(emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> LocalCloud:
    """The emulators, with Cloud Storage configured for Beam."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulators.endpoints.storage or "")
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    return emulators


@pytest.fixture
def bucket(cloud: LocalCloud) -> storage.Bucket:
    return cloud.cloud.storage().bucket("bucket")


@pytest.fixture
def uploaded(
    bucket: storage.Bucket, made: tuple[Path, Manifest], request: pytest.FixtureRequest
) -> str:
    """The package in a folder of Cloud Storage that no other test uses."""
    folder = f"packages/{abs(hash(request.node.nodeid)):x}"
    for path in made[0].iterdir():
        bucket.blob(f"{folder}/{path.name}").upload_from_filename(str(path))
    bucket.blob(f"{folder}/archive.mar").upload_from_filename(str(made[0].with_suffix(".mar")))
    return f"gs://bucket/{folder}"


@pytest.fixture
def score(run_command: RunCommand, tmp_path: Path) -> Callable[[str], tuple[int, str, list[Any]]]:
    """Return a function that scores the rows with a package; it returns code, stderr and rows."""
    rows = tmp_path / "rows.jsonl"
    # The last row has a category that is not in the vocabulary.
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[: len(GOOD) + 1]))

    def run(model: str) -> tuple[int, str, list[Any]]:
        flags = {"input_files": rows, "id_column": "id", "model": model, "run_id": "r"}
        written = {"output_files": tmp_path / "out", "output_format": "jsonl"}
        code, _, err = run_command(batch_local.COMMAND, flags | written)
        files = sorted((tmp_path / "out").glob("**/scores/*.jsonl"))
        lines = [line for file in files for line in file.read_text().splitlines()]
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return code, err, [json.loads(line) for line in lines]

    return run


def damage(bucket: storage.Bucket, folder: str, kind: str) -> None:
    """Change, rename or remove the vocabulary of a package."""
    blob = bucket.blob(f"{folder.removeprefix('gs://bucket/')}/{VOCABULARY}")
    if kind == "changed":
        blob.upload_from_string(b"web\nshop\nphone\n")
        return
    if kind == "renamed":
        bucket.blob(blob.name.replace("kinds", "Kinds")).upload_from_string(b"shop\nweb\nphone\n")
    blob.delete()


DAMAGES = {
    "missing": f"names the file '{VOCABULARY}', which is not in the folder",
    "renamed": f"names the file '{VOCABULARY}', which is not in the folder",
    "changed": f"the file {VOCABULARY} has",
}


@pytest.mark.parametrize("file", ["", "/", "/model.json", "/model.pt2", "/archive.mar"])
def test_a_worker_loads_the_files_of_a_package_in_cloud_storage(
    uploaded: str, made: tuple[Path, Manifest], score: Callable[..., Any], file: str
) -> None:
    code, err, rows = score(uploaded + file)
    assert code == 0, err
    assert {row["row_id"] for row in rows} == {ROWS[number]["id"] for number in GOOD}
    assert {row["model_digest"] for row in rows} == {made[1].digest}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_worker_refuses_a_package_in_cloud_storage_whose_file_is_damaged(
    uploaded: str, bucket: storage.Bucket, score: Callable[..., Any], kind: str
) -> None:
    damage(bucket, uploaded, kind)
    code, err, _ = score(uploaded)
    assert (code, err.count("\n")) == (1, 1)
    assert DAMAGES[kind] in err


def test_setup_uploads_the_files_of_a_package(
    emulators: LocalCloud,
    made: tuple[Path, Manifest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with worlds(emulators, tmp_path, capsys) as make:
        world: World = make("rawfiles", SMALL)
        kinds = ("--kinds", "bucket,model")
        for path, extra in ((made[0], set()), (made[0].with_suffix(".mar"), {"raw.mar"})):
            out = world.fine("setup", *kinds, "--model", str(path))
            folder = out.split("--model ")[1].strip()
            name, _, prefix = folder.removeprefix("gs://").partition("/")
            found = {
                blob.name.removeprefix(prefix): blob.download_as_bytes()
                for blob in world.cloud.storage().list_blobs(name, prefix=prefix)
            }
            assert found.keys() == {"model.json", "model.pt2", VOCABULARY} | extra
            assert found[VOCABULARY] == (made[0] / VOCABULARY).read_bytes()
            assert "0 changes" in world.fine("setup", *kinds, "--model", str(path))
        # Setup notices a vocabulary that was changed, and uploads it again.
        blob = world.cloud.storage().bucket(name).blob(prefix + VOCABULARY)
        blob.upload_from_string(b"something else")
        assert "changed  model" in world.fine("setup", *kinds, "--model", str(path))
        package = Path(shutil.copytree(made[0], tmp_path / "package"))
        (package / VOCABULARY).unlink()
        code, out, err = world.run("setup", *kinds, "--model", str(package))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert DAMAGES["missing"] in err
        world.fine("cleanup", "--yes", "--kinds", "files,bucket")


@pytest.fixture
def deploy(
    cloud: LocalCloud, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Any]]:
    """Return a function that deploys a package to a new project of the stand-in.

    It returns the exit code, standard error, and all models that were registered.
    """
    staging = f"gs://bucket/deploy/{abs(hash(request.node.nodeid)):x}"
    with google_api(VertexAI(polls=0)) as google:

        def run(model: str, *flags: str) -> tuple[int, str, Any]:
            addresses = f"aiplatform={google.url},storage={cloud.endpoints.storage}"
            place = ["--project", "a-project", "--api_endpoints", addresses]
            given = ["--model", model, "--image", IMAGE, "--staging", staging, *flags]
            code = main(["deploy", *given, *place])
            uploads = [c.body["model"] for c in google.calls if c.method.endswith("models.upload")]
            return code, capsys.readouterr().err, uploads

        yield run


def served(cloud: LocalCloud, model: Any) -> tuple[list[Any], dict[str, str]]:
    """Run the server as Vertex AI runs the container.

    Return its predictions for the good rows, and its message for each row with a fault.
    """
    spec = model["containerSpec"]
    variables = {pair["name"]: pair["value"] for pair in spec["env"]}
    variables |= {**cloud.environment, "AIP_STORAGE_URI": model["artifactUri"]}
    with process(*spec.get("args", ()), environment=variables) as (_, client):
        until_ready(client)
        health = client.get("/health").json["model"]
        answer = client.predict([ROWS[number] for number in GOOD])
        assert answer.status == 200, answer.json
        assert answer.headers["x-package-digest"] == health["digest"] == variables[DIGEST_VARIABLE]
        assert answer.headers["x-model-digest"] == health["sha256"] != health["digest"]
        bad = {
            row["id"]: client.predict([row]).error["message"] for row in ROWS if row["id"] in FAULTS
        }
        return answer.json["predictions"], bad


@pytest.mark.parametrize("kind", ["folder", "in place", "mar"])
def test_a_package_with_files_is_deployed_fetched_and_served(
    cloud: LocalCloud,
    uploaded: str,
    made: tuple[Path, Manifest],
    deploy: Callable[..., Any],
    bucket: storage.Bucket,
    kind: str,
) -> None:
    folder, manifest = made
    paths = {"folder": str(folder), "in place": uploaded, "mar": str(folder.with_suffix(".mar"))}
    code, err, models = deploy(paths[kind], "--container_args", ARGUMENTS)
    assert code == 0, err
    (model,) = models
    place = model["artifactUri"].removeprefix("gs://bucket/")
    names = {Path(blob.name).name for blob in bucket.list_blobs(prefix=f"{place}/")}
    expected = {"raw.mar"} if kind == "mar" else set(manifest.file_names)
    assert names >= expected
    assert model["labels"]["model_digest"] == manifest.digest[:63]
    predictions, bad = served(cloud, model)
    assert [row["id"] for row in predictions] == [ROWS[number]["id"] for number in GOOD]
    assert set(bad) == set(FAULTS)
    for ident, (_, column) in FAULTS.items():
        assert column in bad[ident]


def test_a_changed_vocabulary_is_another_version(
    made: tuple[Path, Manifest], deploy: Callable[..., Any], tmp_path: Path
) -> None:
    package = Path(shutil.copytree(made[0], tmp_path / "package"))
    assert deploy(str(package))[0] == 0
    assert len(deploy(str(package))[2]) == 1
    # The model file stays the same.
    kinds = b"web\nshop\nphone\n"
    (package / VOCABULARY).write_bytes(kinds)
    value = json.loads((package / "model.json").read_text())
    value["files"][VOCABULARY] = sha256(kinds).hexdigest()
    (package / "model.json").write_text(json.dumps(value))
    code, _, models = deploy(str(package))
    assert code == 0
    first, second = models
    assert first["artifactUri"] != second["artifactUri"]
    assert first["labels"]["model_digest"] != second["labels"]["model_digest"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_package_is_neither_deployed_nor_served(
    cloud: LocalCloud,
    uploaded: str,
    bucket: storage.Bucket,
    deploy: Callable[..., Any],
    kind: str,
) -> None:
    damage(bucket, uploaded, kind)
    code, err, models = deploy(uploaded)
    assert (code, models, err.count("\n")) == (1, [], 1)
    assert DAMAGES[kind] in err
    variables = {**cloud.environment, "AIP_STORAGE_URI": uploaded}
    with process(environment=variables) as (_, client):
        wait_until(lambda: client.get("/health").status != 503)
        reason = client.get("/health").json["reason"]
    assert "\n" not in reason
    assert DAMAGES[kind] in reason
