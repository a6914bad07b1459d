"""The staging folder of a run id: who still works in it, and what of it can go.

Each attempt removes what it staged itself. What a killed one left goes with the next attempt
at the run, once it is sure that nobody works at it:

    on this machine      each process of an attempt holds a lock on TOKEN-lock, and the system
                         takes it back when the process ends, however that happens
    in an object store   there are no locks: when the attempt wrote nothing for a day

An attempt that loses its staged files for all that fails, and removes nothing of others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from google.api_core import exceptions

from cloud.errors import translate_errors
from common.errors import OutputError, UsageError
from transforms.files.run_folder import RunFolder
from transforms.files.store import (
    FAULTS,
    Entry,
    create_file,
    delete,
    entries,
    is_remote,
    make_folder,
)

_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9_.-]+(/|$)")
_TOKEN = re.compile(r"[0-9a-f]{8}")
# An attempt that wrote nothing for so long is dead, where no lock can tell.
DEAD_SECONDS = 24 * 3600.0
# A commit waits so long for another attempt's, which may be loading a table.
LOCK_SECONDS = 600.0
_LOCK_POLL_SECONDS = 0.05

_held: dict[str, int] = {}
_guard = threading.Lock()


def check_writable(folder: RunFolder, what: str | None = None) -> None:
    """A run's folder -> nothing, or OutputError if no file can be made in it.

    what: the folder as its user named it.
    """
    if not folder.root.startswith("gs://"):
        return _probe(folder)
    from google.cloud.storage.exceptions import InvalidResponse

    what = what or folder.root
    if not _BUCKET.match(folder.root):
        raise UsageError(f"{what}: expected gs://BUCKET/FOLDER")
    with translate_errors(OutputError, f"{what} cannot be written"):
        try:
            try:
                _probe(folder)
            except InvalidResponse as error:
                raise exceptions.from_http_response(error.response) from error
        except exceptions.NotFound as error:
            name = folder.root.removeprefix("gs://").split("/")[0]
            raise OutputError(
                f"{what}: there is no bucket {name}: make it, or name another"
            ) from error


def _probe(folder: RunFolder) -> None:
    make_folder(folder.root)
    make_folder(folder.staging)
    probe = folder.staged("probe")
    with create_file(probe) as handle:
        handle.write(b"")
    delete([probe])


def hold(folder: RunFolder, *, create: bool = False) -> None:
    """An attempt's folder -> this process is known to work at it, until it ends or discards it.

    create: by the process that begins the attempt. A worker does not bring back the folder of
    an attempt that was aborted.
    """
    path = os.path.abspath(folder.staged("lock"))
    with _guard:
        if is_remote(folder.root) or path in _held:
            return
        with contextlib.suppress(OSError):
            _held[path] = _open_lock(path) if create else os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            fcntl.flock(_held[path], fcntl.LOCK_SH | fcntl.LOCK_NB)


def _open_lock(path: str) -> int:
    """A path -> it, open; the folder is made again if another attempt's end removed it."""
    while True:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _release(folder: RunFolder) -> None:
    with _guard:
        handle = _held.pop(os.path.abspath(folder.staged("lock")), None)
    if handle is not None:
        os.close(handle)


def discard(folder: RunFolder) -> None:
    """A run's folder -> no staging files of this attempt, and no empty staging folder."""
    with contextlib.suppress(*FAULTS):
        staged = [e.name for e in entries(folder.staging) if e.name.startswith(f"{folder.token}-")]
        delete(f"{folder.staging}/{name}" for name in staged)
    if not is_remote(folder.root):
        _release(folder)
        _remove_empty(folder)


def discard_dead(folder: RunFolder) -> None:
    """A run's folder -> no staging files of attempts at this run that nobody works at any more."""
    with contextlib.suppress(*FAULTS):
        found: dict[str, list[Entry]] = {}
        for entry in entries(folder.staging):
            token = entry.name.split("-")[0]
            if _TOKEN.fullmatch(token) and token != folder.token:
                found.setdefault(token, []).append(entry)
        for token, staged in found.items():
            if _is_dead(RunFolder(folder.root, folder.run_id, token), staged):
                delete(f"{folder.staging}/{entry.name}" for entry in staged)
    if not is_remote(folder.root):
        _remove_empty(folder)


def _is_dead(folder: RunFolder, staged: Sequence[Entry]) -> bool:
    """Another attempt's folder and its staged files -> whether no process works at it."""
    lock = folder.staged("lock")
    if is_remote(folder.root) or not os.path.exists(lock):
        return max(entry.written for entry in staged) < time.time() - DEAD_SECONDS
    return not is_locked(lock)


def is_locked(path: str) -> bool:
    """A file of this machine -> whether a process holds a lock on it. Raises OSError."""
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _remove_empty(folder: RunFolder) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder.staging)
        os.rmdir(os.path.dirname(folder.staging))


@contextlib.contextmanager
def commit_lock(folders: Iterable[RunFolder], seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Folders of a run -> no other attempt on this machine puts files there during the block.

    Raises OutputError where another is at it for so long. In an object store what the report
    was when it was read does instead (transforms/files/commit.py).
    """
    local = {os.path.abspath(f.staging): f for f in folders if not is_remote(f.root)}
    with contextlib.ExitStack() as held:
        # In one order, so that no two wait for each other.
        for _, folder in sorted(local.items()):
            path = f"{folder.staging}/commit-lock"
            handle = _acquire(path, folder, time.monotonic() + seconds)
            held.callback(_remove_empty, folder)
            held.callback(os.close, handle)
            # Whoever waits for it finds out that it is gone, and makes a new one.
            held.callback(delete, [path])
        yield


def _acquire(path: str, folder: RunFolder, deadline: float) -> int:
    """The path of a lock -> it, open and held."""
    while True:
        handle = _open_lock(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, path):
                return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(handle)
                raise OutputError(
                    f"another attempt at run {folder.run_id} is putting its result in place in "
                    f"{folder.root} and does not end: stop it, then run again"
                ) from None
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError:
            # A filesystem without locks: what the report was tells of another attempt.
            return handle
        os.close(handle)


def _is_at(handle: int, path: str) -> bool:
    """Whether an open file is still the one at a path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False
