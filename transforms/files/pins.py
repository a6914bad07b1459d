"""Pins: a file as it was when a run found it, so that one that changes is never half read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from google.api_core.exceptions import GoogleAPIError

from common.errors import InputError, one_line
from common.memory import check_memory
from common.private_beam.any_runner import storage_client


@dataclass(frozen=True)
class Pin:
    """A file at one moment.

    size: in bytes. version: changes whenever the file is written: the generation on Cloud
    Storage, elsewhere the time of the last modification, on this machine in nanoseconds.
    """

    path: str
    size: int
    version: str


def pin(path: str) -> Pin:
    """A path on any Beam filesystem -> its file as it is now. Raises InputError.

    It takes one `stat`, or one request for the metadata of an object.
    """
    try:
        if path.startswith("gs://"):
            return _pin_object(path)
        if "://" not in path:
            stat = os.stat(path)
            return Pin(path, stat.st_size, f"{stat.st_mtime_ns} ns")
        file = FileSystems.get_filesystem(path).metadata(path)
        return Pin(path, file.size_in_bytes, f"{file.last_updated_in_seconds} s")
    except FileNotFoundError as error:
        raise InputError(f"input file {path} vanished during the run: {_ADVICE}") from error
    except (BeamIOError, OSError, GoogleAPIError) as error:
        check_memory(error, path)
        raise InputError(f"input file {path} cannot be read: {one_line(error)}") from error


_ADVICE = "run again when nothing writes to the input any more"


def _pin_object(path: str) -> Pin:
    """An object of Cloud Storage -> its Pin. Raises FileNotFoundError if it is gone."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    # Beam's own client, which has the credentials of the reads.
    blob = storage_client(path).bucket(bucket).get_blob(name)
    if blob is None:
        raise FileNotFoundError(path)
    return Pin(path, blob.size, f"generation {blob.generation}")


@contextmanager
def unchanged(pinned: Pin | None) -> Iterator[None]:
    """A file's Pin -> a block that reads it. Raises InputError if the file has changed since.

    The file is looked at when the block ends, by itself or by an error: a version never comes
    back, so a file that has it then had it all the time. None: nothing is looked at.
    """
    try:
        yield
    except Exception:
        _check(pinned)
        raise
    _check(pinned)


def _check(pinned: Pin | None) -> None:
    if pinned is None:
        return
    now = pin(pinned.path)
    if now != pinned:
        raise changed_file(pinned.path, pinned.size, now.size)


def changed_file(path: str, size: int, now: int) -> InputError:
    """A file that changed, its size before and now -> the error that says so."""
    what = f"expected {size:,} bytes, got {now:,}"
    if size == now:
        what = "it has the same size, but was written again"
    return InputError(f"input file {path} changed during the run: {what}; {_ADVICE}")
