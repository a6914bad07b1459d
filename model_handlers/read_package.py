"""Read a model package as bytes, and check it before anything is loaded.

`read_package` reads a folder with `model.json`, a `.mar`, or a bare model file, from any filesystem
that Beam supports. Beam is imported only for paths that are not on this machine. The digest is
computed from the bytes that are returned, so the file cannot change between the check and the load.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from common.addresses import path_fault
from common.errors import (
    DigestMismatch,
    ManifestError,
    ModelError,
    UsageError,
)
from common.terminal import long_step
from model_handlers.manifests.manifest import MANIFEST_NAME, GoldenRows, Manifest
from model_handlers.manifests.model_json import parse_manifest
from model_handlers.model_errors import as_model_error
from model_handlers.zip_checks import check_names, check_size

MAR_MANIFEST = "MAR-INF/MANIFEST.json"
# What to do if the entries of a .mar are wrong.
_AGAIN = "create the archive again with torch-model-archiver"


@dataclass(frozen=True)
class ModelPackage:
    """The content of a model package.

    Attributes:
        file: The name of the model file.
        data: The bytes of the model file.
        manifest: The manifest, or None if the package has none.
        files: The bytes of the other files that the manifest names.
        text: The bytes of `model.json`, or None if the package has none.
    """

    file: str
    data: bytes
    manifest: Manifest | None
    files: Mapping[str, bytes] = field(default_factory=dict)
    text: bytes | None = None

    @cached_property
    def sha256(self) -> str:
        """The hex digest of `data`."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def digest(self) -> str:
        """The digest that names the model in predictions."""
        return self.sha256 if self.manifest is None else self.manifest.digest

    @property
    def contents(self) -> dict[str, bytes]:
        """The bytes of all files of the package by name. A copy of a package has all of them."""
        manifest = {} if self.text is None else {MANIFEST_NAME: self.text}
        return {**manifest, self.file: self.data, **self.files}


def read_package(path: str, digest: str | None = None) -> ModelPackage:
    """Read a model package, and check its digest.

    Args:
        path: The path of a folder with `model.json`, a `.mar`, or a model file.
        digest: The digest that the package must have, with or without the prefix `sha256:`: that
            of its manifest, or the hex sha256 of its model file. None to check only the digests
            in the manifest.

    Returns:
        The bytes of all files of the package, and the manifest if there is one.

    Raises:
        ModelError: The path does not exist or is not a model package.
        ManifestError: `model.json` is not valid.
        DigestMismatch: A file or the package does not have the expected digest.
        UnsafeModel: The archive has paths, links or sizes that no model needs.
        UsageError: The path is a web address or contains credentials.
    """
    if fault := path_fault(path):
        raise UsageError(f"model: {fault}")
    with as_model_error(f"model {path} cannot be read"), long_step(f"reading model {path}"):
        package = _read_mar(path) if path.endswith(".mar") else _read_folder_or_file(path)
    found = f"the file {package.file} has {package.sha256}"
    if package.manifest is not None:
        if package.sha256 != package.manifest.sha256:
            _refuse_digest(path, found, package.manifest.sha256, f"the manifest {MANIFEST_NAME}")
        _check_files(path, package.files, package.manifest)
    if digest:
        expected = digest.removeprefix("sha256:").lower()
        if expected not in (package.sha256, package.digest):
            if package.digest != package.sha256:
                found += f", and the package, with its steps and their files, has {package.digest}"
            _refuse_digest(path, found, expected, "--model_digest")
    return package


def _refuse_digest(path: str, found: str, expected: str, source: str) -> NoReturn:
    raise DigestMismatch(
        f"model {path}: {source} expects sha256 {expected}, but {found}: the model was changed or "
        "damaged; package it again, or pass the digest of the model that you want"
    )


def package_bytes(path: str, manifest: Manifest) -> int:
    """Return the size of the files of a package in bytes, without reading them.

    Args:
        path: The path of the package.
        manifest: Its manifest, or the one that was inferred from its model file.

    Raises:
        ModelError: The size of a file cannot be read.
    """
    from apache_beam.io.filesystems import FileSystems

    paths = [path]
    if not path.endswith(".mar") and _exists(posixpath.join(_folder_of(path), MANIFEST_NAME)):
        names = (manifest.file, *manifest.files)
        paths = [posixpath.join(_folder_of(path), name) for name in names]
    with as_model_error(f"the size of model {path} cannot be read"):
        return sum(int(FileSystems.get_filesystem(each).size(each)) for each in paths)


def read_files(path: str, manifest: Manifest) -> Mapping[str, bytes]:
    """Read the files of a package besides the model file, and check their digests.

    Args:
        path: The path of the package, as `read_package` takes it.
        manifest: The manifest of the package.

    Returns:
        The bytes of each file, by name.

    Raises:
        ModelError: A file cannot be read.
        DigestMismatch: A file does not have the digest in the manifest.
    """
    if not manifest.files:
        return {}
    with as_model_error(f"model {path} cannot be read"):
        if path.endswith(".mar"):
            with _open_mar(path) as archive:
                files = _members(archive, manifest, path)
        else:
            files = _files_in(_folder_of(path), manifest)
    _check_files(path, files, manifest)
    return files


def read_golden(path: str, manifest: Manifest) -> GoldenRows | None:
    """Read the known-good rows of a package, which the manifest of a job does not have.

    Args:
        path: The path of the package, as `read_package` takes it.
        manifest: The manifest of the job.

    Returns:
        The known-good rows, or None if the package has none or is now that of another model.

    Raises:
        ModelError: The package cannot be read.
        ManifestError: `model.json` is not valid.
    """
    with as_model_error(f"model {path} cannot be read"):
        if path.endswith(".mar"):
            found = _read_mar(path).manifest
        else:
            text = read_bytes(posixpath.join(_folder_of(path), MANIFEST_NAME))
            found = read_manifest_text(text, path)
    return found.golden if found is not None and found.sha256 == manifest.sha256 else None


def read_manifest_text(text: bytes, path: str) -> Manifest:
    """Return the manifest that the `model.json` of a package describes.

    Args:
        text: The content of the file.
        path: The path of the package, for the error.

    Raises:
        ManifestError: The text is not valid JSON, or does not describe a manifest.
    """
    try:
        return parse_manifest(text)
    except ManifestError as error:
        raise ManifestError(f"model {path}: {error}") from error


def _folder_of(path: str) -> str:
    """Return the folder of a package, whose path may be that of its model file or manifest."""
    if _exists(posixpath.join(path, MANIFEST_NAME)):
        return path
    return posixpath.split(path)[0]


def _files_in(folder: str, manifest: Manifest) -> dict[str, bytes]:
    """Return the other files of a package that is a folder."""
    for name in manifest.files:
        if not _exists(posixpath.join(folder, name)):
            refuse_missing(folder, name)
    return {name: read_bytes(posixpath.join(folder, name)) for name in manifest.files}


def refuse_missing(path: str, name: str) -> NoReturn:
    """Raise ModelError because a package does not have a file.

    Args:
        path: The path of the package.
        name: The name of the file.
    """
    place, advice = "in the folder", "copy all files of the package"
    if path.endswith(".mar"):
        place, advice = "in the archive", f"{_AGAIN}, with --extra-files"
    raise ModelError(
        f"model {path}: {MANIFEST_NAME} names the file {name!r}, which is not {place}; {advice}"
    )


def _check_files(path: str, files: Mapping[str, bytes], manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise DigestMismatch(
                f"model {path}: the manifest {MANIFEST_NAME} expects sha256 {expected}, but the "
                f"file {name} has {found}: the file was changed or damaged; package the model again"
            )


def read_bytes(path: str) -> bytes:
    """Return the bytes of a file on any Beam filesystem. Raise ModelError if it cannot be read."""
    with as_model_error(f"{path} cannot be read"):
        if _is_local(path):
            if Path(path).exists() and not Path(path).is_file():
                # A package may have a link to a device, which has no end.
                raise ModelError(f"{path}: expected a file, got a folder or a device")
            return Path(path).read_bytes()
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        # AUTO would decompress a file whose name ends in .gz. The digest covers the file as it is.
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
    """Read the package in a folder, or a model file with or without a manifest next to it."""
    manifest_path = posixpath.join(path, MANIFEST_NAME)
    if path.endswith(MANIFEST_NAME):
        path, manifest_path = posixpath.split(path)[0], path
    if _exists(manifest_path):
        text = read_bytes(manifest_path)
        manifest = read_manifest_text(text, path)
        data = read_bytes(posixpath.join(path, manifest.file))
        return ModelPackage(manifest.file, data, manifest, _files_in(path, manifest), text)
    # A local folder also exists without a slash at the end of its path.
    if not _exists(path) or path.endswith("/") or Path(path).is_dir():
        raise ModelError(
            f"no model at {path}: expected a folder with {MANIFEST_NAME}, a .mar, or a model file "
            "(.pt2, .pt, .safetensors)"
        )
    return _read_file(path)


def _read_file(path: str) -> ModelPackage:
    """Read a model file, and the manifest of its folder if that manifest names the file."""
    data = read_bytes(path)
    folder, name = posixpath.split(path)
    beside = posixpath.join(folder, MANIFEST_NAME) if folder else MANIFEST_NAME
    if _exists(beside):
        text = read_bytes(beside)
        manifest = read_manifest_text(text, path)
        if manifest.file == name:
            return ModelPackage(name, data, manifest, _files_in(folder, manifest), text)
    return ModelPackage(name, data, None)


@contextmanager
def _open_mar(path: str) -> Iterator[zipfile.ZipFile]:
    """Open a TorchServe archive in memory. Raise UnsafeModel or ModelError if it cannot be used.

    Nothing is extracted to disk, and the archive's handler is never run.
    """
    data = read_bytes(path)
    with (
        as_model_error(f"{path} is not a readable .mar (a zip archive) and may be truncated"),
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):
        check_names(archive, path, _AGAIN)
        check_size(archive, len(data), path)
        yield archive


def _read_mar(path: str) -> ModelPackage:
    """Read the files of a package from a TorchServe archive."""
    with _open_mar(path) as archive:
        file = _serialized_file(archive, path)
        data = _member(archive, file)
        if MANIFEST_NAME not in archive.namelist():
            return ModelPackage(file, data, None)
        text = _member(archive, MANIFEST_NAME)
        manifest = read_manifest_text(text, path)
        if manifest.file != file:
            raise ManifestError(
                f"{path}: {MANIFEST_NAME} describes {manifest.file!r}, but {MAR_MANIFEST} "
                f"names the model file {file!r}; {_AGAIN}, from the files of one package"
            )
        return ModelPackage(file, data, manifest, _members(archive, manifest, path), text)


def _members(archive: zipfile.ZipFile, manifest: Manifest, path: str) -> dict[str, bytes]:
    """Return the other files of a package that is an open .mar."""
    for name in manifest.files:
        if name not in archive.namelist():
            refuse_missing(path, name)
    return {name: _member(archive, name) for name in manifest.files}


def _serialized_file(archive: zipfile.ZipFile, path: str) -> str:
    """Return the name of the model file in an open .mar, from its MANIFEST.json."""
    try:
        file = json.loads(_member(archive, MAR_MANIFEST))["model"]["serializedFile"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: expected {MAR_MANIFEST} with model.serializedFile, as torch-model-archiver "
            "writes it; the archive may be truncated"
        ) from error
    if not isinstance(file, str) or file not in archive.namelist():
        raise ModelError(
            f"{path}: {MAR_MANIFEST} names the model file {file!r}, which is not in the archive; "
            f"{_AGAIN}"
        )
    return file


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read an entry of a checked archive, at most one byte more than its header states."""
    with archive.open(name) as handle:
        return handle.read(archive.getinfo(name).file_size + 1)
