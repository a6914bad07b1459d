"""Recognizes lack of memory in the errors of all libraries, and raises OutOfMemory for it."""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

from common.errors import OutOfMemory, one_line

ADVICE = "lower --batch_rows, use fewer workers (--direct_num_workers 1), or allow more memory"
# The advice for commands that do not read rows in batches.
MORE_MEMORY = "allow this process more memory"
_TEXTS = re.compile(
    r"MemoryError|can't start new thread|std::bad_alloc|Cannot allocate memory"
    r"|can't allocate memory|not enough memory|(?:m|re)alloc of size \d+ failed|out of memory"
    r"|failed to map segment",
    re.IGNORECASE,
)

# Parameters of mallopt(3), from malloc.h of glibc, and their values in bytes. 32 MiB is the
# largest threshold.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST = 512 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Make this process use freed memory again, instead of returning it to the system.

    A batch has arrays of some megabytes. By default, glibc maps memory for each of them, and the
    kernel fills it with zeros, which takes a tenth of the CPU time of a run. For the same reason
    Arrow gets the allocator jemalloc, unless the user has chosen one by its variable.
    """
    import pyarrow as pa

    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        with suppress(NotImplementedError):
            pa.set_memory_pool(pa.jemalloc_memory_pool())
    set_allocator(_MMAP_THRESHOLD, _LARGEST)
    set_allocator(_TRIM_THRESHOLD, _KEPT)


@contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """Import a module, and keep the garbage collector from the objects that then exist.

    Beam and torch create half a million objects, which live as long as the process. Looking at all
    of them again and again takes a sixth of the time of their imports, and of the time in which
    Beam sets up a pipeline.

    If the caller has frozen objects, nothing else is frozen: Python can only unfreeze all of them.

    Args:
        name: The name of the module.
    """
    enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    try:
        module = importlib.import_module(name)
        if not frozen:
            gc.freeze()
    finally:
        if enabled:
            gc.enable()
    try:
        yield module
    finally:
        if not frozen:
            gc.unfreeze()


def settle() -> None:
    """Keep the garbage collector from all objects that exist now, for the life of this process.

    To look at those of Beam, torch and a model takes it half a second, in which no thread runs.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def settled() -> Iterator[None]:
    """Keep the garbage collector from all objects that exist now, until the block ends.

    If the caller has frozen objects, all stay frozen: Python can only unfreeze all of them.
    """
    frozen = gc.get_freeze_count()
    settle()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def set_allocator(parameter: int, value: int) -> None:
    """Set a parameter of mallopt(3), if the C library of this process is glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)


def is_of_memory(error: BaseException) -> bool:
    """Return whether an exception of Python, Arrow, torch or the system means lack of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or mentions_memory(str(error))
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | ImportError) and mentions_memory(str(error))


def mentions_memory(text: str) -> bool:
    """Return whether a text, such as a worker's traceback, mentions lack of memory."""
    return _TEXTS.search(text) is not None


def out_of_memory(what: str, advice: str = ADVICE) -> OutOfMemory:
    """Return the OutOfMemory error that names what failed and what to do about it."""
    return OutOfMemory(f"out of memory: {what}; {advice}")


def check_memory(error: BaseException, place: str, advice: str = ADVICE) -> None:
    """Raise OutOfMemory if an exception means lack of memory.

    Args:
        error: The exception.
        place: Where it was raised, for example the path of a file.
        advice: What the user can do about it.

    Raises:
        OutOfMemory: The exception means lack of memory.
    """
    if is_of_memory(error):
        raise out_of_memory(f"{place}: {one_line(error, 120)}", advice) from error
