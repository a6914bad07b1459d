"""Bisection finds exactly the guilty rows, and asks no more often than it must."""

import math
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_handlers.isolate import isolate

Run = Callable[[slice], list[int]]


def raising_on(guilty: set[int], calls: list[slice]) -> Run:
    """A function that answers each row with its number, and cannot bear a guilty one."""

    def run(rows: slice) -> list[int]:
        calls.append(rows)
        found = guilty.intersection(range(rows.start, rows.stop))
        if found:
            raise ValueError(min(found))
        return list(range(rows.start, rows.stop))

    return run


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, set[int]]:
    start, rows = draw(st.integers(0, 1_000)), draw(st.integers(1, 300))
    guilty = draw(st.sets(st.integers(start, start + rows - 1), max_size=rows))
    return start, rows, guilty


@given(cases())
@example((0, 64, set(range(64))))
@example((5, 1, {5}))
def test_every_row_has_one_result_and_only_guilty_rows_an_error(
    case: tuple[int, int, set[int]],
) -> None:
    start, rows, guilty = case
    calls: list[slice] = []
    parts = list(isolate(raising_on(guilty, calls), slice(start, start + rows), (ValueError,)))
    covered = [row for part, _ in parts for row in range(part.start, part.stop)]
    assert covered == list(range(start, start + rows))
    errors = [(part, result) for part, result in parts if isinstance(result, ValueError)]
    assert [part for part, _ in errors] == [slice(row, row + 1) for row in sorted(guilty)]
    assert [error.args[0] for _, error in errors] == sorted(guilty)
    for part, result in parts:
        if not isinstance(result, ValueError):
            assert result == list(range(part.start, part.stop))
    depth = math.ceil(math.log2(rows)) if rows > 1 else 0
    assert len(calls) <= min(1 + 2 * len(guilty) * depth, 2 * rows - 1)


def test_a_sound_range_is_asked_once() -> None:
    calls: list[slice] = []
    parts = list(isolate(raising_on(set(), calls), slice(3, 11), (ValueError,)))
    assert calls == [slice(3, 11)]
    assert parts == [(slice(3, 11), list(range(3, 11)))]


@pytest.mark.parametrize("error", [KeyError("no"), MemoryError(), KeyboardInterrupt()])
def test_other_exceptions_pass(error: BaseException) -> None:
    def run(rows: slice) -> int:
        raise error

    with pytest.raises(type(error)):
        list(isolate(run, slice(0, 4), (ValueError, RuntimeError)))


def test_a_fault_of_the_machine_in_a_half_passes_too() -> None:
    def run(rows: slice) -> int:
        raise ValueError if rows.stop - rows.start > 2 else OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(isolate(run, slice(0, 4), (ValueError,)))


def test_an_error_holds_nothing_of_the_batch() -> None:
    (_, error), _ = isolate(raising_on({0}, []), slice(0, 2), (ValueError,))
    assert isinstance(error, ValueError)
    assert error.__traceback__ is None
    assert error.__context__ is None
