"""Files that a stream is still writing: hidden next to their final path, and locked.

    FOLDER/scores/2026-11-20/.12-34-00-060s-3f0c2a71-9b1d44e0.parquet-UUID

A process that fails or is interrupted removes its own unfinished files. The next run removes the
files of a killed process when it starts: on this machine once no process holds the lock, in an
object store once the file has not been written for a day.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from apache_beam.io.filesystems import FileSystems

from transforms.files.sink.staging import DEAD_SECONDS, is_locked
from transforms.files.store import FAULTS, Entry, create_file, delete, entries, is_remote

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_NAME = re.compile(r"\..+-[0-9a-f]{32}")
# In an object store only these days are searched: a list of all days might be very long.
_REMOTE_DAYS = 7

# The paths of the unfinished files of this process.
_begun: set[str] = set()


@contextmanager
def begun(path: str) -> Iterator[Any]:
    """Open a file for writing that appears at its path only if the block succeeds.

    Args:
        path: The final path.

    Raises:
        OutputError: The file cannot be created.
        OSError: The file cannot be put at its path.
        BeamIOError: The file cannot be put at its path.
    """
    folder, name = os.path.split(path)
    hidden = FileSystems.join(folder, f".{name}-{uuid.uuid4().hex}")
    _begun.add(hidden)
    try:
        with create_file(hidden) as handle:
            if not is_remote(hidden):
                # Some filesystems have no locks. There, remove_dead never removes a file.
                with suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield handle
        FileSystems.rename([hidden], [path])
    except BaseException:
        # On a full disk the file would leave no space for the next try.
        with suppress(*FAULTS):
            delete([hidden])
        raise
    finally:
        _begun.discard(hidden)


def remove_begun() -> None:
    """Remove the unfinished files of this process, which is about to exit."""
    for path in tuple(_begun):
        with suppress(*FAULTS):
            delete([path])


def remove_dead(folder: str) -> None:
    """Remove unfinished files that killed processes left in the folder of a part."""
    for day in _days(folder):
        with suppress(*FAULTS):
            for entry in entries(day):
                if entry.is_file and _NAME.fullmatch(entry.name):
                    _remove_if_dead(FileSystems.join(day, entry.name), entry)


def _days(folder: str) -> list[str]:
    """Return the day folders of a part that are searched for unfinished files."""
    if not is_remote(folder):
        names = [e.name for e in entries(folder) if _DAY.fullmatch(e.name)]
    else:
        today = datetime.datetime.now(datetime.UTC)
        names = [f"{today - datetime.timedelta(n):%Y-%m-%d}" for n in range(_REMOTE_DAYS)]
    return [FileSystems.join(folder, name) for name in names]


def _remove_if_dead(path: str, entry: Entry) -> None:
    """Remove an unfinished file if no process is writing it."""
    # Its run may finish or remove the file at this moment.
    with suppress(*FAULTS):
        if is_remote(path):
            dead = entry.written < time.time() - DEAD_SECONDS
        else:
            dead = not is_locked(path)
        if dead:
            delete([path])
