"""A model package as bytes: read once, checked, and only then handed to a loader.

`read_package` takes a folder with `model.json`, a `.mar`, or a bare model file, on
any filesystem Beam knows, which is loaded only for paths of other machines. The digest is
computed over the very bytes that are returned, so nothing can change between the check and
the load.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

from common.addresses import path_fault
from common.errors import (
    DigestMismatch,
    ManifestError,
    ModelError,
    UnsafeModel,
    UsageError,
)
from model_handlers.manifest import MANIFEST_NAME, Manifest
from model_handlers.manifest_json import parse_manifest
from model_handlers.model_errors import as_model_error

MAR_MANIFEST = "MAR-INF/MANIFEST.json"
MAX_ARCHIVE_BYTES = 32 << 30
# A model's weights hardly compress; a bomb's zeros do, about 1,000 times.
MAX_EXPANSION = 100


@dataclass(frozen=True)
class ModelPackage:
    """The model file's bytes, its name, and the manifest if the package has one."""

    file: str
    data: bytes
    manifest: Manifest | None

    @property
    def sha256(self) -> str:
        """Hex digest of `data`."""
        return hashlib.sha256(self.data).hexdigest()


def read_package(path: str, digest: str | None = None) -> ModelPackage:
    """A package's path, and the digest it must have -> its checked bytes and manifest.

    digest: hex sha256 of the model file, with or without the prefix `sha256:`. The
    manifest's own digest is checked as well.

    Raises:
        ModelError: the path does not exist or is not a model package.
        ManifestError: `model.json` is not valid.
        DigestMismatch: the bytes are not the promised ones.
        UnsafeModel: an archive with paths, links or sizes that no model needs.
        UsageError: the path is a web address, or holds credentials.
    """
    if fault := path_fault(path):
        raise UsageError(f"model: {fault}")
    with as_model_error(f"model {path} cannot be read"):
        package = _read_mar(path) if path.endswith(".mar") else _read_folder_or_file(path)
    if package.manifest is not None:
        _check_digest(path, package, package.manifest.sha256, f"the manifest {MANIFEST_NAME}")
    if digest:
        _check_digest(path, package, digest.removeprefix("sha256:").lower(), "--model_digest")
    return package


def _check_digest(path: str, package: ModelPackage, expected: str, source: str) -> None:
    if package.sha256 != expected:
        raise DigestMismatch(
            f"model {path}: {source} promises sha256 {expected}, the file {package.file} has "
            f"{package.sha256}: the model was changed or damaged; package it again, or give the "
            "digest of the model that you want"
        )


def read_bytes(path: str) -> bytes:
    """A path on any Beam filesystem -> the file's bytes. Raises ModelError."""
    with as_model_error(f"{path} cannot be read"):
        if _is_local(path):
            return Path(path).read_bytes()
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        # AUTO would silently decompress a name that ends in .gz: a digest is over the file.
        kind = CompressionTypes.UNCOMPRESSED
        with FileSystems.open(path, compression_type=kind) as handle:
            return bytes(handle.read())


def _is_local(path: str) -> bool:
    return "://" not in path


def _exists(path: str) -> bool:
    if _is_local(path):
        return Path(path).exists()
    from apache_beam.io.filesystems import FileSystems

    return bool(FileSystems.exists(path))


def _read_folder_or_file(path: str) -> ModelPackage:
    """A folder with a manifest, or one model file beside or without a manifest -> package."""
    manifest_path = posixpath.join(path, MANIFEST_NAME)
    if path.endswith(MANIFEST_NAME):
        path, manifest_path = posixpath.split(path)[0], path
    if _exists(manifest_path):
        manifest = parse_manifest(read_bytes(manifest_path))
        data = read_bytes(posixpath.join(path, manifest.file))
        return ModelPackage(manifest.file, data, manifest)
    # A folder of this machine exists without a slash as well.
    if not _exists(path) or path.endswith("/") or Path(path).is_dir():
        raise ModelError(
            f"no model at {path}: expected a folder with {MANIFEST_NAME}, a .mar, or a model file "
            "(.pt2, .pt, .safetensors)"
        )
    return _read_file(path)


def _read_file(path: str) -> ModelPackage:
    """One model file -> package, with the manifest of its folder if that one names it."""
    data = read_bytes(path)
    folder, name = posixpath.split(path)
    beside = posixpath.join(folder, MANIFEST_NAME) if folder else MANIFEST_NAME
    if _exists(beside):
        manifest = parse_manifest(read_bytes(beside))
        if manifest.file == name:
            return ModelPackage(name, data, manifest)
    return ModelPackage(name, data, None)


def _read_mar(path: str) -> ModelPackage:
    """A TorchServe archive -> its serialized file. The handler in it is never run.

    Nothing is extracted to disk. Raises UnsafeModel, ModelError.
    """
    data = read_bytes(path)
    with (
        as_model_error(f"{path} is not a readable .mar (a zip archive), it may be truncated"),
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):
        check_names(archive, path)
        check_size(archive, len(data), path)
        file = _serialized_file(archive, path)
        manifest = None
        if MANIFEST_NAME in archive.namelist():
            manifest = parse_manifest(_member(archive, MANIFEST_NAME))
            if manifest.file != file:
                raise ManifestError(
                    f"{path}: {MANIFEST_NAME} describes {manifest.file!r}, but the archive "
                    f"serves {file!r}"
                )
        return ModelPackage(file, _member(archive, file), manifest)


def _serialized_file(archive: zipfile.ZipFile, path: str) -> str:
    """An open .mar -> the name of the model file that its MANIFEST.json serves."""
    try:
        file = json.loads(_member(archive, MAR_MANIFEST))["model"]["serializedFile"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: expected {MAR_MANIFEST} with model.serializedFile, as torch-model-archiver "
            "writes it; the archive may be truncated"
        ) from error
    if not isinstance(file, str) or file not in archive.namelist():
        raise ModelError(f"{path}: {MAR_MANIFEST} serves {file!r}, which the archive lacks")
    return file


def check_names(archive: zipfile.ZipFile, path: str) -> None:
    """An open zip -> nothing, or UnsafeModel: absolute or `..` paths, links, two of one name.

    Other compressions than torch-model-archiver's are refused too: Python's readers of
    these cannot be told how much to unpack.
    """
    entries = archive.infolist()
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if entry.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise UnsafeModel(f"{path}: entry {entry.filename!r} points outside the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UnsafeModel(f"{path}: entry {entry.filename!r} is a link")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsafeModel(f"{path}: entry {entry.filename!r} is neither stored nor deflated")
    if len({entry.filename for entry in entries}) != len(entries):
        raise UnsafeModel(f"{path}: two entries share one name")


def check_size(archive: zipfile.ZipFile, packed: int, path: str) -> None:
    """An open zip of `packed` bytes -> nothing, or UnsafeModel: it expands beyond all measure."""
    size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_ARCHIVE_BYTES or size > MAX_EXPANSION * packed:
        raise UnsafeModel(
            f"{path}: {packed:,} bytes would expand to {size:,}; at most {MAX_EXPANSION} times "
            f"and {MAX_ARCHIVE_BYTES:,} bytes are accepted"
        )


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """An open, checked zip and an entry -> its bytes, never more than its header promises."""
    with archive.open(name) as handle:
        return handle.read(archive.getinfo(name).file_size + 1)
