"""Files of this machine and of object stores, as putting a result in place needs them.

On the local filesystem not by Beam, which takes each path for a glob: in a folder called
`out*` it would delete the files of others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from google.api_core import exceptions
from google.cloud.storage.retry import DEFAULT_RETRY

from cloud.errors import translate_errors
from common.errors import OutputError, one_line
from common.memory import check_memory
from common.private_beam.any_runner import storage_client

FAULTS = (BeamIOError, OSError, exceptions.GoogleAPIError)


@dataclass(frozen=True)
class Entry:
    """What lies in a folder. name: in an object store, where folders are names, any depth below.

    written: in seconds since 1970.
    """

    name: str
    is_file: bool
    size: int
    written: float


@dataclass(frozen=True)
class Version:
    """What a file held at a moment, None where it was not there, and what tells it from others."""

    content: bytes | None
    mark: Any


def is_remote(path: str) -> bool:
    """Whether a path is in an object store."""
    return "://" in path


@contextlib.contextmanager
def file_errors(what: str) -> Iterator[None]:
    """What cannot be done -> errors of files in the block raised as OutputError."""
    with translate_errors(OutputError, what):
        try:
            yield
        except (BeamIOError, OSError) as error:
            check_memory(error, what)
            raise OutputError(f"{what}: {one_line(error)}") from error


def entries(folder: str) -> list[Entry]:
    """A folder -> what lies in it, links not followed; nothing if there is no such folder."""
    if is_remote(folder):
        prefix = f"{folder.rstrip('/')}/"
        found = FileSystems.match([f"{prefix}**"])[0].metadata_list
        files = [(file.path[len(prefix) :], file) for file in found]
        return [
            Entry(name, "/" not in name, file.size_in_bytes, file.last_updated_in_seconds)
            for name, file in files
            if name
        ]
    return list(_local_entries(folder)) if os.path.lexists(folder) else []


def _local_entries(folder: str) -> Iterator[Entry]:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(path)
            is_file = os.path.isfile(path) and not os.path.islink(path)
            yield Entry(name, is_file, found.st_size, found.st_mtime)


def sizes(paths: Iterable[str]) -> dict[str, int]:
    """Paths -> the bytes of those files that are there. Each folder is listed once."""
    by_folder: dict[str, dict[str, str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        by_folder.setdefault(folder, {})[name] = path
    return {
        names[entry.name]: entry.size
        for folder, names in by_folder.items()
        for entry in entries(folder)
        if entry.name in names and entry.is_file
    }


def put(source: str, target: str) -> None:
    """A whole file -> under another name, at once. In an object store the first one stays."""
    if is_remote(target):
        FileSystems.copy([source], [target])
    else:
        os.rename(source, target)


def delete(paths: Iterable[str]) -> None:
    """Paths -> no such files. One that is gone already is no fault."""
    for path in paths:
        if path.startswith("gs://"):
            # Beam matches a path before it deletes it, and fails if another deletes it meanwhile.
            with contextlib.suppress(exceptions.NotFound):
                _blob(path).delete(retry=DEFAULT_RETRY)
        elif is_remote(path):
            FileSystems.delete([path])
        else:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def create_file(path: str) -> Any:
    """A path on any Beam filesystem -> a file open for writing. Raises OutputError."""
    try:
        if not is_remote(path):
            return open(path, "wb")
        return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except (BeamIOError, OSError) as error:
        check_memory(error, path)
        raise OutputError(f"{path} cannot be written: {error}; choose another folder") from error


def make_folder(path: str) -> None:
    """A folder's path -> it exists, on filesystems that have folders. Raises OutputError."""
    if is_remote(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        check_memory(error, path)
        raise OutputError(
            f"folder {path} cannot be made: {error.strerror}; choose another folder"
        ) from error


def read_version(path: str) -> Version:
    """A path -> what it holds now."""
    if path.startswith("gs://"):
        return _read_object(_blob(path))
    content = _read(path)
    return Version(content, content)


def _read_object(blob: Any) -> Version:
    """An object -> what it holds now, with its generation: 0 where it is not there.

    One request: between two another may replace it, and what the first one found would be gone.
    """
    try:
        content = blob.download_as_bytes()
    except exceptions.NotFound:
        return Version(None, 0)
    # The answer's headers have set it.
    return Version(content, blob.generation)


def replace(path: str, content: bytes, before: Version, unfinished: str) -> bool:
    """A path, and what it held when last looked at -> whether it holds the content now.

    False where another has written it since: then nothing is changed. Readers see the one
    content or the other. unfinished: a path beside it that nobody else uses.
    """
    # Other object stores than Cloud Storage have no such condition as the one below.
    if read_version(path) != before:
        return False
    if path.startswith("gs://"):
        try:
            _blob(path).upload_from_string(
                content, content_type="application/json", if_generation_match=before.mark
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
    """The path of an object -> it, by Beam's own client, which knows the server and who asks."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return storage_client(path).bucket(bucket).blob(name)
