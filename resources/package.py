"""A model package of this machine as the files that are uploaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.addresses import path_fault
from common.errors import UsageError
from model_handlers.artifact import read_package
from model_handlers.formats.architecture import check_trusted
from model_handlers.manifest import MANIFEST_NAME


@dataclass(frozen=True, kw_only=True)
class Package:
    """A checked package. file: the model's, sha256: its digest.

    version: empty where there is no manifest.
    """

    name: str
    version: str
    file: str
    sha256: str
    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """Hex sha256 over all files and their names: a change of the manifest is a change too."""
        digest = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(data).digest())
        return digest.hexdigest()

    def address(self, folder: str) -> str:
        """The folder that has the files -> what pipelines take as --model."""
        return folder if MANIFEST_NAME in self.files else folder + self.file

    def pointer(self, folder: str) -> dict[str, Any]:
        """The folder that has the files -> what current.json says."""
        return {
            "model": self.address(folder),
            "folder": folder,
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "digest": self.digest,
            "files": {name: checksum_of(data) for name, data in self.files.items()},
        }


def checksum_of(data: bytes) -> str:
    """Bytes -> their CRC32C as Cloud Storage tells it of an object."""
    import google_crc32c

    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def open_package(path: str, trusted_modules: Sequence[str] = ()) -> Package:
    """A folder with model.json, a .mar or a model file -> Package. Raises ModelError, UsageError.

    trusted_modules: top-level names of those that its architecture may import. Of a .mar
    the model file is taken out, and uploaded beside it.
    """
    if fault := path_fault(path):
        raise UsageError(f"model: {fault}")
    if "://" in path:
        raise UsageError(f"model {path}: expected a package of this machine, which is uploaded")
    package = read_package(path)
    files = {package.file: package.data}
    if path.endswith(".mar"):
        files[Path(path).name] = Path(path).read_bytes()
    if package.manifest is None:
        return Package(
            name=Path(package.file).stem,
            version="",
            file=package.file,
            sha256=package.sha256,
            files=files,
        )
    manifest = package.manifest
    check_trusted(manifest, trusted_modules)
    # As it was read, except of a .mar.
    beside = Path(path) / MANIFEST_NAME if Path(path).is_dir() else Path(path)
    if beside.name != MANIFEST_NAME:
        beside = beside.with_name(MANIFEST_NAME)
    is_archive = path.endswith(".mar")
    files[MANIFEST_NAME] = manifest.to_json().encode() if is_archive else beside.read_bytes()
    return Package(
        name=manifest.name,
        version=manifest.version,
        file=package.file,
        sha256=package.sha256,
        files=files,
    )
