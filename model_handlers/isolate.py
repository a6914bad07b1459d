"""Bisection: find the rows that make a batch fail, and get answers for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# Once this many rows of a batch have failed alone, so many of its rows, taken at random, are
# tried alone. A batch in which more than MOSTLY of these fail is not bisected further: each of
# its rows would cost two calls. One in which a quarter fails is taken for such a batch once in
# 10^18 times; of one in which half fails, once in a hundred.
SUSPECTS = 128
MOSTLY = 0.6
# A batch of so many rows is bisected to its end whatever fails: it costs a moment.
SMALL_BATCH = 512


class NotTried(Exception):
    """A row that was not tried alone, since most of its batch fails.

    tried: rows of the batch that were, taken at random; failed: of these; example: why one did.
    """

    def __init__(self, tried: int, failed: int, example: Exception) -> None:
        super().__init__(tried, failed, example)
        self.tried, self.failed, self.example = tried, failed, example


def isolate(
    run: Callable[[slice], T],
    rows: slice,
    permanent: tuple[type[Exception], ...],
    *,
    to_the_end: bool = False,
) -> Iterator[tuple[slice, T | Exception]]:
    """A function over rows and a range -> the range's parts in order, each with its result.

    run: called with a slice, answers for exactly these rows or raises.
    permanent: exceptions that say the rows are at fault. A failing slice is halved
        until the guilty rows stand alone; these come with their exception. Any other
        exception passes through: a fault of the machine is not a fault of the data.
    to_the_end: also where most rows of a large range fail; otherwise the rows that are left
        then come with NotTried, and cost nothing.

    n rows, k of them guilty, cost at most 1 + 2 k ceil(log2(n)) calls, and never more
    than 2 n - 1.
    """
    patient = to_the_end or rows.stop - rows.start <= SMALL_BATCH
    waiting, alone = [rows], 0
    while waiting:
        part = waiting.pop()
        result = _attempt(run, part, permanent)
        failed = isinstance(result, permanent)
        if failed and part.stop - part.start > 1:
            middle = (part.start + part.stop) // 2
            waiting += [slice(middle, part.stop), slice(part.start, middle)]
            continue
        yield part, result
        alone += failed
        if failed and alone == SUSPECTS and not patient:
            sample = {
                row: _attempt(run, slice(row, row + 1), permanent) for row in random_rows(rows)
            }
            reason = mostly_fails(sample, permanent)
            if reason is not None:
                yield from _give_up(slice(part.stop, rows.stop), sample, reason)
                return


def random_rows(rows: slice) -> list[int]:
    """A range of rows -> SUSPECTS of them in order, taken at random, the same each time."""
    random = np.random.default_rng(rows.stop - rows.start)
    found = random.choice(rows.stop - rows.start, SUSPECTS, replace=False)
    return sorted(rows.start + int(row) for row in found)


def mostly_fails(
    sample: dict[int, T | Exception], permanent: tuple[type[Exception], ...]
) -> NotTried | None:
    """Rows tried alone and their results -> why no other is tried, None where too few failed."""
    failed = [result for result in sample.values() if isinstance(result, permanent)]
    if len(failed) <= MOSTLY * len(sample):
        return None
    return NotTried(len(sample), len(failed), failed[0])


def _attempt(
    run: Callable[[slice], T], part: slice, permanent: tuple[type[Exception], ...]
) -> T | Exception:
    """A slice -> its answer, or what the rows made `run` raise."""
    try:
        return run(part)
    except permanent as error:
        # The frames in its traceback would keep the batch in memory.
        return error.with_traceback(None)


def _give_up(
    rest: slice, sample: dict[int, T | Exception], reason: NotTried
) -> Iterator[tuple[slice, T | Exception]]:
    """What is left of a range -> its parts: rows of the sample, and between them NotTried."""
    start = rest.start
    for row, result in sample.items():
        if row < rest.start:
            continue
        if start < row:
            yield slice(start, row), reason
        yield slice(row, row + 1), result
        start = row + 1
    if start < rest.stop:
        yield slice(start, rest.stop), reason
