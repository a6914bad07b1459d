"""Write model packages: folders, and archives for TorchServe."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from model_handlers.manifest import MANIFEST_NAME, Manifest
from model_handlers.manifest_json import write_manifest
from model_handlers.read_package import MAR_MANIFEST

_NO_FILES: Mapping[str, bytes] = {}


def write_package(
    folder: Path, data: bytes, manifest: Manifest, files: Mapping[str, bytes] = _NO_FILES
) -> None:
    """Write a model file, its manifest and other files to a folder, which is created if needed.

    Args:
        folder: The folder of the package.
        data: The bytes of the model file.
        manifest: The manifest of the model. It names the model file.
        files: The content of the other files that the manifest names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / manifest.file).write_bytes(data)
    for name in manifest.files:
        (folder / name).write_bytes(files[name])
    (folder / MANIFEST_NAME).write_text(write_manifest(manifest))


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
        files: The content of the other files that the manifest names.
    """
    listing = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": manifest.name,
            "serializedFile": manifest.file,
            "handler": "handler.py",
            "modelVersion": manifest.version,
        },
        "archiverVersion": "0.12.0",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (
            (MAR_MANIFEST, json.dumps(listing, indent=2).encode()),
            ("handler.py", handler.encode()),
            (MANIFEST_NAME, write_manifest(manifest).encode()),
            (manifest.file, data),
            *((name, files[name]) for name in manifest.files),
        ):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
