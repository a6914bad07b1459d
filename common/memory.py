"""Lack of memory, in whatever form libraries report it, as the one error that says so."""

from __future__ import annotations

import errno
import re

from common.errors import OutOfMemory, one_line

ADVICE = "lower --batch_rows, use fewer workers (--direct_num_workers 1), or allow more memory"
# Where no rows are read in batches.
MORE_MEMORY = "allow this process more memory"
_TEXTS = re.compile(
    r"MemoryError|can't start new thread|std::bad_alloc|Cannot allocate memory"
    r"|can't allocate memory|not enough memory|(?:m|re)alloc of size \d+ failed|out of memory"
    r"|failed to map segment",
    re.IGNORECASE,
)


def is_of_memory(error: BaseException) -> bool:
    """Whether an exception, of Python, Arrow, torch or the system, tells of lack of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or mentions_memory(str(error))
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | ImportError) and mentions_memory(str(error))


def mentions_memory(text: str) -> bool:
    """Whether a text, such as a worker's traceback, tells of lack of memory."""
    return _TEXTS.search(text) is not None


def out_of_memory(what: str, advice: str = ADVICE) -> OutOfMemory:
    """What could not be done -> the error that says so, and what to do."""
    return OutOfMemory(f"out of memory: {what}; {advice}")


def check_memory(error: BaseException, place: str, advice: str = ADVICE) -> None:
    """An exception and where it came up -> nothing. Raises OutOfMemory where memory lacked."""
    if is_of_memory(error):
        raise out_of_memory(f"{place}: {one_line(error, 120)}", advice) from error
