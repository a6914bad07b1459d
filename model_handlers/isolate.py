"""Find the rows that make a batch fail by bisection, and get answers for the other rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# When SUSPECTS rows of a batch have failed alone, SUSPECTS random rows of it are tried alone. If
# more than the share MOSTLY of that sample fails, the batch is not bisected further, because each
# of its rows would cost two calls. A batch in which a quarter of the rows fails is given up by
# mistake once in 10^18 times, and a batch in which half of the rows fail once in 100 times.
SUSPECTS = 128
MOSTLY = 0.6
# A batch of at most this many rows is always bisected to the end, because that is fast.
SMALL_BATCH = 512


class NotTried(Exception):
    """The result of a row that was not tried on its own, because most rows of its batch fail.

    Attributes:
        tried: The number of random rows of the batch that were tried alone.
        failed: How many of those rows failed.
        example: The exception of one of them.
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
    """Run a function over a range of rows, and halve failing parts until the bad rows are alone.

    If k of n rows are bad, this takes at most 1 + 2 k ceil(log2(n)) calls, and never more than
    2 n - 1. A range of more than SMALL_BATCH rows may take SUSPECTS more calls, for the sample.

    Args:
        run: A function that takes a slice, and returns the answer for exactly these rows or
            raises.
        rows: The range of rows.
        permanent: Exceptions that mean that the rows are at fault. Any other exception passes
            through, because a fault of the machine is not a fault of the data.
        to_the_end: Whether to go on even if most rows of a large range fail. Otherwise the
            remaining rows get NotTried as their result, without further calls.

    Yields:
        The parts of the range in order, each with its answer or with its exception.
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
    """Return SUSPECTS random row numbers of a range in order, always the same for one length."""
    random = np.random.default_rng(rows.stop - rows.start)
    found = random.choice(rows.stop - rows.start, SUSPECTS, replace=False)
    return sorted(rows.start + int(row) for row in found)


def mostly_fails(
    sample: dict[int, T | Exception], permanent: tuple[type[Exception], ...]
) -> NotTried | None:
    """Decide from a sample whether most rows of a batch fail.

    Args:
        sample: The result of each row that was tried alone, by row number.
        permanent: The exceptions that count as a failure of the row.

    Returns:
        The result for the rows that will not be tried, or None if too few rows failed.
    """
    failed = [result for result in sample.values() if isinstance(result, permanent)]
    if len(failed) <= MOSTLY * len(sample):
        return None
    return NotTried(len(sample), len(failed), failed[0])


def _attempt(
    run: Callable[[slice], T], part: slice, permanent: tuple[type[Exception], ...]
) -> T | Exception:
    """Return the answer for a slice, or the exception that `run` raised because of its rows."""
    try:
        return run(part)
    except permanent as error:
        # The frames of the traceback would keep the batch in memory.
        return error.with_traceback(None)


def _give_up(
    rest: slice, sample: dict[int, T | Exception], reason: NotTried
) -> Iterator[tuple[slice, T | Exception]]:
    """Yield the rest of a range: the rows of the sample, and NotTried for the rows between them."""
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
