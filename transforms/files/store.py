"""Operations on local files and objects that are needed to put a result in place.

Local files are not accessed through Beam, because Beam treats each path as a glob: in a folder
called `out*` it would delete files of other folders.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow.fs as pa_fs
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError

from cloud.clients import credentials
from cloud.endpoints import Endpoints, is_plain, rest_url
from cloud.errors import retry, translate_errors
from cloud.objects import copy_objects, delete_objects
from common.addresses import split_gcs_path
from common.errors import MillraceError, OutputError, one_line
from common.memory import check_memory
from common.private_beam.any_runner import storage_client

# How long libraries that report nothing meanwhile retry a request to Cloud Storage, in seconds.
SILENT_SECONDS = 30
# The role that reading objects needs.
READER = "roles/storage.objectViewer"
FAULTS = (BeamIOError, OSError, exceptions.GoogleAPIError)


@dataclass(frozen=True)
class Entry:
    """A file or folder within a folder.

    Attributes:
        name: The name, relative to the folder. In an object store it may contain `/`, because
            objects at any depth are listed.
        is_file: Whether it is a regular file, directly in the folder.
        size: The size in bytes.
        written: When it was last modified, in seconds since 1970.
    """

    name: str
    is_file: bool
    size: int
    written: float


@dataclass(frozen=True)
class Version:
    """The content of a file at one moment.

    Attributes:
        content: The bytes, or None if the file did not exist.
        mark: A value that distinguishes this version from others: the generation of an object in
            Cloud Storage, the content elsewhere.
    """

    content: bytes | None
    mark: Any


def is_remote(path: str) -> bool:
    """Return whether a path is in an object store."""
    return "://" in path


@contextlib.contextmanager
def file_errors(
    what: str, kind: type[MillraceError] = OutputError, role: str | None = None
) -> Iterator[None]:
    """Raise file errors in the block with a text that says what failed.

    Args:
        what: What failed, the start of the message.
        kind: The error to raise.
        role: The role that the account may lack, or None to let the message guess it.
    """
    try:
        with translate_errors(kind, what, role), beam_causes():
            yield
    except MillraceError:
        raise
    except (BeamIOError, OSError) as error:
        check_memory(error, what)
        raise kind(f"{what}: {one_line(error)}") from error


@contextlib.contextmanager
def beam_causes() -> Iterator[None]:
    """Raise the first cause of an error of Beam, which wraps the errors of several paths."""
    try:
        yield
    except BeamIOError as error:
        cause: Exception = error
        while isinstance(cause, BeamIOError) and cause.exception_details:
            cause = next(iter(cause.exception_details.values()))
        if not isinstance(cause, (*FAULTS, GoogleAuthError)):
            raise
        raise cause from error


def entries(folder: str) -> list[Entry]:
    """List a folder without following links; return an empty list if it does not exist."""
    prefix = f"{folder.rstrip('/')}/"
    if _is_object(folder):
        return _objects_below(prefix)
    if is_remote(folder):
        found = FileSystems.match([f"{prefix}**"])[0].metadata_list
        files = [(file.path[len(prefix) :], file) for file in found]
        return [
            Entry(name, "/" not in name, file.size_in_bytes, file.last_updated_in_seconds)
            for name, file in files
            if name
        ]
    return list(_local_entries(folder)) if os.path.lexists(folder) else []


def _objects_below(prefix: str) -> list[Entry]:
    """List the objects below gs://BUCKET/FOLDER/, a thousand in each request."""
    bucket, folder = split_gcs_path(prefix)
    found = _client().list_blobs(
        bucket,
        prefix=folder,
        fields="items(name,size,updated),nextPageToken",
        retry=retry(),
    )
    names = ((blob.name.removeprefix(folder), blob) for blob in found)
    return [
        Entry(name, "/" not in name, blob.size, blob.updated.timestamp())
        for name, blob in names
        if name
    ]


def _local_entries(folder: str) -> Iterator[Entry]:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(path)
            is_file = os.path.isfile(path) and not os.path.islink(path)
            yield Entry(name, is_file, found.st_size, found.st_mtime)


def sizes(
    paths: Iterable[str], listed: Callable[[str], Sequence[Entry]] = entries
) -> dict[str, int]:
    """Return the sizes in bytes of those files that exist. Each folder is listed once.

    Args:
        paths: The paths of the files.
        listed: Returns the entries of a folder.
    """
    by_folder: dict[str, dict[str, str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        by_folder.setdefault(folder, {})[name] = path
    return {
        names[entry.name]: entry.size
        for folder, names in by_folder.items()
        for entry in listed(folder)
        if entry.name in names and entry.is_file
    }


def put(sources: Mapping[str, str]) -> None:
    """Put each complete file at another path in one step; an object store also keeps the source.

    Args:
        sources: The paths of the files by their new paths, which are on the same filesystem.
    """
    objects = {target: source for target, source in sources.items() if _is_object(target)}
    copy_objects(_client, ((source, target) for target, source in objects.items()))
    remote = {t: s for t, s in sources.items() if is_remote(t) and t not in objects}
    if remote:
        FileSystems.copy(list(remote.values()), list(remote))
    for target, source in sources.items():
        if not is_remote(target):
            os.rename(source, target)


def delete(paths: Iterable[str]) -> None:
    """Remove files. Files that do not exist are ignored."""
    objects: list[str] = []
    for path in paths:
        if _is_object(path):
            objects.append(path)
        elif is_remote(path):
            FileSystems.delete([path])
        else:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
    # Beam matches a path before deleting it, and fails if the object is deleted in between.
    delete_objects(_client, objects)


def delete_version(path: str, version: Version) -> None:
    """Remove a file, unless it has changed since it was read.

    Args:
        path: The path of the file.
        version: The version that was read.
    """
    if version.content is None:
        return
    if _is_object(path):
        with contextlib.suppress(exceptions.NotFound, exceptions.PreconditionFailed):
            _blob(path).delete(if_generation_match=version.mark)
    elif read_version(path) == version:
        delete([path])


def _is_object(path: str) -> bool:
    """Return whether a path is in Cloud Storage."""
    return path.startswith("gs://")


def _client() -> Any:
    return storage_client("gs://")


def create_file(path: str) -> Any:
    """Open a file on any Beam filesystem for writing; raise OutputError if that fails."""
    try:
        if not is_remote(path):
            return open(path, "wb")
        return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except (BeamIOError, OSError) as error:
        check_memory(error, path)
        raise OutputError(f"{path} cannot be written: {error}; choose another folder") from error


def make_folder(path: str) -> None:
    """Create a local folder and its parents; raise OutputError if that fails.

    Object stores have no folders, so nothing is done there.
    """
    if is_remote(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        check_memory(error, path)
        raise OutputError(
            f"folder {path} cannot be created: {error.strerror}; choose another folder"
        ) from error


def read_version(path: str) -> Version:
    """Read the current version of a file."""
    if _is_object(path):
        return _read_object(_blob(path))
    content = _read(path)
    return Version(content, content)


def _read_object(blob: Any) -> Version:
    """Read an object and its generation, which is 0 if the object does not exist.

    This takes a single request, because the object may be replaced between two requests.
    """
    try:
        content = blob.download_as_bytes()
    except exceptions.NotFound:
        return Version(None, 0)
    # The headers of the response have set the generation.
    return Version(content, blob.generation)


def replace(
    path: str,
    content: bytes,
    before: Version,
    unfinished: str,
    content_type: str = "application/json",
) -> bool:
    """Replace the content of a file, unless it has changed since it was read.

    Readers see either the old or the new content.

    Args:
        path: The path of the file.
        content: The new content.
        before: The version that was read.
        unfinished: A path in a folder on the same filesystem that no other process uses.
        content_type: What Cloud Storage says that the content is.

    Returns:
        Whether the file holds the new content. False means that it had changed, and was left
        unchanged.
    """
    # Only Cloud Storage supports the condition below. Elsewhere this comparison will have to do.
    if read_version(path) != before:
        return False
    if _is_object(path):
        try:
            _blob(path).upload_from_string(
                content, content_type=content_type, if_generation_match=before.mark
            )
        except exceptions.PreconditionFailed:
            return False
        return True
    target = path if is_remote(path) else unfinished
    with create_file(target) as handle:
        handle.write(content)
    if target != path:
        os.rename(unfinished, path)
    return True


def _read(path: str) -> bytes | None:
    if not is_remote(path):
        try:
            with open(path, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
    if not FileSystems.exists(path):
        return None
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as handle:
        return bytes(handle.read())


def _blob(path: str) -> Any:
    """Return an object through Beam's own client, which has the server and the credentials."""
    bucket, name = split_gcs_path(path)
    return _client().bucket(bucket).blob(name)


def arrow_storage() -> pa_fs.FileSystem:
    """Return Arrow's own client of Cloud Storage.

    Raises:
        CredentialsError: There are no usable credentials.
    """
    address = Endpoints.resolve().storage
    place: dict[str, Any] = {"retry_time_limit": timedelta(seconds=SILENT_SECONDS)}
    if address is not None:
        scheme, _, host = rest_url(address).partition("://")
        place |= {"scheme": scheme, "endpoint_override": host}
    if is_plain(address):
        return pa_fs.GcsFileSystem(anonymous=True, **place)
    credentials(address)
    return pa_fs.GcsFileSystem(**place)
