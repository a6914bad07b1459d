"""A model package in Cloud Storage to a folder of this machine."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import ModelError
from model_handlers.manifest import MANIFEST_NAME
from model_handlers.manifest_json import parse_manifest

if TYPE_CHECKING:
    from google.cloud import storage

SCHEME = "gs://"


def fetch_package(path: str, folder: Path, cloud: Cloud) -> str:
    """A package's path and an empty folder -> the package's path on this machine.

    Of a folder of Cloud Storage the model's files alone are fetched. A folder without
    model.json that holds one .mar means that. Raises ModelError, CredentialsError.
    """
    if path.startswith(SCHEME):
        with translate_errors(ModelError, f"model {path} cannot be read"):
            path = _fetch(path, folder, cloud.storage())
    archives = sorted(Path(path).glob("*.mar")) if Path(path).is_dir() else []
    if len(archives) == 1 and not (Path(path) / MANIFEST_NAME).exists():
        return str(archives[0])
    return path


def _fetch(path: str, folder: Path, client: storage.Client) -> str:
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    prefix = name.rstrip("/") + "/" if name else ""
    listed = client.list_blobs(bucket, prefix=prefix, delimiter="/", retry=retry())
    blobs = {posixpath.basename(blob.name): blob for blob in listed}
    blobs.pop("", None)
    if not blobs and name and not name.endswith("/"):
        # Not a folder: one file.
        target = folder / posixpath.basename(name)
        client.bucket(bucket).blob(name).download_to_filename(str(target), retry=retry())
        return str(target)
    wanted = [found for found in blobs if found.endswith(".mar")]
    if MANIFEST_NAME in blobs:
        text = blobs[MANIFEST_NAME].download_as_bytes(retry=retry())
        wanted = [MANIFEST_NAME, parse_manifest(text).file]
    for found in wanted:
        if found not in blobs:
            raise ModelError(f"model {path}: {MANIFEST_NAME} names {found}, which is not there")
        blobs[found].download_to_filename(str(folder / found), retry=retry())
    if not wanted:
        raise ModelError(
            f"no model at {path}: expected {MANIFEST_NAME} or a .mar in the folder, which holds "
            f"{', '.join(sorted(blobs)[:10]) or 'nothing'}"
        )
    return str(folder)
