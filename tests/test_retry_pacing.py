"""The pace of requests: the limit on requests in flight, the budget of retries, and backoff."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.retry_pacing import (
    FIRST_BACKOFF,
    LONGEST_BACKOFF,
    AdaptiveLimit,
    RetryBudget,
    backoff,
    parse_retry_after,
)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_in_flight_stay_within_the_limit_in_order_of_arrival() -> None:
    async def test() -> None:
        limit, went = AdaptiveLimit(2), []

        async def take(name: int) -> None:
            await limit.acquire()
            went.append(name)

        tasks = [asyncio.create_task(take(name)) for name in range(4)]
        await settle()
        assert (went, limit.in_flight) == ([0, 1], 2)
        limit.release()
        await settle()
        assert (went, limit.in_flight) == ([0, 1, 2], 2)
        limit.release()
        limit.release()
        await settle()
        assert (went, limit.in_flight) == ([0, 1, 2, 3], 1)
        await asyncio.gather(*tasks)

    run(test)


def test_a_cancelled_wait_takes_no_place() -> None:
    async def test() -> None:
        limit = AdaptiveLimit(1)
        await limit.acquire()
        first, second = (asyncio.create_task(limit.acquire()) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        limit.release()
        await second
        assert limit.in_flight == 1

    run(test)


def test_the_place_of_a_task_that_is_cancelled_as_it_gets_it_goes_to_the_next() -> None:
    async def test() -> None:
        limit = AdaptiveLimit(1)
        await limit.acquire()
        first, second = (asyncio.create_task(limit.acquire()) for _ in range(2))
        await settle()
        limit.release()  # this gives the place to the first task, which has not run yet
        first.cancel()
        await asyncio.wait_for(second, 10)
        assert first.cancelled()
        assert limit.in_flight == 1

    run(test)


def test_the_limit_is_halved_once_for_concurrent_requests() -> None:
    limit = AdaptiveLimit(8)
    limit.pushed_back(began=1.0, now=2.0)
    assert limit.limit == 4
    limit.pushed_back(began=1.5, now=2.1)
    assert limit.limit == 4
    limit.pushed_back(began=2.2, now=3.0)
    assert limit.limit == 2
    for time in range(4, 10):
        limit.pushed_back(time, time)
    assert limit.limit == 1


def test_a_limit_of_n_grows_by_one_per_n_answers() -> None:
    limit = AdaptiveLimit(8)
    limit.pushed_back(1.0, 2.0)
    for _ in range(4):
        limit.answered()
    assert limit.limit == pytest.approx(5, abs=0.1)
    assert limit.is_lowered
    for _ in range(40):
        limit.answered()
    assert limit.limit == 8
    assert not limit.is_lowered


def test_waiting_requests_are_sent_when_the_limit_grows() -> None:
    async def test() -> None:
        limit = AdaptiveLimit(2)
        limit.pushed_back(1.0, 2.0)
        await limit.acquire()
        waiting = asyncio.create_task(limit.acquire())
        await settle()
        assert not waiting.done()
        limit.answered()
        await waiting
        assert limit.in_flight == 2

    run(test)


STEPS = st.sampled_from(["take", "end", "end", "cancel", "push"])


@given(st.lists(st.tuples(STEPS, st.integers(0, 9))))
def test_places_are_never_lost_or_duplicated(steps: list[tuple[str, int]]) -> None:
    async def test() -> None:
        limit, tasks = AdaptiveLimit(3), []
        held: list[asyncio.Task[None]] = []
        for now, (step, chosen) in enumerate(steps):
            if step == "take":
                tasks.append(asyncio.create_task(limit.acquire()))
            if step == "cancel" and tasks:
                tasks[chosen % len(tasks)].cancel()
            if step == "push":
                limit.pushed_back(now, now)
            if step == "end" and held:
                held.pop()
                limit.release()
                limit.answered()
            if chosen % 2:
                await settle()
            gone = [task for task in tasks if task.done()]
            held += [task for task in gone if not task.cancelled()]
            tasks = [task for task in tasks if not task.done()]
            assert limit.in_flight <= 3
        await settle()
        while tasks or held:
            gone = [task for task in tasks if task.done()]
            held += [task for task in gone if not task.cancelled()]
            tasks = [task for task in tasks if not task.done()]
            assert held or not tasks, "a task waits although all places are free"
            if held:
                held.pop()
                limit.release()
            await settle()
        assert limit.in_flight == 0

    run(test)


def test_retries_are_free_until_the_budget_is_spent_and_then_one_per_second() -> None:
    budget = RetryBudget(most=2, per_second=1)
    assert [budget.spend(10.0) for _ in range(4)] == [0, 0, 1, 2]
    assert budget.spend(13.0) == 0  # three seconds pay for the two owed retries and this one
    assert budget.spend(13.0) == 1


def test_a_last_retry_does_not_delay_others() -> None:
    budget = RetryBudget(most=1)
    assert [budget.spend(10.0, most) for most in (5, 5, 0.5, 0.0, 5)] == [0, 1, 0.5, 0, 2]


def test_two_good_answers_pay_for_a_retry_and_the_budget_has_a_limit() -> None:
    budget = RetryBudget(most=2, per_answer=0.5)
    for _ in range(100):
        budget.answered()
    assert [budget.spend(1.0) for _ in range(3)] == [0, 0, 1]
    for _ in range(4):
        budget.answered()
    assert budget.spend(1.0) == 0
    assert [budget.spend(1_000.0) for _ in range(3)] == [0, 0, 1]


def test_waits_double_with_full_jitter_up_to_a_limit() -> None:
    for attempt, ceiling in ((0, FIRST_BACKOFF), (3, 8 * FIRST_BACKOFF), (99, LONGEST_BACKOFF)):
        waits = [backoff(attempt) for _ in range(500)]
        assert 0 <= min(waits) < ceiling / 10
        assert ceiling * 0.9 < max(waits) <= ceiling


def test_retry_after_is_the_shortest_wait_and_waits_differ() -> None:
    waits = {backoff(0, 7.0) for _ in range(50)}
    assert min(waits) >= 7
    assert max(waits) <= 7 + FIRST_BACKOFF
    assert len(waits) > 10


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    long_ago = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert parse_retry_after("12") == 12
    assert parse_retry_after("0.5") == 0.5
    assert 25 < parse_retry_after(soon) <= 30
    for nothing in (None, "", "-3", long_ago, "soon", "nan", "Wed, 99 Foo 2020 99:99:99 GMT"):
        assert parse_retry_after(nothing) == 0


@given(st.text())
def test_retry_after_may_be_anything(text: str) -> None:
    seconds = parse_retry_after(text)
    assert seconds >= 0
    assert not math.isnan(seconds)
