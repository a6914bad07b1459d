"""Pins: detect input files that change while a run reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from google.api_core.exceptions import GoogleAPIError

from common.errors import InputChanged, InputError, one_line
from common.memory import check_memory
from common.private_beam.any_runner import storage_client


@dataclass(frozen=True)
class Pin:
    """The state of a file at one moment.

    Attributes:
        path: The path of the file.
        size: The size in bytes.
        version: A text that changes whenever the file is written: the generation of an object in
            Cloud Storage, or the modification time elsewhere (in nanoseconds on this machine).
    """

    path: str
    size: int
    version: str

    @property
    def generation(self) -> int | None:
        """The generation of an object in Cloud Storage, or None for other files."""
        number = self.version.removeprefix(_GENERATION)
        return None if number == self.version else int(number)


def pin(path: str) -> Pin:
    """Return the current state of a file.

    This takes one `stat`, or one request for the metadata of an object.

    Args:
        path: A path on any Beam filesystem.

    Raises:
        InputError: The file does not exist any more, or cannot be read.
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
        raise InputChanged(f"input file {path} was removed during the run: {_ADVICE}") from error
    except (BeamIOError, OSError, GoogleAPIError) as error:
        check_memory(error, path)
        raise InputError(f"input file {path} cannot be read: {one_line(error)}") from error


_ADVICE = "run again once no other process changes the input"
_GENERATION = "generation "


def _pin_object(path: str) -> Pin:
    """Return the pin of an object in Cloud Storage. Raise FileNotFoundError if it is gone."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    # Beam's own client uses the same credentials as the reads.
    blob = storage_client(path).bucket(bucket).get_blob(name)
    if blob is None:
        raise FileNotFoundError(path)
    return Pin(path, blob.size, f"{_GENERATION}{blob.generation}")


@contextmanager
def unchanged(pinned: Pin | None) -> Iterator[None]:
    """Check at the end of a block that a file has not changed since it was pinned.

    The check also runs if the block raises. A version never occurs twice, so a file that has the
    pinned version at the end had it all the time.

    Args:
        pinned: The pin, or None to check nothing.

    Raises:
        InputChanged: The file has changed.
        InputError: The file cannot be read.
    """
    try:
        yield
    except Exception:
        check_pin(pinned)
        raise
    check_pin(pinned)


def check_pin(pinned: Pin | None) -> None:
    """Raise an error if a file has changed since it was pinned.

    Args:
        pinned: The pin, or None to check nothing.

    Raises:
        InputChanged: The file has changed.
        InputError: The file cannot be read.
    """
    if pinned is None:
        return
    now = pin(pinned.path)
    if now != pinned:
        raise changed_file(pinned.path, pinned.size, now.size)


def changed_file(path: str, size: int, now: int) -> InputError:
    """Return the error for a file that changed during the run.

    Args:
        path: The path of the file.
        size: The size in bytes when the file was found.
        now: The current size in bytes.
    """
    what = f"expected {size:,} bytes, got {now:,}"
    if size == now:
        what = "it was written again, with the same size"
    return InputChanged(f"input file {path} changed during the run: {what}; {_ADVICE}")
