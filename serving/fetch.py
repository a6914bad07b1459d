"""Copy a model package, and wheels with the user's code, from Cloud Storage to this machine."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError, ModelError
from model_handlers.manifests.manifest import MANIFEST_NAME
from model_handlers.read_package import read_manifest_text, refuse_missing
from model_handlers.wheels import importable, read_wheels, refuse_unfit

if TYPE_CHECKING:
    from google.cloud import storage

SCHEME = "gs://"


def fetch_package(path: str, folder: Path, cloud: Cloud) -> str:
    """Return the path of a package on this machine, after fetching it from Cloud Storage if needed.

    From a folder in Cloud Storage, only the files of the model are fetched. If the folder has no
    model.json and contains one .mar, the package is that .mar.

    Args:
        path: The package: a local path, or `gs://BUCKET/PATH` of a folder or a file.
        folder: An empty folder for the fetched files.
        cloud: The connection to Google Cloud.

    Returns:
        A path in `folder` for a package in Cloud Storage, otherwise a local path.

    Raises:
        ModelError: If there is no package, or it cannot be read.
        CredentialsError: If there are no usable Google Cloud credentials.
    """
    if path.startswith(SCHEME):
        with translate_errors(ModelError, f"model {path} cannot be read"):
            path = _fetch(path, folder, cloud.storage())
    archives = sorted(Path(path).glob("*.mar")) if Path(path).is_dir() else []
    if len(archives) == 1 and not (Path(path) / MANIFEST_NAME).exists():
        return str(archives[0])
    return path


@contextmanager
def extra_packages(paths: Sequence[str]) -> Iterator[None]:
    """Make the modules of wheels importable in the block, also of wheels in Cloud Storage.

    Args:
        paths: The wheels: local paths, or `gs://BUCKET/PATH`.

    Raises:
        UsageError: A wheel cannot be used.
        InputError: A wheel in Cloud Storage cannot be read.
        CredentialsError: There are no usable Google Cloud credentials.
    """
    with TemporaryDirectory(prefix="millrace-wheels-", ignore_cleanup_errors=True) as folder:
        wheels = read_wheels([_fetch_wheel(path, Path(folder)) for path in paths])
        refuse_unfit(wheels)
        with importable(wheels):
            yield


def _fetch_wheel(path: str, folder: Path) -> str:
    """Return the path of a wheel on this machine, after fetching it if needed."""
    if not path.startswith(SCHEME):
        return path
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    target = folder / posixpath.basename(name)
    with translate_errors(InputError, f"--extra_packages {path} cannot be read"):
        blob = Cloud("serving").storage().bucket(bucket).blob(name)
        blob.download_to_filename(str(target), retry=retry())
    return str(target)


def _fetch(path: str, folder: Path, client: storage.Client) -> str:
    if path.endswith(f"/{MANIFEST_NAME}"):
        return str(Path(_fetch(posixpath.dirname(path), folder, client)) / MANIFEST_NAME)
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    prefix = name.rstrip("/") + "/" if name else ""
    listed = client.list_blobs(bucket, prefix=prefix, delimiter="/", retry=retry())
    blobs = {posixpath.basename(blob.name): blob for blob in listed}
    blobs.pop("", None)
    if not blobs and name and not name.endswith("/"):
        # The path is a file, not a folder.
        target = folder / posixpath.basename(name)
        client.bucket(bucket).blob(name).download_to_filename(str(target), retry=retry())
        return str(target)
    wanted = [found for found in blobs if found.endswith(".mar")]
    if MANIFEST_NAME in blobs:
        text = blobs[MANIFEST_NAME].download_as_bytes(retry=retry())
        wanted = list(read_manifest_text(text, path).file_names)
    for found in wanted:
        if found not in blobs:
            refuse_missing(path, found)
        blobs[found].download_to_filename(str(folder / found), retry=retry())
    if not wanted:
        raise ModelError(
            f"no model at {path}: expected a folder with {MANIFEST_NAME} or a .mar, found "
            f"{', '.join(sorted(blobs)[:10]) or 'nothing'}"
        )
    return str(folder)
