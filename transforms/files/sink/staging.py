"""The staging folder of a run id: which attempts still use it, and what can be removed.

Each attempt removes its own staged files. Files of a killed attempt are removed by the next
attempt at the run, once no process can still be working on them:

    on this machine      each process of an attempt holds a lock on TOKEN-lock, which the system
                         releases when the process ends for any reason
    in an object store   there are no locks, so an attempt counts as dead after it has written
                         nothing for a day

If an attempt loses its staged files anyway, it fails, and removes no files of other attempts.
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
from common.errors import AttemptConflict, OutputError, UsageError
from transforms.files.sink.run_folder import RunFolder
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
# Without locks, an attempt that has written nothing for this long counts as dead.
DEAD_SECONDS = 24 * 3600.0
# How long a commit waits for the commit of another attempt, which may be loading a table.
LOCK_SECONDS = 600.0
_LOCK_POLL_SECONDS = 0.05

_held: dict[str, int] = {}
_guard = threading.Lock()


def check_writable(folder: RunFolder, what: str | None = None) -> None:
    """Raise OutputError unless files can be created in a run's folder.

    Args:
        folder: The folder of the run.
        what: The folder as the user named it, for messages; by default its path.

    Raises:
        UsageError: The path is not of the form `gs://BUCKET/FOLDER`.
        OutputError: The bucket does not exist, or files cannot be written.
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
                f"{what}: bucket {name} does not exist: create it, or choose another"
            ) from error


def _probe(folder: RunFolder) -> None:
    make_folder(folder.root)
    make_folder(folder.staging)
    probe = folder.staged("probe")
    with create_file(probe) as handle:
        handle.write(b"")
    delete([probe])


def hold(folder: RunFolder, *, create: bool = False) -> None:
    """Mark this process as working on an attempt until it ends or discards the attempt.

    Args:
        folder: The folder of the attempt.
        create: Whether to create the lock file. Only the process that starts the attempt does
            so: a worker must not bring back the folder of an attempt that was aborted.
    """
    path = os.path.abspath(folder.staged("lock"))
    with _guard:
        if is_remote(folder.root) or path in _held:
            return
        with contextlib.suppress(OSError):
            _held[path] = _open_lock(path) if create else os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            fcntl.flock(_held[path], fcntl.LOCK_SH | fcntl.LOCK_NB)


def _open_lock(path: str) -> int:
    """Open a lock file; create its folder again if another attempt has just removed it."""
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
    """Remove the staged files of this attempt, and the staging folder if it is empty."""
    with contextlib.suppress(*FAULTS):
        staged = [e.name for e in entries(folder.staging) if e.name.startswith(f"{folder.token}-")]
        delete(f"{folder.staging}/{name}" for name in staged)
    if not is_remote(folder.root):
        _release(folder)
        _remove_empty(folder)


def discard_dead(folder: RunFolder) -> None:
    """Remove the staged files of dead attempts at this run."""
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
    """Return whether no process works on another attempt any more, given its staged files."""
    lock = folder.staged("lock")
    if is_remote(folder.root) or not os.path.exists(lock):
        return max(entry.written for entry in staged) < time.time() - DEAD_SECONDS
    return not is_locked(lock)


def is_locked(path: str) -> bool:
    """Return whether a process holds a lock on a local file; raise OSError if it is gone."""
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
    """Keep other attempts on this machine from committing to a run's folders during the block.

    In an object store there is no lock: there the conditional write of the report protects the
    result (commit.py).

    Args:
        folders: The folders of the run.
        seconds: How long to wait for another attempt.

    Raises:
        AttemptConflict: Another attempt still holds the lock after this time.
    """
    local = {os.path.abspath(f.staging): f for f in folders if not is_remote(f.root)}
    with contextlib.ExitStack() as held:
        # All attempts acquire the locks in the same order, so no two wait for each other.
        for _, folder in sorted(local.items()):
            path = f"{folder.staging}/commit-lock"
            handle = _acquire(path, folder, time.monotonic() + seconds)
            held.callback(_remove_empty, folder)
            held.callback(os.close, handle)
            # An attempt that waits for the lock finds that the file is gone, and creates a new one.
            held.callback(delete, [path])
        yield


def _acquire(path: str, folder: RunFolder, deadline: float) -> int:
    """Open the lock file at a path and hold its lock."""
    while True:
        handle = _open_lock(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, path):
                return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(handle)
                raise AttemptConflict(
                    f"another attempt at run {folder.run_id} is still putting its result in place "
                    f"in {folder.root}: wait until it ends or stop it, then run again"
                ) from None
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError:
            # The filesystem has no locks. The comparison of the report detects other attempts.
            return handle
        os.close(handle)


def _is_at(handle: int, path: str) -> bool:
    """Return whether an open file is still the file at a path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False
