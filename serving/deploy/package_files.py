"""The files of a model package, in the folder of Cloud Storage that a container reads."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.command_names import as_typed
from common.errors import ModelError, OutputError
from model_handlers.manifests.manifest import MANIFEST_NAME
from model_handlers.trials.try_package import try_package
from model_handlers.trusted_code import check_trusted
from serving.fetch import SCHEME, fetch_package

if TYPE_CHECKING:
    from model_handlers.read_package import ModelPackage

# The pre-built containers look only for this name.
ARCHIVE_NAME = "model.mar"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A checked package.

    Attributes:
        name: The name of the model.
        version: The version of the model.
        model_digest: The digest that names the model in predictions.
        files: The content of each file by name.
        folder: The folder in Cloud Storage where the package already is, or None.
    """

    name: str
    version: str
    model_digest: str
    files: Mapping[str, bytes]
    folder: str | None = None

    @property
    def id(self) -> str:
        """The name of the model, as an id in Vertex AI's model registry."""
        text = re.sub(r"[^a-z0-9_-]", "-", self.name.lower()).lstrip("-0123456789")
        return text[:63] or "model"

    @property
    def digest(self) -> str:
        """The sha256 of all files and their names, in hexadecimal."""
        digest = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(data).digest())
        return digest.hexdigest()


def is_in_place(path: str) -> bool:
    """Return whether a container can read the package at this path: a folder in Cloud Storage."""
    return path.startswith(SCHEME) and not path.endswith((".mar", MANIFEST_NAME))


def read_artifact(
    path: str,
    cloud: Cloud,
    *,
    prebuilt: bool,
    digest: str | None,
    trusted_modules: Sequence[str] = (),
) -> Artifact:
    """Read a package, and check it by loading its model in another process.

    Args:
        path: The package, on this machine or in Cloud Storage.
        cloud: The connection to Google Cloud.
        prebuilt: Whether the package is for one of Google's containers, which read only a .mar.
        digest: The expected digest of the package or of its model file, or None.
        trusted_modules: The top-level Python modules that the package may import.

    Raises:
        ModelError: If the package cannot be used.
        UnsafeModel: If the package imports a module that is not trusted.
        CredentialsError: If there are no usable Google Cloud credentials.
    """
    from model_handlers.read_package import read_package

    with tempfile.TemporaryDirectory(prefix="millrace-model-") as folder:
        local = Path(fetch_package(path, Path(folder), cloud))
        package = read_package(str(local), digest)
        if package.manifest is not None:
            check_trusted(package.manifest, trusted_modules)
        artifact = _artifact(package, local, path, prebuilt=prebuilt)
        try_package(str(local), trusted_modules)
        return artifact


def _artifact(package: ModelPackage, local: Path, path: str, *, prebuilt: bool) -> Artifact:
    if package.manifest is None:
        raise ModelError(
            f"model {path} has no {MANIFEST_NAME}: create a package with "
            f"{as_typed('model_handlers.package')}"
        )
    is_archive = local.suffix == ".mar"
    if prebuilt and not is_archive:
        raise ModelError(
            f"model {path}: Google's pre-built container needs a .mar: pass one, or pass an "
            "--image of your own (see serving/Dockerfile)"
        )
    if is_archive:
        name = ARCHIVE_NAME if prebuilt else local.name
        files = {name: local.read_bytes()}
    else:
        files = package.contents
    in_place = is_in_place(path)
    if in_place and prebuilt and local.name != ARCHIVE_NAME:
        raise ModelError(
            f"model {path}: Google's pre-built container expects an archive named {ARCHIVE_NAME}, "
            f"got {local.name}: rename it, or pass --model {path.rstrip('/')}/{local.name} with "
            "--staging gs://BUCKET/FOLDER"
        )
    folder = path.rstrip("/") if in_place else None
    return Artifact(
        name=package.manifest.name,
        version=package.manifest.version,
        model_digest=package.digest,
        files=files,
        folder=folder,
    )


def stage(artifact: Artifact, staging: str, put: Callable[[str, str, bytes], None]) -> str:
    """Copy a package to Cloud Storage, unless it is there already.

    Each content gets its own folder, so a package that is being served never changes.

    Args:
        artifact: The package.
        staging: The folder for all packages, `gs://BUCKET/PREFIX`.
        put: A function that writes a file, called with its bucket, name and bytes.

    Returns:
        The folder in Cloud Storage that contains the package.
    """
    if artifact.folder is not None:
        return artifact.folder
    folder = f"{staging.rstrip('/')}/{artifact.id}/{artifact.digest[:16]}"
    bucket, _, prefix = folder.removeprefix(SCHEME).partition("/")
    for name, data in artifact.files.items():
        put(bucket, f"{prefix}/{name}", data)
    return folder


def uploader(cloud: Cloud, say: Callable[[str], None]) -> Callable[[str, str, bytes], None]:
    """Return a function for `stage` that uploads a file to Cloud Storage.

    Args:
        cloud: The connection to Google Cloud.
        say: A function that prints a line for each uploaded file.

    Raises:
        OutputError: If a file cannot be written.
        CredentialsError: If there are no usable Google Cloud credentials.
    """
    from google.api_core.exceptions import PreconditionFailed

    client = cloud.storage()

    def put(bucket: str, name: str, data: bytes) -> None:
        with translate_errors(OutputError, f"{SCHEME}{bucket}/{name} cannot be written"):
            blob = client.bucket(bucket).blob(name)
            try:
                blob.upload_from_string(
                    data,
                    "application/octet-stream",
                    if_generation_match=0,
                    retry=retry(cloud.retry_seconds),
                )
            except PreconditionFailed:
                # The file exists. Its folder is named after the content, so it is the same file.
                return
            say(f"uploaded {SCHEME}{bucket}/{name} ({len(data):,} bytes)")

    return put
