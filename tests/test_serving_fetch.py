"""Only the files of a package are fetched from Cloud Storage to this machine."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from serving_client import process, until_ready

from common.errors import ManifestError, ModelError
from examples.local_cloud import LocalCloud
from model_handlers.package import read_manifest
from serving.fetch import fetch_package


@pytest.fixture
def upload(emulators: LocalCloud, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Return a function that uploads files and returns their folder in Cloud Storage."""

    def put(files: Mapping[str, bytes]) -> str:
        folder = f"fetch/{abs(hash(request.node.nodeid)):x}"
        for name, data in files.items():
            blob = emulators.cloud.storage().bucket("bucket").blob(f"{folder}/{name}")
            blob.upload_from_string(data)
        return f"gs://bucket/{folder}"

    return put


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("slash", ["", "/"])
def test_only_the_models_files_are_fetched_from_a_folder(
    emulators: LocalCloud, upload: Callable[..., str], example: Path, tmp_path: Path, slash: str
) -> None:
    package = files_of(example / "model")
    uri = upload({**package, "notes.txt": b"text", "deeper/large.bin": b"0" * 1000})
    path = fetch_package(uri + slash, tmp_path, emulators.cloud)
    assert files_of(Path(path)) == package
    assert read_manifest(path).name == "pytorch-autoencoder"


def test_a_mar_is_fetched_by_its_folder_and_by_its_name(
    emulators: LocalCloud, upload: Callable[..., str], example: Path, tmp_path: Path
) -> None:
    data = (example / "pytorch_autoencoder.mar").read_bytes()
    uri = upload({"autoencoder.mar": data})
    for number, given in enumerate((uri, f"{uri}/autoencoder.mar")):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = fetch_package(given, folder, emulators.cloud)
        assert Path(path) == folder / "autoencoder.mar"
        assert Path(path).read_bytes() == data


def test_a_local_path_is_returned_unchanged(
    emulators: LocalCloud, example: Path, tmp_path: Path
) -> None:
    for path in ("model", "model/model.pt", "pytorch_autoencoder.mar"):
        given = str(example / path)
        assert fetch_package(given, tmp_path, emulators.cloud) == given
    assert not list(tmp_path.iterdir())


def test_a_path_without_a_package_is_an_error(
    emulators: LocalCloud, upload: Callable[..., str], example: Path, tmp_path: Path
) -> None:
    manifest = (example / "model" / "model.json").read_bytes()
    with pytest.raises(ModelError, match=r"or a \.mar, found notes\.txt"):
        fetch_package(upload({"notes.txt": b""}), tmp_path, emulators.cloud)
    with pytest.raises(ModelError, match=r"names the file 'model\.pt', which is not in the folder"):
        fetch_package(upload({"model.json": manifest}), tmp_path, emulators.cloud)
    with pytest.raises(ManifestError):
        fetch_package(upload({"model.json": b"{}"}), tmp_path, emulators.cloud)
    for missing in ("gs://bucket/nothing/here", "gs://no-such-bucket/model"):
        with pytest.raises(ModelError, match="cannot be read"):
            fetch_package(missing, tmp_path, emulators.cloud)


def test_a_package_in_cloud_storage_is_fetched_and_served(
    emulators: LocalCloud, upload: Callable[..., str], example: Path
) -> None:
    uri = upload(files_of(example / "model"))
    variables = {**emulators.environment, "AIP_STORAGE_URI": uri}
    with process(environment=variables) as (_, client):
        until_ready(client)
        assert len(client.predict([[0.1] * 30]).json["predictions"]) == 1
