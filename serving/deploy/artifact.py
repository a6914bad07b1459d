"""A model package as a container of Vertex AI reads it: files of a folder in Cloud Storage."""

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
from model_handlers.formats.architecture import check_trusted
from model_handlers.manifest import MANIFEST_NAME
from serving.fetch import SCHEME, fetch_package

if TYPE_CHECKING:
    from model_handlers.artifact import ModelPackage

# The pre-built containers look for no other name.
ARCHIVE_NAME = "model.mar"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A checked package. sha256: of its model file. folder: of Cloud Storage, if it has one."""

    name: str
    version: str
    sha256: str
    files: Mapping[str, bytes]
    folder: str | None = None

    @property
    def id(self) -> str:
        """Its name as an id of Vertex AI's registry of models."""
        text = re.sub(r"[^a-z0-9_-]", "-", self.name.lower()).lstrip("-0123456789")
        return text[:63] or "model"

    @property
    def digest(self) -> str:
        """Hex sha256 over all files and their names."""
        digest = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(data).digest())
        return digest.hexdigest()


def is_in_place(path: str) -> bool:
    """A package's path -> whether a container can read it there: a folder of Cloud Storage."""
    return path.startswith(SCHEME) and not path.endswith((".mar", MANIFEST_NAME))


def read_artifact(
    path: str,
    cloud: Cloud,
    *,
    prebuilt: bool,
    digest: str | None,
    trusted_modules: Sequence[str] = (),
) -> Artifact:
    """A package's path, here or in Cloud Storage -> the Artifact.

    prebuilt: for a container of Google's, which takes a .mar alone. Raises ModelError;
    UnsafeModel if the package names code of another module than the trusted ones.
    """
    from model_handlers.artifact import read_package

    with tempfile.TemporaryDirectory(prefix="millrace-model-") as folder:
        local = Path(fetch_package(path, Path(folder), cloud))
        package = read_package(str(local), digest)
        if package.manifest is not None:
            check_trusted(package.manifest, trusted_modules)
        return _artifact(package, local, path, prebuilt=prebuilt)


def _artifact(package: ModelPackage, local: Path, path: str, *, prebuilt: bool) -> Artifact:
    if package.manifest is None:
        raise ModelError(
            f"model {path} has no {MANIFEST_NAME}: make a package with "
            f"{as_typed('model_handlers.package')}"
        )
    is_archive = local.suffix == ".mar"
    if prebuilt and not is_archive:
        raise ModelError(
            f"model {path}: the pre-built container takes a .mar; give one, or an --image of "
            "your own (serving/Dockerfile)"
        )
    if is_archive:
        name = ARCHIVE_NAME if prebuilt else local.name
        files = {name: local.read_bytes()}
    else:
        manifest = local if local.name == MANIFEST_NAME else local / MANIFEST_NAME
        files = {MANIFEST_NAME: manifest.read_bytes(), package.file: package.data}
    in_place = is_in_place(path)
    if in_place and prebuilt and local.name != ARCHIVE_NAME:
        raise ModelError(
            f"model {path}: the pre-built container wants the archive to be called "
            f"{ARCHIVE_NAME}, and it is {local.name}: name the file itself and --staging"
        )
    folder = path.rstrip("/") if in_place else None
    return Artifact(
        name=package.manifest.name,
        version=package.manifest.version,
        sha256=package.sha256,
        files=files,
        folder=folder,
    )


def stage(artifact: Artifact, staging: str, put: Callable[[str, str, bytes], None]) -> str:
    """An artifact, a folder gs://BUCKET/PREFIX -> the folder of Cloud Storage that has it.

    put: called with bucket, name and bytes. Each content has a folder of its own, so nothing
    that is served ever changes.
    """
    if artifact.folder is not None:
        return artifact.folder
    folder = f"{staging.rstrip('/')}/{artifact.id}/{artifact.digest[:16]}"
    bucket, _, prefix = folder.removeprefix(SCHEME).partition("/")
    for name, data in artifact.files.items():
        put(bucket, f"{prefix}/{name}", data)
    return folder


def uploader(cloud: Cloud, say: Callable[[str], None]) -> Callable[[str, str, bytes], None]:
    """A Cloud, a printer of lines -> what `stage` calls. Raises OutputError, CredentialsError."""
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
                # Its folder is named by the content: it is there already.
                return
            say(f"uploaded {SCHEME}{bucket}/{name} ({len(data):,} bytes)")

    return put
