"""Every message of a level has exactly one fate, and the totals add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_server import results, sent

from scale_tests.measures.accounts import Fate, Ledger, Results, Sent, settle, strays

WAIT = 10.0
NOW = 1_700_000_000.0


def made(
    due: list[float], at: list[float], found: list[tuple[int, float, bool]], closed: float
) -> Ledger:
    faulty = np.zeros(len(due), bool)
    messages = Sent(first=100, due=np.array(due), at=np.array(at), faulty=faulty)
    return settle(messages, of(found), closed, WAIT)


def of(found: list[tuple[int, float, bool]]) -> Results:
    numbers, times, dead = zip(*found, strict=True) if found else ((), (), ())
    return Results(
        sequence=np.array(numbers, np.int64), at=np.array(times), dead=np.array(dead, bool)
    )


def test_each_fate_is_found() -> None:
    ledger = made(
        due=[0, 0, 0, 0, 0, 5, 0],
        at=[0, 0, 0, np.nan, 0, 5, np.nan],
        found=[(100, 1, False), (101, 1, True), (102, 11, False), (106, 2, False)],
        closed=14,
    )
    fates = [Fate.SCORED, Fate.DEAD_LETTERED, Fate.LATE, Fate.UNSENT, Fate.LOST, Fate.PENDING]
    assert ledger.fate.tolist() == [*fates, Fate.SCORED]
    assert not ledger.complete
    assert ledger.totals() == {
        "planned": 7,
        "unsent": 1,
        "scored": 2,
        "dead_lettered": 1,
        "late": 1,
        "lost": 1,
        "pending": 1,
        "error": 0,
        "duplicates": 0,
    }


def test_the_first_result_counts_and_the_others_are_duplicates() -> None:
    found = [(100, 3.0, False), (100, 2.0, True), (100, 4.0, False), (101, 1.0, False)]
    ledger = made([0, 0], [0, 0], found, closed=20)
    assert ledger.duplicates == 2
    assert ledger.arrived.tolist() == [2.0, 1.0]
    assert ledger.fate.tolist() == [Fate.DEAD_LETTERED, Fate.SCORED]


def test_the_wait_starts_when_the_message_was_sent() -> None:
    ledger = made([0, 0], [5, 0], [(100, 14, False), (101, 14, False)], closed=20)
    assert ledger.fate.tolist() == [Fate.SCORED, Fate.LATE]
    # But latency counts from when it was due.
    assert ledger.latencies.tolist() == [14, 14]


def test_results_of_other_levels_and_of_no_level_are_kept_apart() -> None:
    first, second = sent(np.zeros(3)), sent(np.zeros(3), first=3)
    found = results(np.ones(8))
    assert settle(first, found, 20, WAIT).totals()["duplicates"] == 0
    assert strays(found, [first, second]) == 2


def test_goodput_counts_right_results_in_time_of_all_that_were_planned() -> None:
    messages = Sent(
        first=0,
        due=np.zeros(6),
        at=np.zeros(6),
        faulty=np.array([False, False, True, True, False, False]),
    )
    found = of([(0, 0.5, False), (1, 0.5, True), (2, 0.5, True), (3, 0.5, False), (4, 2, False)])
    ledger = settle(messages, found, 20, WAIT)
    # Right: the first, and the dead letter of the third. The fifth is slow, the sixth lost.
    assert ledger.goodput(1_000) == pytest.approx(2 / 6)
    assert ledger.wrong == 2
    assert ledger.complete


def test_an_error_is_no_right_answer_even_to_a_row_with_a_fault() -> None:
    faulty = np.array([False, True, True, False])
    messages = Sent(first=0, due=np.zeros(4), at=np.zeros(4), faulty=faulty)
    found = Results(
        sequence=np.arange(4),
        at=np.full(4, 0.5),
        dead=np.array([False, True, False, True]),
        error=np.array([False, True, True, True]),
    )
    ledger = settle(messages, found, 20, WAIT)
    assert ledger.fate.tolist() == [Fate.SCORED, Fate.ERROR, Fate.ERROR, Fate.ERROR]
    # Right: the prediction, and the refusal of the row with a fault.
    assert ledger.goodput(1_000) == 0.5
    # The refusal of a row without a fault is wrong. An error of another kind says nothing.
    assert ledger.wrong == 1


def test_a_level_without_messages_has_no_goodput() -> None:
    empty = settle(sent(np.zeros(0)), of([]), 20, WAIT)
    assert (empty.planned, empty.goodput(1), empty.complete) == (0, 0.0, True)


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length, got 2, 3 and 2"):
        Sent(first=0, due=np.zeros(2), at=np.zeros(3), faulty=np.zeros(2, bool))


@given(st.data(), st.integers(0, 40), st.floats(0, 60))
def test_the_totals_add_up_whatever_happens(data: st.DataObject, count: int, closed: float) -> None:
    times = st.floats(NOW, NOW + 60)
    due = sorted(data.draw(st.lists(times, min_size=count, max_size=count)))
    lag = st.floats(0, 5) | st.just(float("nan"))
    lags = data.draw(st.lists(lag, min_size=count, max_size=count))
    found = data.draw(
        st.lists(st.tuples(st.integers(90, 110 + count), times, st.booleans()), max_size=120)
    )
    ledger = made(due, [d + late for d, late in zip(due, lags, strict=True)], found, NOW + closed)
    totals = ledger.totals()
    duplicates = totals.pop("duplicates")
    planned = totals.pop("planned")
    assert planned == count == sum(totals.values())
    answered = totals["scored"] + totals["dead_lettered"] + totals["late"]
    own = [number for number, *_ in found if 100 <= number < 100 + count]
    assert answered == len(set(own))
    assert answered + duplicates == len(own)
    assert strays(of(found), [ledger.sent]) == len(found) - len(own)
    for number in range(count):
        earliest = [at for sequence, at, _ in found if sequence == 100 + number]
        arrived = ledger.arrived[number]
        assert arrived == min(earliest) if earliest else np.isnan(arrived)
