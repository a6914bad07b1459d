"""A model package as bytes: read once, checked, and only then handed to a loader.

`read_package` takes a folder with `model.json`, a `.mar`, or a bare model file, on
any filesystem Beam knows. The digest is computed over the very bytes that are
returned, so nothing can change between the check and the load.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from dataclasses import dataclass

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from model_handlers.contract import MANIFEST_NAME, Manifest
from model_handlers.errors import DigestMismatch, ManifestError, ModelError, UnsafeModel

MAR_MANIFEST = "MAR-INF/MANIFEST.json"
MAX_ARCHIVE_BYTES = 32 << 30
# A model's weights hardly compress; a bomb's zeros do, about 1,000 times.
MAX_EXPANSION = 100
_CHUNK = 1 << 20


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
    """
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
    try:
        # AUTO would silently decompress a name that ends in .gz: a digest is over the file.
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as handle:
            return bytes(handle.read())
    except (BeamIOError, OSError, ValueError) as error:
        raise ModelError(f"model file {path} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def exists(path: str) -> bool:
    """A path on any Beam filesystem -> whether a file lies there."""
    try:
        return bool(FileSystems.exists(path))
    except (BeamIOError, OSError, ValueError):
        return False


def _read_folder_or_file(path: str) -> ModelPackage:
    """A folder with a manifest, or one model file beside or without a manifest -> package."""
    manifest_path = FileSystems.join(path, MANIFEST_NAME)
    if path.endswith(MANIFEST_NAME):
        path, manifest_path = FileSystems.split(path)[0], path
    if exists(manifest_path):
        manifest = Manifest.from_json(read_bytes(manifest_path))
        data = read_bytes(FileSystems.join(path, manifest.file))
        return ModelPackage(manifest.file, data, manifest)
    if not exists(path) or path.endswith("/"):
        raise ModelError(
            f"no model at {path}: expected a folder with {MANIFEST_NAME}, a .mar, or a model file "
            "(.pt2, .pt, .safetensors)"
        )
    return _read_file(path)


def _read_file(path: str) -> ModelPackage:
    """One model file -> package, with the manifest of its folder if that one names it."""
    try:
        data = read_bytes(path)
    except ModelError as error:
        raise ModelError(
            f"{error}; a folder needs {MANIFEST_NAME} to be a model package"
        ) from error
    folder, name = FileSystems.split(path)
    beside = FileSystems.join(folder, MANIFEST_NAME) if folder else MANIFEST_NAME
    if exists(beside):
        manifest = Manifest.from_json(read_bytes(beside))
        if manifest.file == name:
            return ModelPackage(name, data, manifest)
    return ModelPackage(name, data, None)


def _read_mar(path: str) -> ModelPackage:
    """A TorchServe archive -> its serialized file. The handler in it is never run.

    Nothing is extracted to disk. Raises UnsafeModel, ModelError.
    """
    data = read_bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_archive(archive, path)
            names = set(archive.namelist())
            file = _serialized_file(archive, names, path)
            manifest = None
            if MANIFEST_NAME in names:
                manifest = Manifest.from_json(_member(archive, MANIFEST_NAME))
                if manifest.file != file:
                    raise ManifestError(
                        f"{path}: {MANIFEST_NAME} describes {manifest.file!r}, but the archive "
                        f"serves {file!r}"
                    )
            return ModelPackage(file, _member(archive, file), manifest)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise ModelError(
            f"{path} is not a readable .mar (a zip archive): {_first_line(error)}; it may be "
            "truncated: copy it again"
        ) from error


def _serialized_file(archive: zipfile.ZipFile, names: set[str], path: str) -> str:
    """An open .mar -> the name of the model file that its MANIFEST.json serves."""
    try:
        file = json.loads(_member(archive, MAR_MANIFEST))["model"]["serializedFile"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: expected {MAR_MANIFEST} with model.serializedFile, as torch-model-archiver "
            "writes it"
        ) from error
    if file not in names:
        raise ModelError(f"{path}: {MAR_MANIFEST} serves {file!r}, which the archive lacks")
    return str(file)


def check_archive(archive: zipfile.ZipFile, path: str) -> None:
    """An open zip -> nothing, or UnsafeModel: absolute or `..` paths, links, bombs, twins."""
    entries = archive.infolist()
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if entry.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise UnsafeModel(f"{path}: entry {entry.filename!r} points outside the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UnsafeModel(f"{path}: entry {entry.filename!r} is a link")
    if len({entry.filename for entry in entries}) != len(entries):
        raise UnsafeModel(f"{path}: two entries share one name")
    size = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if size > MAX_ARCHIVE_BYTES or size > MAX_EXPANSION * max(packed, 1 << 10):
        raise UnsafeModel(
            f"{path}: {packed:,} bytes would expand to {size:,}; at most {MAX_EXPANSION} times "
            f"and {MAX_ARCHIVE_BYTES:,} bytes are accepted"
        )


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """An open, checked zip and an entry -> its bytes, never more than its header promises."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as handle:
        chunks: list[bytes] = []
        while sum(map(len, chunks)) <= size and (chunk := handle.read(_CHUNK)):
            chunks.append(chunk)
    return b"".join(chunks)
