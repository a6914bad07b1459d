"""Tests that bisection finds exactly the bad rows, with as few calls as possible."""

import math
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_handlers.isolate import MOSTLY, SMALL_BATCH, SUSPECTS, NotTried, isolate

Run = Callable[[slice], list[int]]


def raising_on(bad_rows: set[int], calls: list[slice]) -> Run:
    """Return a function that returns row numbers, and raises if one of the rows is bad."""

    def run(rows: slice) -> list[int]:
        calls.append(rows)
        found = bad_rows.intersection(range(rows.start, rows.stop))
        if found:
            raise ValueError(min(found))
        return list(range(rows.start, rows.stop))

    return run


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, set[int]]:
    start, rows = draw(st.integers(0, 1_000)), draw(st.integers(1, 300))
    bad_rows = draw(st.sets(st.integers(start, start + rows - 1), max_size=rows))
    return start, rows, bad_rows


@given(cases())
@example((0, 64, set(range(64))))
@example((5, 1, {5}))
def test_every_row_has_one_result_and_only_bad_rows_have_an_error(
    case: tuple[int, int, set[int]],
) -> None:
    start, rows, bad_rows = case
    calls: list[slice] = []
    parts = list(isolate(raising_on(bad_rows, calls), slice(start, start + rows), (ValueError,)))
    covered = [row for part, _ in parts for row in range(part.start, part.stop)]
    assert covered == list(range(start, start + rows))
    errors = [(part, result) for part, result in parts if isinstance(result, ValueError)]
    assert [part for part, _ in errors] == [slice(row, row + 1) for row in sorted(bad_rows)]
    assert [error.args[0] for _, error in errors] == sorted(bad_rows)
    for part, result in parts:
        if not isinstance(result, ValueError):
            assert result == list(range(part.start, part.stop))
    depth = math.ceil(math.log2(rows)) if rows > 1 else 0
    assert len(calls) <= min(1 + 2 * len(bad_rows) * depth, 2 * rows - 1)


def test_a_range_of_good_rows_takes_one_call() -> None:
    calls: list[slice] = []
    parts = list(isolate(raising_on(set(), calls), slice(3, 11), (ValueError,)))
    assert calls == [slice(3, 11)]
    assert parts == [(slice(3, 11), list(range(3, 11)))]


@pytest.mark.parametrize("error", [KeyError("no"), MemoryError(), KeyboardInterrupt()])
def test_other_exceptions_pass_through(error: BaseException) -> None:
    def run(rows: slice) -> int:
        raise error

    with pytest.raises(type(error)):
        list(isolate(run, slice(0, 4), (ValueError, RuntimeError)))


def test_a_fault_of_the_machine_in_one_half_passes_through() -> None:
    def run(rows: slice) -> int:
        raise ValueError if rows.stop - rows.start > 2 else OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(isolate(run, slice(0, 4), (ValueError,)))


def test_an_error_has_no_reference_to_the_batch() -> None:
    (_, error), _ = isolate(raising_on({0}, []), slice(0, 2), (ValueError,))
    assert isinstance(error, ValueError)
    assert error.__traceback__ is None
    assert error.__context__ is None


# If most rows fail.


@st.composite
def large_cases(draw: st.DrawFn) -> tuple[int, int, set[int]]:
    """Draw up to a quarter of a large range: one sequence, every nth row, or random rows."""
    start, rows = draw(st.integers(0, 1_000)), draw(st.integers(SMALL_BATCH + 1, 6_000))
    count = draw(st.integers(0, rows // 4))
    first = draw(st.integers(0, rows - 1))
    stride = draw(st.sampled_from([1, 2, 3, 4]))
    kind = draw(st.sampled_from(["run", "stride", "anywhere"]))
    if kind == "anywhere":
        random = draw(st.randoms(use_true_random=False))
        return start, rows, {start + row for row in random.sample(range(rows), count)}
    step = 1 if kind == "run" else stride
    return start, rows, {start + (first + i * step) % rows for i in range(count)}


@given(large_cases())
def test_up_to_a_quarter_of_bad_rows_in_a_large_range_are_all_found(
    case: tuple[int, int, set[int]],
) -> None:
    start, rows, bad_rows = case
    calls: list[slice] = []
    parts = list(isolate(raising_on(bad_rows, calls), slice(start, start + rows), (ValueError,)))
    errors = [part for part, result in parts if isinstance(result, Exception)]
    assert errors == [slice(row, row + 1) for row in sorted(bad_rows)]
    depth = math.ceil(math.log2(rows))
    assert len(calls) <= min(1 + 2 * len(bad_rows) * depth, 2 * rows - 1) + SUSPECTS


@given(st.integers(0, 50), st.integers(SMALL_BATCH + 1, 4_000), st.floats(0.8, 1.0))
@example(0, 32_768, 1.0)
@pytest.mark.slow
def test_if_most_rows_fail_few_are_tried_and_every_row_has_a_result(
    start: int, rows: int, share: float
) -> None:
    bad_rows = {start + row for row in range(rows) if (row * 7919) % rows < share * rows}
    calls: list[slice] = []
    whole = slice(start, start + rows)
    parts = list(isolate(raising_on(bad_rows, calls), whole, (ValueError,)))
    covered = [row for part, _ in parts for row in range(part.start, part.stop)]
    assert covered == list(range(start, start + rows))
    left = [(part, result) for part, result in parts if isinstance(result, NotTried)]
    assert left
    for part, result in parts:
        row = part.start
        if isinstance(result, ValueError):
            assert (part, result.args) == (slice(row, row + 1), (row,))
        elif not isinstance(result, Exception):
            assert result == list(range(part.start, part.stop))
            assert not bad_rows.intersection(result)
    ((_, reason), *_) = left
    assert reason.tried == SUSPECTS
    assert reason.failed > MOSTLY * SUSPECTS
    assert isinstance(reason.example, ValueError)
    assert len(calls) <= SUSPECTS * (2 + math.ceil(math.log2(rows))) + SUSPECTS
    # With to_the_end, every bad row is found.
    every = list(isolate(raising_on(bad_rows, []), whole, (ValueError,), to_the_end=True))
    bad = [part.start for part, result in every if isinstance(result, Exception)]
    assert bad == sorted(bad_rows)


def test_a_sequence_of_bad_rows_does_not_affect_the_other_rows() -> None:
    bad_rows = set(range(4_000))
    parts = list(isolate(raising_on(bad_rows, []), slice(0, 20_000), (ValueError,)))
    assert [part.start for part, result in parts if isinstance(result, Exception)] == list(
        range(4_000)
    )


def test_a_fault_of_the_machine_in_the_sample_passes_through() -> None:
    calls = 0

    def run(rows: slice) -> int:
        nonlocal calls
        calls += 1
        raise OSError("gone") if calls > 2 * SUSPECTS + 20 else ValueError

    with pytest.raises(OSError, match="gone"):
        list(isolate(run, slice(0, 10_000), (ValueError,)))
