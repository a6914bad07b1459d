"""Bisection: find the rows that make a batch fail, and get answers for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def isolate(
    run: Callable[[slice], T], rows: slice, permanent: tuple[type[Exception], ...]
) -> Iterator[tuple[slice, T | Exception]]:
    """A function over rows and a range -> the range's parts in order, each with its result.

    run: called with a slice, answers for exactly these rows or raises.
    permanent: exceptions that say the rows are at fault. A failing slice is halved
        until the guilty rows stand alone; these come with their exception. Any other
        exception passes through: a fault of the machine is not a fault of the data.

    n rows, k of them guilty, cost at most 1 + 2 k ceil(log2(n)) calls, and never more
    than 2 n - 1.
    """
    try:
        result: T | Exception = run(rows)
    except permanent as error:
        # The frames in its traceback would keep the batch in memory.
        result = error.with_traceback(None)
    if isinstance(result, permanent) and rows.stop - rows.start > 1:
        middle = (rows.start + rows.stop) // 2
        yield from isolate(run, slice(rows.start, middle), permanent)
        yield from isolate(run, slice(middle, rows.stop), permanent)
    else:
        yield rows, result
