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

    One guilty row among n costs about 2 log2(n) calls.
    """
    try:
        result: T | Exception = run(rows)
    except permanent as error:
        if rows.stop - rows.start > 1:
            middle = (rows.start + rows.stop) // 2
            yield from isolate(run, slice(rows.start, middle), permanent)
            yield from isolate(run, slice(middle, rows.stop), permanent)
            return
        result = error
    yield rows, result
