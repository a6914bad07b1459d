"""Files that a stream is writing: hidden beside where they will be, and locked meanwhile.

    FOLDER/scores/2026-11-20/.12-34-00-060s-0-of-1-pane-0-3f0c2a71.parquet-UUID

Whoever fails or is interrupted removes its own. What a killed process left goes when the next
run starts: on this machine the lock tells that nobody writes it any more, in an object store
that nobody has for a day.
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

from transforms.files.staging import DEAD_SECONDS, is_locked
from transforms.files.store import FAULTS, Entry, create_file, delete, entries, is_remote

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_NAME = re.compile(r"\..+-[0-9a-f]{32}")
# In an object store a list of all days might have millions of names.
_REMOTE_DAYS = 7

# Paths of those of this process.
_begun: set[str] = set()


@contextmanager
def begun(path: str) -> Iterator[Any]:
    """A path -> a file open for writing, which is at the path when the block has ended well.

    Nobody sees a part of it. Raises OutputError, OSError and BeamIOError.
    """
    folder, name = os.path.split(path)
    hidden = FileSystems.join(folder, f".{name}-{uuid.uuid4().hex}")
    _begun.add(hidden)
    try:
        with create_file(hidden) as handle:
            if not is_remote(hidden):
                # Some filesystems have no locks: there nothing is taken for dead.
                with suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield handle
        FileSystems.rename([hidden], [path])
    except BaseException:
        # On a full disk it would stand in the way of the next attempt.
        with suppress(*FAULTS):
            delete([hidden])
        raise
    finally:
        _begun.discard(hidden)


def remove_begun() -> None:
    """Files that this process has begun, and does not end, are gone: it is about to exit."""
    for path in tuple(_begun):
        with suppress(*FAULTS):
            delete([path])


def remove_dead(folder: str) -> None:
    """The folder of a part -> without the files that killed processes have begun there."""
    for day in _days(folder):
        with suppress(*FAULTS):
            for entry in entries(day):
                if entry.is_file and _NAME.fullmatch(entry.name):
                    _remove_if_dead(FileSystems.join(day, entry.name), entry)


def _days(folder: str) -> list[str]:
    """The folder of a part -> those of its days in it that are looked at."""
    if not is_remote(folder):
        names = [e.name for e in entries(folder) if _DAY.fullmatch(e.name)]
    else:
        today = datetime.datetime.now(datetime.UTC)
        names = [f"{today - datetime.timedelta(n):%Y-%m-%d}" for n in range(_REMOTE_DAYS)]
    return [FileSystems.join(folder, name) for name in names]


def _remove_if_dead(path: str, entry: Entry) -> None:
    """The path of an unfinished file, and what is known of it -> removed if nobody writes it."""
    # Its run may end, or remove it, just now.
    with suppress(*FAULTS):
        if is_remote(path):
            dead = entry.written < time.time() - DEAD_SECONDS
        else:
            dead = not is_locked(path)
        if dead:
            delete([path])
