"""Write a model package: a folder, or a TorchServe archive (`.mar`)."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from common.errors import UsageError
from model_handlers.manifests.manifest import MANIFEST_NAME, Manifest
from model_handlers.manifests.model_json import write_manifest
from model_handlers.read_package import MAR_MANIFEST

_HANDLER = "handler.py"
_NO_FILES: Mapping[str, bytes] = {}


def write_package(
    folder: Path, data: bytes, manifest: Manifest, files: Mapping[str, bytes] = _NO_FILES
) -> None:
    """Write a model file, its manifest and its other files to a package folder.

    Args:
        folder: The folder of the package, which is created if needed.
        data: The bytes of the model file.
        manifest: The manifest of the model. It names the model file and the other files.
        files: The bytes of the other files, such as vocabularies, by name.

    Raises:
        UsageError: The other files are not those that the manifest names.
    """
    contents = _contents(data, manifest, files)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def write_mar(
    path: Path,
    data: bytes,
    manifest: Manifest,
    handler: str,
    files: Mapping[str, bytes] = _NO_FILES,
) -> None:
    """Write a TorchServe archive (`.mar`) that is also a model package.

    Args:
        path: The path of the archive.
        data: The bytes of the model file.
        manifest: The manifest of the model.
        handler: The Python source of the TorchServe handler.
        files: The bytes of the other files that the manifest names, by name.

    Raises:
        UsageError: The other files are not those that the manifest names, or one has the name of
            the handler.
    """
    listing = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": manifest.name,
            "serializedFile": manifest.file,
            "handler": _HANDLER,
            "modelVersion": manifest.version,
        },
        "archiverVersion": "0.12.0",
    }
    own = {MAR_MANIFEST: json.dumps(listing, indent=2).encode(), _HANDLER: handler.encode()}
    contents = _contents(data, manifest, files)
    # TorchServe extracts the archive into a folder, whose names may be the same in another case.
    taken = {_HANDLER, MAR_MANIFEST.partition("/")[0].lower()}
    for name in contents:
        if name.lower() in taken:
            raise UsageError(
                f"archive {path}: the file {name!r} has the name of a part of every .mar: give it "
                "another name"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (own | contents).items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def _contents(data: bytes, manifest: Manifest, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the bytes of all files of a package by name, in the order of `file_names`."""
    if files.keys() != manifest.files.keys():
        raise UsageError(
            f"package {manifest.name}: expected the files that {MANIFEST_NAME} names "
            f"({', '.join(manifest.files) or 'none'}), got {', '.join(files) or 'none'}"
        )
    for name, content in files.items():
        found = hashlib.sha256(content).hexdigest()
        if found != manifest.files[name]:
            raise UsageError(
                f"package {manifest.name}: {MANIFEST_NAME} expects sha256 {manifest.files[name]} "
                f"of the file {name}, got a file with {found}"
            )
    return {MANIFEST_NAME: write_manifest(manifest).encode(), manifest.file: data, **files}
