"""Reads a local model package as the files that setup uploads."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.addresses import path_fault
from common.errors import UsageError
from model_handlers.manifests.manifest import MANIFEST_NAME, Manifest
from model_handlers.read_package import read_package
from model_handlers.trusted_code import check_trusted


@dataclass(frozen=True, kw_only=True)
class Package:
    """A checked model package.

    Attributes:
        name: The name in the manifest. Without a manifest, the name of the model file.
        version: The version in the manifest, empty if there is no manifest.
        file: The name of the model file.
        sha256: The hex digest of the model file.
        files: The contents of all files to upload, by name.
        manifest: The manifest, None if the package has none.
    """

    name: str
    version: str
    file: str
    sha256: str
    files: Mapping[str, bytes]
    manifest: Manifest | None = None

    @property
    def digest(self) -> str:
        """The hex SHA-256 of all names and contents, so that a new manifest changes it too."""
        digest = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(data).digest())
        return digest.hexdigest()

    def address(self, folder: str) -> str:
        """Return the value of --model if the files are in this folder, which ends with `/`."""
        return folder if MANIFEST_NAME in self.files else folder + self.file

    def pointer(self, folder: str) -> dict[str, Any]:
        """Return the contents of current.json if the files are in this folder (ending with `/`)."""
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
    """Return the CRC32C of the bytes in the form that Cloud Storage reports for an object."""
    import google_crc32c

    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def open_package(path: str, trusted_modules: Sequence[str] = ()) -> Package:
    """Read and check a local model package.

    Args:
        path: A folder with model.json, a .mar file or a model file. If it is a .mar file, the
            package contains the archive and also the files extracted from it.
        trusted_modules: Top-level Python modules that the package may import.

    Returns:
        The package with the contents of its files.

    Raises:
        ModelError: The package cannot be used.
        UsageError: The path is not a local path.
    """
    if fault := path_fault(path):
        raise UsageError(f"model: {fault}")
    if "://" in path:
        raise UsageError(f"model {path}: expected a local package, which setup uploads")
    package = read_package(path)
    files = package.contents
    if path.endswith(".mar"):
        files[Path(path).name] = Path(path).read_bytes()
    manifest = package.manifest
    if manifest is not None:
        check_trusted(manifest, trusted_modules)
    return Package(
        name=Path(package.file).stem if manifest is None else manifest.name,
        version="" if manifest is None else manifest.version,
        file=package.file,
        sha256=package.sha256,
        files=files,
        manifest=manifest,
    )
